"""Lives as jobs: in order, told one by one, and what goes wrong elsewhere comes back as what it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from fedretrain.core.errors import ConfigError
from sim.lifetime import jobs
from sim.lifetime.jobs import LifeJob, run_jobs
from sim.schema import RunnerKind
from tests.lifetime_cases import policy, small, small_life


@dataclass(frozen=True)
class Numbered:
    """A job that returns its number."""

    config: Any
    number: int
    title: str = "job"

    def run(self) -> int:
        return self.number


def test_results_come_in_the_order_of_the_jobs_and_each_is_told_once():
    told: list[int] = []
    config = small(2, 1)
    assert run_jobs([Numbered(config, k) for k in (3, 1, 2)], told.append) == [3, 1, 2]
    assert told == [3, 1, 2]


def test_a_job_is_the_life_itself():
    config = small(4, 2)
    job = LifeJob(config, policy(), 3)
    life, again = job.run(), small_life(config, seed=3)
    assert life.summary.digest == again.summary.digest
    assert repr((life.steps, life.events)) == repr((again.steps, again.events))  # NaN differs from itself
    assert life.summary.seed == 3
    assert job.title == "the life of policy small, seed 3,"


def test_a_single_job_needs_no_cluster(monkeypatch):
    monkeypatch.setattr(jobs, "_in_ray", None)
    config = small(2, 1, "runner=ray")
    assert config.runner.kind is RunnerKind.RAY
    assert run_jobs([Numbered(config, 5)], lambda _: None) == [5]


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
