"""Encryption of stored blobs, and of what is meant for one device alone.

Rules of this file:
    * At rest: AES-256-GCM in chunks. Each file has a key of its own, derived from the master key with 32 fresh random bytes and the content's digest,
      so a nonce (the chunk's number, and whether it is the last) is never used twice under one key (after STREAM, https://eprint.iacr.org/2015/189).
    * A chunk that is changed, missing, moved, or from another file does not decrypt; neither does a file under another digest's name.
    * Names stay the digests of the plaintext: who reads the folder learns which known files are in it, and their length.
    * For a device: HPKE in base mode (RFC 9180, X25519, HKDF-SHA256, AES-256-GCM). It hides; it does not say who sealed: what is inside must be signed.
    * Secrets are arguments or come from `private_files`. No message of an error holds one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedretrain.artifacts.private_files import make_private, read_private
from fedretrain.artifacts.store import ContentStore
from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

KEY_BYTES = 32
SEAL_BYTES = 48
"""What sealing adds: the sender's public key and a tag."""
CHUNK_BYTES = 64 * 1024

_MAGIC = b"fedretrain blob 1\n"
_SALT_BYTES = 32
_TAG_BYTES = 16
_START = len(_MAGIC) + _SALT_BYTES


def create_key(path: Path) -> None:
    """Make a file with 32 random bytes: a store's master key, or a device's X25519 key. One that is there stays.

    Raises:
        DataError: If it cannot be written.
    """
    make_private(path, lambda: os.urandom(KEY_BYTES))


def load_key(path: Path) -> bytes:
    """The 32 bytes that `create_key` made.

    Raises:
        DataError: If the file is missing, readable by others, or holds anything else.
    """
    key = read_private(path)
    if len(key) != KEY_BYTES:
        raise DataError(
            f"the file holds {len(key)} bytes, not a key of 32", where=str(path), fix="restore it"
        )
    return key


def encrypt(content: bytes, master: bytes, digest: str) -> bytes:
    """Content as it lies on the disk: magic, salt, chunks with their tags. Each call gives other bytes.

    Args:
        content: The plaintext.
        master: 32 bytes.
        digest: SHA-256 of the plaintext; the result opens under this name only.
    """
    salt = os.urandom(_SALT_BYTES)
    cipher = _cipher(master, salt, digest)
    chunks = [content[start : start + CHUNK_BYTES] for start in range(0, len(content), CHUNK_BYTES)] or [b""]
    last = len(chunks) - 1
    return b"".join(
        (_MAGIC, salt, *(cipher.encrypt(_nonce(i, i == last), chunk, None) for i, chunk in enumerate(chunks)))
    )


def decrypt(stored: bytes, master: bytes, digest: str) -> bytes:
    """What `encrypt` was given.

    Raises:
        DataError: If the bytes are damaged, cut, of another digest, or encrypted under another key.
    """
    if not stored.startswith(_MAGIC) or len(stored) < _START + _TAG_BYTES:
        raise DataError(
            f"the content {digest} is not an encrypted file", where=digest, fix="fetch and store it again"
        )
    cipher = _cipher(master, stored[len(_MAGIC) : _START], digest)
    step = CHUNK_BYTES + _TAG_BYTES
    starts = range(_START, len(stored), step)
    try:
        return b"".join(
            cipher.decrypt(_nonce(i, start + step >= len(stored)), stored[start : start + step], None)
            for i, start in enumerate(starts)
        )
    except InvalidTag as error:
        raise DataError(
            f"the content {digest} does not decrypt: it is damaged, or was stored under another key",
            where=digest,
            fix="check the master key, else fetch and store it again",
        ) from error


class EncryptedStore(ContentStore):
    """A `ContentStore` whose files are encrypted. Digests are those of the plaintext.

    Args:
        root: The folder; made if it is not there.
        master: 32 bytes (`load_key`).

    Raises:
        DataError: If the folder cannot be made, or the key is none.
    """

    def __init__(self, root: Path | str, master: bytes) -> None:
        if len(master) != KEY_BYTES:
            raise DataError(f"a master key of {len(master)} bytes", where="master", fix="give 32")
        super().__init__(root)
        self._master = master

    def _to_disk(self, digest: str, content: bytes) -> bytes:
        return encrypt(content, self._master, digest)

    def _from_disk(self, digest: str, stored: bytes) -> bytes:
        try:
            return decrypt(stored, self._master, digest)
        except DataError as error:
            raise DataError(error.what, where=str(self._root / digest), fix=error.fix) from error

    def _is_sound(self, digest: str) -> bool:
        try:
            self.get(digest)
        except DataError:
            return False
        return True


def public_half(private_key: bytes) -> bytes:
    """The raw X25519 public key that belongs to a device's private one: what it tells at enrolment."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def file_info(population: str, device: str, digest: str) -> bytes:
    """What a file of a package is sealed for: it opens for this device as this file only."""
    return f"fedretrain file 1\n{population}\n{device}\n{digest}".encode()


def seal(content: bytes, public_key: bytes, info: bytes) -> bytes:
    """Encrypt for one device.

    Args:
        content: What it alone shall read.
        public_key: Its raw X25519 key.
        info: What this is (population, device, purpose); it opens under the same only. Not secret, not sent.

    Raises:
        DataError: If the key is none.
    """
    try:
        return _suite().encrypt(content, X25519PublicKey.from_public_bytes(public_key), info)
    except (
        ValueError
    ) as error:  # a key of another length, or one of the points that give everybody the same secret
        raise DataError(
            "not a device's public key", where="public_key", fix="enrol the device again"
        ) from error


def open_sealed(sealed: bytes, private_key: bytes, info: bytes) -> bytes:
    """What was sealed for this device.

    Raises:
        DataError: If it is damaged, for another device, or for another purpose.
    """
    try:
        return _suite().decrypt(sealed, X25519PrivateKey.from_private_bytes(private_key), info)
    except (InvalidTag, ValueError) as error:
        raise DataError(
            "it was not sealed for this device and purpose, or is damaged",
            where="sealed",
            fix="fetch it again",
        ) from error


def _suite() -> Suite:
    return Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def _cipher(master: bytes, salt: bytes, digest: str) -> AESGCM:
    return AESGCM(HKDF(SHA256(), KEY_BYTES, salt, _MAGIC + digest.encode()).derive(master))


def _nonce(chunk: int, is_last: bool) -> bytes:
    return chunk.to_bytes(11, "big") + bytes([is_last])
