"""Signed bytes with the name of their format: what the coordinator tells devices beside packages.

Rules of this file:
    * The signature is checked before anything is parsed, over the bytes and the name of the format: a signature made for
      something else is none here.
    * What is wrong is said by name (`Refusal`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAX_ENVELOPE_BYTES = 32 * 1024
_SIGNATURE_BYTES = 64


class Refusal(StrEnum):
    """Why an envelope is not followed."""

    OVERSIZE = "oversize"
    MALFORMED = "malformed"
    BAD_SIGNATURE = "bad_signature"
    OTHER_POPULATION = "other_population"
    OTHER_DEVICE = "other_device"
    OLD_COUNTER = "old_counter"
    SAME_COUNTER = "same_counter"
    EXPIRED = "expired"


class EnvelopeError(DataError):
    """An envelope that a device does not follow.

    Args:
        refusal: Why, by name.
        what: The same for a person.
    """

    kind = "envelope"
    fix = "the device goes on with what it has"

    def __init__(self, refusal: Refusal, what: str) -> None:
        super().__init__(what, where=f"{self.kind}: {refusal}", fix=self.fix)
        self.refusal = refusal


def seal(magic: bytes, content: bytes, key: Ed25519PrivateKey) -> bytes:
    """The format's name, a signature, the content. The same content and key give the same bytes."""
    return magic + key.sign(magic + content) + content


def opened(
    magic: bytes, envelope: bytes, keys: Iterable[bytes], error: type[EnvelopeError] = EnvelopeError
) -> bytes:
    """The content, if one of the keys has signed it.

    Args:
        magic: Name of the format.
        envelope: What arrived.
        keys: Raw Ed25519 public keys (32 bytes each).
        error: What is raised.

    Raises:
        EnvelopeError: If not, by name.
    """
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise error(Refusal.OVERSIZE, f"{len(envelope)} bytes are more than {MAX_ENVELOPE_BYTES}")
    start = len(magic) + _SIGNATURE_BYTES
    if not envelope.startswith(magic) or len(envelope) <= start:
        raise error(Refusal.MALFORMED, f"not an envelope of {error.kind}")
    signature, content = envelope[len(magic) : start], envelope[start:]
    if not any(_is_signed(key, signature, magic + content) for key in keys):
        raise error(Refusal.BAD_SIGNATURE, "no known key signed it")
    return content


def _is_signed(key: bytes, signature: bytes, content: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, content)
    except InvalidSignature:
        return False
    return True
