"""Records of devices on their way into the database: each counts once, whatever the network did.

Rules of this file:
    * One transaction keeps the records, and what the receiver remembers of their numbers; then a batch is acknowledged.
    * Nothing is decoded here but sizes and numbers: a record that says nonsense is kept, and refused by name where it is
      counted (`telemetry`), so that a defect of ours loses nothing.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, func, insert, select, tuple_, update

from fedretrain.server.tables import brought_labels, dead_letters, received, tallies, telemetry
from fedretrain.wire.inbox import Inbox, receive
from fedretrain.wire.sequence import Arrival, Gap, Key, Priority
from fedretrain.wire.v1 import fleet_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

    from fedretrain.server.fleet import Device
    from fedretrain.wire.inbox import Receipt

MAX_RECORDS = 2000
MAX_PAYLOAD_BYTES = 512 * 1024
_READ_AT_ONCE = 250
"""Receivers' states in one statement: three parameters each, and a database takes a thousand at least."""

# Made once: what builds a statement costs more than what carries it out.
_OWNERS = (received.c.population, received.c.device, received.c.source)
_STATES = select(received).where(tuple_(*_OWNERS).in_(bindparam("owners", expanding=True)))
_KNOWN = (
    update(received)
    .where(*(column == bindparam(f"of_{column.name}") for column in _OWNERS))
    .values(state=bindparam("settled"))
)
_NEW = insert(received)
_RECORDS = insert(telemetry)

Owner = tuple[str, str, str]
"""Population, device and installation: whose numbers are counted together."""


@dataclass(frozen=True)
class Refused:
    """A batch that is not even looked at.

    Attributes:
        why: By name.
    """

    why: str


def check(batch: pb.TelemetryBatch) -> Refused | None:
    """What is wrong with a batch as a whole; None if nothing is."""
    if len(batch.records) > MAX_RECORDS or len(batch.gaps) > MAX_RECORDS:
        return Refused(f"more than {MAX_RECORDS} records or gaps in a batch")
    if not _is_installation(batch.installation):
        return Refused("the installation is not 32 hexadecimal digits")
    if any(len(record.payload) > MAX_PAYLOAD_BYTES for record in batch.records):
        return Refused(f"a record of more than {MAX_PAYLOAD_BYTES} bytes")
    known = {int(priority) for priority in Priority}
    asked = {record.priority for record in batch.records} | {gap.priority for gap in batch.gaps}
    if not asked <= known:
        return Refused("a priority that nobody knows")
    return None


@dataclass(frozen=True)
class Arrived:
    """A batch that arrived.

    Attributes:
        device: Who sent it, by its certificate.
        batch: One that `check` passes.
        at: When, seconds since the epoch.
    """

    device: Device
    batch: pb.TelemetryBatch
    at: float


def keep(connection: Connection, device: Device, batch: pb.TelemetryBatch, now: float) -> pb.TelemetryAck:
    """Keep what is new in a batch, in the transaction of the caller.

    Args:
        connection: Of the transaction.
        device: Who sent it, by its certificate.
        batch: One that `check` passes.
        now: Instant, seconds since the epoch.
    """
    return keep_all(connection, [Arrived(device, batch, now)])[0]


def keep_all(connection: Connection, arrived: Sequence[Arrived]) -> list[pb.TelemetryAck]:
    """Keep what is new in batches, as `keep` in their order does, in as many statements as for one of them."""
    owners = [_owner(one.device, one.batch.installation) for one in arrived]
    states = _states(connection, owners)
    inboxes = {owner: _inbox(states.get(owner)) for owner in owners}
    rows: list[dict[str, Any]] = []
    acks = []
    for owner, one in zip(owners, arrived, strict=True):
        keys, gaps = _asked(one.batch)
        inboxes[owner], receipt = receive(inboxes[owner], one.batch.oldest_boot, keys, gaps)
        said = zip(one.batch.records, receipt.records, strict=True)
        fresh = [
            _row(one.device, record, one.batch, one.at) for record, found in said if found is Arrival.FRESH
        ]
        rows += fresh
        acks.append(_ack(one.batch, receipt, len(fresh)))
    _remember(connection, states, inboxes)
    if rows:
        connection.execute(_RECORDS, rows)
    return acks


