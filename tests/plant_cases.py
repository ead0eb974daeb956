"""A plant on this machine, of real processes: two coordinators (one leads, the other is only a gateway), an agent with several devices, and
whoever asks them for predictions. Processes are killed and started again; what must hold whatever happens is checked here.

Rules of this file:
    * Short times, everything else as in production: mutual TLS, tokens, signed assignments, a real database.
    * `Watcher` asks each device without end. Whoever is alive answers with a model; the rules alone would be a failure.
    * A prediction counts once: what the agents' databases hold is compared with what the coordinators' has counted.
"""

from __future__ import annotations

import contextlib
import http.client
import signal
import sqlite3
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil
import yaml
from sqlalchemy import select

from fedretrain.artifacts.weights import encode_params
from fedretrain.demo.files import POLICY
from fedretrain.server import fleet
from fedretrain.server.database import reading
from fedretrain.server.desk import Desk
from fedretrain.server.tables import leases, telemetry
from fedretrain.wire.v1 import fleet_pb2 as pb
from tests.flower_cases import free_port, listens
from tests.plant_parts import DEVICES, Process, Watcher
from tests.server_cases import rows, write_office

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.proxy_cases import Proxy

POPULATION, OPERATOR = "pumps", "the test"
SLOT_S = 2.0
SERVER = """\
folder = "state"
mlflow = "off"
[listen]
control = "127.0.0.1:{control}"
enrol = "127.0.0.1:{enrol}"
public = "127.0.0.1:{public}"
heartbeat_s = 0.5
[flower]
fleet = "127.0.0.1:{flower}"
[populations.pumps]
policy = "policy.yaml"
training = "training.yaml"
features = "features.json"
pool = "pool"
[populations.pumps.watching]
slot_s = 2.0
tick_s = 1.0
settle_s = 600.0
record_s = 600.0
inputs_s = 600.0
"""
EDGE = """\
folder = "edge"
enrol = "127.0.0.1:{enrol}"
authority = "state/authority/ca.pem"
heartbeat_s = 0.5
[api]
http = "127.0.0.1:{http}"
[outbox]
flush_s = 0.3
"""
ROLLOUT: dict[str, Any] = {
    "shadow": {"min_s": 20, "max_s": 400, "every_hour": False},
    "steps": [{"exposure_fraction": 0.5, "min_s": 3600, "max_s": 7200}],
    "metrics": [{"metric": "confidence", "role": "guardrail", "margin": 0.05, "min_devices": 4}],
}
PATIENCE_S = 120.0


