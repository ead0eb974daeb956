"""Messages of a broker on their way into the database: what they say, their numbers and their offsets in one transaction.

Rules of this file:
    * A message counts once. A transport's own position (Kafka's offset) is compared in the transaction that counts; a
      message's own number (installation, boot, sequence) is settled as the device API settles it.
    * Whatever a message says, it stops nobody: it is refused by name, counted, and kept as a dead letter. Only the
      database's own failures are raised; then nothing of the batch has happened, and it comes again.
    * Who is fenced off keeps nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError
from sqlalchemy import delete, insert, select, update

from fedretrain.core.ids import is_name
from fedretrain.server import fleet, intake
from fedretrain.server.event_log import check_fence
from fedretrain.server.fleet import Standing
from fedretrain.server.sources import tallies
from fedretrain.server.tables import dead_letters, offsets
from fedretrain.server.tables import sources as table
from fedretrain.wire.control import MalformedError
from fedretrain.wire.samples import decode_samples
from fedretrain.wire.sequence import Arrival
from fedretrain.wire.v1 import fleet_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from fedretrain.monitoring.reports import Reports
    from fedretrain.server.event_log import Fence
    from fedretrain.server.fleet import Device
    from fedretrain.server.sources.binning import Binner
    from fedretrain.server.sources.config import Source
    from fedretrain.wire.samples import Samples

KEPT_LETTERS = 1000
KEPT_BYTES = 16 * 1024
_REASON = 300
COUNTED, REPEATED = "counted", "repeated"


class Kind(StrEnum):
    """What a message holds."""

    SAMPLES = "samples"
    RECORDS = "records"


@dataclass(frozen=True)
class Position:
    """Where a message stands in a partition."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True)
class Message:
    """As it came.

    Attributes:
        kind: What it should hold.
        device: Whose it is, as the transport says.
        payload: Its content.
        position: Where it stood; None where the transport does not number.
        origin: Where it came from, for people.
    """

    kind: Kind
    device: str
    payload: bytes
    position: Position | None = None
    origin: str = ""


@dataclass(frozen=True)
class Batch:
    """What is kept together.

    Attributes:
        source: The broker.
        messages: In the order in which they came.
        binner: How samples are counted; None while there is no model.
        now: Instant, seconds since the epoch.
        fence: The lease of whoever reads the source; None where one reader is certain otherwise.
    """

    source: Source
    messages: Sequence[Message]
    binner: Binner | None
    now: float
    fence: Fence | None = None


class BackwardsError(Exception):
    """A partition begins again below what was counted: somebody made the topic anew."""


@dataclass
class _Book:
    """What changes with a batch."""

    counts: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    letters: list[dict[str, Any]] = field(default_factory=list)
    ends: dict[tuple[str, int], int] = field(default_factory=dict)
    devices: dict[str, Device | None] = field(default_factory=dict)
    counted: dict[str, list[Reports]] = field(default_factory=dict)


def keep(connection: Connection, batch: Batch) -> dict[str, int]:
    """Keep a batch in the transaction of the caller; what became of its messages: counted, repeated, or why refused.

    Raises:
        FencedError: If somebody else reads the source now.
    """
    check_fence(connection, batch.fence)
    source = batch.source.name
    book = _Book()
    known = next_offsets(connection, source)
    for message in batch.messages:
        place = message.position
        if place is not None:
            at = place.topic, place.partition
            if place.offset < book.ends.get(at, known.get(at, 0)):
                book.counts[REPEATED] += 1
                continue
            book.ends[at] = place.offset + 1
        try:
            book.counts[_take(connection, batch, book, message)] += 1
        except MalformedError as error:
            _refuse(batch, book, message, str(error))
    for device, parts in book.counted.items():
        assert batch.binner is not None
        tallies.add(connection, batch.source.population, device, batch.binner.package, parts)
    for (topic, partition), following in book.ends.items():
        set_offset(connection, source, topic, partition, following)
    _write_letters(connection, source, book.letters)
    _add_counts(connection, batch.source, book)
    return {**book.counts, **book.refused}


def next_offsets(connection: Connection, source: str) -> dict[tuple[str, int], int]:
    """How far each partition was counted."""
    rows = connection.execute(select(offsets).where(offsets.c.source == source))
    return {(row.topic, row.partition): row.next for row in rows}


def set_offset(connection: Connection, source: str, topic: str, partition: int, following: int) -> None:
    """Remember how far a partition was counted."""
    mine = (offsets.c.source == source) & (offsets.c.topic == topic) & (offsets.c.partition == partition)
    if not connection.execute(update(offsets).where(mine).values(next=following)).rowcount:
        row = {"source": source, "topic": topic, "partition": partition, "next": following}
        connection.execute(insert(offsets).values(**row))


def move(connection: Connection, source: Source, place: Position, why: str, number: int = 1) -> None:
    """Go on elsewhere in a partition than where it was counted, and count why.

    Args:
        connection: Of the transaction.
        source: Whose.
        place: Where to go on.
        why: ``lost`` or ``anew``.
        number: Of messages, or of times.
    """
    set_offset(connection, source.name, place.topic, place.partition, place.offset)
    _add_counts(connection, source, _Book(Counter({why: number})))


