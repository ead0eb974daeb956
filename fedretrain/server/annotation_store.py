"""Labels that people bring later: on their way to the devices that made the predictions, and what those found.

Rules of this file:
    * Only a device knows which prediction an id names. It is told the label, takes it as any other of people, and answers whether it
      still knows the prediction, and of each heuristic that had labelled it whether that was right: no label leaves the device.
    * An annotation counts once: by device and prediction, whatever files name it, however often the device answers. Another label for the
      same prediction is a correction, and is told anew.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import func, insert, select, update

from fedretrain.monitoring.intervals import wilson
from fedretrain.server.database import hold, reading
from fedretrain.server.tables import brought_labels, devices
from fedretrain.wire.control import PROTOCOL
from fedretrain.wire.v1 import fleet_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection, Engine

    from fedretrain.server.fleet import Device

AT_ONCE = 500
"""Annotations in one answer."""
_MAX_SOURCE = 100
_MAX_SOURCES = 32


@dataclass(frozen=True)
class Annotation:
    """A label that a person brings.

    Attributes:
        device: Whose prediction.
        of: The prediction or the sample, as the device names it.
        label: Index of the class.
    """

    device: str
    of: str
    label: int


def keep(connection: Connection, population: str, given: Iterable[Annotation], at: float) -> dict[str, int]:
    """Keep what is new, in the transaction of the caller.

    Returns:
        How many are new, correct an earlier one, were there already, or are for no device of the population.
    """
    hold(connection, f"annotations of {population}")  # numbers count up
    known = set(connection.scalars(select(devices.c.device).where(devices.c.population == population)))
    counts = Counter({"new": 0, "corrected": 0, "repeated": 0, "of_no_device": 0})
    numbers: dict[str, int] = {}
    for one in given:
        if one.device not in known:
            counts["of_no_device"] += 1
            continue
        theirs = (brought_labels.c.population == population) & (brought_labels.c.device == one.device)
        if one.device not in numbers:
            last = connection.scalar(select(func.max(brought_labels.c.number)).where(theirs))
            numbers[one.device] = last or 0
        mine = theirs & (brought_labels.c.prediction == one.of)
        before = connection.scalar(select(brought_labels.c.label).where(mine))
        if before == one.label:
            counts["repeated"] += 1
            continue
        numbers[one.device] += 1
        told = {"number": numbers[one.device], "label": one.label, "at": at, "outcome": ""}
        if before is None:
            place = {"population": population, "device": one.device, "prediction": one.of}
            connection.execute(insert(brought_labels).values(**place, **told))
        else:
            connection.execute(update(brought_labels).where(mine).values(**told))
        counts["new" if before is None else "corrected"] += 1
    return dict(counts)


def summary(connection: Connection, population: str) -> dict[str, Any]:
    """How far annotations have come, and the error of each heuristic on those that were found, with its 95 % interval (Wilson)."""
    query = select(brought_labels.c.outcome).where(brought_labels.c.population == population)
    outcomes = [json.loads(text) if text else None for text in connection.scalars(query)]
    found = [one for one in outcomes if one is not None and one["known"]]
    num: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for one in found:
        for source, agreed in one["heuristics"].items():
            num[source] += 1
            wrong[source] += not agreed
    return {
        "annotations": len(outcomes),
        "waiting": sum(one is None for one in outcomes),
        "found": len(found),
        "not_found": sum(one is not None and not one["known"] for one in outcomes),
        "heuristics": {source: _error(wrong[source], num[source]) for source in sorted(num)},
    }


def _error(wrong: int, num: int) -> dict[str, float]:
    interval = wilson(np.array([wrong]), np.array([num]))
    return {
        "num": num,
        "wrong": wrong,
        "error_fraction": wrong / num,
        "low": float(np.ravel(interval.low)[0]),
        "high": float(np.ravel(interval.high)[0]),
    }


class Annotations:
    """The gateway's end: what waits for a device, and its answers. Safe for threads.

    Args:
        engine: The database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self._lock = engine, threading.Lock()
        self._waiting: frozenset[tuple[str, str]] = frozenset()
        self.poll()

    def poll(self) -> None:
        """Look for whom something waits."""
        query = select(brought_labels.c.population, brought_labels.c.device).where(
            brought_labels.c.outcome == ""
        )
        with reading(self._engine) as connection:
            found = frozenset((row.population, row.device) for row in connection.execute(query.distinct()))
        with self._lock:
            self._waiting = found

    def waits(self, device: Device) -> bool:
        """Whether something waits for a device."""
        with self._lock:
            return (device.population, device.device) in self._waiting

    def exchange(self, device: Device, request: pb.AnnotateRequest) -> pb.AnnotateReply:
        """Keep a device's answers, and tell it what it has not answered yet.

        An answer to what was corrected meanwhile, or was answered before, changes nothing.
        """
        theirs = (brought_labels.c.population == device.population) & (
            brought_labels.c.device == device.device
        )
        open_ = theirs & (brought_labels.c.outcome == "")
        with self._engine.begin() as connection:
            for one in request.outcomes[:AT_ONCE]:
                here = open_ & (brought_labels.c.number == one.number)
                connection.execute(update(brought_labels).where(here).values(outcome=_outcome(one)))
            query = select(brought_labels).where(open_).order_by(brought_labels.c.number).limit(AT_ONCE)
            rows = connection.execute(query).all()
        told = [pb.Annotation(number=row.number, of=row.prediction, label=row.label) for row in rows]
        return pb.AnnotateReply(protocol=PROTOCOL, annotations=told)


def _outcome(said: pb.AnnotationOutcome) -> str:
    heuristics = {one.source[:_MAX_SOURCE]: one.agreed for one in said.heuristics[:_MAX_SOURCES]}
    return json.dumps({"known": said.known, "heuristics": heuristics}, sort_keys=True)
