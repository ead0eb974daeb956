"""A run of lives that is stopped goes on where it was: the same events, rows and summary, bit for bit."""

from __future__ import annotations

import json
import os
import signal

import pytest

from sim.lifetime import underway
from sim.lifetime.jobs import run_jobs
from sim.lifetime.shelf import Shelf
from sim.outputs import RunFolder
from tests.integration.test_crash_and_resume import running
from tests.lifetime_cases import SMALL, offset_at, small
from tests.run_cases import command, only_run

DAYS = 40  # more than a slice, however fast the machine
LIVES = (
    *SMALL[2:],
    "experiment=lifetime_synthetic",
    offset_at(4.0),
    "labels=late",
    "policies=[scheduled,hybrid]",
    "fleet.num_devices=12",
    "campaign.cohort_size=6",
    f"lifetime.duration_s={DAYS * 86_400}",
    f"fleet.generator.num_samples={24 * (16 + DAYS)}",
    f"fleet.generator.scored_fraction={DAYS / (16 + DAYS)}",
    "runner.checkpoint_s=0",
)
TABLES = ("events.jsonl", "steps.parquet", "features.parquet", "devices.parquet")


def left(folder):
    """What a run says, but for how long it took and where it lies."""
    summary = json.loads((folder / "summary.json").read_text())
    for life in summary["lives"]:
        del life["summary"]["wall_s"]
    files = {name: digest for name, digest in summary.pop("files").items() if name in TABLES}
    del summary["seconds"]
    assert len(files) == len(TABLES)
    return summary, files


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody interrupted."""
    root = tmp_path_factory.mktemp("whole")
    assert command([*LIVES, "runner=local", f"output_dir={root}"]) == 0
    folder = only_run(root, "lifetime_synthetic")
    assert not (folder / "checkpoint").exists()
    assert '"candidate"' in (folder / "events.jsonl").read_text()
    return left(folder)


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["local", pytest.param("ray", marks=pytest.mark.faults)])
def test_ctrl_c_puts_lives_aside_and_says_how_to_go_on(whole, tmp_path, runner):
    with running(tmp_path, *LIVES, f"runner={runner}") as (process, _):
        os.kill(process.pid, signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        _, stderr = process.communicate(timeout=100)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    folder = only_run(tmp_path, "lifetime_synthetic")
    (line,) = [line for line in stderr.splitlines() if line.startswith("stopped")]
    assert line == f"stopped: continue with: python -m sim resume={folder}"
    assert not (folder / "summary.json").exists()
    assert not (tmp_path / "latest").exists()
    assert command([f"resume={folder}"]) == 0
    assert left(folder) == whole
    assert (tmp_path / "latest").resolve() == folder
    assert not (folder / "checkpoint").exists()
    assert command([f"resume={folder}"]) == 2, "a finished run is not resumed"


@pytest.mark.slow
def test_a_killed_run_goes_on_from_what_was_put_aside(whole, tmp_path, monkeypatch):
    with running(tmp_path, *LIVES, "runner=local") as (process, _):
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    folder = only_run(tmp_path, "lifetime_synthetic")
    (aside,) = (folder / "checkpoint").glob("*.safetensors")
    content = aside.read_bytes()
    loaded = []
    load = underway.load

    def noted(data, where, *, into):
        loaded.append(where)
        return load(data, where, into=into)

    monkeypatch.setattr(underway, "load", noted)
    aside.write_bytes(content[:-9])
    assert command([f"resume={folder}"]) == 2, "what is damaged is refused, and stays"
    aside.write_bytes(content)
    assert command([f"resume={folder}"]) == 0
    assert loaded == [str(aside)] * 2
    assert left(folder) == whole


@pytest.mark.slow
@pytest.mark.faults
def test_a_life_whose_process_was_killed_goes_on_once_more(tmp_path):
    class Dying:  # in here, so that it travels to the other process by value
        def __init__(self, config, deaths):
            self.config, self.deaths, self.title = config, deaths, "a job"
            self.count = self.begun = 0

        def begin(self, saved, where):
            assert where.endswith(".safetensors")
            self.count = self.begun = int(saved or b"0")
            return self

        def go(self, seconds):
            del seconds
            self.count += 1
            if self.count in self.deaths and self.count > self.begun + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return (self.begun, self.count) if self.count == 9 else None

        def save(self):
            return str(self.count).encode()

    config = small(2, 1, "runner=ray")
    shelf = Shelf(RunFolder(tmp_path, tmp_path / "a"), {}, 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sim.lifetime.jobs._local", lambda job: job)
        patch.setattr("sim.lifetime.shelf._PATIENCE", 0.0)
        found = run_jobs([Dying(config, ()), Dying(config, (5,))], lambda _: None, shelf)
        assert found == [(0, 9), (4, 9)]
        again = Shelf(RunFolder(tmp_path, tmp_path / "b"), {}, 0.0)
        with pytest.raises(RuntimeError, match="a job failed"):
            run_jobs([Dying(config, ()), Dying(config, (3, 7))], lambda _: None, again)
