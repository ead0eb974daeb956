"""Signed bytes with the name of their format: what the coordinator tells devices beside packages.

Rules of this file:
    * The signature is checked before anything is parsed, over the bytes and the name of the format: a signature made for
      something else is none here.
    * What is wrong is said by name (`Refusal`).
    * What is said to a whole population has one form in bytes, and an end.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedretrain.core.build import build, plain
from fedretrain.core.errors import DataError, UserError

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


class ToAll(Protocol):
    """What is said to a whole population: a dataclass that is plain data."""

    @property
    def population(self) -> str:
        """Whose devices."""

    @property
    def ends_at(self) -> float:
        """From when on it says nothing."""


ToAllT = TypeVar("ToAllT", bound=ToAll)


def one_form(said: ToAll) -> bytes:
    """The one form in bytes."""
    return json.dumps(plain(said), sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def read_one_form(kind: type[ToAllT], content: bytes, error: type[EnvelopeError]) -> ToAllT:
    """Read what `one_form` wrote.

    Raises:
        EnvelopeError: If the bytes are anything else.
    """
    try:
        found = build(kind, json.loads(content.decode("ascii")))
        same = one_form(found) == content
    # Whatever a signer wrote, the device goes on: these are all the ways in which JSON of another shape fails.
    except (ValueError, TypeError, KeyError, RecursionError, UserError) as cause:
        raise error(Refusal.MALFORMED, f"no readable {error.kind}: {type(cause).__name__}") from cause
    if not same:
        raise error(Refusal.MALFORMED, f"no {error.kind} in its one form")
    return found


def check_to_all(said: ToAll, error: type[EnvelopeError], *, population: str, now: float) -> None:
    """Refuse what was said to others, or is over.

    Raises:
        EnvelopeError: By name.
    """
    if said.population != population:
        raise error(Refusal.OTHER_POPULATION, f"it is for population {said.population}")
    if now >= said.ends_at:
        raise error(Refusal.EXPIRED, f"it ended at {said.ends_at}; it is {now}")


def _is_signed(key: bytes, signature: bytes, content: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, content)
    except InvalidSignature:
        return False
    return True
