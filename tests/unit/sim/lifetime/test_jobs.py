"""Lives as jobs: in order, told one by one, not lived twice, and what goes wrong elsewhere comes back as what it was."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from fedretrain.core.errors import ConfigError, DataError
from sim import checkpoint
from sim.lifetime import jobs
from sim.lifetime.jobs import LifeJob, run_jobs
from sim.lifetime.shelf import Shelf
from sim.outputs import RunFolder
from sim.schema import RunnerKind
from tests.lifetime_cases import policy, small, small_life


@dataclass
class Counting:
    """A job that counts to its number, one at a time; `begun` notes from where."""

    config: Any
    number: int
    begun: list[int] = field(default_factory=list)
    stops_at: int = -1
    title: str = "job"
    count: int = 0

    def begin(self, saved: bytes | None, where: str) -> Counting:
        life = replace(self, count=int(saved or b"0"))
        assert where.endswith(".safetensors")
        self.begun.append(life.count)
        return life

    def go(self, seconds: float) -> int | None:
        assert seconds > 0
        if self.count == self.stops_at:
            raise KeyboardInterrupt
        self.count += 1
        return self.number if self.count == self.number else None

    def save(self) -> bytes:
        return str(self.count).encode()


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path, tmp_path / "run")


def shelf(folder, every_s=1e9, **about):
    return Shelf(folder, about, every_s)


CONFIG = small(2, 1)


def test_results_come_in_the_order_of_the_jobs_and_each_is_told_once(folder):
    told: list[int] = []
    assert run_jobs([Counting(CONFIG, k) for k in (3, 1, 2)], told.append, shelf(folder)) == [3, 1, 2]
    assert told == [3, 1, 2]


def test_what_was_stopped_goes_on_and_what_is_over_is_not_lived_again(folder):
    told: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run_jobs([Counting(CONFIG, 3), Counting(CONFIG, 5, stops_at=2)], told.append, shelf(folder))
    assert told == [3]
    assert checkpoint.begun(folder.path)
    again = [Counting(CONFIG, 3), Counting(CONFIG, 5)]
    assert run_jobs(again, told.append, shelf(folder)) == [3, 5]
    assert [job.begun for job in again] == [[], [2]]
    assert told == [3, 3, 5]
    assert [path.name for path in sorted((folder.path / "checkpoint").glob("*.safetensors"))] == [
        "000-whole.safetensors",
        "001-whole.safetensors",
    ]


def test_a_life_is_put_aside_at_intervals(folder, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("sim.lifetime.shelf.time.monotonic", lambda: clock[0])
    shelf_, saved = shelf(folder, every_s=10.0), []
    shelf_.begun(0)

    def save() -> bytes:
        saved.append(clock[0])
        clock[0] += 3.0
        return b"x"

    for second in range(0, 100, 5):
        clock[0] = max(clock[0], float(second))
        shelf_.put_aside_if_due(0, save)
    assert saved == [10.0, 75.0], "what takes three seconds is done once in a minute, whatever the interval"
    assert shelf_.under_way(0) == b"x"


def test_a_job_that_cannot_be_put_aside_leaves_nothing(folder):
    shelf_ = shelf(folder)
    shelf_.begun(0)
    shelf_.put_aside(0, lambda: None)
    assert shelf_.under_way(0) is None


def test_a_shelf_belongs_to_what_began_it(folder):
    shelf(folder, data="a", code="1")
    shelf(folder, data="a", code="1")
    for other in ({"data": "b", "code": "1"}, {"data": "a"}, {"data": "a", "code": "1", "policy x": "2"}):
        with pytest.raises(DataError, match=r"the run was begun with another (data|code|policy x)"):
            shelf(folder, **other)
    (folder.path / "checkpoint" / "about.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        shelf(folder, data="a", code="1")


def test_a_job_is_the_life_itself():
    job = LifeJob(small(4, 2), policy(), 3)
    life, again = job.begin(None, "").go(math.inf), small_life(small(4, 2), seed=3)
    assert life.summary.digest == again.summary.digest
    assert repr((life.steps, life.events)) == repr((again.steps, again.events))  # NaN differs from itself
    assert life.summary.seed == 3
    assert job.title == "the life of policy small, seed 3,"


def test_a_life_from_the_shelf_is_the_life(folder):
    job = LifeJob(small(4, 2), policy(), 3)
    first = run_jobs([job], lambda _: None, shelf(folder))
    again = run_jobs([job], lambda _: None, shelf(folder))
    assert repr(first) == repr(again)
    assert first[0] is not again[0]


def test_a_single_job_needs_no_cluster(monkeypatch, folder):
    monkeypatch.setattr(jobs, "_in_ray", None)
    config = small(2, 1, "runner=ray")
    assert config.runner.kind is RunnerKind.RAY
    assert run_jobs([Counting(config, 5)], lambda _: None, shelf(folder)) == [5]


def test_in_a_process_of_its_own_a_life_starts_no_cluster_again():
    job = LifeJob(small(2, 1, "runner=ray"), policy(), 0)
    assert jobs._local(job).config.runner.kind is RunnerKind.LOCAL


def test_a_users_error_stays_one_and_a_defect_names_the_life():
    job = LifeJob(small(2, 1), policy(), 1)

    class Remote(Exception):  # noqa: N818 - as the library's own
        cause = ConfigError("no rows", where="here", fix="bring some")

    assert jobs._cause(Remote(), job) is Remote.cause
    found = jobs._cause(ValueError("boom"), job)
    assert str(found) == "the life of policy small, seed 1, failed: boom"
    with pytest.raises(RuntimeError):
        raise found
