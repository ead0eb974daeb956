"""The feed against a small agent over real HTTP: rows, labels, an outage, drift on demand, and a summary at SIGTERM."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedretrain.edge.answering import Answer
from fedretrain.edge.api import LocalApi
from fedretrain.edge.config import ApiConfig
from sim.feed.client import Client
from sim.feed.config import made
from sim.feed.files import DRIFT_NOW, read
from sim.feed.playing import Playing
from sim.feed.tally import Tally
from sim.feed.world import World

WORDS = ["num_devices=4", "num_agents=2", "stream_rows=2000", "interval_s=0.05", "label_delay_s=0.1"]


class FakeAgent(ThreadingHTTPServer):
    """Keeps what it was told; answers class 0."""

    daemon_threads = True

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.ids, self.rows, self.labels, self.connections, self.status = count(), [], [], set(), 200
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def answer(self, path, body):
        if path == "/v1/labels":
            self.labels.append(body)
            return {}
        self.rows.append(body)
        return {
            "predictions": [{"id": f"p{next(self.ids)}", "label": 0, "confidence": 0.5} for _ in body["rows"]]
        }

    def stop(self):
        self.shutdown()
        self.server_close()
        self.thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.connections.add(self.client_address)
        content = json.dumps(
            self.server.answer(self.path, body) if self.server.status == 200 else {}
        ).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


def until(holds, what):
    deadline = time.monotonic() + 60.0
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def sim(*words):
    root = str(Path(__file__).parents[2])
    return [sys.executable, "-m", "sim", "feed", *words], {**os.environ, "PYTHONPATH": root}


@pytest.fixture
def agent():
    one = FakeAgent()
    yield one
    one.stop()


def prepare(folder, first, second):
    """A world whose agents are at these ports."""
    command, environment = sim("prepare", str(folder), *WORDS)
    subprocess.run(command, env=environment, check=True)
    path = folder / "feed.json"
    content = json.loads(path.read_text())
    for agent, port in zip(content["agents"], (first, second), strict=True):
        agent["http"] = f"127.0.0.1:{port}"
    path.write_text(json.dumps(content))


def test_a_world_is_played_to_real_http(tmp_path, agent):
    prepare(tmp_path, agent.server_port, 1)  # where nobody answers
    command, environment = sim("run", str(tmp_path), "keep_s=0.2")
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as feed:
        try:
            until(lambda: len(agent.labels) >= 4, "no labels came")
            before = len(agent.rows)
            (tmp_path / DRIFT_NOW).touch()
            world = World(read(tmp_path).config)
            drifting = [k for k, device in enumerate(world.devices) if device.drifts and device.agent == 0]
            drifted = {
                json.dumps(world.rows(k, first, 4, drift_age_s=1.0)[0].tolist())
                for k in drifting
                for first in range(0, 2000, 4)
            }

            def found(bodies):
                return any(json.dumps(body["rows"]) in drifted for body in bodies)

            assert drifting
            until(lambda: found(agent.rows[-4:]), "nothing drifted")
            assert not found(agent.rows[:before])
        finally:
            feed.send_signal(signal.SIGTERM)
            out = feed.communicate(timeout=60)[0]
    assert feed.returncode == 0
    assert "the sensors of 2 devices drift" in out
    ended = re.search(
        r"feed ended: sent (\d+), labelled (\d+), refused 0, lost (\d+), unanswered 0, accuracy 0\.", out
    )
    assert ended, out
    assert int(ended[1]) == sum(len(body["rows"]) for body in agent.rows)
    assert int(ended[2]) == sum(len(body["labels"]) for body in agent.labels)
    assert int(ended[3]) > 0  # of the agent that never answered
    assert len(agent.connections) == 1  # it was kept open


def test_an_agent_that_comes_back_gets_what_it_missed(tmp_path, agent):
    prepare(tmp_path, agent.server_port, agent.server_port)
    command, environment = sim("run", str(tmp_path), "keep_s=60")
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as feed:
        try:
            until(lambda: len(agent.rows) >= 4, "nothing came")
            agent.status = 503
            agent.connections.clear()
            until(lambda: agent.connections, "it was not asked again")
            agent.status = 200
            until(lambda: len(agent.rows) >= 80, "it was not told what it missed")
        finally:
            feed.send_signal(signal.SIGTERM)
            feed.communicate(timeout=60)
    world, seen = World(read(tmp_path).config), [0, 0, 0, 0]
    number = {device.name: k for k, device in enumerate(world.devices)}
    for body in agent.rows:
        k = number[body["device"]]
        assert body["rows"] == world.rows(k, seen[k], 4)[0].tolist()  # no batch is left out or comes twice
        seen[k] += 4
    assert all(seen)


class StandIn:
    """What is behind the real local API: answers class 1, keeps labels."""

    outputs = ("a", "b", "c", "d")

    def __init__(self):
        self.ids, self.labels = count(), []

    def predict(self, rows, samples):
        return [Answer(f"p{next(self.ids)}", 1, 0.5, "") for _ in rows]

    def label(self, of, label, source, confidence):
        self.labels.append((of, label, source))
        return (of,)


def test_the_agents_real_api_understands_the_feed():
    world, device, tally = World(made([*WORDS, "label_fraction=1"])), StandIn(), Tally()
    playing = Playing(world, (0,), 0.0, tally)
    with LocalApi(SimpleNamespace(device=lambda name: device), ApiConfig(http="127.0.0.1:0")) as api:
        client = Client(f"127.0.0.1:{api.port}", 10.0)
        for now in (0.0, 0.1):
            playing.take(now, None)
            while playing.next_at() <= now:
                assert playing.step(now, client.post)
        client.close()
    _, y = world.rows(0, 0, 12)
    assert device.labels == [(f"p{k}", label, "user") for k, label in enumerate(y[:4].tolist())]
    assert (tally.summary(0.1).sent, tally.summary(0.1).labelled, tally.summary(0.1).refused) == (12, 4, 0)
    assert tally.summary(0.1).accuracy == (y == 1).mean()
