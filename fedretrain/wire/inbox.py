"""What a receiver remembers of one installation of a device: the streams of the starts that are not done with.

Rules of this file:
    * Pure, as `fedretrain.wire.sequence`: make the new state durable, then acknowledge.
    * With each batch a device says the oldest start of which it still holds anything. Older ones are forgotten; what was
      late in them is lost (the device lost its database, say), and is counted.
    * A device holds records of `MAX_BOOTS` starts at most. More than that come from a stranger and are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from fedretrain.core import spans as sets
from fedretrain.core.errors import DataError
from fedretrain.wire.sequence import MAX_NUMBER, Arrival, Gap, Key, Priority, Received, accept, drop

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fedretrain.core.spans import Spans

MAX_BOOTS = 256
"""Starts from the oldest one with unsent records to the present one."""


@dataclass(frozen=True)
class Inbox:
    """The state of one (device, installation).

    Attributes:
        oldest_boot: Starts before it are done with.
        streams: What is settled in each stream that something came from.
        num_late_forgotten: Records that never came, of starts that are done with.
    """

    oldest_boot: int = 0
    streams: Mapping[tuple[int, Priority], Received] = field(default_factory=dict)
    num_late_forgotten: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "oldest_boot": self.oldest_boot,
            "streams": [
                [boot, int(priority), state.to_dict()]
                for (boot, priority), state in sorted(self.streams.items())
            ],
            "num_late_forgotten": self.num_late_forgotten,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """The state in plain values.

        Raises:
            DataError: If they are not what `to_dict` makes.
        """
        try:
            streams = {
                (int(boot), Priority(priority)): Received.from_dict(state)
                for boot, priority, state in record["streams"]
            }
            return cls(int(record["oldest_boot"]), streams, int(record["num_late_forgotten"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not a receiver's state: {error!r}") from error


@dataclass(frozen=True)
class Receipt:
    """What became of a batch.

    Attributes:
        records: For each record, in order.
        gaps: For each gap, in order.
        lost: For each gap the numbers that are lost and were not known to be.
    """

    records: tuple[Arrival, ...]
    gaps: tuple[Arrival, ...]
    lost: tuple[Spans, ...]


def receive(
    inbox: Inbox, oldest_boot: int, keys: Sequence[Key], gaps: Sequence[Gap] = ()
) -> tuple[Inbox, Receipt]:
    """Settle a batch of one installation.

    Args:
        inbox: The state of that installation.
        oldest_boot: The oldest start of which the device holds anything, as the batch says.
        keys: Of its records.
        gaps: What it says was dropped.

    Returns:
        The new state, and what became of each part of the batch.
    """
    streams, floor, forgotten = dict(inbox.streams), inbox.oldest_boot, inbox.num_late_forgotten
    if floor < oldest_boot <= MAX_NUMBER:
        floor = oldest_boot
        for stream in [stream for stream in streams if stream[0] < floor]:
            forgotten += sets.size(streams.pop(stream).late)
    boots = {boot for boot, _ in streams}
    records: list[Arrival] = []
    for key in keys:
        arrival = _judge(boots, floor, key)
        if arrival is Arrival.FRESH:
            state, arrival = accept(streams.get((key.boot, key.priority), Received()), key.sequence)
            _keep(streams, boots, key, state)
        records.append(arrival)
    told: list[Arrival] = []
    lost: list[Spans] = []
    for gap in gaps:
        rest: Spans = ()
        arrival = _judge(boots, floor, gap)
        if arrival is Arrival.FRESH:
            state, arrival, rest = drop(
                streams.get((gap.boot, gap.priority), Received()), gap.first, gap.last
            )
            _keep(streams, boots, gap, state)
        told.append(arrival)
        lost.append(rest)
    return Inbox(floor, streams, forgotten), Receipt(tuple(records), tuple(told), tuple(lost))


def _judge(boots: set[int], floor: int, part: Key | Gap) -> Arrival:
    """Whether a start is one to look at: FRESH, STALE or REFUSED."""
    if not 0 <= part.boot <= MAX_NUMBER:
        return Arrival.REFUSED
    if part.boot < floor:
        return Arrival.STALE
    return Arrival.FRESH if part.boot in boots or len(boots) < MAX_BOOTS else Arrival.REFUSED


def _keep(
    streams: dict[tuple[int, Priority], Received], boots: set[int], part: Key | Gap, state: Received
) -> None:
    if state.settled:
        streams[part.boot, part.priority] = state
        boots.add(part.boot)
