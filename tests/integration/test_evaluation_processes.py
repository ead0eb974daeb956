"""Devices validate candidates, as processes: a harmful one ends before anybody serves it, and a kill in the middle counts nobody twice."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from fedretrain.artifacts.weights import encode_params
from fedretrain.server import validations
from fedretrain.server.desk import Desk
from tests.flower_cases import listens
from tests.server_cases import rows, write_office

pytestmark = [pytest.mark.faults, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
NUM, PER_AGENT, LIMIT_S = 40, 5, 120.0
POLICY = {
    "format": 1,
    "name": "field",
    "validation": {
        "source": "devices",
        "required": ["finite", "sanity", "overall"],
        "num_slices": 2,
        "field": {"quorum": 8, "min_rows": 300, "deadline_s": 600, "spread_s": 0, "history_s": 3600},
    },
}
MORE = """
[listen]
control = "127.0.0.1:{0}"
enrol = "127.0.0.1:{1}"
heartbeat_s = 0.5

[flower]
fleet = "127.0.0.1:{2}"

[populations.pumps.watching]
slot_s = 2.0
tick_s = 0.5
"""
AGENT = """
folder = "{name}"
enrol = "127.0.0.1:{enrol}"
authority = "state/authority/ca.pem"
heartbeat_s = 0.5
[api]
http = "127.0.0.1:0"
[outbox]
flush_s = 0.5
"""


def free_ports(count):
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]


class Plant:
    """A coordinator and agents of one folder."""

    def __init__(self, folder):
        self.folder, self.children, self.ports = folder, {}, free_ports(3)
        write_office(folder)
        with (folder / "server.toml").open("a") as file:
            file.write(MORE.format(*self.ports))
        (folder / "policy.yaml").write_text(yaml.safe_dump(POLICY))
        self.once("models", "import")
        self.desk = Desk(folder / "server.toml", "pumps")

    def once(self, *words):
        done = subprocess.run(
            [sys.executable, "-m", "fedretrain", *words, "--json", "--config", self.folder / "server.toml"],
            capture_output=True,
            text=True,
            env=self.environment(),
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def environment(self):
        return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def spawn(self, name, *words):
        log = (self.folder / f"{name}.log").open("ab")
        self.children[name] = subprocess.Popen(
            [sys.executable, "-m", *words], stdout=subprocess.PIPE, stderr=log, env=self.environment()
        )
        log.close()
        return self.children[name]

    def serve(self):
        self.spawn("server", "fedretrain", "server", "--config", self.folder / "server.toml")

    def host(self, name):
        """Start an agent; the port of its local API."""
        words = ("fedretrain.edge", "run", "--config", self.folder / f"{name}.toml", "--json")
        line = self.spawn(name, *words).stdout.readline()
        assert line, (self.folder / f"{name}.log").read_text()
        return int(json.loads(line)["api"][0].rsplit(":", 1)[1])

    def configure(self, name, tokens):
        text = [AGENT.format(name=name, enrol=self.ports[1])]
        for index, (device, token) in enumerate(sorted(tokens.items())):
            text += ["[[devices]]", f'name = "{device}"', f'token = "{token}"']
            text += [f'device_type = "{"ab"[index % 2]}"', 'site = "north"']
        (self.folder / f"{name}.toml").write_text("\n".join(text))

    def kill(self, name, number=signal.SIGKILL):
        child = self.children.pop(name)
        child.send_signal(number)
        child.wait(timeout=60)
        child.stdout.close()

    def until(self, holds, what):
        end = time.monotonic() + LIMIT_S
        while not holds():
            assert time.monotonic() < end, f"it never happened: {what}; {self.logs()}"
            time.sleep(0.1)

    def logs(self):
        return {one.name: one.read_text()[-1500:] for one in self.folder.glob("*.log")}

    @property
    def known(self):
        return self.desk.validations()

    def phase(self):
        state = self.desk.memory().state
        return "" if state is None or state.rollout is None else str(state.rollout.phase)


@pytest.fixture
def plant(tmp_path):
    made = Plant(tmp_path)
    yield made
    for name in list(made.children):
        made.kill(name)
    made.desk.log.engine.dispose()


def ask(port, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    reply = connection.getresponse()
    status, found = reply.status, json.loads(reply.read())
    connection.close()
    assert status == 200, found
    return found


def live(port, devices):
    """Every device predicts, and is told what was right."""
    for index, device in enumerate(devices):
        x, y = rows(NUM, seed=100 + index)
        made = ask(port, "/v1/predict", {"device": device, "rows": x.tolist()})["predictions"]
        labels = [{"of": one["id"], "label": int(label)} for one, label in zip(made, y, strict=True)]
        ask(port, "/v1/labels", {"device": device, "labels": labels})


def answers(plant, evaluation):
    """How often each device is in the log with an answer to an evaluation."""
    entries = plant.desk.log.read(validations.stream("pumps"))
    return Counter(
        one.record["device"]
        for one in entries
        if one.record["kind"] == validations.ANSWER and one.record["evaluation"] == evaluation
    )


def test_devices_judge_candidates_through_a_kill_of_the_coordinator_and_of_an_agent(plant):
    names = {agent: [f"{agent}-{i}" for i in range(PER_AGENT)] for agent in ("one", "two")}
    plant.serve()
    tokens = plant.once("enrol", *(one for many in names.values() for one in many))
    plant.until(lambda: listens(plant.ports[1]), "the coordinator listens")
    ports = {}
    for agent, devices in names.items():
        plant.configure(agent, {one: tokens[one] for one in devices})
        ports[agent] = plant.host(agent)
    plant.until(lambda: [one["serves"] for one in plant.desk.devices()] == [1] * 10, "all serve version 1")
    for agent, devices in names.items():
        live(ports[agent], devices)
    weights = plant.desk.models.package(1).weights
    harmful = {n: -leaf if leaf.shape[:1] == (3,) else leaf for n, leaf in weights.items()}
    bad = plant.desk.propose(encode_params(harmful), "anna", "the signs are wrong")
    plant.until(lambda: bad in plant.known.judged, "the harmful one is judged")
    assert plant.known.judged[bad].verdict == "FAIL"
    plant.until(lambda: plant.phase() == "rolled_back", "it went nowhere")
    assert {one["serves"] for one in plant.desk.devices()} == {1}

    plant.kill("two")  # half of the fleet is away
    good = plant.desk.propose(encode_params(weights), "anna", "the same again")
    plant.until(lambda: len(plant.known.answers) == PER_AGENT, "those that are there have answered")
    evaluation = plant.known.evaluation
    assert evaluation == f"pumps/{good}/2"
    plant.kill("server")
    plant.serve()
    plant.host("two")
    plant.until(lambda: good in plant.known.judged, "the verdict is taken")
    judged = plant.known.judged[good]
    assert (judged.verdict, judged.source, judged.evaluation) == ("PASS", "devices", evaluation)
    assert answers(plant, evaluation) == dict.fromkeys(range(10), 1)
    report = plant.once("models", "report", str(good))
    assert (report["verdict"], report["data"]["num_devices"]) == ("PASS", 10)
    assert report["data"]["num_groups"] == 2
    assert 300 <= report["data"]["num_rows"] <= 10 * NUM  # what the killed agent had not written yet is lost
    plant.until(lambda: plant.phase() == "shadow", "it is scored in shadow")
    listed = {one["version"]: one["validation"] for one in plant.once("models", "list")}
    assert listed == {1: "", bad: "FAIL", good: "PASS"}
    assert not plant.once("verify")["wrong"]
