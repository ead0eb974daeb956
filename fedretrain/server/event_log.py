"""The event log: append-only, hash-chained streams, and leases whose tokens fence off who lost them.

Rules of this file:
    * An append is one transaction: it checks the fence, the expected head, and writes; all or nothing.
    * A process that lost its lease can append nothing under it, whatever it still believes: the token is compared in the
      append's own transaction.
    * A lease that would last longer than any is given was written by a clock that was far ahead: it has run out.
    * A record's hash covers its number, its instant and the hash before it: an edit, a gap or a reordering is found by `read`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError

from fedretrain.core.errors import DataError, FedretrainError
from fedretrain.privacy.ledger import GENESIS, Head
from fedretrain.server.database import hold, reading
from fedretrain.server.tables import events, leases

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection, Engine

_BATCH = 1000
_CLOCKS_APART_S = 60.0
"""So far the clocks of two machines that share a database may be apart."""


class FencedError(FedretrainError):
    """The lease was lost: somebody else acts now, and nothing was written."""


class ConflictError(FedretrainError):
    """The stream has grown since it was read, and nothing was written: read again and decide again."""


@dataclass(frozen=True)
class Fence:
    """The right to append in a name.

    Attributes:
        name: Of the lease.
        token: Grows with every holder.
    """

    name: str
    token: int


@dataclass(frozen=True)
class Entry:
    """A record of a stream.

    Attributes:
        number: Its place, from 1.
        at: Instant, seconds since the epoch.
        record: JSON-ready.
        hash: Of the chain up to it, hex.
    """

    number: int
    at: float
    record: dict[str, Any]
    hash: str


class EventLog:
    """Streams of events in a database.

    Args:
        engine: Of `database.open_database`.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def append(
        self,
        stream: str,
        records: Sequence[Mapping[str, Any]],
        *,
        at: float,
        fence: Fence | None = None,
        after: int | None = None,
    ) -> Head:
        """Append records durably.

        Args:
            stream: Its name.
            records: JSON-ready, in order.
            at: Instant, seconds since the epoch.
            fence: The lease under which the writer acts; None where one writer is certain otherwise.
            after: The number of the last record that the writer has seen; None: wherever the stream ends.

        Returns:
            The new head.

        Raises:
            FencedError: If the lease has another token by now.
            ConflictError: If the stream has grown since.
        """
        try:
            with self.engine.begin() as connection:
                return append(connection, stream, records, at=at, fence=fence, after=after)
        except IntegrityError as error:
            raise ConflictError(f"the stream {stream} has grown meanwhile") from error

    def head(self, stream: str) -> Head:
        """The end of a stream."""
        with reading(self.engine) as connection:
            return _head(connection, stream)

    def num_records(self, streams: Iterable[str]) -> int:
        """How many records streams have together."""
        mine = events.c.stream.in_(list(streams))
        ends = select(func.max(events.c.number).label("end")).where(mine).group_by(events.c.stream).subquery()
        with reading(self.engine) as connection:
            return connection.scalar(select(func.sum(ends.c.end))) or 0

    def read(self, stream: str, *, after: int = 0) -> Iterator[Entry]:
        """The records after a number, oldest first, each checked against the chain.

        Raises:
            DataError: If a record was edited, is missing or stands elsewhere.
        """
        with reading(self.engine) as connection:
            previous = GENESIS if after == 0 else _hash_of(connection, stream, after)
        number = after
        while True:
            with reading(self.engine) as connection:
                query = (
                    select(events)
                    .where(events.c.stream == stream, events.c.number > number)
                    .order_by(events.c.number)
                    .limit(_BATCH)
                )
                rows = connection.execute(query).all()
            for row in rows:
                number += 1
                if row.number != number or row.hash != _chained(number, previous, row.at, row.record):
                    raise _broken(stream, number)
                previous = row.hash
                yield Entry(number, row.at, json.loads(row.record), row.hash)
            if len(rows) < _BATCH:
                return

    def streams(self) -> tuple[str, ...]:
        """The names of all streams, sorted."""
        with reading(self.engine) as connection:
            return tuple(connection.scalars(select(events.c.stream).distinct().order_by(events.c.stream)))

    def acquire(self, name: str, holder: str, *, now: float, ttl_s: float) -> Fence | None:
        """Take a lease that is free or has run out, or prolong one's own; None where somebody else holds it.

        Args:
            name: Of the lease.
            holder: Who asks; another process is another holder.
            now: Instant, seconds since the epoch.
            ttl_s: How long it holds from now.
        """
        try:
            with self.engine.begin() as connection:
                return _acquire(connection, name, holder, now, ttl_s)
        except IntegrityError:
            return None  # somebody else took a new lease in the same moment

    def release(self, fence: Fence) -> None:
        """Give a lease back; its token stays used."""
        with self.engine.begin() as connection:
            mine = (leases.c.name == fence.name) & (leases.c.token == fence.token)
            connection.execute(update(leases).where(mine).values(expires_at=0.0))


