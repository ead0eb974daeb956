"""A whole run: every arm with every seed on one pool of workers, then its folder, report and MLflow entry.

Rules of this file:
    * Everything that can be refused is refused before anything trains: configuration, output folder, data, privacy.
    * The run's folder is unfinished until its summary is written, last. Ctrl-C and errors leave a checkpoint.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain.core import params
from fedretrain.core.errors import UserError
from sim import checkpoint
from sim.arm import Arms
from sim.campaign import Campaign, metric_of
from sim.example_privacy import worst_epsilon
from sim.interrupts import terminate_is_ctrl_c
from sim.outputs import RunFolder
from sim.plan import PLAN, plan_run, resumed_plan
from sim.results import Run
from sim.schema import PrivacyKind, RunnerKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from flwr.serverapp import Grid

    from fedretrain.core.params import Params
    from fedretrain.privacy.event import PrivacyEvent
    from sim.local_runner import Pool
    from sim.plan import Plan, PlannedArm
    from sim.progress import Progress as Shown
    from sim.results import DeviceScore, RoundRecord
    from sim.schema import Config


@dataclass
class Gathered:
    """What the arms of a run have produced so far."""

    campaigns: dict[str, Campaign] = field(default_factory=dict)
    rounds: list[RoundRecord] = field(default_factory=list)
    scores: list[DeviceScore] = field(default_factory=list)
    weights: dict[str, Params] = field(default_factory=dict)
    ledgers: dict[str, list[PrivacyEvent]] = field(default_factory=dict)
    digests: dict[str, dict[str, str]] = field(default_factory=dict)
    example_epsilons: dict[str, float] = field(default_factory=dict)  # by arm, the worst over the seeds
    peak_bytes: int = 0


def run_overrides(
    overrides: Sequence[str], *, folder: str = "", quiet: bool = False, grid: Grid | None = None
) -> int:
    """Run, or resume, what command-line words ask for; print where the results are.

    Args:
        overrides: Hydra overrides.
        folder: A folder of the user's own configuration groups.
        quiet: Print nothing.
        grid: Of the Flower run that this is the ServerApp of.

    Returns:
        The exit status: 0, or 1 where sabotage did not end as it should.
    """
    resume = [word.split("=", 1)[1] for word in overrides if word.startswith("resume=")]
    resumed: RunFolder | None = None
    if resume and resume[0]:
        plan, path = resumed_plan(resume[0], overrides)
        resumed = RunFolder(path.absolute().parent.parent, path.absolute())
    else:
        plan = plan_run(overrides, folder=folder)
    if plan.config.sabotage.is_on:
        from sim.sabotage.run import run_sabotage

        return run_sabotage(plan, resumed, quiet=quiet)
    if plan.config.lifetime.duration_s:
        from sim.lifetime.run import run_lifetime

        run_lifetime(plan, resumed, quiet=quiet)
        return 0
    run_folder = resumed or RunFolder.create(
        Path(plan.config.output_dir), plan.config.name, datetime.now(UTC)
    )
    run = execute(plan, run_folder, quiet=quiet, grid=grid)
    if not quiet:
        from sim.console import announce

        announce(run, run_folder)
    track(plan, run, run_folder)
    return 0


def execute(plan: Plan, folder: RunFolder, *, quiet: bool = False, grid: Grid | None = None) -> Run:
    """Run every arm with every seed and write the folder. See `run_overrides`.

    Raises:
        KeyboardInterrupt: After Ctrl-C, with the command that resumes the run.
        UserError: For whatever a person can mend.
    """
    from sim.describe import describe
    from sim.report.page import render_report

    started, begun = datetime.now(UTC), time.perf_counter()
    gathered, arms = Gathered(), Arms()
    _check(plan, arms, folder)
    with checkpoint.resumable(folder):
        with _pool(plan, grid) as pool, _shown(plan, arms, quiet=quiet) as shown:
            for seed in plan.seeds:
                for planned in plan.arms:
                    _run_arm(planned, seed, arms, pool, folder, gathered, shown)
        summary = describe(plan, gathered, started, time.perf_counter() - begun)
        run = Run(summary, tuple(gathered.rounds), tuple(gathered.scores), plan.to_yaml())
        run = folder.finish(run, gathered.weights, render_report(run), gathered.ledgers)
    checkpoint.remove(folder)
    return run


def track(plan: Plan, run: Run, folder: RunFolder) -> None:
    """Log a finished run to MLflow, unless ``tracking_uri=off``.

    Raises:
        UserError: If MLflow does not take it: the run is whole all the same.
    """
    if plan.config.tracking_uri != "off":
        from sim.tracking import log_run

        log_run(run, folder.path, folder.root, plan.config.tracking_uri)


def _check(plan: Plan, arms: Arms, folder: RunFolder) -> None:
    """Refuse now what some arm would be refused for later; a run that never began leaves no folder.

    Raises:
        UserError: For the first thing that is wrong.
    """
    try:
        folder.write(PLAN, plan.to_yaml().encode())
        for planned in plan.arms:
            arm = arms.get(planned.config, plan.seeds[0])
            _ = arm.rules, arm.executor  # made here for the first time
    except BaseException:
        if not checkpoint.begun(folder.path):
            folder.discard()
        raise


def _run_arm(
    planned: PlannedArm,
    seed: int,
    arms: Arms,
    pool: Pool,
    folder: RunFolder,
    gathered: Gathered,
    shown: Shown,
) -> None:
    """One arm with one seed, from where its checkpoint stands."""
    arm = arms.get(planned.config, seed)
    found = checkpoint.restore(folder.path, planned.name, arm)
    progress, scores = found or (None, [])
    campaign = Campaign(planned.name, arm, progress)
    runner = pool.runner(arm, campaign.progress.store)
    shown.begin(f"{planned.title}, seed {seed}", arm.config.campaign.num_rounds)
    for record in campaign.progress.records:
        shown.update(record)
    try:
        if not scores:
            campaign.run(runner, _teller(campaign, folder, shown))
            scores = campaign.finish(runner)
            checkpoint.save(folder, planned.name, arm, campaign.progress, scores)
    except BaseException:
        with suppress(UserError):  # a full disk: the last checkpoint stands, and the first error counts
            checkpoint.save(folder, planned.name, arm, campaign.progress)
        raise
    finally:
        runner.close()
    _gather(gathered, planned.name, campaign, scores, pool)


def _teller(campaign: Campaign, folder: RunFolder, shown: Shown) -> Callable[[RoundRecord], None]:
    """Show each round, and write a checkpoint now and then."""
    last, every_s = time.monotonic(), campaign.arm.config.runner.checkpoint_s

    def tell(record: RoundRecord) -> None:
        nonlocal last
        shown.update(record)
        if time.monotonic() - last >= every_s:
            checkpoint.save(folder, campaign.name, campaign.arm, campaign.progress)
            last = time.monotonic()

    return tell


def _gather(gathered: Gathered, name: str, campaign: Campaign, scores: list[DeviceScore], pool: Pool) -> None:
    from sim.describe import peak_memory_bytes

    tree = campaign.progress.state.tree
    charged = gathered.campaigns.get(name)
    if charged is None or (campaign.epsilon() or 0.0) > (charged.epsilon() or 0.0):
        gathered.campaigns[name] = campaign  # of several seeds, the one whose privacy cost most
    gathered.rounds += campaign.progress.records
    gathered.scores += scores
    gathered.weights[f"{name}-{campaign.arm.seed}"] = tree
    if campaign.purse is not None:
        gathered.ledgers[f"{name}-{campaign.arm.seed}"] = campaign.progress.events
    gathered.digests.setdefault(name, {})[str(campaign.arm.seed)] = params.digest(tree)
    worst = worst_epsilon(campaign.arm, campaign.progress.sent)
    if worst is not None:
        gathered.example_epsilons[name] = max(worst, gathered.example_epsilons.get(name, 0.0))
    gathered.peak_bytes = max(gathered.peak_bytes, peak_memory_bytes(pool))


@contextmanager
def _pool(plan: Plan, grid: Grid | None) -> Iterator[Pool]:
    """Where cohorts train, ended with the run."""
    pool = _start_pool(plan, grid)
    try:
        with terminate_is_ctrl_c():  # after Ray has started: it sets a handler of its own
            yield pool
    finally:
        pool.stop()


def _start_pool(plan: Plan, grid: Grid | None) -> Pool:
    kind = plan.config.runner.kind
    if kind is RunnerKind.RAY:
        from sim.ray_runner import RayPool

        return RayPool.start(plan.config.runner)
    import torch

    torch.set_num_threads(1)  # clients are small, and this process is one of several
    if kind is RunnerKind.FLOWER:
        from sim.flower_runner import FlowerSimulation, GridPool

        if grid is not None:
            return GridPool(grid)
        largest = max(arm.config.campaign.cohort_size for arm in plan.arms)
        return FlowerSimulation.start(plan.config.runner, largest)
    from sim.local_runner import LocalPool

    return LocalPool()


@contextmanager
def _shown(plan: Plan, arms: Arms, *, quiet: bool) -> Iterator[Shown]:
    """The progress bar, or silence."""
    import io

    from sim.progress import progress

    total = sum(arm.config.campaign.num_rounds for arm in plan.arms) * len(plan.seeds)
    metric = metric_of(arms.get(plan.arms[0].config, plan.seeds[0]))
    private = [arm.config.privacy for arm in plan.arms if arm.config.privacy.kind is PrivacyKind.CENTRAL]
    unit = str(private[0].unit) if private else ""
    with progress(total, metric, unit, io.StringIO() if quiet else None) as shown:
        yield shown


def multirun(overrides: Sequence[str], *, folder: str = "") -> int:
    """One run for each combination of a sweep, in parallel on one shared Ray.

    Returns:
        The exit status: 0 if every job succeeded, 2 otherwise.
    """
    from sim.multirun import multirun as run_sweep

    return run_sweep(overrides, folder=folder)


def local(plan: Plan) -> Plan:
    """The same plan with its cohorts in this process: what a job of a sweep runs."""

    def here(config: Config) -> Config:
        return replace(config, runner=replace(config.runner, kind=RunnerKind.LOCAL))

    arms = tuple(replace(arm, config=here(arm.config)) for arm in plan.arms)
    return replace(plan, config=here(plan.config), arms=arms)
