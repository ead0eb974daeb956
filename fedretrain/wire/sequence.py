"""Exactly once: how records are numbered, and what a receiver remembers so that each one counts once.

A device numbers its records from 0 in each stream: one for each priority of each start (`boot`) of an installation. It
sends a record until it is acknowledged, so a record may come twice, late or out of order. What the device had to drop
is told as a `Gap`, so the receiver can tell what is lost from what is late.

Rules of this file:
    * Pure, numpy-free, state in and out; a state survives JSON. Whoever acknowledges makes the new state durable first.
    * A sequence number is settled once, as received or as dropped, and never changes sides: a copy that comes after
      its gap is a repetition, and a gap over what was received drops only the rest.
    * What a stranger sends cannot make a state grow beyond `MAX_SPANS`. What would is refused: not counted, not to be
      acknowledged. An honest device sends the lowest number first, which never adds a span, so it is never stuck.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any, Self

from fedretrain.core import spans as sets
from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedretrain.core.spans import Spans

MAX_SPANS = 64
"""Separate stretches of settled numbers in a stream: one more than the gaps between them."""
MAX_NUMBER = 2**53 - 1
"""The largest sequence or boot number: exact in JSON everywhere."""


class Priority(IntEnum):
    """What is sent first, and dropped last; one stream each."""

    LABELS = 0
    ALERTS = 1
    KPIS = 2
    HISTOGRAMS = 3
    SAMPLES = 4


@dataclass(frozen=True, order=True)
class Key:
    """Names a record of a device, for ever.

    Attributes:
        installation: 32 hexadecimal digits, drawn when the agent was installed.
        boot: Which start of the agent.
        priority: The stream.
        sequence: Counts from 0 in each stream.
    """

    installation: str
    boot: int
    priority: Priority
    sequence: int


@dataclass(frozen=True, order=True)
class Gap:
    """Records that the device has dropped, as far as they were not received before: `first` to `last`, both included."""

    installation: str
    boot: int
    priority: Priority
    first: int
    last: int


class Arrival(Enum):
    """What became of something that arrived."""

    FRESH = "fresh"  # count it, acknowledge it
    REPEATED = "repeated"  # settled before: acknowledge it, count nothing
    REFUSED = "refused"  # impossible, or more than a receiver remembers: do not acknowledge it
    STALE = "stale"  # of a start that the device had done with: acknowledge it, count nothing, tell a person


@dataclass(frozen=True)
class Received:
    """What is settled in one stream.

    Attributes:
        settled: The sequence numbers that were received or dropped.
        num_received: Records that counted.
        num_dropped: Records that the device named as dropped before any copy came.
    """

    settled: Spans = ()
    num_received: int = 0
    num_dropped: int = 0

    @property
    def next(self) -> int:
        """One above the highest number that is known of."""
        return self.settled[-1][1] + 1 if self.settled else 0

    @property
    def late(self) -> Spans:
        """Numbers that must exist and are neither received nor dropped: on their way still."""
        return sets.missing(self.settled, 0, self.next - 1) if self.settled else ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "settled": [list(span) for span in self.settled],
            "num_received": self.num_received,
            "num_dropped": self.num_dropped,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """The state in plain values.

        Raises:
            DataError: If they are not what `to_dict` makes.
        """
        try:
            settled = tuple((_number(first), _number(last)) for first, last in record["settled"])
            state = cls(settled, _number(record["num_received"]), _number(record["num_dropped"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not a receiver's state: {error!r}") from error
        built: Spans = ()
        for first, last in settled:
            built = sets.add(built, first, last) if first <= last else ()
        counted = state.num_received + state.num_dropped
        if built != settled or len(settled) > MAX_SPANS or counted != sets.size(settled):
            raise DataError("not a receiver's state: its parts contradict each other")
        return state


def accept(state: Received, sequence: int) -> tuple[Received, Arrival]:
    """Settle a record as received.

    Returns:
        The new state, and whether to count it; the state is the old one unless it is fresh.
    """
    if not 0 <= sequence <= MAX_NUMBER:
        return state, Arrival.REFUSED
    if sets.contains(state.settled, sequence):
        return state, Arrival.REPEATED
    settled = sets.add(state.settled, sequence, sequence)
    if len(settled) > MAX_SPANS:
        return state, Arrival.REFUSED
    return replace(state, settled=settled, num_received=state.num_received + 1), Arrival.FRESH


def drop(state: Received, first: int, last: int) -> tuple[Received, Arrival, Spans]:
    """Settle `first` to `last` as dropped, but for what was received before.

    Returns:
        The new state, whether anything in it is new, and which numbers are: those that are lost.
    """
    if not 0 <= first <= last <= MAX_NUMBER:
        return state, Arrival.REFUSED, ()
    lost = sets.missing(state.settled, first, last)
    if not lost:
        return state, Arrival.REPEATED, ()
    settled = sets.add(state.settled, first, last)
    if len(settled) > MAX_SPANS:
        return state, Arrival.REFUSED, ()
    return (
        replace(state, settled=settled, num_dropped=state.num_dropped + sets.size(lost)),
        Arrival.FRESH,
        lost,
    )


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_NUMBER:
        raise ValueError(f"{value!r} is not a count")
    return value
