"""The simulation gate as the coordinator's child: real processes, real verdicts, every way in which a job can be lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedretrain.rollout.verdict import Verdict
from fedretrain.server.config import Simulation
from tests.simulation_cases import DROWNED, GOOD, REPLY_S, Waiting

LIMIT_S = 280.0


def _until(job, happened):
    until = time.monotonic() + LIMIT_S
    while not happened():
        assert time.monotonic() < until, "it never happened"
        job.ensure(2, time.monotonic())
        time.sleep(0.2)


def _finish(world, job):
    """What the job of version 2 found."""
    _until(job, lambda: world.models().simulations.of(2).ended_at is not None)
    return world.models().simulations.of(2)


@pytest.mark.slow
@pytest.mark.parametrize(("rules", "verdict"), [(GOOD, Verdict.PASS), (DROWNED, Verdict.FAIL)])
def test_a_campaign_is_judged_by_replaying_its_own_settings_in_the_fleet_that_was_watched(
    tmp_path, rules, verdict
):
    world = Waiting(tmp_path, rules)
    job = world.simulating()
    found = _finish(world, job)
    log = (tmp_path / "simulations" / "p" / "2" / "log").read_text()
    assert (found.verdict, found.attempt, found.running) == (verdict, 1, False), (found.reason, log)
    assert job.pid is None
    report = world.models().simulations.report(found.report)
    assert report["verdict"] == str(verdict)
    assert [file.name for file in (tmp_path / "simulations" / "p" / "2").iterdir()] == ["log"]
    assert {one["condition"] for one in report["checks"]} == {"observed", "2 x drop-outs and delay"}
    assert {"fleet's log", "candidate's beginning", "champion's beginning"} <= set(report["sha256"])
    assert "share_online" in log
    dropout = next(line for line in log.splitlines() if "dropout_mid" in line)
    assert float(dropout.split()[1]) == pytest.approx(0.125)  # one of eight who were asked
    start = next(line for line in log.splitlines() if "network.start_s" in line)
    assert float(start.split()[1]) == pytest.approx(
        np.exp(np.log(REPLY_S[1::2]).mean()), rel=1e-4
    )  # the fans'
    job.ensure(2, time.monotonic())
    assert job.pid is None  # a verdict is taken once
    assert world.models().simulations.of(2).attempt == 1


def test_a_job_that_cannot_run_is_inconclusive_says_why_and_is_repeated_later(tmp_path):
    world = Waiting(tmp_path, slots=3, retry_s=60.0)
    job = world.simulating()
    found = _finish(world, job)
    assert (found.verdict, found.report) == (Verdict.INCONCLUSIVE, "")
    assert "3 slots of 12 devices" in found.reason
    job.ensure(2, time.monotonic())
    assert job.pid is None
    world.now += 61.0
    job.ensure(2, time.monotonic())
    assert job.pid is not None
    assert world.models().simulations.of(2).attempt == 2
    job.stop()


def test_a_job_that_takes_too_long_is_ended(tmp_path):
    world = Waiting(tmp_path, max_s=1.0)
    job = world.simulating()
    job.ensure(2, 0.0)
    pid = job.pid
    job.ensure(2, 0.9)
    assert job.pid == pid
    job.ensure(2, 1.1)
    assert job.pid is None
    assert not _alive(pid)
    found = world.models().simulations.of(2)
    assert (found.verdict, found.reason) == (Verdict.INCONCLUSIVE, "it took longer than 1 s")


def test_a_job_that_takes_too_much_memory_is_inconclusive(tmp_path):
    world = Waiting(tmp_path, memory_bytes=48 * 2**20)
    found = _finish(world, world.simulating())
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "ended with" in found.reason


@pytest.fixture
def cluster():
    """A Ray cluster of one machine, of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
    words = ("--head", f"--port={port}", "--num-cpus=1", "--include-dashboard=false", "--disable-usage-stats")
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # pytest's own is too long for Ray's sockets
        here = {**os.environ, "RAY_TMPDIR": folder, "PYTHONPATH": str(Path.cwd())}
        child = subprocess.Popen([*ray, "start", "--block", *words], env=here, stdout=subprocess.DEVNULL)
        yield f"127.0.0.1:{port}"
        child.terminate()
        child.wait(60.0)


