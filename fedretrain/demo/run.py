"""``fedretrain demo``: a coordinator, agents and their sensors as processes of this machine, and the story as it happens.

Rules of this file:
    * The demo starts processes, answers for the operator, and reads the log like an operator. It decides nothing.
    * Whatever ends it, its processes end with it; what they wrote stays where it says.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedretrain.artifacts.weights import encode_params
from fedretrain.core.errors import FedretrainError
from fedretrain.demo.files import OPERATOR, OPERATOR_KEY, POPULATION, write_agent, write_files
from fedretrain.server.desk import Desk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fedretrain.server.simulations import Found

NUM_AGENTS = 4
LIMIT_S = 1500.0
_LOOK_S = 2.0
_TRIES = 100


@dataclass
class Demo:
    """A demo under way.

    Attributes:
        folder: Everything that it writes.
        say: Prints a line.
    """

    folder: Path
    say: Callable[[str], None]
    begun: float = field(default_factory=time.monotonic)
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _desk: Desk | None = None
    _read: int = 0

    def run(self) -> int:
        """Tell the story; the exit status."""
        try:
            self._prepare()
            self._start()
            self._story()
        finally:
            self.stop()
        return 0

    # ---- processes

    def _prepare(self) -> None:
        self.tell("a fleet of 24 sensors on 4 agents, and a model from the laboratory")
        words = (f"num_agents={NUM_AGENTS}", f"first_port={_free_run(NUM_AGENTS)}")
        self._once("sim", "feed", "prepare", str(self.folder), *words)
        feed = json.loads((self.folder / "feed.json").read_text())
        self._ports = _free_ports(3)
        write_files(self.folder, feed, self._ports)
        self._feed = feed
        found = json.loads(self._once("fedretrain", "models", "import", "--json", *self._config()))
        self.tell(f"version 1 is package {found['package'][:12]}, trained on laboratory data")

    def _start(self) -> None:
        self._spawn("server", "fedretrain", "server", *self._config())
        names = [one["name"] for one in self._feed["devices"]]
        tokens = json.loads(self._once("fedretrain", "enrol", "--json", *self._config(), *names))
        self._wait(lambda: _listens(self._ports[1]), "the coordinator listens", 60.0)
        for number, agent in enumerate(self._feed["agents"]):
            devices = [
                {**one, "token": tokens[one["name"]]}
                for one in self._feed["devices"]
                if one["agent"] == number
            ]
            path = write_agent(self.folder, agent["name"], agent["http"], self._ports[1], devices)
            self._spawn(agent["name"], "fedretrain", "edge", "run", "--config", str(path))
        self._desk = Desk(self.folder / "server.toml", POPULATION, self.folder / OPERATOR_KEY)
        count = len(names)
        self._wait(
            lambda: sum(one["serves"] == 1 for one in self.desk.devices()) == count,
            f"{count} devices serve version 1",
            180.0,
        )
        self._spawn("feed", "sim", "feed", "run", str(self.folder))

    def _story(self) -> None:
        self.tell("the sensors report; the coordinator watches what is normal")
        self._wait(self._baseline, "the champion has a record of its own", 400.0)
        (self.folder / "drift.now").touch()
        self.tell("half of the sensors drift")
        self._wait(
            lambda: self.desk.memory().begun.monitor.drifted or self._training(),
            "the monitors have noticed",
            400.0,
        )
        self._wait(self._training, "a federated retrain under differential privacy has begun", 400.0)
        self._wait(lambda: self._phase() in ("pending", "shadow"), "it has made a candidate", 600.0)
        self._wait(lambda: self._simulated().attempt > 0, "the simulation gate replays its campaign", 120.0)
        self._wait(lambda: self._phase() == "shadow", "its candidate is scored in shadow", 600.0)
        self.tell(f"the simulation gate had said {self._simulated().verdict}: {self._simulated().reason}")
        self._wait(lambda: self._phase() == "approval", "a person is asked", 400.0)
        self.desk.answer("granted", OPERATOR)
        self._wait(lambda: self._phase() == "canary", "approved: a quarter of the devices serve it", 120.0)
        champion = self._candidate()
        self._wait(
            lambda: self.desk.memory().begun.champion == champion, f"version {champion} is champion", 600.0
        )
        self._spending(champion)
        self._harm()

    def _harm(self) -> None:
        """Somebody brings the laboratory's model again: harmless there, harmful here."""
        lab = self.folder / "laboratory.safetensors"
        lab.write_bytes(encode_params(self.desk.models.package(1).weights))
        version = self.desk.propose(lab.read_bytes(), OPERATOR, "the laboratory's model, once more")
        self.tell(f"the laboratory's old model is proposed again, as version {version}")
        self._wait(
            lambda: version in self.desk.memory().begun.quarantined or self._ended(version),
            f"version {version} was caught, taken back and quarantined",
            600.0,
        )
        found = self.desk.verify()
        self.tell(
            "verified: " + ", ".join(f"{key} {value}" for key, value in sorted(found["checked"].items()))
        )
        if found["wrong"]:
            raise FedretrainError(found["wrong"][0])

    def stop(self) -> None:
        """End every process, the feed first."""
        for name in ("feed", *[one for one in self.children if one not in ("feed", "server")], "server"):
            child = self.children.get(name)
            if child is not None and child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for child in self.children.values():
            try:
                child.wait(timeout=20.0)
            except subprocess.TimeoutExpired:
                child.kill()

    # ---- what is looked at

    @property
    def desk(self) -> Desk:
        """The operator's desk."""
        assert self._desk is not None
        self._desk.models.refresh()
        return self._desk

    def _baseline(self) -> bool:
        note = self.desk.memory().baseline
        return bool(note.blob) and note.settled_at is None

    def _training(self) -> bool:
        return self.desk.memory().begun.training is not None or self._candidate() > 0

    def _phase(self) -> str:
        rollout = self.desk.memory().begun.rollout
        return "" if rollout is None else str(rollout.phase)

    def _simulated(self) -> Found:
        return self.desk.models.simulations.of(self._candidate())

    def _candidate(self) -> int:
        rollout = self.desk.memory().begun.rollout
        return 0 if rollout is None else rollout.plan.candidate

    def _ended(self, version: int) -> bool:
        rollout = self.desk.memory().begun.rollout
        return (
            rollout is not None and rollout.plan.candidate == version and str(rollout.phase) == "rolled_back"
        )

    def _spending(self, version: int) -> None:
        record = self.desk.models.package(version).manifest.training
        if record.epsilon is not None:
            self.tell(f"{record.rounds} rounds spent epsilon {record.epsilon:.1f}: {record.scope}")

    # ---- small things

    def tell(self, what: str) -> None:
        """A line of the story."""
        self.say(f"{time.monotonic() - self.begun:6.0f} s  {what}")

    def _wait(self, happened: Callable[[], bool], what: str, limit_s: float) -> None:
        until = time.monotonic() + limit_s
        while not happened():
            for name, child in self.children.items():
                if child.poll() is not None:
                    raise FedretrainError(
                        f"{name} ended by itself; its log is {self.folder / 'logs' / name}.log"
                    )
            if time.monotonic() > until:
                raise FedretrainError(
                    f"it did not happen in {limit_s:.0f} s: {what}; see {self.folder / 'logs'}"
                )
            self._news()
            time.sleep(_LOOK_S)
        self._news()
        self.tell(what)

    def _news(self) -> None:
        """What the log says since the last look."""
        if self._desk is None:
            return
        for event in self._desk.events(self._read):
            self._read = event["number"]
            if event["record"]["kind"] not in ("window_judged", "published_rule_fired"):
                self.say(f"          {event['text']}")

    def _config(self) -> tuple[str, ...]:
        return ("--config", str(self.folder / "server.toml"))

    def _spawn(self, name: str, module: str, *words: str) -> None:
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{name}.log").open("ab") as log:
            self.children[name] = subprocess.Popen(
                [sys.executable, "-m", module, *words], stdout=log, stderr=log, env=_environment()
            )

    def _once(self, module: str, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            capture_output=True,
            text=True,
            check=False,
            env=_environment(),
        )
        if done.returncode:
            raise FedretrainError(f"{module} {' '.join(words[:2])}: {done.stderr.strip()[-500:]}")
        return done.stdout


def run_demo(folder: Path, *, as_json: bool = False) -> int:
    """Tell the story in a folder; the exit status.

    Args:
        folder: Where everything is written.
        as_json: Whether each line of the story is a JSON document.

    Raises:
        FedretrainError: If something did not happen that should have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FedretrainError(f"{folder} is not empty: name another folder")

    def say(line: str) -> None:
        print(json.dumps({"text": line.strip()}) if as_json else line, flush=True)

    demo = Demo(folder.resolve(), say)
    demo.tell(f"everything is written below {folder.resolve()}")
    return demo.run()


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def _free_ports(count: int) -> Any:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = tuple(one.getsockname()[1] for one in held)
    for one in held:
        one.close()
    return ports


def _free_run(count: int) -> int:
    """The first of so many free ports in a row: the feed gives its agents one after the other."""
    for _ in range(_TRIES):
        (first,) = _free_ports(1)
        with contextlib.ExitStack() as held, contextlib.suppress(OSError, OverflowError):
            for port in range(first, first + count):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return int(first)
    raise FedretrainError(f"no {count} free ports in a row: end what listens on this machine")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
