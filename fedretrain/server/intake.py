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

from sqlalchemy import delete, func, insert, select, update

from fedretrain.server.tables import brought_labels, dead_letters, received, tallies, telemetry
from fedretrain.wire.inbox import Inbox, receive
from fedretrain.wire.sequence import Arrival, Gap, Key, Priority
from fedretrain.wire.v1 import fleet_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from fedretrain.server.fleet import Device
    from fedretrain.wire.inbox import Receipt

MAX_RECORDS = 2000
MAX_PAYLOAD_BYTES = 512 * 1024


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


def keep(connection: Connection, device: Device, batch: pb.TelemetryBatch, now: float) -> pb.TelemetryAck:
    """Keep what is new in a batch, in the transaction of the caller.

    Args:
        connection: Of the transaction.
        device: Who sent it, by its certificate.
        batch: One that `check` passes.
        now: Instant, seconds since the epoch.
    """
    keys = [
        Key(batch.installation, record.boot, Priority(record.priority), record.sequence)
        for record in batch.records
    ]
    gaps = [
        Gap(batch.installation, gap.boot, Priority(gap.priority), gap.first, gap.last) for gap in batch.gaps
    ]
    receipt = settle(connection, device, batch.installation, batch.oldest_boot, keys, gaps)
    arrived = zip(batch.records, receipt.records, strict=True)
    fresh = [_row(device, record, batch, now) for record, arrival in arrived if arrival is Arrival.FRESH]
    if fresh:
        connection.execute(insert(telemetry), fresh)
    return pb.TelemetryAck(
        batch=batch.batch,
        num_fresh=len(fresh),
        num_repeated=sum(arrival is Arrival.REPEATED for arrival in receipt.records),
        refused_records=_refused(receipt.records),
        refused_gaps=_refused(receipt.gaps),
    )


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
    mine = (
        (received.c.population == device.population)
        & (received.c.device == device.device)
        & (received.c.source == installation)
    )
    state = connection.scalar(select(received.c.state).where(mine))
    inbox = Inbox() if state is None else Inbox.from_dict(json.loads(state))
    inbox, receipt = receive(inbox, oldest_boot, keys, gaps)
    text = json.dumps(inbox.to_dict())
    if state is None:
        row = {"population": device.population, "device": device.device, "source": installation}
        connection.execute(insert(received).values(**row, state=text))
    elif text != state:
        connection.execute(update(received).where(mine).values(state=text))
    return receipt


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