def settle(
    connection: Connection,
    device: Device,
    installation: str,
    oldest_boot: int,
    keys: Sequence[Key],
    gaps: Sequence[Gap] = (),
) -> Receipt:
    """What of a device's numbers is new, remembered in the transaction of the caller.

    Args:
        connection: Of the transaction, which nobody else's overlaps: see `commit.GroupCommit`.
        device: Whose.
        installation: That numbered.
        oldest_boot: The oldest start of which the device holds anything.
        keys: Of records.
        gaps: What was dropped.
    """
    owner = _owner(device, installation)
    states = _states(connection, [owner])
    inbox, receipt = receive(_inbox(states.get(owner)), oldest_boot, keys, gaps)
    _remember(connection, states, {owner: inbox})
    return receipt


def _owner(device: Device, installation: str) -> Owner:
    return device.population, device.device, installation


def _states(connection: Connection, owners: Sequence[Owner]) -> dict[Owner, str]:
    """What is remembered of owners, of those of whom anything is."""
    asked: list[Owner] = sorted(set(owners))
    found: dict[Owner, str] = {}
    for first in range(0, len(asked), _READ_AT_ONCE):
        rows = connection.execute(_STATES, {"owners": asked[first : first + _READ_AT_ONCE]})
        found |= {(row.population, row.device, row.source): row.state for row in rows}
    return found


def _inbox(state: str | None) -> Inbox:
    return Inbox() if state is None else Inbox.from_dict(json.loads(state))


def _remember(connection: Connection, states: Mapping[Owner, str], inboxes: Mapping[Owner, Inbox]) -> None:
    """Write down what changed."""
    known: list[dict[str, Any]] = []
    new: list[dict[str, Any]] = []
    for owner, inbox in sorted(inboxes.items(), key=lambda one: one[0]):  # see `database`: one order
        text, before = json.dumps(inbox.to_dict()), states.get(owner)
        population, device, source = owner
        if before is None:
            new.append({"population": population, "device": device, "source": source, "state": text})
        elif text != before:
            names = {"of_population": population, "of_device": device, "of_source": source}
            known.append({**names, "settled": text})
    if new:
        connection.execute(_NEW, new)
    if known:
        connection.execute(_KNOWN, known)


def _asked(batch: pb.TelemetryBatch) -> tuple[list[Key], list[Gap]]:
    """The numbers of a batch."""
    name = batch.installation
    keys = [Key(name, one.boot, Priority(one.priority), one.sequence) for one in batch.records]
    gaps = [Gap(name, gap.boot, Priority(gap.priority), gap.first, gap.last) for gap in batch.gaps]
    return keys, gaps


def _ack(batch: pb.TelemetryBatch, receipt: Receipt, num_fresh: int) -> pb.TelemetryAck:
    return pb.TelemetryAck(
        batch=batch.batch,
        num_fresh=num_fresh,
        num_repeated=sum(arrival is Arrival.REPEATED for arrival in receipt.records),
        refused_records=_refused(receipt.records),
        refused_gaps=_refused(receipt.gaps),
    )


def forget(connection: Connection, population: str, device: str) -> int:
    """Delete what a device that is retired sent, and what waits for it; how many records.

    The newest record of all stays until the next one comes: SQLite would give its number away again.
    """
    newest = select(func.max(telemetry.c.number)).scalar_subquery()
    theirs = (telemetry.c.population == population) & (telemetry.c.device == device)
    gone = connection.execute(delete(telemetry).where(theirs, telemetry.c.number < newest))
    mine = (received.c.population == population) & (received.c.device == device)
    connection.execute(delete(received).where(mine))
    for table in (brought_labels, tallies, dead_letters):
        connection.execute(delete(table).where(table.c.population == population, table.c.device == device))
    return gone.rowcount


def _row(device: Device, record: pb.Record, batch: pb.TelemetryBatch, now: float) -> dict[str, Any]:
    """A record as the table keeps it."""
    return {
        "population": device.population,
        "device": device.device,
        "at": _resolved(record, batch, now),
        "received_at": now,
        "payload": record.payload,
    }


def _resolved(record: pb.Record, batch: pb.TelemetryBatch, now: float) -> float:
    """When a record was made: the device's own instant, or counted back from now by its running clock."""
    if math.isfinite(record.at):
        return float(record.at)
    if record.boot == batch.boot:
        return now - max(0.0, batch.sent_monotonic_s - record.monotonic_s)
    return now  # of an earlier start without a trusted clock: nobody knows better


def _refused(arrivals: tuple[Arrival, ...]) -> list[int]:
    return [place for place, arrival in enumerate(arrivals) if arrival is Arrival.REFUSED]


def _is_installation(text: str) -> bool:
    return len(text) == 32 and all(letter in "0123456789abcdef" for letter in text)
