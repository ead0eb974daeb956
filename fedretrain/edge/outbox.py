"""What the device has to say, kept until it was heard; bounded.

Rules of this file:
    * `add` writes to memory; `flush` writes everything that changed in one transaction (SD cards wear out by writes). What
      was flushed survives a power cut, and only what was flushed is ever sent.
    * Acknowledgements are written with the next flush: one that a power cut forgets is sent again, and the receiver
      (`fedretrain.wire.inbox`) knows it.
    * Bounded in bytes and age. The lowest priority goes first, in it the oldest. What is dropped is gone and its gap is
      durable in one transaction, so no number vanishes without a word.
    * A full disk never raises: `flush` says False, what waits stays in memory (bounded too), what is stored can be read.
    * A device holds records of `MAX_BOOTS` starts; beyond, those of the oldest are given up, and an alert says so.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING

from fedretrain.core.clock import Anchor, Instant, resolve
from fedretrain.core.errors import FedretrainError
from fedretrain.edge import records as table
from fedretrain.edge.change import Change, Reason
from fedretrain.edge.database import AgentDatabase, is_damage, shorten_log, transaction
from fedretrain.edge.records import Batch, Entry, Record
from fedretrain.edge.waiting import OutboxStatus, Waiting
from fedretrain.wire.control import encode_alert
from fedretrain.wire.inbox import MAX_BOOTS
from fedretrain.wire.sequence import Gap, Key, Priority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MAX_RECORD_BYTES = 1 << 20
_MAX_GAPS = 256  # in a batch
_ACKNOWLEDGED = 1024  # waiting acknowledgements that are worth a transaction of their own
_LOOK = 256  # records that are looked at, or dropped, at a time


class OutboxDamagedError(FedretrainError):
    """The database is damaged: open it again with ``suspect=str(error)``, which sets the file aside."""


class Outbox:
    """Records on their way to the server. Any thread may call it.

    Args:
        database: The agent's open database.
        max_bytes: Of stored records; the file is somewhat larger.
        max_age_s: Older records are dropped, where their age is known.
        opened: The instant of the opening; stamps the notices that the opening gives rise to.
        buffer_bytes: Records in memory that set off a flush by themselves, and the bound of memory while none succeeds.
        max_boots: Starts of which it holds records.
    """

    def __init__(
        self,
        database: AgentDatabase,
        *,
        max_bytes: int,
        max_age_s: float,
        opened: Instant,
        buffer_bytes: int = 1 << 18,
        max_boots: int = MAX_BOOTS,
    ) -> None:
        self._database = database
        self._connection, self._identity = database.connection, database.identity
        self._max_bytes, self._max_age_s = max_bytes, max_age_s
        self._mutex = database.mutex
        self._acknowledged: dict[int, Entry] = {}
        self._damaged: dict[int, Entry] = {}
        self._told: list[Gap] = []
        self._given_up_before, self._given_up = 0, list[Entry]()
        self._lost = Change()  # dropped before they were stored
        self._new_anchors: dict[int, Anchor] = {}
        self._error = ""
        with self._reading():
            if not table.is_ordered(self._connection):
                raise OutboxDamagedError("a record lies outside of every stream")
            first = {priority: table.first_free(self._connection, priority) for priority in Priority}
            self._live, self._stored_bytes = table.totals(self._connection)
            self._anchors = table.anchors(self._connection) | {self._identity.boot: None}
            self._siblings = table.starts_of(self._connection, database.machine)
            notices = self._connection.execute(
                "SELECT number, content FROM notices ORDER BY number"
            ).fetchall()
        self._waiting = Waiting(database.identity, first, buffer_bytes)
        self._noticed = notices[-1][0] if notices else 0
        for _, content in notices:
            self.add(Priority.ALERTS, _alert(content), opened)
        self._given_up_before, self._given_up = self._give_up(opened, max_boots)
        self.flush(opened)

    def add(self, priority: Priority, payload: bytes, at: Instant) -> Key:
        """Take a record; it is durable after the next `flush`.

        Args:
            priority: Its stream.
            payload: At most `MAX_RECORD_BYTES`.
            at: When it happened, in this start.

        Returns:
            Its key.
        """
        if len(payload) > MAX_RECORD_BYTES:
            raise ValueError(f"a record of {len(payload)} bytes; {MAX_RECORD_BYTES} is the most")
        if at.boot != self._identity.boot:
            raise ValueError(f"an instant of boot {at.boot} in boot {self._identity.boot}")
        if not math.isfinite(at.monotonic_s) or not math.isfinite(at.at or 0.0):
            raise ValueError(f"{at} is no instant")
        with self._mutex:
            record = self._waiting.take(priority, payload, at)
            if self._waiting.is_full and not self.flush(at):
                self._shed()
            return record.key

    def add_with(
        self, payloads: Iterable[tuple[Priority, bytes]], at: Instant, then: Callable[[], None]
    ) -> bool:
        """Take records and flush; in the same transaction, mark what they were made from as told.

        Either all of it is durable afterwards or nothing of it happened, so nothing is counted twice and nothing is
        forgotten, whatever is cut.

        Args:
            payloads: Priorities and payloads.
            at: When it happened, in this start.
            then: Statements on the agent's database; it raises nothing but what SQLite does.

        Returns:
            True if it is durable; False if the disk would not have it: try again later.

        Raises:
            OutboxDamagedError: If the file is damaged.
        """
        with self._mutex:
            if not self.flush(at):
                return False
            records = [self._waiting.take(priority, payload, at) for priority, payload in payloads]
            try:
                if self._flushed(at, then):
                    return True
            except BaseException:
                self._waiting.give_back(records)
                raise
            self._waiting.give_back(records)
            return False

    def anchor(self, anchor: Anchor) -> None:
        """Keep where this start lies in time, with the next flush: records that were added before get their time by it.

        So do those of earlier starts of the agent in the same start of the machine.
        """
        with self._mutex:
            for boot in {anchor.boot, *self._siblings}:
                known = self._anchors.get(boot)
                is_better = known is None or anchor.is_trusted or not known.is_trusted
                is_settled = boot != anchor.boot and known is not None and known.is_trusted
                if is_better and not is_settled:
                    self._anchors[boot] = self._new_anchors[boot] = replace(anchor, boot=boot)

    def flush(self, now: Instant | None = None) -> bool:
        """Make everything durable and drop what is beyond the bounds; one transaction.

        Args:
            now: The present; None leaves old records be.

        Returns:
            True if it is durable. False if the disk would not have it: nothing is changed then, try again later.

        Raises:
            OutboxDamagedError: If the file is damaged.
        """
        return self._flushed(now, None)

    def _flushed(self, now: Instant | None, then: Callable[[], None] | None) -> bool:
        with self._mutex:
            try:
                self._database.begin()
                with transaction(self._connection):
                    change = self._write(now)
                    if then is not None:
                        then()
            except OSError as error:
                self._error = f"the identity cannot be kept: {error.strerror}"
                return False
            except sqlite3.OperationalError as error:
                if is_damage(error):
                    raise OutboxDamagedError(str(error)) from error
                self._error = str(error)
                shorten_log(self._connection)
                return False
            except sqlite3.DatabaseError as error:
                if is_damage(error):
                    raise OutboxDamagedError(str(error)) from error
                raise
            self._committed(change)
            return True

    def pending(self, max_bytes: int) -> Batch:
        """What to send next: the same again until it is acknowledged.

        Args:
            max_bytes: Of the records; a single larger one is sent by itself.

        Raises:
            OutboxDamagedError: If the file is damaged.
        """
        with self._mutex, self._reading():
            told = set(self._told)
            gaps = table.gaps(self._connection, self._identity.installation, _MAX_GAPS + len(told))
            held = [boot for boot, count in self._live.items() if count > 0]
            found: list[Record] = []
            size = 0
            for record in self._sound():
                if found and size + record.size_bytes > max_bytes:
                    break
                found.append(record)
                size += record.size_bytes
            boots = {record.instant.boot for record in found}
            anchors = [anchor for boot in sorted(boots) if (anchor := self._anchors.get(boot)) is not None]
            return Batch(
                records=tuple(found),
                gaps=tuple(gap for gap in gaps if gap not in told)[:_MAX_GAPS],
                anchors=tuple(anchors),
                oldest_boot=min([self._identity.boot, *held, *(gap.boot for gap in gaps[:1])]),
            )

    def acknowledge(self, batch: Batch) -> None:
        """Let go of what the receiver has durably settled: a batch of `pending`, or a part of one."""
        with self._mutex:
            for record in batch.records:
                self._acknowledged[record.position] = _entry(record)
            self._told += [gap for gap in batch.gaps if gap not in self._told]
            if len(self._acknowledged) + len(self._told) >= _ACKNOWLEDGED:
                self.flush()

    def forget(self, now: Instant) -> None:
        """Drop everything that waits, as if there were no room for it: the receiver is told what will never come."""
        with self._mutex:
            bound, self._max_bytes = self._max_bytes, 0
            with contextlib.ExitStack() as after:
                after.callback(setattr, self, "_max_bytes", bound)
                self.flush(now)

    def status(self) -> OutboxStatus:
        """How full it is."""
        with self._mutex, self._reading():
            return OutboxStatus(
                num_stored=sum(self._live.values()),
                stored_bytes=self._stored_bytes,
                num_buffered=len(self._waiting),
                dropped=table.drops(self._connection),
                error=self._error,
            )

    def _write(self, now: Instant | None) -> Change:
        """The statements of a flush, inside its transaction."""
        connection, change = self._connection, Change()
        change.dropped, change.reasons = list(self._lost.dropped), self._lost.reasons.copy()
        self._remove(change)
        table.insert(connection, self._waiting)
        for record in self._waiting:
            change.put_in(record)
        if now is not None:
            self._expire(now, change)
        self._shrink(change)
        # A damaged record may name a start that never was: nobody waits for it.
        dropped = [drop for drop in change.dropped if drop[0] in self._anchors]
        table.change_gaps(connection, dropped, self._told)
        table.count_drops(connection, change.reasons)
        if self._given_up_before:
            table.remove_gaps_before(connection, self._given_up_before)
        for anchor in self._new_anchors.values():
            table.keep_anchor(connection, anchor)
        if change.live or self._told or self._given_up_before:
            self._forget_boots(change)
        if self._noticed:
            connection.execute("DELETE FROM notices WHERE number <= ?", (self._noticed,))
        return change

    def _remove(self, change: Change) -> None:
        """Delete what was acknowledged, found damaged or given up. A flush in between may have dropped it already."""
        for position in table.delete(self._connection, self._acknowledged):
            change.take_out(self._acknowledged[position])
        for position in table.delete(self._connection, self._damaged):
            change.drop(self._damaged[position], Reason.DAMAGED)
        given_up = {entry.position: entry for entry in self._given_up}
        for position in table.delete(self._connection, given_up):
            change.give_up(given_up[position])

    def _expire(self, now: Instant, change: Change) -> None:
        """Drop what is too old. A stream is in the order of time: before a record that is too old all are."""
        for priority in Priority:
            limit = 1  # enough on most days: the first is young, so all are
            while entries := table.oldest(self._connection, priority, limit):
                ages = [self._age_s(entry, now) for entry in entries]
                old = [n for n, age_s in enumerate(ages) if age_s is not None and age_s > self._max_age_s]
                if old:
                    self._drop(entries[: old[-1] + 1], Reason.AGE, change)
                elif ages[0] is not None or limit == _LOOK:
                    break
                limit = _LOOK

    def _age_s(self, entry: Entry, now: Instant) -> float | None:
        """How old a record is; None where nobody knows."""
        anchor = self._anchors.get(entry.instant.boot)
        at = resolve(entry.instant, anchor if anchor is not None and anchor.is_trusted else None)
        if at is not None and now.at is not None:
            return now.at - at
        return now.monotonic_s - entry.instant.monotonic_s if entry.instant.boot == now.boot else None

    def _shrink(self, change: Change) -> None:
        """Drop the lowest priority, the oldest of it first, until the rest is within the bound."""
        for priority in reversed(Priority):
            while (excess := self._stored_bytes + change.size_bytes - self._max_bytes) > 0:
                entries = table.oldest(self._connection, priority, _LOOK)
                if not entries:
                    break
                taken = 0
                while excess > 0 and taken < len(entries):
                    excess -= entries[taken].size_bytes
                    taken += 1
                self._drop(entries[:taken], Reason.SIZE, change)

    def _drop(self, entries: list[Entry], reason: Reason, change: Change) -> None:
        table.delete(self._connection, (entry.position for entry in entries))
        for entry in entries:
            change.drop(entry, reason)

    def _forget_boots(self, change: Change) -> None:
        """Forget the starts of which nothing is held any more."""
        with_gaps = table.boots_with_gaps(self._connection)
        for boot in self._anchors.keys() - with_gaps - {self._identity.boot}:
            if self._live[boot] + change.live[boot] <= 0:
                table.forget_boot(self._connection, boot)
                change.forgotten.append(boot)

    def _committed(self, change: Change) -> None:
        self._live.update(change.live)
        self._stored_bytes += change.size_bytes
        for boot in change.forgotten:
            del self._anchors[boot], self._live[boot]
        self._siblings = [boot for boot in self._siblings if boot in self._anchors]
        self._waiting.clear()
        self._lost = Change()
        self._acknowledged, self._damaged, self._told, self._given_up = {}, {}, [], []
        self._new_anchors, self._noticed, self._given_up_before, self._error = {}, 0, 0, ""

    def _shed(self) -> None:
        """Nothing can be written: drop from memory what is beyond its bound, the lowest priority and oldest first."""
        for record in self._waiting.shed():
            key = record.key
            self._lost.dropped.append((key.boot, key.priority, key.sequence))
            self._lost.reasons[key.priority, Reason.SIZE] += 1

    def _give_up(self, opened: Instant, max_boots: int) -> tuple[int, list[Entry]]:
        """The first start to keep (0: all), and the records before it, which an alert tells of."""
        boots = sorted(self._anchors)
        if len(boots) <= max_boots:
            return 0, []
        with self._reading():
            entries = table.of_boots_before(self._connection, boots[-max_boots])
        notice = {"event": "boots_given_up", "before": boots[-max_boots], "num_records": len(entries)}
        self.add(Priority.ALERTS, _alert(json.dumps(notice)), opened)
        return boots[-max_boots], entries

    def _sound(self) -> Iterator[Record]:
        """Stored records that wait, with their time where it is known; damaged ones are noted for the next flush."""
        for record, is_sound in table.read(self._connection, self._identity.installation):
            if record.position in self._acknowledged or record.position in self._damaged:
                continue
            if not is_sound:
                self._damaged[record.position] = _entry(record)
                continue
            anchor = self._anchors.get(record.instant.boot)
            at = resolve(record.instant, anchor if anchor is not None and anchor.is_trusted else None)
            yield replace(record, instant=replace(record.instant, at=at))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                raise OutboxDamagedError(str(error)) from error
            raise


def _alert(notice: str) -> bytes:
    """A notice of the database as the control plane's message."""
    return encode_alert(str(json.loads(notice)["event"]), detail=notice)


def _entry(record: Record) -> Entry:
    return Entry(record.position, record.instant, record.key.sequence, record.size_bytes)
