"""A sweep: one run for each combination, in parallel on one shared Ray.

Rules of this file:
    * A job is a whole run in one Ray task with its cohorts in that process: jobs are what there is to run in parallel.
    * A job that fails says why in one line and does not stop the others; the sweep then exits with 2.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedretrain.core.errors import ConfigError, UserError
from sim.configure import sweep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.plan import Plan


@dataclass(frozen=True)
class Job:
    """What one job came to.

    Attributes:
        words: Its overrides.
        path: Its run folder; empty if it failed.
        error: Why it failed; empty if it did not.
        lines: Its table, as text.
    """

    words: tuple[str, ...]
    path: str = ""
    error: str = ""
    lines: str = ""


def multirun(overrides: Sequence[str], *, folder: str = "") -> int:
    """Run a sweep; see `experiment.multirun`."""
    from sim.experiment import local
    from sim.plan import plan_run
    from sim.ray_runner import start_ray

    if any(word.startswith("resume=") for word in overrides):
        raise ConfigError("a sweep cannot be resumed", where="resume", fix="resume its runs one by one")
    combinations = list(sweep(overrides))
    if len(combinations) < 2:
        raise ConfigError("there is nothing to sweep over", where=" ".join(overrides), fix="give KEY=A,B")
    # Every job's configuration is checked before the first one starts.
    plans = [local(plan_run(words, folder=folder)) for words in combinations]
    start_ray(plans[0].config.runner)
    print(f"{len(plans)} jobs", file=sys.stderr)
    jobs = _run_all(combinations, plans)
    failed = [job for job in jobs if job.error]
    return 2 if failed else 0


def _run_all(combinations: list[list[str]], plans: list[Plan]) -> list[Job]:
    import ray

    remote = ray.remote(run_job).options(num_cpus=1, max_retries=0)
    here = os.getcwd()  # noqa: PTH109 - a string, for another process
    waiting: dict[Any, tuple[str, ...]] = {
        remote.remote(tuple(words), plan, here): tuple(words)
        for words, plan in zip(combinations, plans, strict=True)
    }
    done: list[Job] = []
    while waiting:
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        words = waiting.pop(ready)
        try:
            job: Job = ray.get(ready)
        except ray.exceptions.RayError as error:
            job = Job(words, error=str(error).strip().splitlines()[-1])
        done.append(job)
        print(f"\n[{len(done)}/{len(plans)}] {' '.join(job.words)}")
        print(f"error: {job.error}" if job.error else job.lines, flush=True)
    return done


def run_job(words: tuple[str, ...], plan: Plan, folder: str) -> Job:
    """One job, in a process of Ray's."""
    import io

    from sim.console import announce
    from sim.experiment import execute, track
    from sim.outputs import RunFolder

    os.chdir(folder)
    try:
        run_folder = RunFolder.create(Path(plan.config.output_dir), plan.config.name, datetime.now(UTC))
        run = execute(plan, run_folder, quiet=True)
        text = io.StringIO()
        announce(run, run_folder, text)
        track(plan, run, run_folder)
    except UserError as error:
        return Job(words, error=str(error))
    return Job(words, str(run_folder.path), lines=text.getvalue())
