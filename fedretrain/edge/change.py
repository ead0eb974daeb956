"""What a transaction of the outbox does to its counts in memory, which follow only when it is committed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedretrain.edge.records import Entry, Record
    from fedretrain.wire.sequence import Priority


class Reason(StrEnum):
    """Why a record was dropped."""

    SIZE = "size"
    AGE = "age"
    DAMAGED = "damaged"
    BOOTS = "boots"


@dataclass
class Change:
    """What a transaction does to the counts in memory: applied only when it is committed."""

    live: Counter[int] = field(default_factory=Counter)
    size_bytes: int = 0
    dropped: list[tuple[int, Priority, int]] = field(default_factory=list)
    forgotten: list[int] = field(default_factory=list)
    reasons: Counter[tuple[Priority, str]] = field(default_factory=Counter)

    def put_in(self, record: Record) -> None:
        """A record was stored."""
        self.live[record.key.boot] += 1
        self.size_bytes += record.size_bytes

    def take_out(self, entry: Entry) -> None:
        """A record was removed: acknowledged, or as below."""
        self.live[entry.instant.boot] -= 1
        self.size_bytes -= entry.size_bytes

    def drop(self, entry: Entry, reason: Reason) -> None:
        """A record was dropped; its gap is to be told."""
        self.take_out(entry)
        self.dropped.append((entry.instant.boot, entry.priority, entry.sequence))
        self.reasons[entry.priority, reason] += 1

    def give_up(self, entry: Entry) -> None:
        """As `drop`, but its whole start is given up: that says more than a gap."""
        self.take_out(entry)
        self.reasons[entry.priority, Reason.BOOTS] += 1
