"""A fleet in virtual time whose devices speak the wire's words with a coordinator's database; no network, no processes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from sqlalchemy import insert

from fedretrain.artifacts.inference import Predictor
from fedretrain.artifacts.package import read_package
from fedretrain.core.frozen import thaw
from fedretrain.monitoring.bins import Bins
from fedretrain.monitoring.counting import Predictions, group, late_labels, telemetry
from fedretrain.server import fleet
from fedretrain.server.fleet import Traits
from fedretrain.server.tables import telemetry as table
from fedretrain.wire.control import encode_labels, encode_report

CLASSES, FEATURES = 3, 4
CENTERS = np.random.default_rng(11).normal(scale=1.6, size=(CLASSES, FEATURES))


def rows(rng, num, *, offset=0.0):
    """Raw rows and labels of a sensor whose readings are off by `offset`."""
    y = rng.integers(0, CLASSES, num)
    x = CENTERS[y] + rng.normal(size=(num, FEATURES)) + offset
    return x.astype(np.float32), y.astype(np.int64)


@dataclass
class Held:
    """Predictions whose labels have not come yet."""

    at: float
    slot: int
    package: str
    shadow: bool
    y: np.ndarray
    answers: object


@dataclass
class Device:
    """One device: predicts, reports, follows what it is told."""

    name: str
    number: int
    engine: object
    store: object
    rng: np.random.Generator
    per_slot: int = 20
    label_delay_s: float = 2.0
    offset: float = 0.0
    serves: str = ""
    shadows: str = ""
    counter: int = 0
    online: bool = True
    refuses: str = ""
    held: list = field(default_factory=list)
    predictors: dict = field(default_factory=dict)

    def predictor(self, digest):
        if digest not in self.predictors:
            package = read_package(self.store, digest)
            self.predictors[digest] = Predictor.of(package), thaw(Bins, package.baseline)
        return self.predictors[digest]

    def follow(self, wish, counter):
        """Do what an assignment says, where that is another one."""
        if not self.online or counter == self.counter:
            return
        self.counter = counter
        self.shadows = wish.shadow
        if wish.serve != self.refuses or not wish.serve:
            self.serves = wish.serve

    def heartbeat(self, now):
        words = {
            "serves": self.serves,
            "shadows": self.shadows,
            "counter": self.counter,
            "healthy": True,
            "refused": self.refuses,
        }
        with self.engine.begin() as connection:
            fleet.heard(connection, [("p", self.name, now, words)])

    def slot(self, slot, slot_s):
        """Live through a slot: predict, and report what was predicted and what labels came."""
        at = slot * slot_s
        x, y = rows(self.rng, self.per_slot, offset=self.offset)
        sent = []
        for digest, shadow in ((self.serves, False), (self.shadows, True)):
            if digest:
                predictor, bins = self.predictor(digest)
                answers = predictor(x)
                sent.append((self.report(predictor, bins, x, answers, digest, slot, at + slot_s, shadow), at))
                self.held.append(Held(at, slot, digest, shadow, y, answers))
        due = [one for one in self.held if one.at + slot_s + self.label_delay_s <= at + slot_s]
        self.held = [one for one in self.held if one not in due]
        sent += [(self.labels(one, at + slot_s), one.at) for one in due]
        if self.online and sent:
            with self.engine.begin() as connection:
                connection.execute(
                    insert(table),
                    [
                        {
                            "population": "p",
                            "device": self.name,
                            "at": when,
                            "received_at": at + slot_s,
                            "payload": payload,
                        }
                        for payload, when in sent
                    ],
                )

    def report(self, predictor, bins, x, answers, digest, slot, now, shadow):
        n = len(x)
        senders, owner = group(np.zeros(n, np.int64), np.full(n, slot), np.zeros(n, np.int64))
        said = Predictions(answers.label, answers.confidence, answers.entropy, np.full(n, 0.001))
        inputs = predictor.pipeline.apply(x).reshape(n, -1)
        made = telemetry(senders, owner, inputs, said, bins, CLASSES, now)
        made = type(made)(**{**vars(made), "kpis": {"latency_s": np.array([[0.001 * n, float(n)]])}})
        return encode_report(made, digest, shadow=shadow)

    def labels(self, one, now):
        n = len(one.y)
        senders, owner = group(np.zeros(n, np.int64), np.full(n, one.slot), np.zeros(n, np.int64))
        delay = np.full(n, self.label_delay_s)
        made = late_labels(
            senders, owner, one.y, one.answers.label, one.answers.confidence, delay, CLASSES, now
        )
        return encode_labels(made, one.package, shadow=one.shadow)


def join(engine, store, count):
    """Enrol so many devices, of two sites and two types."""
    found = []
    for i in range(count):
        traits = Traits(("pump", "fan")[i % 2], ("north", "south")[i // 2 % 2], trains=True)
        with engine.begin() as connection:
            row = fleet.enrol(connection, "p", f"d{i}", f"{i:064x}", traits, 0.0)
        found.append(Device(row.device, row.number, engine, store, np.random.default_rng(100 + i)))
    return found
