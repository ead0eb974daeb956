"""A coordinator's folder as an operator has it, small and without MLflow, and commands run on it as a person types them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from fedretrain.cli import main
from fedretrain.coordinator.cycle import Begun, CycleEvent, Propose
from fedretrain.coordinator.policy import read_policy
from fedretrain.core.build import plain
from fedretrain.core.clock import HOUR_S
from fedretrain.core.frozen import freeze
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Channel, Schema
from fedretrain.rollout.causes import EventKind, Phase
from fedretrain.rollout.events import RolloutEvent
from fedretrain.server import fleet, memory, orders
from fedretrain.server.config import read_server
from fedretrain.server.database import open_database
from fedretrain.server.desk import Desk
from fedretrain.server.event_log import EventLog
from fedretrain.server.fleet import Traits
from fedretrain.server.keys import open_stores
from fedretrain.server.pool import write_pool
from fedretrain.server.ranked import Ranked
from tests.cycle_cases import Drive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest

FEATURES, CLASSES = 4, 3
CENTERS = np.random.default_rng(11).normal(scale=1.6, size=(CLASSES, FEATURES))
SCHEMA = Schema(tuple(Channel(f"s{i}", "1", -8.0, 8.0) for i in range(FEATURES)))
FEATURES_FILE = Pipeline((Scaler("range"),), SCHEMA)
TRAINING: dict[str, Any] = {
    "num_rounds": 2,
    "plan": {
        "model": "mlp",
        "options": {"hidden": [8]},
        "input_shape": [FEATURES],
        "num_outputs": CLASSES,
        "training": {"batch_size": 32, "epochs": 1, "optimizer": {"lr": 0.2}},
    },
}
SERVER = """\
folder = "state"
mlflow = "off"

[populations.pumps]
policy = "policy.yaml"
training = "training.yaml"
features = "features.json"
pool = "pool"
"""


def rows(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Raw rows and their labels: three clouds, apart from each other."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, num)
    return (CENTERS[y] + 0.5 * rng.normal(size=(num, FEATURES))).astype(np.float32), y.astype(np.int64)


@dataclass
class Typed:
    """What a command answered."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as the one document that it must be."""
        return json.loads(self.out)


@dataclass
class Office:
    """The folder of ``server.toml``."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def config(self) -> Path:
        return self.folder / "server.toml"

    def type(self, *words: object) -> Typed:
        """Run a command line; where it takes one, the configuration is this folder's."""
        self.capsys.readouterr()
        status = main([str(word) for word in words])
        said = self.capsys.readouterr()
        return Typed(status, said.out, said.err)

    def on(self, *words: object) -> Typed:
        """Run a command on this folder's configuration."""
        return self.type(*words, "--config", self.config)

    def log(self) -> EventLog:
        """The event log; close its engine."""
        (self.folder / "state").mkdir(exist_ok=True)
        return EventLog(open_database(f"sqlite:///{self.folder}/state/fedretrain.db"))

    def desk(self) -> Desk:
        """The desk of its one population."""
        return Desk(self.config, "")

    def package(self) -> str:
        """Digest of its only version's package."""
        ((_, found),) = self.desk().models.versions.by_number.items()
        return found.package

    def ordered(self) -> list[orders.Said]:
        """What people have ordered."""
        log = self.log()
        found = [orders.read(entry.record) for entry in log.read(orders.stream("pumps"))]
        log.engine.dispose()
        return found

    def begin(self, champion: int = 1, at: float = 1.0) -> None:
        """What the coordinator writes when it first finds a version."""
        log = self.log()
        log.append(memory.stream("pumps"), [CycleEvent(at, Begun(champion)).to_record()], at=at)
        log.engine.dispose()

    def ask(self, by: str, **approvals: Any) -> None:
        """The loop until the rollout of version 2, which somebody proposed, asks for its promotion.

        Args:
            by: Who proposed it.
            approvals: The policy's.
        """
        rollout = {"metrics": [{"metric": "hits"}], "approvals": approvals}
        self.write_policy(rollout=rollout)
        drive = Drive(read_policy(yaml.safe_load((self.folder / "policy.yaml").read_text())))
        drive.tick(orders=(Propose(2, by),))
        drive.to(Phase.APPROVAL)
        self.lived(drive)

    def lived(self, drive: Drive, num_devices: int = 0) -> None:
        """The log of a loop as the coordinator would have written it, with the policy that it ran under.

        Args:
            drive: Whose.
            num_devices: Exposed in the order of their numbers.
        """
        (self.folder / "policy.yaml").write_text(yaml.safe_dump(plain(drive.policy)))
        log = self.log()
        rank_D = (np.arange(num_devices) + 0.5) / max(num_devices, 1)
        ranks = open_stores(read_server(self.config)).campaigns.put(freeze(Ranked(rank_D)))
        records = []
        for event in drive.log:
            records.append(event.to_record())
            if isinstance(event.body, RolloutEvent) and event.body.kind is EventKind.CREATED:
                records.append({"kind": memory.RANKS, "rollout": 1, "blob": ranks, "seed": 1})
        log.append(memory.stream("pumps"), records, at=drive.now)
        log.engine.dispose()

    def write_policy(self, **parts: Any) -> None:
        """Another policy file."""
        (self.folder / "policy.yaml").write_text(yaml.safe_dump({"format": 1, "name": "small", **parts}))

    def enrol(self, name: str, seen_at: float = 0.0, heartbeat: dict[str, Any] | None = None) -> None:
        """A device joins, and may have been heard."""
        log = self.log()
        with log.engine.begin() as connection:
            fleet.enrol(connection, "pumps", name, f"{name:0<64}", Traits("pump", "north"), 1.0)
            if seen_at:
                fleet.heard(connection, [("pumps", name, seen_at, heartbeat or {})])
        log.engine.dispose()


def write_office(folder: Path, num_rows: int = 240) -> None:
    """Write every file that ``server.toml`` names, and it."""
    (folder / "server.toml").write_text(SERVER)
    (folder / "policy.yaml").write_text(yaml.safe_dump({"format": 1, "name": "small"}))
    (folder / "training.yaml").write_text(yaml.safe_dump(TRAINING))
    (folder / "features.json").write_text(FEATURES_FILE.to_json())
    (folder / "pool").mkdir()
    x, y = rows(num_rows)
    write_pool(folder / "pool" / "lab.safetensors", x, y, HOUR_S * np.arange(num_rows))


def lines(text: str) -> Iterator[str]:
    """The lines that say something."""
    return (line for line in text.splitlines() if line.strip())