def append(
    connection: Connection,
    stream: str,
    records: Sequence[Mapping[str, Any]],
    *,
    at: float,
    fence: Fence | None = None,
    after: int | None = None,
) -> Head:
    """As `EventLog.append`, in a transaction that is the caller's, so that other rows change with it."""
    check_fence(connection, fence)
    hold(connection, f"stream {stream}")  # or two that append wherever it ends would take the same number
    head = _head(connection, stream)
    if after is not None and after != head.counter:
        raise ConflictError(f"the stream {stream} has {head.counter} records, not {after}")
    rows = []
    for record in records:
        body = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
        head = Head(head.counter + 1, _chained(head.counter + 1, head.hash, at, body))
        rows.append({"stream": stream, "number": head.counter, "at": at, "record": body, "hash": head.hash})
    if rows:
        connection.execute(insert(events), rows)
    return head


def check_fence(connection: Connection, fence: Fence | None, *, keep: bool = True) -> None:
    """Refuse a transaction whose lease has another token by now.

    Args:
        connection: Of the transaction.
        fence: The lease under which it acts; None where one writer is certain otherwise.
        keep: Whether nobody may take the lease over before the transaction ends; False for one that only reads.

    Raises:
        FencedError: Then.
    """
    if fence is None:
        return
    query = select(leases.c.token).where(leases.c.name == fence.name)
    token = connection.scalar(query.with_for_update() if keep else query)
    if token != fence.token:
        raise FencedError(f"the lease {fence.name} was token {fence.token}, and is {token} now")


def _acquire(connection: Connection, name: str, holder: str, now: float, ttl_s: float) -> Fence | None:
    until = now + ttl_s
    row = connection.execute(select(leases).where(leases.c.name == name).with_for_update()).one_or_none()
    if row is None:
        connection.execute(insert(leases).values(name=name, holder=holder, token=1, expires_at=until))
        return Fence(name, 1)
    is_held = now < row.expires_at <= until + _CLOCKS_APART_S
    if row.holder != holder and is_held:
        return None
    token = row.token if row.holder == holder and is_held else row.token + 1
    changed = {"holder": holder, "token": token, "expires_at": until}
    connection.execute(update(leases).where(leases.c.name == name).values(**changed))
    return Fence(name, token)


def _head(connection: Connection, stream: str) -> Head:
    last = select(func.max(events.c.number)).where(events.c.stream == stream).scalar_subquery()
    query = select(events.c.number, events.c.hash).where(events.c.stream == stream, events.c.number == last)
    row = connection.execute(query).one_or_none()
    return Head() if row is None else Head(row.number, row.hash)


def _hash_of(connection: Connection, stream: str, number: int) -> str:
    query = select(events.c.hash).where(events.c.stream == stream, events.c.number == number)
    found = connection.scalar(query)
    if found is None:
        raise _broken(stream, number)
    return str(found)


def _chained(number: int, previous: str, at: float, body: str) -> str:
    return hashlib.sha256(f"{number}|{previous}|{float(at).hex()}|{body}".encode()).hexdigest()


def _broken(stream: str, number: int) -> DataError:
    return DataError(
        f"record {number} of the event log is missing or was changed",
        where=stream,
        fix="stop the coordinator, and restore the database from a back-up that `fedretrain verify` accepts",
    )
