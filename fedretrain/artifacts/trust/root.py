"""The root of trust: pure functions on bytes, for the machine that holds the root's key and no network.

Rules of this file:
    * A root names one key for each role. The next root is signed by the old root's key and by its own.
    * Whoever holds the old root can check the next one, and so can a device that slept through several.
    * Several copies of the key on several media guard against its loss; the threshold is one signature.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Role, Root

from fedretrain.artifacts.trust.words import ASSIGNMENT_KEY, MAX_BYTES, as_time
from fedretrain.core.clock import DAY_S
from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ROOT_LIFETIME_S = 365 * DAY_S


def first_root(
    key: Ed25519PrivateKey, online: Mapping[str, bytes], *, now: float, lifetime_s: float = ROOT_LIFETIME_S
) -> bytes:
    """Version 1, which every device is given when it is made.

    Args:
        key: The root's key.
        online: Raw public key of each online role (`keys.load_public`).
        now: Instant.
        lifetime_s: When it has passed without a next root, nothing can be installed any more.
    """
    return _signed(1, key, online, now + lifetime_s, [key])


def next_root(
    old: bytes,
    old_key: Ed25519PrivateKey,
    *,
    now: float,
    new_key: Ed25519PrivateKey | None = None,
    online: Mapping[str, bytes] | None = None,
    lifetime_s: float = ROOT_LIFETIME_S,
) -> bytes:
    """The version after `old`: a renewal, with other keys where they are given.

    Args:
        old: The present root.
        old_key: Its key.
        now: Instant.
        new_key: The new root's key; None keeps the old one.
        online: Public keys of the online roles; None keeps them.
        lifetime_s: See `first_root`.

    Raises:
        DataError: If `old` cannot be read, or `old_key` is not its key.
    """
    root = read_root(old).signed
    key = new_key or old_key
    signers = [old_key, key] if new_key else [old_key]
    made = _signed(root.version + 1, key, online or online_keys(root), now + lifetime_s, signers)
    check_next(old, made)
    return made


def check_next(old: bytes, new: bytes) -> None:
    """Check that `new` may follow `old`.

    Raises:
        DataError: If it may not.
    """
    before, after = read_root(old), read_root(new)
    if after.signed.version != before.signed.version + 1:
        what = f"root {after.signed.version} may not follow root {before.signed.version}"
        raise DataError(what, where="root", fix="give them in order")
    try:
        for root in (before.signed, after.signed):
            root.verify_delegate(Root.type, after.signed_bytes, after.signatures)
    except (RepositoryError, ValueError) as error:
        raise DataError(
            f"the new root may not follow: {error}", where="root", fix="sign it with both keys"
        ) from error


def read_root(content: bytes) -> Metadata[Root]:
    """Parse a root; its signature is not checked.

    Raises:
        DataError: If the bytes are not one of ours.
    """
    try:
        found: Metadata[Root] = Metadata.from_bytes(content[: MAX_BYTES[Root.type]])
        online_keys(found.signed)
    except (RepositoryError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError("the bytes are not a root of trust", where="root", fix="copy it anew") from error
    return found


def online_keys(root: Root) -> dict[str, bytes]:
    """The raw public key of each online role.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: If the root does not name them as ours do.
    """
    found = {
        role: bytes.fromhex(root.keys[root.roles[role].keyids[0]].keyval["public"])
        for role in ("targets", "snapshot", "timestamp")
    }
    found["assignment"] = bytes.fromhex(root.unrecognized_fields[ASSIGNMENT_KEY])
    if any(len(key) != 32 for key in found.values()):
        raise ValueError("not raw Ed25519 keys")
    return found


def _signed(
    version: int,
    key: Ed25519PrivateKey,
    online: Mapping[str, bytes],
    expires_at: float,
    signers: list[Ed25519PrivateKey],
) -> bytes:
    public = {role: online[role] for role in ("targets", "snapshot", "timestamp")}
    public[Root.type] = key.public_key().public_bytes_raw()
    keys = {
        role: SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(raw)) for role, raw in public.items()
    }
    root = Root(
        version=version,
        expires=as_time(expires_at),
        keys={key.keyid: key for key in keys.values()},
        roles={role: Role([key.keyid], 1) for role, key in keys.items()},
        unrecognized_fields={ASSIGNMENT_KEY: online["assignment"].hex()},
    )
    made = Metadata(root)
    for signer in signers:
        made.sign(CryptoSigner(signer), append=True)
    return made.to_bytes()