@pytest.mark.slow
def test_a_job_on_a_cluster_finds_what_one_here_finds(tmp_path, cluster):
    world = Waiting(tmp_path)
    world.config = replace(world.config, simulation=Simulation(cluster))
    found = _finish(world, world.simulating())
    log = (tmp_path / "simulations" / "p" / "2" / "log").read_text()
    assert found.verdict is Verdict.PASS, (found.reason, log)
    assert "simulation gate: PASS" in log
    assert world.models().simulations.report(found.report)["request"]["address"] == ""


def test_a_cluster_that_does_not_answer_is_inconclusive(tmp_path):
    world = Waiting(tmp_path)
    world.config = replace(world.config, simulation=Simulation("127.0.0.1:9"))
    found = _finish(world, world.simulating())
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "cannot join Ray" in found.reason


@pytest.mark.faults
def test_a_job_that_is_killed_is_inconclusive(tmp_path):
    world = Waiting(tmp_path)
    job = world.simulating()
    job.ensure(2, time.monotonic())
    os.kill(job.pid, signal.SIGKILL)
    found = _finish(world, job)
    assert (found.verdict, found.attempt) == (Verdict.INCONCLUSIVE, 1)
    assert "signal 9" in found.reason


@pytest.mark.faults
@pytest.mark.slow
def test_a_coordinator_that_ends_in_the_middle_of_a_job_repeats_it_and_counts_one_verdict(tmp_path):
    world = Waiting(tmp_path)
    first = world.simulating()
    first.ensure(2, time.monotonic())
    report = tmp_path / "simulations" / "p" / "2" / "campaign.json"
    _until(first, report.exists)  # the first job is under way, and so is the gate's process soon
    first.stop()
    known = world.models().simulations.of(2)
    assert (known.attempt, known.running, known.ended_at) == (1, True, None)
    again = world.simulating()
    found = _finish(world, again)
    assert (found.verdict, found.attempt, found.running) == (Verdict.PASS, 2, False)
    records = [e.record for e in world.log.read("population/p/simulation")]
    assert [(one["type"], one["attempt"]) for one in records] == [("begun", 1), ("begun", 2), ("ended", 2)]


@pytest.mark.faults
@pytest.mark.slow
def test_a_job_that_is_killed_in_each_of_its_phases_is_repeated_until_it_says_what_it_would_have_said(
    tmp_path,
):
    """While it writes the fleet's log, fits, replays, and when its verdict is written and not yet read."""
    world = Waiting(tmp_path, retry_s=60.0)
    job, folder = world.simulating(), tmp_path / "simulations" / "p" / "2"
    log, report = folder / "log", folder / "report.json"
    phases = {
        "writing the log": lambda: (folder / "fleet.jsonl").exists() or (folder / "campaign.json").exists(),
        "fitting": lambda: b"gate" in Path(f"/proc/{job.pid}/cmdline").read_bytes(),
        "replaying": lambda: "share_online" in log.read_text(),
        "verdict written": report.exists,
    }
    written = {}
    for attempt, (phase, is_there) in enumerate(phases.items(), 1):
        job.ensure(2, time.monotonic())
        until = time.monotonic() + LIMIT_S
        while not is_there():
            assert _alive(job.pid), log.read_text()
            assert time.monotonic() < until, phase
            time.sleep(0.002)
        os.kill(job.pid, signal.SIGSTOP)
        if report.exists():
            written = json.loads(report.read_text())
        os.kill(job.pid, signal.SIGKILL)
        _until(job, lambda: world.models().simulations.of(2).running is False)
        found = world.models().simulations.of(2)
        assert (found.verdict, found.attempt, found.report) == (Verdict.INCONCLUSIVE, attempt, ""), phase
        assert "signal 9" in found.reason
        assert [file.name for file in folder.iterdir()] == ["log"]
        job.ensure(2, time.monotonic())
        assert job.pid is None  # not before `retry_s`
        world.now += 61.0
    job.ensure(2, time.monotonic())
    _until(job, lambda: world.models().simulations.of(2).running is False)
    found = world.models().simulations.of(2)
    assert (found.verdict, found.attempt) == (Verdict.PASS, len(phases) + 1)
    assert world.models().simulations.report(found.report)["checks"] == written["checks"]
    records = [e.record for e in world.log.read("population/p/simulation")]
    assert [one["type"] for one in records] == ["begun", "ended"] * (len(phases) + 1)
    job.ensure(2, time.monotonic())
    assert job.pid is None  # a verdict is taken once


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
