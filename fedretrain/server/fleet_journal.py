"""The fleet's event log as a file, from what the coordinator has: presence, rounds, telemetry, labels.

It is what `python -m sim fit` reads, in the one format of `wire.fleet_log`.

Rules of this file:
    * It is operational telemetry (DESIGN section 6): what is fitted to it lies outside every epsilon.
    * What was not measured is not made up. A reply has its whole time, as the coordinator saw it; receiving, training and sending apart only the device
      could tell, and with differential privacy a reply carries nothing but the update. Who was not waited for has no time.
    * Nothing is told of the sensors (`Telemetered`): counts on pinned bins do not tell it. They are of the model's inputs, whose missing values
      are filled in and whose channels may be windowed, summarised, or scaled by the device's own numbers. A cell holds a tenth of the
      baseline, so that a stuck, a dead and a calm sensor look alike; the outer cells are open, so that an offset beyond them has no
      size. Small offsets alone could be told, which a fit would take for a fleet without large ones.
    * Devices report counts by slot. Their labels are spread evenly over the slot of their predictions, each delay is the middle of its
      bin, and which class came with which delay is not known: the log pairs them in their order.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import select

from fedretrain.core.errors import DataError
from fedretrain.core.types import FailureKind
from fedretrain.monitoring.reports import DELAY_EDGES_S, LabelReports, Reports
from fedretrain.server import presence
from fedretrain.server.campaign import campaign_stream
from fedretrain.server.database import reading
from fedretrain.server.fleet import Standing
from fedretrain.server.tables import telemetry
from fedretrain.wire.control import SHADOW, MalformedError, ReportShape, decode
from fedretrain.wire.fleet_log import (
    AskedInRound,
    Event,
    Failed,
    Header,
    Labelled,
    Offline,
    Online,
    Predicted,
    Replied,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from sqlalchemy import Engine

    from fedretrain.server.event_log import EventLog
    from fedretrain.server.fleet import Device
    from fedretrain.server.presence import Slot

FEWEST_SLOTS = 6
_BATCH = 5000
_DELAY_S = np.array(
    [
        0.5 * DELAY_EDGES_S[0],
        *np.sqrt(np.array(DELAY_EDGES_S[:-1]) * np.array(DELAY_EDGES_S[1:])),
        2.0 * DELAY_EDGES_S[-1],
    ]
)


@dataclass(frozen=True)
class Fleet:
    """Whose log is written.

    Attributes:
        population: Its name.
        devices: Everybody who ever enrolled, by number; those that are gone are left out.
        outputs: Names of the classes; empty for a regression.
        shape: What reports look like.
        versions: Package digests by version.
        deadline_s: How long a round waits.
    """

    population: str
    devices: Sequence[Device]
    outputs: tuple[str, ...]
    shape: ReportShape
    versions: Mapping[int, str]
    deadline_s: float


def journal(log: EventLog, fleet: Fleet) -> tuple[Header, list[Event]]:
    """The header and the events of a fleet's log.

    Args:
        log: The event log, and its database.
        fleet: Whose.

    Raises:
        DataError: If the fleet has not been watched long enough.
    """
    slots = presence.read(log.engine, fleet.population)
    members = [one for one in fleet.devices if one.standing is Standing.ACTIVE]
    if len(slots) < FEWEST_SLOTS or not members:
        raise DataError(
            f"{len(slots)} slots of {len(members)} devices are no log, {FEWEST_SLOTS} are",
            where=f"population {fleet.population}",
            fix="let the coordinator watch the fleet for longer",
        )
    sites, types = (
        _numbered([getattr(one.traits, trait) for one in members]) for trait in ("site", "device_type")
    )
    header = Header(
        num_devices=len(members),
        site=sites,
        device_type=types,
        class_names=fleet.outputs,
        channels=(),
        begin_at=slots[0].at,
        end_at=slots[-1].at + slots[-1].slot_s,
        heartbeat_s=slots[-1].slot_s,
        deadline_s=fleet.deadline_s,
    )
    place = {one.number: k for k, one in enumerate(members)}
    events = [*_connections(slots, place), *_rounds(log, fleet.population, place, header.begin_at)]
    events += _reported(log.engine, fleet, place, header)
    return header, [one for one in events if header.begin_at <= one.at <= header.end_at]


def _numbered(names: Sequence[str]) -> tuple[int, ...]:
    known = {name: i for i, name in enumerate(sorted(set(names)))}
    return tuple(known[name] for name in names)


def _connections(slots: Sequence[Slot], place: Mapping[int, int]) -> Iterator[Event]:
    """Each device's state in the first slot, then its changes."""
    before: dict[int, bool] = {}
    for slot in slots:
        for number, device in place.items():
            online = number < len(slot.online_D) and bool(slot.online_D[number])
            if before.get(number) != online:
                yield (Online if online else Offline)(device, slot.at)
            before[number] = online


