"""Key files: the root's on a medium of its own, the online ones with the server.

Rules of this file:
    * A private key is a PKCS #8 file under the rules of `private_files`. New keys go into a new folder, and a new root tells of them.
    * The offline machine needs the public halves alone (``online/public.json``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fedretrain.artifacts.private_files import make_private, read_private
from fedretrain.core.durable import write_whole
from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ROLES = ("targets", "snapshot", "timestamp", "assignment")


@dataclass(frozen=True)
class OnlineKeys:
    """What the server signs with.

    Attributes:
        targets: Signs the list of installable packages.
        snapshot: Signs which version of the list is the present one.
        timestamp: Signs that the snapshot is the newest.
        assignment: Signs who runs what.
    """

    targets: Ed25519PrivateKey
    snapshot: Ed25519PrivateKey
    timestamp: Ed25519PrivateKey
    assignment: Ed25519PrivateKey

    def public(self) -> dict[str, bytes]:
        """The raw public key of each role."""
        return {role: getattr(self, role).public_key().public_bytes_raw() for role in ROLES}


def create_keys(folder: Path) -> None:
    """Make ``offline/root.pem``, ``online/<role>.pem`` and ``online/public.json``; what is there stays as it is.

    Move ``offline`` to a medium that no server reads.

    Raises:
        DataError: If they cannot be written.
    """
    for path in (folder / "offline" / "root.pem", *(folder / "online" / f"{role}.pem" for role in ROLES)):
        create_key(path)
    public = {role: raw.hex() for role, raw in load_online(folder / "online").public().items()}
    write_whole(folder / "online" / "public.json", json.dumps(public, indent=1).encode())


def create_key(path: Path) -> bool:
    """Make a private key in a file, unless the file is there; whether this call made it.

    Raises:
        DataError: If it cannot be written.
    """
    return make_private(path, lambda: _pem(Ed25519PrivateKey.generate()))


def load_online(folder: Path) -> OnlineKeys:
    """The server's keys from an ``online`` folder.

    Raises:
        DataError: If one is missing, no key, or readable by others.
    """
    return OnlineKeys(**{role: load_key(folder / f"{role}.pem") for role in ROLES})


def load_key(path: Path) -> Ed25519PrivateKey:
    """A private key.

    Raises:
        DataError: If the file is missing, holds no Ed25519 key, or is readable by others.
    """
    content = read_private(path)
    try:
        key = load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise DataError("the file holds no Ed25519 private key", where=str(path), fix="restore it")
    return key


def load_public(path: Path) -> Mapping[str, bytes]:
    """The raw public keys of the online roles, from ``public.json``.

    Raises:
        DataError: If the file is not what `create_keys` wrote.
    """
    try:
        found = {role: bytes.fromhex(key) for role, key in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        found = {}
    if set(found) != set(ROLES) or any(len(key) != 32 for key in found.values()):
        raise DataError(
            "the file does not hold the online roles' public keys", where=str(path), fix="copy it anew"
        )
    return found


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
