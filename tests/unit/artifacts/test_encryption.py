"""Encryption at rest and for one device: what was written is read, and nothing else is."""

import hashlib
import hmac
import random

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.artifacts import encryption as module
from fedretrain.artifacts.encryption import (
    CHUNK_BYTES,
    EncryptedStore,
    create_key,
    decrypt,
    encrypt,
    load_key,
    open_sealed,
    public_half,
    seal,
)
from fedretrain.artifacts.store import ContentStore
from fedretrain.core.errors import DataError

MASTER, OTHER = bytes(range(32)), bytes(range(1, 33))
STEP = CHUNK_BYTES + 16
THREE_CHUNKS = random.Random(1).randbytes(2 * CHUNK_BYTES + 100)
SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 17]


def name_of(content):
    return hashlib.sha256(content).hexdigest()


def chunks_of(stored):
    head, body = stored[: module._START], stored[module._START :]
    return head, [body[start : start + STEP] for start in range(0, len(body), STEP)]


@pytest.fixture
def store(tmp_path):
    return EncryptedStore(tmp_path / "store", MASTER)


@pytest.mark.parametrize("size", SIZES)
def test_content_of_every_length_is_read_back(size):
    content = random.Random(size).randbytes(size)
    stored = encrypt(content, MASTER, name_of(content))
    assert decrypt(stored, MASTER, name_of(content)) == content
    assert len(stored) == module._START + size + 16 * max(1, -(-size // CHUNK_BYTES))
    assert size < 16 or content[:16] not in stored


def test_no_two_files_share_a_key():
    digest = name_of(b"weights")
    assert len({encrypt(b"weights", MASTER, digest)[module._START :] for _ in range(20)}) == 20


def test_no_two_chunks_share_a_nonce():
    nonces = {module._nonce(chunk, is_last) for chunk in range(300) for is_last in (False, True)}
    assert len(nonces) == 600
    assert {len(nonce) for nonce in nonces} == {12}


DAMAGES = {
    "another_master": lambda head, chunks: (head + b"".join(chunks), OTHER, None),
    "another_digest": lambda head, chunks: (head + b"".join(chunks), MASTER, "a" * 64),
    "last_chunk_gone": lambda head, chunks: (head + b"".join(chunks[:-1]), MASTER, None),
    "first_chunk_gone": lambda head, chunks: (head + b"".join(chunks[1:]), MASTER, None),
    "a_middle_chunk_gone": lambda head, chunks: (head + chunks[0] + chunks[2], MASTER, None),
    "chunks_swapped": lambda head, chunks: (head + chunks[1] + chunks[0] + chunks[2], MASTER, None),
    "a_chunk_twice": lambda head, chunks: (head + chunks[0] + chunks[0] + chunks[2], MASTER, None),
    "a_chunk_more": lambda head, chunks: (head + b"".join(chunks) + chunks[-1], MASTER, None),
    "a_chunk_of_another_file": lambda head, chunks: (
        head + chunks_of(encrypt(THREE_CHUNKS, MASTER, name_of(THREE_CHUNKS)))[1][0] + b"".join(chunks[1:]),
        MASTER,
        None,
    ),
    "cut_in_a_chunk": lambda head, chunks: (head + b"".join(chunks)[:-1], MASTER, None),
    "cut_in_a_tag": lambda head, chunks: (head + b"".join(chunks[:2]) + chunks[2][:5], MASTER, None),
    "a_byte_more": lambda head, chunks: (head + b"".join(chunks) + b"x", MASTER, None),
    "all_chunks_gone": lambda head, _chunks: (head, MASTER, None),
    "empty": lambda _head, _chunks: (b"", MASTER, None),
    "never_encrypted": lambda _head, _chunks: (THREE_CHUNKS, MASTER, None),
    "salt_changed": lambda head, chunks: (head[:-1] + bytes([head[-1] ^ 1]) + b"".join(chunks), MASTER, None),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_was_changed_does_not_decrypt(name):
    digest = name_of(THREE_CHUNKS)
    stored, master, other = DAMAGES[name](*chunks_of(encrypt(THREE_CHUNKS, MASTER, digest)))
    with pytest.raises(DataError, match=r"does not decrypt|not an encrypted file"):
        decrypt(stored, master, other or digest)


@given(st.binary(max_size=200), st.data())
def test_no_flipped_bit_and_no_cut_goes_unseen(content, data):
    digest = name_of(content)
    stored = bytearray(encrypt(content, MASTER, digest))
    index = data.draw(st.integers(0, len(stored) - 1))
    for damaged in (
        stored[:index],
        stored[:index] + bytes([stored[index] ^ data.draw(st.integers(1, 255))]) + stored[index + 1 :],
    ):
        with pytest.raises(DataError):
            decrypt(bytes(damaged), MASTER, digest)


@pytest.mark.parametrize("size", SIZES)
def test_the_store_keeps_the_digests_of_the_plaintext(store, size):
    content = random.Random(size).randbytes(size)
    digest = store.put(content)
    assert digest == name_of(content)
    assert store.get(digest) == content
    assert store.has(digest)
    assert store.digests() == (digest,)
    assert store.verify() == ()
    on_disk = (store._root / digest).read_bytes()
    assert on_disk != content
    assert on_disk.startswith(module._MAGIC)


def test_a_second_put_leaves_the_file_and_a_damaged_one_is_replaced(store):
    digest = store.put(b"weights")
    before = (store._root / digest).read_bytes()
    store.put(b"weights")
    assert (store._root / digest).read_bytes() == before
    (store._root / digest).write_bytes(before[:-1])
    assert store.verify() == (digest,)
    with pytest.raises(DataError, match="does not decrypt"):
        store.get(digest)
    store.put(b"weights")
    assert store.get(digest) == b"weights"


def test_another_master_key_reads_nothing_and_a_plain_store_neither(store):
    digest = store.put(b"weights")
    other = EncryptedStore(store._root, OTHER)
    with pytest.raises(DataError, match="another key"):
        other.get(digest)
    assert other.verify() == (digest,)
    with pytest.raises(DataError, match="is damaged"):
        ContentStore(store._root).get(digest)


def test_a_plain_file_in_an_encrypted_store_is_refused(store):
    digest = ContentStore(store._root).put(b"weights")
    with pytest.raises(DataError, match="not an encrypted file"):
        store.get(digest)


@pytest.mark.parametrize("name", ["../x", "", "A" * 64, None])
def test_anything_but_a_digest_is_refused_here_too(store, name):
    with pytest.raises(DataError, match="not a SHA-256 digest"):
        store.get(name)


@pytest.mark.parametrize("master", [b"", MASTER[:-1], MASTER + b"x"])
def test_a_master_key_has_32_bytes(tmp_path, master):
    with pytest.raises(DataError, match="a master key of"):
        EncryptedStore(tmp_path, master)


def test_a_key_file_is_made_once_for_the_owner_alone(tmp_path):
    path = tmp_path / "deep" / "master.key"
    create_key(path)
    key = load_key(path)
    create_key(path)
    assert load_key(path) == key
    assert len(key) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(DataError, match="others may have read it"):
        load_key(path)


def test_a_file_of_another_length_is_no_key(tmp_path):
    path = tmp_path / "master.key"
    path.write_bytes(b"short")
    path.chmod(0o600)
    with pytest.raises(DataError, match="not a key of 32"):
        load_key(path)


# HPKE. Base mode as RFC 9180 writes it, from its primitives: the oracle for `seal` and `open_sealed`.
def labelled_extract(suite, salt, label, ikm):
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, "sha256")


def labelled_expand(suite, secret, label, info, length):
    message = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return hmac.digest(secret, message + b"\x01", "sha256")[:length]


def oracle_cipher(shared, info, aead_id, key_bytes):
    suite = b"HPKE" + bytes([0, 32, 0, 1, 0, aead_id])
    context = (
        b"\0"
        + labelled_extract(suite, b"", b"psk_id_hash", b"")
        + labelled_extract(suite, b"", b"info_hash", info)
    )
    secret = labelled_extract(suite, shared, b"secret", b"")
    key = labelled_expand(suite, secret, b"key", context, key_bytes)
    return AESGCM(key), labelled_expand(suite, secret, b"base_nonce", context, 12)


def oracle_shared(dh, enc, public_key):
    prime = labelled_extract(b"KEM\0\x20", b"", b"eae_prk", dh)
    return labelled_expand(b"KEM\0\x20", prime, b"shared_secret", enc + public_key, 32)


def oracle_open(sealed, private_key, info, aad=b"", aead_id=2, key_bytes=32):
    enc, ciphertext = sealed[:32], sealed[32:]
    mine = X25519PrivateKey.from_private_bytes(private_key)
    shared = oracle_shared(
        mine.exchange(X25519PublicKey.from_public_bytes(enc)), enc, mine.public_key().public_bytes_raw()
    )
    cipher, nonce = oracle_cipher(shared, info, aead_id, key_bytes)
    return cipher.decrypt(nonce, ciphertext, aad)


def oracle_seal(content, public_key, info):
    own = X25519PrivateKey.generate()
    enc = own.public_key().public_bytes_raw()
    shared = oracle_shared(own.exchange(X25519PublicKey.from_public_bytes(public_key)), enc, public_key)
    cipher, nonce = oracle_cipher(shared, info, 2, 32)
    return enc + cipher.encrypt(nonce, content, b"")


def test_the_oracle_opens_what_the_rfc_published():
    """RFC 9180, appendix A.1.1 (its suite differs from ours in the length of the AES key), first encryption."""
    opened = oracle_open(
        bytes.fromhex(
            "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431"
            "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a"
        ),
        bytes.fromhex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8"),
        b"Ode on a Grecian Urn",
        aad=b"Count-0",
        aead_id=1,
        key_bytes=16,
    )
    assert opened == b"Beauty is truth, truth beauty"


PRIVATE = bytes(range(7, 39))
PUBLIC = public_half(PRIVATE)
INFO = b"pumps|pump-17|head"


@given(st.binary(max_size=300), st.binary(max_size=40))
def test_sealing_agrees_with_the_rfcs_own_words(content, info):
    assert oracle_open(seal(content, PUBLIC, info), PRIVATE, info) == content
    assert open_sealed(oracle_seal(content, PUBLIC, info), PRIVATE, info) == content
    assert open_sealed(seal(content, PUBLIC, info), PRIVATE, info) == content


def test_the_same_content_is_never_sealed_alike():
    assert len({seal(b"head", PUBLIC, INFO) for _ in range(20)}) == 20


def test_only_this_device_and_this_purpose_open_it():
    sealed = seal(b"head", PUBLIC, INFO)
    for key, info in ((OTHER, INFO), (PRIVATE, b"pumps|pump-18|head"), (PRIVATE, b"")):
        with pytest.raises(DataError, match="not sealed for this device"):
            open_sealed(sealed, key, info)


@given(st.binary(max_size=60), st.data())
def test_a_sealed_blob_that_was_changed_does_not_open(content, data):
    sealed = bytearray(seal(content, PUBLIC, INFO))
    index = data.draw(st.integers(0, len(sealed) - 1))
    change = data.draw(
        st.integers(1, 127)
    )  # X25519 ignores the highest bit of a point, and binds the bytes nonetheless
    for damaged in (sealed[:index], sealed[:index] + bytes([sealed[index] ^ change]) + sealed[index + 1 :]):
        with pytest.raises(DataError):
            open_sealed(bytes(damaged), PRIVATE, INFO)


@pytest.mark.parametrize("public_key", [b"", bytes(31), bytes(33), bytes(32), bytes([1, *bytes(31)])])
def test_what_is_no_public_key_is_refused(public_key):
    """The last two are points with which every device would share one secret."""
    with pytest.raises(DataError, match="not a device's public key"):
        seal(b"head", public_key, INFO)


@given(st.binary(max_size=120))
def test_any_bytes_do_not_open(content):
    with pytest.raises(DataError):
        open_sealed(content, PRIVATE, INFO)