def _rounds(log: EventLog, population: str, place: Mapping[int, int], begin_at: float) -> Iterator[Event]:
    """Who was asked in which round, who replied and how fast, and who contributed nothing; rounds are numbered through all campaigns."""
    head = campaign_stream(f"{population}-")
    count = 0
    for stream in sorted(one for one in log.streams() if one.startswith(head)):
        for entry in log.read(stream):
            if entry.record.get("type") != "round":
                continue
            summary, count = entry.record["summary"], count + 1
            if "at" in summary and summary["at"] >= begin_at:
                yield from _round(summary, count, entry.at, place)


def _round(
    summary: Mapping[str, Any], count: int, ended_at: float, place: Mapping[int, int]
) -> Iterator[Event]:
    """One round; a record of a release that measured no times has none. Replies' instants count from the round's beginning, as requests' do."""
    at = summary["at"]
    for number in summary["asked"]:
        if number in place:
            yield AskedInRound(place[number], at, count)
    for number, seconds in summary.get("reply_s", {}).items():
        if int(number) in place:
            yield Replied(place[int(number)], at + seconds, count, seconds, 0.0, 0.0, 0.0, 0, 0, 0)
    for kind, numbers in summary["failed"].items():
        for number in numbers:
            if number in place:
                yield Failed(place[number], ended_at, count, FailureKind(kind))


def _reported(engine: Engine, fleet: Fleet, place: Mapping[int, int], header: Header) -> Iterator[Event]:
    """Predictions and labels of every slot that the telemetry table still has, whatever version served."""
    slot_s, names = header.heartbeat_s, {one.device: one.number for one in fleet.devices}
    served: dict[tuple[int, int], int] = defaultdict(int)
    outputs: dict[tuple[int, int], NDArray[np.int64]] = {}
    labels: dict[tuple[int, int], list[LabelReports]] = defaultdict(list)
    for said in _decoded(engine, fleet, names):
        number, slot = int(said.device_K[0]), int(said.slot_K[0])
        if number not in place or int(said.version_K[0]) >= SHADOW:
            continue
        key = place[number], slot
        if isinstance(said, Reports):
            served[key] += int(said.num_predictions[0])
            counts_M = said.outputs_KM[0].astype(np.int64)
            outputs[key] = outputs[key] + counts_M if key in outputs else counts_M
        else:
            labels[key].append(said)
    for (device, slot), count in served.items():
        begin = slot * slot_s
        if begin >= header.begin_at and count:
            classes = tuple(outputs[device, slot].tolist()) if fleet.outputs else ()
            told = classes if sum(classes) == count else ()  # an output that was no number has no class
            yield Predicted(device, begin + slot_s, begin, count, told)
    for (device, slot), rows in labels.items():
        yield from _labels(device, slot * slot_s, slot_s, rows)


def _decoded(engine: Engine, fleet: Fleet, names: Mapping[str, int]) -> Iterator[Reports | LabelReports]:
    numbers, last = {digest: version for version, digest in fleet.versions.items()}, 0
    while True:
        query = (
            select(telemetry)
            .where(telemetry.c.population == fleet.population, telemetry.c.number > last)
            .order_by(telemetry.c.number)
            .limit(_BATCH)
        )
        with reading(engine) as connection:
            rows = connection.execute(query).all()
        for row in rows:
            last = row.number
            try:
                said = decode(
                    row.payload, names.get(row.device, -1), row.received_at, fleet.shape, numbers.get
                )
            except MalformedError:
                continue  # counted by the monitors
            if isinstance(said, (Reports, LabelReports)):
                yield said
        if len(rows) < _BATCH:
            return


def _labels(device: int, begin: float, slot_s: float, rows: Sequence[LabelReports]) -> Iterator[Event]:
    """The labels of one slot's predictions."""
    classes: list[tuple[int, int]] = []  # true, predicted
    delays: list[float] = []
    for row in rows:
        if row.confusion_KMM is not None:
            counts_MM = row.confusion_KMM[0]
            pairs = np.repeat(np.argwhere(counts_MM >= 0), counts_MM.ravel(), axis=0)
            classes += [(true, predicted) for true, predicted in pairs.tolist()]
        else:
            classes += [(-1, -1)] * int(row.num_labelled[0])
        delays += np.repeat(_DELAY_S, row.delay_KD[0]).tolist()
    count = min(len(classes), len(delays))
    for k in range(count):
        predicted_at = begin + (k + 0.5) / count * slot_s
        yield Labelled(device, predicted_at + delays[k], predicted_at, *classes[k])
