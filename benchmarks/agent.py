"""``python -m benchmarks.agent``: what the device agent costs: resident memory at rest, and a prediction over bare onnxruntime.

Rules of this file:
    * One JSON line per measurement, ratios first, with versions and cores.
    * Memory is that of a real agent process with one device, one installed model and nobody to talk to, once it is idle; the
      resident set, and what of it no other process shares. Then the first predictions over the local API, and the resident set
      after them: what the idle agent had unmapped (`fedretrain.edge.library_pages`) and they need.
    * `predict` is the whole of `DeviceRuntime.predict` from raw samples: schema, pipeline, model, decision, health counts,
      and the writes of its buffer. `answer` is the package's `Predictor` alone. Both over bare onnxruntime, as in
      `benchmarks.inference`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.inference import alternate, bare, package, problem
from benchmarks.measure import cores, versions
from benchmarks.results import append
from fedretrain.artifacts.delta import release
from fedretrain.artifacts.identity import FleetAuthority, create_key, load_key, request_certificate
from fedretrain.artifacts.store import ContentStore
from fedretrain.artifacts.trust.keys import create_keys, load_online
from fedretrain.artifacts.trust.keys import load_key as load_root_key
from fedretrain.artifacts.trust.root import first_root
from fedretrain.core.build import plain
from fedretrain.core.durable import write_whole
from fedretrain.edge.config import read_edge
from fedretrain.edge.device import DeviceRuntime
from fedretrain.edge.joining import JOINED, KEY, Joined
from fedretrain.edge.memory import MemoryFile
from fedretrain.edge.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedretrain.artifacts.package import Package

CASES = ("mlp_25k", "cnn1d_12k", "cnn1d_large")
DEVICE, POPULATION = "bench-1", "bench"
MOST_MIB = 100.0
"""An idle agent's resident memory may be so much, before and after it has answered."""
_IDLE_S = 20.0
_ANSWERS = 100


def install(folder: Path, name: str) -> Package:
    """A device as enrolment and an install leave it, without a server; what it serves."""
    now = time.time()
    device = folder / "edge" / DEVICE
    device.mkdir(parents=True)
    authority = FleetAuthority(folder / "ca", now=now)
    create_key(device / KEY)
    request = request_certificate(load_key(device / KEY), POPULATION, DEVICE)
    certificate = authority.issue_device(request, POPULATION, DEVICE, now=now)
    create_keys(folder / "keys")
    offline = load_root_key(folder / "keys" / "offline" / "root.pem")
    root = first_root(offline, load_online(folder / "keys" / "online").public(), now=now)
    pem = authority.certificate.decode()
    joined = Joined(POPULATION, DEVICE, 0, certificate.decode(), pem, root.decode(), "127.0.0.1:1")
    write_whole(device / JOINED, json.dumps(plain(joined)).encode())
    case, store = problem(name), ContentStore(folder / "server")
    digest = package(case, release(None, case.bundle.first_params()), store, 1)
    slots = Slots(device / "models")
    slots.stage(digest, store.get)
    MemoryFile(device).change(lambda told: replace(told, counter=1, serve=digest))
    (folder / "edge.toml").write_text(
        f'folder = "edge"\nenrol = "127.0.0.1:1"\nauthority = "ca/ca.pem"\n'
        f'[[devices]]\nname = "{DEVICE}"\n[at_rest]\ndevelopment = true\n[api]\nhttp = "127.0.0.1:0"\n'
    )
    return slots.activate(digest)


def memory(name: str) -> dict[str, Any]:
    """Resident memory of an idle agent, and what its first answers after that cost."""
    with tempfile.TemporaryDirectory() as made, running(Path(made), name) as (process, port):
        time.sleep(_IDLE_S / 2)
        begun = process.cpu_times()
        time.sleep(_IDLE_S / 2)
        used, spent = process.memory_full_info(), process.cpu_times()
        wall_ms = answers(name, port)
        later = process.memory_info()
    busy = (spent.user + spent.system - begun.user - begun.system) / (_IDLE_S / 2)
    return {
        "case": f"{name}_idle",
        "rss_mib": round(used.rss / 2**20, 1),
        "unshared_mib": round(used.uss / 2**20, 1),
        "most_mib": MOST_MIB,
        "rss_after_answers_mib": round(later.rss / 2**20, 1),
        "cpu_share": round(busy, 4),
        "first_answer_ms": round(wall_ms[0], 1),
        "answer_ms": round(statistics.median(wall_ms), 1),
    }


@contextlib.contextmanager
def running(folder: Path, name: str) -> Iterator[tuple[psutil.Process, int]]:
    """An agent that is ready: its process, and the port of its local API."""
    install(folder, name)
    words = [sys.executable, "-m", "fedretrain.edge", "run", "--config", str(folder / "edge.toml"), "--json"]
    with (folder / "log").open("wb") as log:
        agent = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, env=dict(os.environ))
    try:
        ready = agent.stdout.readline() if agent.stdout else b""
        if not ready:
            raise RuntimeError((folder / "log").read_text())
        yield psutil.Process(agent.pid), int(json.loads(ready)["api"][0].rpartition(":")[2])
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait(30)


def answers(name: str, port: int) -> list[float]:
    """How long each of the first predictions over the local API takes, milliseconds."""
    body = json.dumps({"rows": problem(name).rows[:1].tolist()})
    api, wall_ms = http.client.HTTPConnection("127.0.0.1", port), []
    for _ in range(_ANSWERS):
        begun = time.perf_counter()
        api.request("POST", "/v1/predict", body, {"Content-Type": "application/json"})
        reply = api.getresponse()
        content = reply.read()
        wall_ms.append(1e3 * (time.perf_counter() - begun))
        if reply.status != http.HTTPStatus.OK:
            raise RuntimeError(content.decode())
    api.close()
    return wall_ms


def speed(name: str) -> dict[str, Any]:
    """CPU time of one prediction over bare onnxruntime."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        served, case = install(folder, name), problem(name)
        config = read_edge(folder / "edge.toml")
        with DeviceRuntime(config, config.devices[0]) as device:
            rows = case.rows[:1]
            x, session = case.pipeline(rows), bare(served.graph, served.weights)
            predictor = device.answering.serving.model
            if predictor is None or device.predict(rows)[0].package != served.digest:
                raise RuntimeError("the device does not serve what was installed")
            answer = predictor.predictor
            timed = alternate(
                {
                    "bare": lambda: session(x),
                    "answer": lambda: answer(rows),
                    "predict": lambda: device.predict(rows),
                }
            )
    cpu_ms = {engine: 1e3 * min(times) for engine, times in timed.items()}
    return {
        "case": f"{name}_predict",
        "predict_over_bare": round(cpu_ms["predict"] / cpu_ms["bare"], 3),
        "answer_over_bare": round(cpu_ms["answer"] / cpu_ms["bare"], 3),
        "cpu_ms": {engine: round(ms, 5) for engine, ms in cpu_ms.items()},
    }


def main() -> int:
    """Measure each case and print it; 1 where an idle agent takes more memory than it may."""
    measured = [*(speed(name) for name in CASES), memory("cnn1d_12k")]
    about = {"versions": versions("onnxruntime", "numpy"), "cores": cores()}
    for line in measured:
        print(json.dumps(line | about))
        append("agent", line | about)
    used = [line[name] for line in measured for name in ("rss_mib", "rss_after_answers_mib") if name in line]
    return int(max(used) > MOST_MIB)


if __name__ == "__main__":
    sys.exit(main())
