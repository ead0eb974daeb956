"""The durable record of privacy events.

Rules of this file:
    * Append only. `append` returns after the event is on the disk (fsync): charge first, release afterwards.
    * Each line carries the hash of the line before it, so an edit, a gap or a reordering is found when read.
    * A chain cannot show that its own end was cut off: the head (counter, hash) is witnessed outside, and a
      ledger behind its witness (a restored back-up) is refused.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fedretrain.core.errors import PrivacyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedretrain.privacy.event import PrivacyEvent

GENESIS = "0" * 64


@dataclass(frozen=True)
class Head:
    """The end of a ledger: how many events, and the hash of the last one's line."""

    counter: int = 0
    hash: str = GENESIS


class Ledger(Protocol):
    """Port: where privacy events are kept."""

    def append(self, event: PrivacyEvent) -> Head:
        """Make the event durable, then return the new head. Nothing may be released before it returns."""
        ...

    def events(self) -> Sequence[PrivacyEvent]:
        """Every event, oldest first."""
        ...

    def head(self) -> Head:
        """The present head."""
        ...


def chain(previous: Head, event: PrivacyEvent) -> Head:
    """The head after `event`: SHA-256 over the counter, the previous hash and the event's canonical JSON."""
    body = json.dumps(event.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
    counter = previous.counter + 1
    return Head(counter, hashlib.sha256(f"{counter}|{previous.hash}|{body}".encode()).hexdigest())


class Witness(Protocol):
    """Keeps the ledger's head in another place than the ledger, so that a restored back-up is noticed."""

    def load(self) -> Head | None:
        """The last head seen; None if none ever was."""
        ...

    def save(self, head: Head) -> None:
        """Make the head durable."""
        ...


def check_witness(seen: Head | None, heads: Sequence[Head], where: str) -> None:
    """Refuse a ledger that is behind its witness, or another one's.

    Args:
        seen: The last head that the witness saw; None if it never saw any.
        heads: The ledger's, from the empty one on.
        where: Names the ledger.

    Raises:
        PrivacyError: Then.
    """
    if seen is None:
        if len(heads) > 1:
            raise PrivacyError(
                "the privacy ledger has events, but its witness has seen none",
                where=where,
                fix="restore the witness, or save the head that you trust into it",
            )
        return
    if seen.counter >= len(heads):
        raise PrivacyError(
            f"the privacy ledger has {len(heads) - 1} events, its witness saw {seen.counter}: an old copy",
            where=where,
            fix="restore the newest copy: what this one has forgotten was spent, and nothing is trained on it",
        )
    if heads[seen.counter] != seen:
        raise PrivacyError(
            f"event {seen.counter} of the privacy ledger is not the one its witness saw",
            where=where,
            fix="restore the ledger that belongs to this witness",
        )


class MemoryLedger:
    """A ledger of this process: for simulations, whose checkpoint carries the events, and for tests."""

    def __init__(self, events: Sequence[PrivacyEvent] = ()) -> None:
        self._events: list[PrivacyEvent] = []
        self._head = Head()
        for event in events:
            self.append(event)

    def append(self, event: PrivacyEvent) -> Head:
        """Keep the event."""
        self._head = chain(self._head, event)
        self._events.append(event)
        return self._head

    def events(self) -> Sequence[PrivacyEvent]:
        """Every event, oldest first."""
        return tuple(self._events)

    def head(self) -> Head:
        """The present head."""
        return self._head