@dataclass
class Plant:
    """See the module. `start` it; `stop` it.

    Attributes:
        folder: Everything below it.
        policy: Rules of its rollouts that are other than `ROLLOUT`.
        parts: Other parts of its policy file.
        device: More lines of each device of the agent's file.
        training: Its training file; empty: as `write_office` writes it.
        first_rounds: Passes over the pool that make the first champion.
        edge: More of the agent's file.
        proxy: Between devices and gateway.
        small: Folders that are disks of their own, with their sizes as mount says them.
        processes: By name.
        env: What is in the environment of a process, by its name.
        forgotten: Predictions that counted and are in no agent's database any more, as `made` says them.
    """

    folder: Path
    policy: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    first_rounds: int = 2
    edge: str = ""
    device: str = ""
    proxy: Proxy | None = None
    small: dict[str, str] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    env: dict[str, dict[str, str]] = field(default_factory=dict)
    forgotten: dict[tuple[str, bool], int] = field(default_factory=dict)

    def start(self) -> None:
        """Until every device serves the first champion."""
        for name, size in self.small.items():
            (self.folder / name).mkdir()
            words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(self.folder / name)]
            subprocess.run(words, check=True, capture_output=True)
        write_office(self.folder)
        ports = {
            name: free_port() for name in ("first", "first_enrol", "second", "second_enrol", "flower", "http")
        }
        public = ports["second"]
        if self.proxy is not None:
            self.proxy.target, public = public, self.proxy.port
        for name in ("first", "second"):
            text = SERVER.format(
                control=ports[name],
                enrol=ports[f"{name}_enrol"],
                public=public,
                flower=ports["flower"],
            )
            (self.folder / f"{name}.toml").write_text(text)
        rollout = {**ROLLOUT, **self.policy}
        written = {**POLICY, "name": "plant", "validation": {"required": ["sanity"]}, "rollout": rollout}
        written |= self.parts
        if self.training:
            (self.folder / "training.yaml").write_text(yaml.safe_dump(self.training))
        (self.folder / "policy.yaml").write_text(yaml.safe_dump(written))
        self.desk.import_first(("a", "b", "c"), self.first_rounds)
        tokens = self.desk.tokens(list(DEVICES), 3600.0)
        text = EDGE.format(enrol=ports["first_enrol"], http=ports["http"]) + self.edge
        for name, token in tokens:
            text += f'[[devices]]\nname = "{name}"\ntoken = "{token}"\ndevice_type = "pump"\nsite = "north"\n{self.device}'
        (self.folder / "edge.toml").write_text(text)
        for name in ("first", "second"):
            words = ("fedretrain", "server", "--config", str(self.folder / f"{name}.toml"))
            self.processes[name] = self._process(name, words)
        words = ("fedretrain.edge", "run", "--config", str(self.folder / "edge.toml"))
        self.processes["agent"] = self._process("agent", words)
        self.watcher = Watcher(ports["http"])
        self.processes["first"].start()
        self.until(lambda: self.leader() == "first", "somebody leads")
        self.until(lambda: listens(ports["first_enrol"]), "devices can enrol")
        self.processes["second"].start()
        self.processes["agent"].start()
        self.until(lambda: self.serving() == {1: len(DEVICES)}, "every device serves version 1")
        self.watcher.is_expected.set()

    def _process(self, name: str, words: tuple[str, ...]) -> Process:
        return Process(name, words, self.folder / f"{name}.log", self.env.get(name, {}))

    @property
    def desk(self) -> Desk:
        """The operator's, with a fresh look at the database."""
        if "_desk" not in self.__dict__:
            self.__dict__["_desk"] = Desk(self.folder / "first.toml", POPULATION)
        found: Desk = self.__dict__["_desk"]
        found.models.refresh()
        return found

    def stop(self) -> None:
        if hasattr(self, "watcher"):
            self.watcher.stop()
        for process in self.processes.values():
            process.end(signal.SIGKILL)
        self.desk.log.engine.dispose()
        for name in self.small:
            subprocess.run(["umount", "-l", str(self.folder / name)], check=False)

    # ---- what is seen

    def leader(self) -> str:
        """Which process holds the lease; empty for none that lives."""
        with reading(self.desk.log.engine) as connection:
            row = connection.execute(select(leases).where(leases.c.name == "coordinator")).one_or_none()
        if row is None or row.expires_at <= time.time():
            return ""
        pid = int(row.holder.split(":")[1])
        return next((name for name, one in self.processes.items() if one.is_alive and one.pid == pid), "")

    def serving(self) -> dict[int, int]:
        """How many devices say that they serve each version; 0 is the rules."""
        found: dict[int, int] = {}
        for one in self.desk.devices():
            version = one["serves"] or 0
            found[version] = found.get(version, 0) + 1
        return found

    def phase(self) -> str:
        """Of the newest rollout; empty before the first."""
        rollout = self.desk.memory().begun.rollout
        return "" if rollout is None else str(rollout.phase)

    def candidate(self) -> int:
        """Of the newest rollout."""
        rollout = self.desk.memory().begun.rollout
        return 0 if rollout is None else rollout.plan.candidate

    def helpers(self) -> list[str]:
        """What the coordinators' children are, beside their gateways."""
        found = []
        for name in ("first", "second"):
            if self.processes[name].is_alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    children = psutil.Process(self.processes[name].pid).children(recursive=True)
                    found += [" ".join(one.cmdline()) for one in children]
        return [one for one in found if one and "gateway_process" not in one]

    def until(self, happened: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
        """Wait for what must come about."""
        end = time.monotonic() + patience_s
        while not happened():
            assert time.monotonic() < end, f"not in {patience_s:.0f} s: {what}\n{self.told()}"
            time.sleep(0.3)

    def told(self) -> str:
        """The ends of all logs."""
        return "\n".join(
            f"--- {log.name}\n{log.read_text()[-2500:]}" for log in sorted(self.folder.glob("*.log"))
        )

    # ---- what is done

    def reach(self, phase: str) -> None:
        """Bring the plant to a phase: idle, shadow, canary, rollback (devices have just been ordered back)."""
        self.until(lambda: self.leader() != "", "somebody leads")
        if phase != "idle" and self.phase() not in ({"shadow"} if phase == "shadow" else {"canary"}):
            self.calm()
            self.desk.propose(encode_params(self.desk.models.package(1).weights), OPERATOR, "once more")
            self.until(lambda: self.phase() == "shadow", "shadow")
        if phase in ("canary", "rollback"):
            self.until(lambda: self.phase() == "canary", "canary", 240.0)
            self.until(lambda: self.serving().get(self.candidate(), 0) >= 2, "exposed devices")
        if phase == "rollback":
            self.desk.order("roll_back", OPERATOR, "for the test")
        if phase == "idle":
            self.calm()

    def reread(self, **parts: Any) -> None:
        """Change parts of the policy file, and start the coordinators again."""
        path = self.folder / "policy.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **parts}))
        for name in ("first", "second"):
            self.processes[name].end(signal.SIGTERM)
        self.__dict__.pop("_desk").log.engine.dispose()
        for name in ("first", "second"):
            self.processes[name].start()
            self.until(lambda: self.leader() != "", "somebody leads again")
        begun = time.time()
        self.until(lambda: self.heard_since(begun), "every device is heard again")

    def calm(self) -> None:
        """No rollout, and everybody on the champion."""
        if self.phase() in ("shadow", "approval", "canary", "pending"):
            self.desk.order("roll_back", OPERATOR, "to begin again")
        self.until(lambda: self.phase() in ("", "rolled_back"), "no rollout")
        self.until(lambda: self.serving() == {1: len(DEVICES)}, "every device serves the champion")

    def kill(self, role: str) -> str:
        """SIGKILL the process that has a role: coordinator (who leads), gateway (whom devices speak with), agent. Its name."""
        if role == "gateway":
            coordinator = psutil.Process(self.processes["second"].pid)
            (gateway,) = (
                one for one in coordinator.children() if "gateway_process" in " ".join(one.cmdline())
            )
            gateway.kill()
            return role
        name = "agent" if role == "agent" else self.leader()
        if name == "agent":
            self.watcher.is_expected.clear()
            time.sleep(0.2)
        self.processes[name].end(signal.SIGKILL)
        return name

    def heard_since(self, at: float) -> bool:
        """Whether every device was heard since an instant."""
        with reading(self.desk.log.engine) as connection:
            return all(one.seen_at >= at for one in fleet.everybody(connection, POPULATION))

    def revive(self, name: str) -> None:
        """Start a process again, unless somebody else does, and wait until all is as it was."""
        if name != "gateway":
            self.processes[name].start()
        if name == "agent":
            self.until(self._answers, "the agent answers again")
            self.watcher.is_expected.set()
        begun = time.time()
        self.until(lambda: self.heard_since(begun), "every device is heard again")
        self.until(lambda: self.leader() != "", "somebody leads again")

    def _answers(self) -> bool:
        try:
            status, found = self.watcher.ask(
                "/v1/predict", {"device": DEVICES[0], "rows": rows(1)[0].tolist()}
            )
        except (OSError, http.client.HTTPException):
            return False
        assert found["predictions"][0]["package"], "the first answer after a start came from the rules"
        return status == 200

    # ---- what must hold

    def check(self) -> None:
        """A model was always served; nothing is lost, nothing counts twice; every chain and digest is whole."""
        bare, self.watcher.bare = self.watcher.bare, []
        assert bare == []
        self.watcher.is_expected.clear()
        try:
            time.sleep(0.2)
            self.until(
                lambda: self.made() == self.counted(),
                f"each prediction counts: {self.made()}, {self.counted()}",
            )
            time.sleep(2 * SLOT_S)
            assert self.made() == self.counted()
        finally:
            self.watcher.is_expected.set()
        assert self.desk.verify()["wrong"] == []

    def made(self) -> dict[tuple[str, bool], int]:
        """Predictions of models that each agent's database holds, by device, and whether they were only scored."""
        found = {}
        for name in DEVICES:
            where = f"file:{self.folder}/edge/{name}/agent.db?mode=ro"
            with contextlib.closing(sqlite3.connect(where, uri=True)) as connection:
                for is_shadow in (False, True):
                    (number,) = connection.execute(
                        "select count(*) from predictions where version not in ('', 'raw') and (model like '%/shadow') = ?",
                        (is_shadow,),
                    ).fetchone()
                    found[name, is_shadow] = int(number) + self.forgotten.get((name, is_shadow), 0)
        return found

    def counted(self) -> dict[tuple[str, bool], int]:
        """The same, of the records that the coordinators have taken."""
        found = {(name, is_shadow): 0 for name in DEVICES for is_shadow in (False, True)}
        for device, said in self.taken():
            if said.WhichOneof("what") == "report" and said.report.package:
                found[device, said.report.shadow] += sum(said.report.outputs)
        return found

    def labelled(self) -> int:
        """Labels of served predictions in the records that the coordinators have taken."""
        found = (said.labels for _, said in self.taken() if said.WhichOneof("what") == "labels")
        return sum(sum(one.confusion) for one in found if not one.shadow)

    def taken(self) -> list[tuple[str, Any]]:
        """The records that the coordinators have taken, with their devices."""
        with reading(self.desk.log.engine) as connection:
            rows = connection.execute(select(telemetry.c.device, telemetry.c.payload)).all()
        return [(row.device, pb.Payload.FromString(row.payload)) for row in rows]
