"""The agent as a process: enrolled from a file, asked over HTTP and a Unix socket, killed, ended."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.agent_cases import POPULATION, fleet_of, rows

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fleet(tmp_path):
    (tmp_path / "server").mkdir()
    with fleet_of(tmp_path / "server") as running:
        yield running


def write_config(fleet, folder, *names, more=""):
    (folder / "ca.pem").write_bytes(fleet.here.authority.certificate)
    text = [
        'folder = "edge"',
        f'enrol = "{fleet.here.enrolment}"',
        'authority = "ca.pem"',
        "heartbeat_s = 0.2",
        *("[api]", 'http = "127.0.0.1:0"', 'socket = "edge.sock"', "[outbox]", "flush_s = 0.2"),
    ]
    for name in names:
        text += ["[[devices]]", f'name = "{name}"', f'token = "{fleet.here.token(name, POPULATION)}"']
    path = folder / "edge.toml"
    path.write_text("\n".join(text) + more)
    return path


class Running:
    """An agent's process."""

    def __init__(self, config):
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-m", "fedretrain.edge", "run", "--config", str(config), "--json"]
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        )
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.port = int(json.loads(line)["api"][0].rsplit(":", 1)[1])

    def ask(self, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        content = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json", **headers}
        connection.request("GET" if body is None else "POST", path, content, headers)
        reply = connection.getresponse()
        found = reply.status, json.loads(reply.read())
        connection.close()
        return found

    def predict(self, **more):
        status, found = self.ask("/v1/predict", {"rows": rows().tolist(), **more})
        assert status == 200, found
        return found["predictions"][0]

    def until(self, holds, patience_s=60.0):
        """Wait for what must come about."""
        end = time.monotonic() + patience_s
        while not holds():
            assert time.monotonic() < end, self.ask("/v1/status")
            time.sleep(0.05)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


def test_an_agent_enrols_installs_answers_and_ends(fleet, tmp_path, run):
    agent = run(write_config(fleet, tmp_path, "a"))
    (first,) = fleet.make()
    assert agent.predict()["package"] == ""
    fleet.assign("a", first)
    agent.until(lambda: agent.predict()["package"] == first)
    agent.until(lambda: fleet.heard("a").get("healthy") and fleet.heard("a")["serves"] == first)
    answer = agent.predict(samples=["tuesday"])
    status, found = agent.ask("/v1/labels", {"of": "tuesday", "label": "hot", "source": "user"})
    assert (status, found) == (200, {"labelled": [[answer["id"]]]})
    assert agent.ask("/v1/labels", {"of": "nobody", "label": 1})[0] == 400
    assert agent.ask("/v1/predict", {"rows": [[1.0]]})[0] == 400
    status, found = agent.ask("/v1/status")
    assert found["devices"][0]["num_labelled"] == 1
    code, errors = agent.end()
    assert code == 0, errors


def test_a_killed_agent_serves_what_it_has(fleet, tmp_path, run):
    config = write_config(fleet, tmp_path, "a")
    agent = run(config)
    (first,) = fleet.make()
    fleet.assign("a", first)
    agent.until(lambda: agent.predict()["package"] == first)
    agent.end(signal.SIGKILL)
    agent = run(config)
    assert agent.predict()["package"] == first
    agent.until(lambda: fleet.heard("a").get("serves") == first)


def test_a_killed_agent_reports_what_it_kept_once_and_a_server_that_was_gone_misses_nothing(tmp_path, run):
    (tmp_path / "server").mkdir()
    with fleet_of(tmp_path / "server", slot_s=1.0) as fleet:
        config = write_config(fleet, tmp_path, "a")
        agent = run(config)
        (first,) = fleet.make()
        fleet.assign("a", first)
        agent.until(lambda: agent.predict()["package"] == first)
        ports = tuple(int(one.rsplit(":", 1)[1]) for one in (fleet.here.control, fleet.here.enrolment))
    asked = {agent.predict()["id"] for _ in range(40)}  # nobody is there
    agent.until(lambda: agent.ask("/v1/status")[1]["devices"][0]["pending_records"] > 0)
    agent.until(lambda: not kept(tmp_path, asked), 30.0)
    agent.end(signal.SIGKILL)
    agent = run(config)
    asked |= {agent.predict()["id"] for _ in range(25)}
    agent.until(lambda: not kept(tmp_path, asked), 30.0)
    with fleet_of(tmp_path / "server", slot_s=1.0, ports=ports) as fleet:
        wanted = len(all_ids(tmp_path))
        agent.until(lambda: counted(fleet, first) == wanted)
        agent.end()
        assert counted(fleet, first) == wanted
        assert len(asked) == 65


def all_ids(folder):
    """Predictions of the installed version in the agent's database, read beside it."""
    where = f"file:{folder}/edge/a/agent.db?mode=ro"
    with contextlib.closing(sqlite3.connect(where, uri=True)) as connection:
        return {row[0] for row in connection.execute("select id from predictions where version != 'raw'")}


def kept(folder, asked):
    """Which predictions are not on the disk yet."""
    return asked - all_ids(folder)


def counted(fleet, version):
    return sum(sum(report.outputs) for report in fleet.records("report") if report.package == version)
