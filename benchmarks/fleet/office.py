"""A coordinator's folder, its process, and a fleet that is enrolled in it.

Rules of this file:
    * The process is ``fedretrain server`` on a file that an operator could have written; everything listens on the loopback interface.
    * Devices are enrolled as the enrolment does it, certificate and row of the fleet, only without its network call: ten thousand
      tokens are another question. Every device has a key and a certificate of its own.
    * What the benchmark starts ends with it, even where it is killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sqlalchemy import func, select

from benchmarks.fleet.reports import FEATURES_FILE, OUTPUTS, lab_rows
from fedretrain.artifacts.identity import request_certificate, request_key_fingerprint
from fedretrain.core.child import leashed
from fedretrain.server import fleet
from fedretrain.server.config import read_server
from fedretrain.server.database import open_database, reading
from fedretrain.server.desk import Desk
from fedretrain.server.fleet import Traits
from fedretrain.server.keys import open_keys
from fedretrain.server.pool import write_pool
from fedretrain.server.tables import received, telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sqlalchemy import Engine

POPULATION = "bench"
OPERATOR = "the benchmark"
SERVER = """\
folder = "state"
mlflow = "off"

[listen]
control = "127.0.0.1:{control}"
enrol = "127.0.0.1:{enrol}"
heartbeat_s = {heartbeat}

[quota]
bytes_per_s = {bytes_per_s}

[flower]
fleet = "127.0.0.1:{flower}"

[populations.bench]
policy = "policy.yaml"
training = "training.yaml"
features = "features.json"
pool = "pool"

