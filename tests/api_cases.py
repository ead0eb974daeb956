"""An agent of one device that answers always the same, for tests of the local API."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

from fedretrain.core.errors import DataError
from fedretrain.edge.answering import Answer


@dataclass(frozen=True)
class Status:
    device: str = "a"


class Device:
    """Answers class 1 to everything."""

    outputs = ("calm", "warm")
    joined = SimpleNamespace(device="a")

    def __init__(self):
        self.labels, self.rows = [], []

    def predict(self, rows, samples=None):
        self.rows.append((rows.tolist(), samples))
        return [Answer(f"p{n}", 1, 0.5, "d") for n in range(len(rows))]

    def label(self, *said):
        self.labels.append(said)
        return ("p0",)

    def status(self):
        return Status()

    def recent(self, limit):
        return [("p0", None, 1.0, "d", 1, 0.5, None, None)][:limit]

    def lineage(self, version):
        return ()


class Agent:
    waiting = ()

    def __init__(self):
        self.devices = {"a": Device()}

    def device(self, name=""):
        if name not in {"", "a"}:
            raise DataError(f"there is no device {name!r}")
        return self.devices["a"]
