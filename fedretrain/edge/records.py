"""The outbox's tables: what is stored, in the order in which it is sent. Only `fedretrain.edge.outbox` calls this.

Rules of this file:
    * A position is the priority in the upper bits and a count below: one B-tree holds every stream in the order of
      sending, each grows at its own end, and no index costs a second write.
    * Every record carries a checksum. SQLite does not notice a flipped bit in a payload; this does.
    * Functions take a connection inside a transaction of the caller's.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedretrain.core import spans as sets
from fedretrain.core.clock import Anchor, Instant
from fedretrain.wire.sequence import Gap, Key, Priority

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Mapping

OVERHEAD_BYTES = 48
"""What a record takes besides its payload, here and in a message."""
_SHIFT = 56
_HEADER = struct.Struct("<qqdd")


@dataclass(frozen=True)
class Record:
    """A record of the outbox.

    Attributes:
        key: Its name.
        instant: When it was added.
        payload: What it says.
        position: Where it lies in this outbox; means nothing elsewhere.
    """

    key: Key
    instant: Instant
    payload: bytes
    position: int

    @property
    def size_bytes(self) -> int:
        """What counts towards the bounds."""
        return len(self.payload) + OVERHEAD_BYTES


@dataclass(frozen=True)
class Batch:
    """What to send next.

    Attributes:
        records: In the order of priority, then of sequence; their instants are resolved where the time is known.
        gaps: What was dropped and not yet acknowledged.
        anchors: Of the starts that are in it, where the device has one.
        oldest_boot: The oldest start of which the outbox still holds anything.
    """

    records: tuple[Record, ...]
    gaps: tuple[Gap, ...]
    anchors: tuple[Anchor, ...]
    oldest_boot: int

    def __bool__(self) -> bool:
        return bool(self.records or self.gaps)


@dataclass(frozen=True)
class Entry:
    """A stored record without its payload."""

    position: int
    instant: Instant
    sequence: int
    size_bytes: int

    @property
    def priority(self) -> Priority:
        """The stream."""
        return Priority(self.position >> _SHIFT)


def first_free(connection: sqlite3.Connection, priority: Priority) -> int:
    """The position for the next record of a priority."""
    low, high = priority << _SHIFT, (priority + 1) << _SHIFT
    query = "SELECT max(position) FROM records WHERE position >= ? AND position < ?"
    (last,) = connection.execute(query, (low, high)).fetchone()
    return low if last is None else int(last) + 1


def is_ordered(connection: sqlite3.Connection) -> bool:
    """Whether every record lies in a stream."""
    low, high = connection.execute("SELECT min(position), max(position) FROM records").fetchone()
    return low is None or (low >= 0 and high < len(Priority) << _SHIFT)


def insert(connection: sqlite3.Connection, records: Iterable[Record]) -> None:
    """Store records."""
    connection.executemany(
        "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            (
                record.position,
                record.key.boot,
                record.key.sequence,
                record.instant.monotonic_s,
                record.instant.at,
                _checksum(record.key.boot, record.key.sequence, record.instant, record.payload),
                record.payload,
            )
            for record in records
        ),
    )


def delete(connection: sqlite3.Connection, positions: Iterable[int]) -> set[int]:
    """Remove records; the positions at which there was one."""
    query = "DELETE FROM records WHERE position = ?"
    return {position for position in positions if connection.execute(query, (position,)).rowcount}


def oldest(connection: sqlite3.Connection, priority: Priority, limit: int) -> list[Entry]:
    """The first records of a priority."""
    query = (
        "SELECT position, boot, monotonic_s, at, sequence, length(payload) FROM records"
        " WHERE position >= ? AND position < ? ORDER BY position LIMIT ?"
    )
    rows = connection.execute(query, (priority << _SHIFT, (priority + 1) << _SHIFT, limit))
    return [
        Entry(position, Instant(boot, monotonic_s, at), sequence, size + OVERHEAD_BYTES)
        for position, boot, monotonic_s, at, sequence, size in rows
    ]


def of_boots_before(connection: sqlite3.Connection, boot: int) -> list[Entry]:
    """The records of earlier starts."""
    query = (
        "SELECT position, boot, monotonic_s, at, sequence, length(payload) FROM records"
        " WHERE boot < ? ORDER BY position"
    )
    return [
        Entry(position, Instant(of, monotonic_s, at), sequence, size + OVERHEAD_BYTES)
        for position, of, monotonic_s, at, sequence, size in connection.execute(query, (boot,))
    ]


def read(connection: sqlite3.Connection, installation: str, chunk: int = 64) -> Iterator[tuple[Record, bool]]:
    """Every record in the order of sending, and whether it is as it was written."""
    query = (
        "SELECT position, boot, sequence, monotonic_s, at, checksum, payload FROM records"
        " WHERE position > ? ORDER BY position LIMIT ?"
    )
    last = -1
    while rows := connection.execute(query, (last, chunk)).fetchall():
        for position, boot, sequence, monotonic_s, at, checksum, payload in rows:
            instant = Instant(boot, monotonic_s, at)
            key = Key(installation, boot, Priority(position >> _SHIFT), sequence)
            is_sound = checksum == _checksum(boot, sequence, instant, payload)
            yield Record(key, instant, payload, position), is_sound
        last = rows[-1][0]


def totals(connection: sqlite3.Connection) -> tuple[Counter[int], int]:
    """The number of records of each start, and the bytes of all."""
    live: Counter[int] = Counter()
    size = 0
    for boot, count, length in connection.execute(
        "SELECT boot, count(*), sum(length(payload)) FROM records GROUP BY boot"
    ):
        live[boot] = count
        size += length + count * OVERHEAD_BYTES
    return live, size


def gaps(connection: sqlite3.Connection, installation: str, limit: int) -> list[Gap]:
    """What was dropped and is not acknowledged, oldest start first."""
    rows = connection.execute(
        "SELECT boot, priority, first, last FROM gaps ORDER BY boot, priority, first LIMIT ?", (limit,)
    )
    return [Gap(installation, boot, Priority(priority), first, last) for boot, priority, first, last in rows]


def change_gaps(
    connection: sqlite3.Connection,
    dropped: Iterable[tuple[int, Priority, int]],
    acknowledged: Iterable[Gap],
) -> None:
    """Add dropped records (boot, priority, sequence) to the gaps and take acknowledged spans out of them."""
    new: dict[tuple[int, Priority], sets.Spans] = {}
    for boot, priority, sequence in dropped:
        new[boot, priority] = sets.add(new.get((boot, priority), ()), sequence, sequence)
    told: dict[tuple[int, Priority], list[Gap]] = {}
    for gap in acknowledged:
        told.setdefault((gap.boot, gap.priority), []).append(gap)
    for boot, priority in new.keys() | told.keys():
        where = (boot, int(priority))
        rows = connection.execute(
            "SELECT first, last FROM gaps WHERE boot = ? AND priority = ? ORDER BY first", where
        )
        spans: sets.Spans = tuple((first, last) for first, last in rows)
        for gap in told.get((boot, priority), ()):
            spans = sets.remove(spans, gap.first, gap.last)
        for first, last in new.get((boot, priority), ()):
            spans = sets.add(spans, first, last)
        connection.execute("DELETE FROM gaps WHERE boot = ? AND priority = ?", where)
        connection.executemany("INSERT INTO gaps VALUES (?, ?, ?, ?)", ((*where, *span) for span in spans))


def remove_gaps_before(connection: sqlite3.Connection, boot: int) -> None:
    """Forget the gaps of earlier starts."""
    connection.execute("DELETE FROM gaps WHERE boot < ?", (boot,))


def count_drops(connection: sqlite3.Connection, counts: Mapping[tuple[Priority, str], int]) -> None:
    """Add to the totals of what was dropped since the database was made."""
    connection.executemany(
        "INSERT INTO drops VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET num_records = num_records + excluded.num_records",
        ((int(priority), reason, count) for (priority, reason), count in counts.items()),
    )


def drops(connection: sqlite3.Connection) -> dict[tuple[Priority, str], int]:
    """How many records were dropped since the database was made, by priority and reason."""
    rows = connection.execute("SELECT priority, reason, num_records FROM drops")
    return {(Priority(priority), reason): count for priority, reason, count in rows}


def anchors(connection: sqlite3.Connection) -> dict[int, Anchor | None]:
    """Every start that is not done with, and where it lies in time, if that is known."""
    rows = connection.execute("SELECT boot, offset_s, is_trusted FROM boots ORDER BY boot")
    return {
        boot: None if offset_s is None else Anchor(boot, offset_s, is_trusted=bool(is_trusted))
        for boot, offset_s, is_trusted in rows
    }


def starts_of(connection: sqlite3.Connection, machine: str) -> list[int]:
    """The starts of the agent in one start of the machine: their monotonic seconds are on one clock."""
    rows = connection.execute("SELECT boot FROM boots WHERE machine = ? AND machine != ''", (machine,))
    return [boot for (boot,) in rows]


def keep_anchor(connection: sqlite3.Connection, anchor: Anchor) -> None:
    """Store where a start lies in time."""
    connection.execute(
        "UPDATE boots SET offset_s = ?, is_trusted = ? WHERE boot = ?",
        (anchor.offset_s, int(anchor.is_trusted), anchor.boot),
    )


def boots_with_gaps(connection: sqlite3.Connection) -> set[int]:
    """The starts of which something was dropped and is not acknowledged."""
    return {boot for (boot,) in connection.execute("SELECT DISTINCT boot FROM gaps")}


def forget_boot(connection: sqlite3.Connection, boot: int) -> None:
    """Remove a start of which nothing is held."""
    connection.execute("DELETE FROM boots WHERE boot = ?", (boot,))


def _checksum(boot: int, sequence: int, instant: Instant, payload: bytes) -> int:
    at = float("nan") if instant.at is None else instant.at
    return zlib.crc32(payload, zlib.crc32(_HEADER.pack(boot, sequence, instant.monotonic_s, at)))
