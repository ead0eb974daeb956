"""A run that is stopped goes on where it was: the same weights, records and scores, bit for bit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from fedretrain.core.errors import DataError
from sim.outputs import load_run
from tests.run_cases import HARD, QUICK, command, only_run, outcome

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 60
LONG = (
    *QUICK,
    *HARD,
    f"campaign.num_rounds={ROUNDS}",
    "campaign.evaluate_every=3",
    "fleet.num_devices=40",
    "campaign.cohort_size=10",
    "aggregation.server.momentum=0.3",
    "runner.checkpoint_s=0",
)


def unfinished(folder: Path) -> bool:
    with pytest.raises(DataError, match="unfinished"):
        load_run(folder)
    return True


@contextmanager
def running(root: Path, *words: str):
    """`python -m sim` in its own process group, halted after its first checkpoint; and every process that it started.

    It is halted so that a busy machine cannot let it finish first: a signal takes effect with the SIGCONT after it.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "sim", *words, f"output_dir={root}"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    family = []
    try:
        give_up = time.monotonic() + 150
        while not list(root.glob("*/*/checkpoint/*.safetensors")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < give_up
            time.sleep(0.02)
        process.send_signal(signal.SIGSTOP)
        family = psutil.Process(process.pid).children(recursive=True)
        yield process, family
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody interrupted."""
    root = tmp_path_factory.mktemp("whole")
    assert command([*LONG, f"output_dir={root}"]) == 0
    run = load_run(only_run(root, "scale"))
    (arm,) = run.summary.arms
    assert arm.privacy.epsilon > 0
    assert sum(record.drift_fraction > 0 for record in run.rounds)
    assert len({record.labels_fraction for record in run.rounds}) > 1
    assert any(record.failures for record in run.rounds)
    assert all(device.personalized_score is not None for device in run.devices)
    return run


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(whole, tmp_path):
    with running(tmp_path, *LONG) as (process, _):
        os.killpg(process.pid, signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    folder = only_run(tmp_path, "scale")
    (line,) = [line for line in stderr.splitlines() if line.startswith("stopped")]
    assert line == f"stopped: continue with: python -m sim resume={folder}"
    assert unfinished(folder)
    assert not (tmp_path / "latest").exists()
    assert command([f"resume={folder}"]) == 0
    assert outcome(load_run(folder)) == outcome(whole)
    assert (tmp_path / "latest").resolve() == folder
    assert not (folder / "checkpoint").exists()
    assert command([f"resume={folder}"]) == 2, "a finished run is not resumed"


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint(whole, tmp_path):
    with running(tmp_path, *LONG) as (process, _):
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    folder = only_run(tmp_path, "scale")
    assert unfinished(folder)
    assert command(["compare", str(folder), str(folder)]) == 2
    assert command(["reproduce", str(folder)]) == 2
    assert command([f"resume={folder}"]) == 0
    assert outcome(load_run(folder)) == outcome(whole)


def test_resuming_twice_is_as_good_as_once(tmp_path, monkeypatch):
    """Several arms and seeds, stopped by Ctrl-C in the middle of a round, in an evaluation and between two arms."""
    from sim.local_runner import LocalRunner

    words = [
        *QUICK,
        *HARD,
        "seeds=2",
        '++arms.plain.overrides=["personalization=fedavg","privacy=none"]',
        "++arms.own.title=Own",
    ]
    assert command([*words, f"output_dir={tmp_path / 'whole'}"]) == 0
    train, evaluate, calls = LocalRunner.run, LocalRunner.evaluate, {"run": 0, "evaluate": 0}

    def stop(name, at):
        calls[name] += 1
        if calls[name] == at:
            raise KeyboardInterrupt

    def broken_train(self, spec, cohort):
        for shard in train(self, spec, cohort):
            stop("run", 5)  # after training: personal states are staged
            yield shard

    def broken_evaluate(self, *args, **kwargs):
        found = evaluate(self, *args, **kwargs)
        stop("evaluate", 6)  # personal states are committed
        return found

    monkeypatch.setattr(LocalRunner, "run", broken_train)
    monkeypatch.setattr(LocalRunner, "evaluate", broken_evaluate)
    assert command([*words, f"output_dir={tmp_path / 'cut'}"]) == 130
    folder = only_run(tmp_path / "cut", "scale")
    assert command([f"resume={folder}"]) == 130
    assert command([f"resume={folder}"]) == 0
    assert calls["run"] > 5
    assert calls["evaluate"] > 6
    assert outcome(load_run(folder)) == outcome(load_run(only_run(tmp_path / "whole", "scale")))


def test_an_error_leaves_a_checkpoint_too(tmp_path, monkeypatch):
    from sim.local_runner import LocalRunner

    assert command([*QUICK, *HARD, f"output_dir={tmp_path / 'whole'}"]) == 0
    train = LocalRunner.run

    def broken(self, spec, cohort):
        if spec.round == 2:
            raise RuntimeError("a defect")
        return train(self, spec, cohort)

    with monkeypatch.context() as patch:
        patch.setattr(LocalRunner, "run", broken)
        with pytest.raises(RuntimeError, match="a defect"):
            command([*QUICK, *HARD, f"output_dir={tmp_path / 'cut'}"])
    folder = only_run(tmp_path / "cut", "scale")
    assert unfinished(folder)
    assert command([f"resume={folder}"]) == 0
    assert outcome(load_run(folder)) == outcome(load_run(only_run(tmp_path / "whole", "scale")))


def test_a_damaged_checkpoint_is_one_line_and_is_left_alone(tmp_path, monkeypatch, capsys):
    from sim.local_runner import LocalRunner

    def stop(self, spec, cohort):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalRunner, "run", stop)
        assert command([*QUICK, f"output_dir={tmp_path}"]) == 130
    folder = only_run(tmp_path, "scale")
    (file,) = (folder / "checkpoint").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    capsys.readouterr()
    assert command([f"resume={folder}"]) == 2
    error = capsys.readouterr().err
    assert re.search(r"^error: the checkpoint is damaged: .*start the run again", error, re.MULTILINE)
    assert file.stat().st_size == 50
    (folder / "checkpoint" / "plan.yaml").write_text("experiment: [")
    assert command([f"resume={folder}"]) == 2
    assert "not a configuration of this version" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "terminate"])
def test_stopping_a_run_ends_ray_and_all_of_its_processes(tmp_path, how):
    words = [*LONG, "runner.kind=ray", "runner.num_workers=1", "campaign.num_rounds=400"]
    with running(tmp_path, *words) as (process, family):
        names = {one.name() for one in family if one.is_running()}
        assert any("raylet" in name for name in names), names
        if how is signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does: all of the group hear it
        else:
            process.send_signal(how)  # as a container does: the first process hears it
        process.send_signal(signal.SIGCONT)
        _, stderr = process.communicate(timeout=90)
        _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "continue with: python -m sim resume=" in stderr