[populations.bench.watching]
slot_s = {slot}
tick_s = {tick}
settle_s = {kept}
record_s = {kept}
inputs_s = {kept}
"""
POLICY: dict[str, Any] = {
    "format": 1,
    "name": "bench",
    "validation": {"required": ["sanity"]},
    "rollout": {
        # A candidate goes to nine in ten as soon as it may, and stays there until somebody orders otherwise.
        "shadow": {"every_hour": False, "every_type": False},
        "steps": [{"exposure_fraction": 0.9}],
        "metrics": [{"metric": "confidence", "role": "guardrail", "margin": 0.05, "min_devices": 4}],
    },
}
TRAINING: dict[str, Any] = {
    "num_rounds": 2,
    "plan": {
        "model": "mlp",
        "options": {"hidden": [8]},
        "input_shape": [len(FEATURES_FILE.schema.channels)] if FEATURES_FILE.schema else [],
        "num_outputs": len(OUTPUTS),
        "training": {"batch_size": 32, "epochs": 1, "optimizer": {"lr": 0.2}},
    },
}
_ENROLLED_AT_ONCE = 1000
_MOST_BYTES = 6 * 2**30  # private memory: a measurement never takes the machine's


@dataclass
class Office:
    """See the module.

    Attributes:
        folder: Everything below it.
        heartbeat_s: How often devices are heard.
        slot_s: Of reports.
        tick_s: Of decisions.
        bytes_per_s: Quota of telemetry.
    """

    folder: Path
    heartbeat_s: float
    slot_s: float
    tick_s: float
    bytes_per_s: float = 65_536.0
    process: subprocess.Popen[bytes] | None = None
    _ports: tuple[int, ...] = field(default_factory=lambda: free_ports(3))

    def write(self) -> None:
        """Every file, and the first champion."""
        control, enrol, flower = self._ports
        text = SERVER.format(
            control=control,
            enrol=enrol,
            flower=flower,
            heartbeat=float(self.heartbeat_s),
            slot=float(self.slot_s),
            tick=float(self.tick_s),
            kept=240.0 * self.slot_s,
            bytes_per_s=float(self.bytes_per_s),
        )
        (self.folder / "server.toml").write_text(text)
        shadow = POLICY["rollout"]["shadow"] | {"min_s": 3 * self.slot_s, "max_s": 12 * self.slot_s}
        # Longer than any measurement; every slot of a step is kept in memory for every device.
        steps = [
            one | {"min_s": 180 * self.slot_s, "max_s": 240 * self.slot_s}
            for one in POLICY["rollout"]["steps"]
        ]
        policy = POLICY | {
            "rollout": POLICY["rollout"] | {"shadow": shadow, "steps": steps},
            "monitoring": _windows(self.slot_s),
        }
        (self.folder / "policy.yaml").write_text(yaml.safe_dump(policy))
        (self.folder / "training.yaml").write_text(yaml.safe_dump(TRAINING))
        (self.folder / "features.json").write_text(FEATURES_FILE.to_json())
        (self.folder / "pool").mkdir()
        x, y = lab_rows(600)
        write_pool(
            self.folder / "pool" / "lab.safetensors", x, y, 3600.0 * np.arange(len(y), dtype=np.float64)
        )
        self.desk.import_first(OUTPUTS, 2)

    @cached_property
    def desk(self) -> Desk:
        """The operator's."""
        return Desk(self.folder / "server.toml", POPULATION)

    @cached_property
    def engine(self) -> Engine:
        """The coordinator's database, beside it."""
        return open_database(read_server(self.folder / "server.toml").database_url)

    @property
    def control(self) -> str:
        """``host:port`` of the device API."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def authority(self) -> bytes:
        """PEM that devices trust."""
        return (self.folder / "state" / "authority" / "ca.pem").read_bytes()

    def enrol(self, num_devices: int) -> list[dict[str, str]]:
        """A fleet: name, key and certificate (PEM) of each."""
        authority = open_keys(read_server(self.folder / "server.toml"), time.time()).authority
        made = []
        for number in range(num_devices):
            name, key = f"d{number}", ec.generate_private_key(ec.SECP256R1())
            request = request_certificate(key, POPULATION, name)
            certificate = authority.issue_device(request, POPULATION, name, now=time.time())
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            known_by = request_key_fingerprint(request)
            made.append(
                {"name": name, "key": pem.decode(), "certificate": certificate.decode(), "known_by": known_by}
            )
        for first in range(0, num_devices, _ENROLLED_AT_ONCE):
            with self.engine.begin() as connection:
                for one in made[first : first + _ENROLLED_AT_ONCE]:
                    traits = Traits("pump", f"site-{len(one['name'])}")
                    fleet.enrol(connection, POPULATION, one["name"], one["known_by"], traits, time.time())
        return made

    def start(self) -> None:
        """Start ``fedretrain server``, and wait until it listens."""
        words = [
            sys.executable,
            *leashed("-m", "fedretrain", "server", "--config", str(self.folder / "server.toml")),
        ]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env=environment())
        self.wait(lambda: listens(self._ports[0]), "the coordinator listens")
        for process in self._tree():
            process.rlimit(psutil.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))

    def stop(self) -> None:
        """End it."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for name in ("engine",):
            if name in self.__dict__:
                self.engine.dispose()

    def _tree(self) -> list[psutil.Process]:
        """The coordinator and its gateways."""
        assert self.process is not None
        coordinator = psutil.Process(self.process.pid)
        return [coordinator, *coordinator.children(recursive=True)]

    def cpu_s(self) -> float:
        """CPU seconds that the coordinator and its gateways have used."""
        times = [process.cpu_times() for process in self._tree()]
        return float(sum(one.user + one.system for one in times))

    def rss_mib(self) -> float:
        """Their resident memory."""
        return float(sum(process.memory_info().rss for process in self._tree()) / 2**20)

    def wait(self, happened: Callable[[], bool], what: str, limit_s: float = 120.0) -> None:
        """Wait for something; raises RuntimeError, with the end of the coordinator's log, if it does not come."""
        until = time.monotonic() + limit_s
        while not happened():
            ended = self.process is not None and self.process.poll() is not None
            if ended or time.monotonic() > until:
                raise RuntimeError(f"not in {limit_s:.0f} s: {what}; {self.log()[-2000:]}")
            time.sleep(0.2)

    def log(self) -> str:
        """What the coordinator said."""
        return (self.folder / "server.log").read_text()

    def num_stored(self) -> int:
        """Records in the store."""
        with reading(self.engine) as connection:
            return int(connection.scalar(select(func.count()).select_from(telemetry)) or 0)

    def num_settled(self) -> int:
        """Records that counted, by what the receiver remembers of each device's numbers."""
        with reading(self.engine) as connection:
            states = connection.scalars(select(received.c.state)).all()
        streams = [stream for state in states for stream in _streams(json.loads(state))]
        return sum(int(stream["num_received"]) for stream in streams)


def _windows(slot_s: float) -> dict[str, Any]:
    """Windows of an hour's and of four hours' length, where a slot is a minute: a day of minutes is kept, not a week."""
    short, long = 60 * slot_s, 240 * slot_s
    return {
        "windows": [{"length_s": short, "stride_s": slot_s}, {"length_s": long, "stride_s": short}],
        "drift": {"windows_s": [short]},
        "confidence_window_s": short,
        "kpi_rules": {"window_s": short},
        "accuracy": {"window_s": short, "margin": 0.03, "min_completeness": 0.3},
        "place": {"window_s": long},
        "label_wait_s": short,
    }


def _streams(value: Any) -> list[dict[str, Any]]:
    """Every stream's state in an inbox's plain values."""
    if isinstance(value, dict) and "num_received" in value:
        return [value]
    inner: Sequence[Any] = (
        list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    )
    return [stream for one in inner for stream in _streams(one)]


def environment() -> dict[str, str]:
    """Of every process of a benchmark: one thread for arithmetic."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "GRPC_VERBOSITY": "ERROR"}


def free_ports(count: int) -> tuple[int, ...]:
    """Ports of the loopback interface that are free just now."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = tuple(int(one.getsockname()[1]) for one in held)
    for one in held:
        one.close()
    return ports


def listens(port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