def note(
    connection: Connection,
    source: Source,
    standing: str,
    now: float,
    error: str = "",
    *,
    broken: bool = False,
) -> None:
    """Write down whether a source can be reached: apart from what its messages say."""
    mine = table.c.name == source.name
    changed = {"standing": standing, "since": now, "error": error[:_REASON], "population": source.population}
    known = connection.execute(select(table).where(mine)).one_or_none()
    if known is None:
        row = {"name": source.name, "num_broken": int(broken), "counts": "{}", **changed}
        connection.execute(insert(table).values(**row))
    else:
        connection.execute(
            update(table).where(mine).values(**changed, num_broken=known.num_broken + int(broken))
        )


def _take(connection: Connection, batch: Batch, book: _Book, message: Message) -> str:
    """Count one message; what became of it."""
    device = _device(connection, batch.source.population, book, message.device)
    if message.kind is Kind.RECORDS:
        return _take_records(connection, device, message.payload, batch.now)
    _require(device, Standing.WATCHED, "has an agent, which counts by itself")
    if batch.binner is None:
        raise MalformedError("model: none to count by yet, or the policy takes no telemetry")
    samples = decode_samples(message.payload)
    if samples.key is None and message.position is None:
        raise MalformedError("sequence: missing, and this transport has no numbers of its own")
    rows = _binned(batch.binner, device, samples, batch.now)
    if samples.key is not None:
        arrival = intake.settle(
            connection, device, samples.key.installation, samples.oldest_boot, [samples.key]
        ).records[0]
        if arrival is Arrival.REFUSED:
            raise MalformedError("sequence: too far from what came before")
        if arrival is not Arrival.FRESH:
            return REPEATED
    book.counted.setdefault(device.device, []).append(rows)
    return COUNTED


def _binned(binner: Binner, device: Device, samples: Samples, now: float) -> Reports:
    """Counts of samples; a defect of ours is a refusal, too: it must not stop what comes behind."""
    try:
        return binner.count(device.number, samples, now)
    except MalformedError:
        raise
    except Exception as error:
        raise MalformedError(f"defect: {type(error).__name__}: {error}") from error


def _take_records(connection: Connection, device: Device, payload: bytes, now: float) -> str:
    """A batch of a device's agent, as the device API takes it."""
    _require(device, Standing.ACTIVE, "has no agent")
    said = pb.TelemetryBatch()
    try:
        said.ParseFromString(payload)
    except DecodeError as error:
        raise MalformedError("message: no TelemetryBatch") from error
    refused = intake.check(said)
    if refused is not None:
        raise MalformedError(f"batch: {refused.why}")
    ack = intake.keep(connection, device, said, now)
    if ack.refused_records or ack.refused_gaps:
        raise MalformedError("sequence: records too far from what came before")
    return COUNTED if ack.num_fresh else REPEATED


def _device(connection: Connection, population: str, book: _Book, name: str) -> Device:
    """The device of a name that a transport gave."""
    if name not in book.devices:
        book.devices[name] = fleet.find(connection, population, name) if is_name(name) else None
    found = book.devices[name]
    if found is None:
        raise MalformedError("device: not in the fleet")
    return found


def _require(device: Device, standing: Standing, otherwise: str) -> None:
    if device.standing is standing:
        return
    said = otherwise if device.standing in (Standing.ACTIVE, Standing.WATCHED) else f"is {device.standing}"
    raise MalformedError(f"device: {said}")


def _refuse(batch: Batch, book: _Book, message: Message, reason: str) -> None:
    book.refused[reason.partition(":")[0]] += 1
    letter = {
        "source": batch.source.name,
        "population": batch.source.population,
        "device": message.device if is_name(message.device) else "",
        "at": batch.now,
        "origin": message.origin[:_REASON],
        "reason": reason[:_REASON].replace("\0", ""),
        # Without a model nothing was looked at, and perhaps nothing may be kept.
        "payload": b"" if batch.binner is None else message.payload[:KEPT_BYTES],
    }
    book.letters.append(letter)


def _write_letters(connection: Connection, source: str, letters: list[dict[str, Any]]) -> None:
    """Keep the newest."""
    if not letters:
        return
    connection.execute(insert(dead_letters), letters[-KEPT_LETTERS:])
    mine = dead_letters.c.source == source
    newest = select(dead_letters.c.number).where(mine).order_by(dead_letters.c.number.desc())
    last = connection.scalar(newest.offset(KEPT_LETTERS).limit(1))
    if last is not None:
        connection.execute(delete(dead_letters).where(mine, dead_letters.c.number <= last))


def _add_counts(connection: Connection, source: Source, book: _Book) -> None:
    mine = table.c.name == source.name
    said = connection.scalar(select(table.c.counts).where(mine))
    total = json.loads(said or "{}")
    for name, number in book.counts.items():
        total[name] = total.get(name, 0) + number
    refused = total.setdefault("refused", {})
    for reason, number in book.refused.items():
        refused[reason] = refused.get(reason, 0) + number
    text = json.dumps(total, sort_keys=True)
    if said is None:
        row = {"name": source.name, "population": source.population, "standing": "connected", "since": 0.0}
        connection.execute(insert(table).values(**row, error="", num_broken=0, counts=text))
    else:
        connection.execute(update(table).where(mine).values(counts=text))
