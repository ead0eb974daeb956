"""What every device of a population must leave at once: one signed statement for all, which reaches each with its next heartbeat.

Rules of this file:
    * A notice only makes safer: it takes versions back and enters safe mode. It lets no device serve what it may not, nor leave safe mode.
    * It counts until the device's own assignment is as new: whoever has been told since is not held by it, and one that is sent again later
      holds nobody.
    * It has one form in bytes, and an end.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedretrain.artifacts.assignment import MAX_WITHDRAWN
from fedretrain.artifacts.envelope import EnvelopeError, check_to_all, one_form, opened, read_one_form, seal
from fedretrain.core.errors import DataError
from fedretrain.core.ids import is_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_MAGIC = b"fedretrain notice 1\n"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class NoticeError(EnvelopeError):
    """A notice that a device does not heed."""

    kind = "notice"
    fix = "the device goes on as its assignment says"


@dataclass(frozen=True)
class Notice:
    """What devices must leave.

    Attributes:
        population: Whose devices.
        withdrawn: Digests of packages that none of them may serve or score, sorted.
        serve: Digest of the package that replaces one of them; "" is the rules baseline.
        safe_mode: Whether the rules baseline serves, whatever else is said.
        issued_at: When it was signed; a device whose assignment is of this instant or later does not need it.
        ends_at: From when on it is no longer heeded.

    Raises:
        DataError: If a field is not what it should be.
    """

    population: str
    withdrawn: tuple[str, ...]
    serve: str
    safe_mode: bool
    issued_at: float
    ends_at: float

    def __post_init__(self) -> None:
        _need(is_name(self.population), "population")
        _need(all(_DIGEST.fullmatch(digest) for digest in self.withdrawn), "withdrawn")
        ordered = list(self.withdrawn) == sorted(set(self.withdrawn))
        _need(ordered and len(self.withdrawn) <= MAX_WITHDRAWN, "withdrawn")
        _need(not self.serve or _DIGEST.fullmatch(self.serve) is not None, "serve")
        _need(self.serve not in self.withdrawn, "serve")
        _need(bool(self.withdrawn) or self.safe_mode, "withdrawn")
        _need(math.isfinite(self.issued_at) and math.isfinite(self.ends_at), "ends_at")
        _need(0.0 <= self.issued_at < self.ends_at, "ends_at")

    def to_bytes(self) -> bytes:
        """The one form in bytes."""
        return one_form(self)

    @classmethod
    def from_bytes(cls, content: bytes) -> Notice:
        """Read what `to_bytes` wrote.

        Raises:
            NoticeError: If the bytes are anything else.
        """
        return read_one_form(cls, content, NoticeError)


def sign(notice: Notice, key: Ed25519PrivateKey) -> bytes:
    """The envelope that is sent. The same notice and key give the same bytes."""
    return seal(_MAGIC, notice.to_bytes(), key)


def verify(envelope: bytes, keys: Iterable[bytes], *, population: str, now: float) -> Notice:
    """The notice in an envelope, if it is for this population and not over.

    Args:
        envelope: What arrived.
        keys: Raw Ed25519 public keys of the online role that signs assignments.
        population: The device's.
        now: Instant, by the device's trusted clock.

    Raises:
        NoticeError: If not, by name.
    """
    found = Notice.from_bytes(opened(_MAGIC, envelope, keys, NoticeError))
    check_to_all(found, NoticeError, population=population, now=now)
    return found


def _need(ok: bool, key: str) -> None:
    if not ok:
        raise DataError("this cannot stand in a notice", where=key, fix="see what the field says of itself")
