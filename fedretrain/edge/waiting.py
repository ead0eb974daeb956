"""Records of the outbox that are in memory alone: numbered, in the order of sending, bounded."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedretrain.edge.records import Record
from fedretrain.wire.sequence import Key, Priority

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from fedretrain.core.clock import Instant
    from fedretrain.edge.start import Identity


@dataclass(frozen=True)
class OutboxStatus:
    """How full the outbox is.

    Attributes:
        num_stored: Durable records; an acknowledged one counts until the next flush.
        stored_bytes: Of those.
        num_buffered: Records that wait for a flush.
        dropped: Records dropped since the database was made, by priority and reason.
        error: Why the last flush failed; empty if it did not.
    """

    num_stored: int
    stored_bytes: int
    num_buffered: int
    dropped: Mapping[tuple[Priority, str], int]
    error: str


class Waiting:
    """What waits for a flush. The caller holds the outbox's mutex.

    Args:
        identity: Whose records.
        positions: Where the next record of each priority will lie.
        max_bytes: More than that wants a flush.
    """

    def __init__(self, identity: Identity, positions: Mapping[Priority, int], max_bytes: int) -> None:
        self._identity, self._max_bytes = identity, max_bytes
        self._queues: dict[Priority, deque[Record]] = {priority: deque() for priority in Priority}
        self._next = dict.fromkeys(Priority, 0)
        self._position = dict(positions)
        self._bytes = 0

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def __iter__(self) -> Iterator[Record]:
        """In the order of priority, then of sequence."""
        for queue in self._queues.values():
            yield from queue

    @property
    def is_full(self) -> bool:
        """Whether it holds more than it should."""
        return self._bytes > self._max_bytes

    def take(self, priority: Priority, payload: bytes, at: Instant) -> Record:
        """Number a record and keep it."""
        key = Key(self._identity.installation, self._identity.boot, priority, self._next[priority])
        record = Record(key, at, payload, self._position[priority])
        self._next[priority] += 1
        self._position[priority] += 1
        self._queues[priority].append(record)
        self._bytes += record.size_bytes
        return record

    def give_back(self, records: Iterable[Record]) -> None:
        """Forget the newest records: their numbers are free again, because nothing has seen them."""
        for record in records:
            priority = record.key.priority
            self._queues[priority].remove(record)
            self._next[priority] -= 1
            self._position[priority] -= 1
            self._bytes -= record.size_bytes

    def shed(self) -> Iterator[Record]:
        """Drop what is beyond the bound, the lowest priority and oldest first."""
        for priority in reversed(Priority):
            queue = self._queues[priority]
            while queue and self.is_full:
                record = queue.popleft()
                self._bytes -= record.size_bytes
                yield record

    def clear(self) -> None:
        """Everything is stored."""
        for queue in self._queues.values():
            queue.clear()
        self._bytes = 0
