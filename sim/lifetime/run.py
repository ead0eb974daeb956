"""A lifetime run: every policy with every seed, side by side, then its folder and report.

Rules of this file:
    * What can be refused is refused before anything lives: policies, configuration, output folder, data, privacy.
    * The run's folder is unfinished until its summary is written, last. Ctrl-C and errors leave a checkpoint from which lives go on.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from fedretrain.core.build import plain
from fedretrain.core.errors import ConfigError
from sim import checkpoint
from sim.arm import Arms
from sim.checkpoint import resumable
from sim.describe import environment
from sim.lifetime.jobs import LifeJob, run_jobs
from sim.lifetime.oracle import Truth
from sim.lifetime.policies import policies_of
from sim.lifetime.records import DeviceScore, FeatureRecord, LifetimeRun, StepRecord, TruthRecord
from sim.lifetime.shelf import shelf_of
from sim.outputs import CONFIG, REPORT, SUMMARY, RunFolder
from sim.plain import to_plain
from sim.sensors.config import SHAPED
from sim.tables import table_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sim.lifetime.policies import NamedPolicy
    from sim.lifetime.records import Life
    from sim.plan import Plan
    from sim.schema import Config

STEPS, FEATURES, EVENTS = "steps.parquet", "features.parquet", "events.jsonl"
DEVICES = "devices.parquet"
FORMAT = 1


def run_lifetime(
    plan: Plan, resumed: RunFolder | None = None, *, quiet: bool = False
) -> tuple[LifetimeRun, RunFolder]:
    """Live every life of a plan and write the run's folder.

    Args:
        plan: What to live.
        resumed: The folder of an interrupted run of this plan; None: a new one.
        quiet: Print nothing.

    Raises:
        KeyboardInterrupt: After Ctrl-C, with the command that resumes the run.
        UserError: For whatever a person can mend.
    """
    from sim.lifetime.console import announce
    from sim.lifetime.report.page import render_lifetime

    config, begun = plan.config, time.perf_counter()
    policies = policies_of(config.lifetime)
    _check(config)
    folder = resumed or RunFolder.create(Path(config.output_dir), config.name, datetime.now(UTC))
    with resumable(folder):
        shelf = shelf_of(plan, policies, folder)
        jobs = [LifeJob(config, policy, seed) for seed in plan.seeds for policy in policies]
        lives = run_jobs(jobs, _teller(len(jobs), quiet=quiet), shelf)
        run = _gather(config, policies, plan.seeds, lives, time.perf_counter() - begun)
        _write(run, folder, plan, policies, render_lifetime(run))
    checkpoint.remove(folder)
    if not quiet:
        announce(run, folder)
    return run, folder


def _check(config: Config) -> None:
    """What a lifetime cannot be lived with.

    Raises:
        ConfigError: For a regression, or arms.
    """
    if config.arms:
        raise ConfigError(
            "a lifetime compares policies, not arms",
            where="arms",
            fix="remove them: '~arms', and name policies=[...]",
        )
    arm = Arms().get(config, config.seed)
    if arm.world.fleet.objective != "classification":
        raise ConfigError(
            "lifetimes are lived by classifiers",
            where="dataset",
            fix="beijing_air: dataset.options.task=exceeds",
        )
    _ = arm.rules, arm.executor  # refuses here what would be refused later


def _teller(total: int, *, quiet: bool) -> Callable[[Life], None]:
    """Say when each life is over."""
    done = 0

    def tell(life: Life) -> None:
        nonlocal done
        done += 1
        if not quiet:
            s = life.summary
            print(
                f"[{done}/{total}] {s.policy}, seed {s.seed}: accuracy {100 * s.accuracy:.1f} %, {s.retrains} retrains, "
                f"{s.promoted} promoted, {s.rolled_back} rolled back, {s.wall_s:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    return tell


def _gather(
    config: Config, policies: Sequence[NamedPolicy], seeds: Sequence[int], lives: list[Life], seconds: float
) -> LifetimeRun:
    truth: list[TruthRecord] = []
    arms = Arms()
    for seed in seeds:
        fleet = arms.get(config, seed).world.fleet
        found = Truth(fleet.truth(range(fleet.num_devices)), fleet.num_devices, config.lifetime.duration_s)
        titles = [_title(config, group[0].spec) for group in found.groups]
        truth += found.records(seed, titles)
    dataset = arms.get(config, seeds[0]).setting.dataset
    fleet, where = arms.get(config, seeds[0]).world.fleet, environment()
    return LifetimeRun(
        experiment=config.name,
        policies=tuple(policy.name for policy in policies),
        seeds=tuple(seeds),
        lives=tuple(lives),
        truth=tuple(truth),
        segments=config.lifetime.segments_of(config.lifetime.duration_s),
        caveats=() if dataset is None else dataset.caveats,
        num_devices=fleet.num_devices,
        num_virtual=fleet.num_virtual,
        duration_s=config.lifetime.duration_s,
        policy_digest={policy.name: policy.policy.digest for policy in policies},
        versions={
            "fedretrain": where.code_version,
            "python": where.python,
            **where.packages,
            "cores": str(where.cores),
        },
        seconds=seconds,
        slot_s=config.lifetime.tick_s,
    )


def _title(config: Config, spec: int) -> str:
    wanted = config.drift.specs[spec]
    return f"{wanted.kind} {wanted.shape}" if wanted.kind in SHAPED else str(wanted.kind)


def _write(
    run: LifetimeRun, folder: RunFolder, plan: Plan, policies: Sequence[NamedPolicy], report: str
) -> None:
    """Every file, the summary last."""
    events = [event for life in run.lives for event in life.events]
    lines = "".join(json.dumps(to_plain(event), allow_nan=False) + "\n" for event in events)
    files = {
        CONFIG: folder.write(CONFIG, plan.to_yaml().encode()),
        STEPS: folder.write(STEPS, table_bytes(StepRecord, [s for one in run.lives for s in one.steps])),
        FEATURES: folder.write(
            FEATURES, table_bytes(FeatureRecord, [f for one in run.lives for f in one.features])
        ),
        EVENTS: folder.write(EVENTS, lines.encode()),
        DEVICES: folder.write(
            DEVICES, table_bytes(DeviceScore, [d for one in run.lives for d in one.devices])
        ),
        REPORT: folder.write(REPORT, report.encode()),
    }
    for policy in policies:
        name = f"policy/{policy.name}.yaml"
        files[name] = folder.write(name, yaml.safe_dump(plain(policy.policy), sort_keys=False).encode())
    lives = tuple(replace(life, steps=(), features=(), events=(), devices=()) for life in run.lives)
    bare = replace(run, lives=lives)
    summary = {"kind": "lifetime", "format": FORMAT, **to_plain(bare), "files": files}
    folder.write(SUMMARY, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
    folder.point_latest()
