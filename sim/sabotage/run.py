"""`python -m sim experiment=sabotage`: every case lived with every seed, its table, and its folder.

Rules of this file:
    * Exit status 1 if a harmful candidate was promoted or a good one was not.
    * With `sabotage.rollouts` the Monte-Carlo of gates runs instead.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sim import checkpoint
from sim.lifetime.jobs import run_jobs
from sim.lifetime.policies import policies_of
from sim.lifetime.shelf import shelf_of
from sim.outputs import CONFIG, REPORT, SUMMARY, RunFolder
from sim.plain import to_plain
from sim.sabotage.cases import chosen
from sim.sabotage.lives import CaseJob
from sim.sabotage.page import render_sabotage, verdict
from sim.sabotage.records import CaseOutcome
from sim.tables import table_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.plan import Plan
    from sim.schema import Config

CASES = "cases.parquet"
FORMAT = 1


def run_sabotage(plan: Plan, resumed: RunFolder | None = None, *, quiet: bool = False) -> int:
    """Live every case, or simulate gates; print what became of it.

    Args:
        plan: What to do.
        resumed: The folder of an interrupted run of this plan, whose finished cases are not lived again; None: a new one.
        quiet: Print nothing.

    Returns:
        0, or 1 where a case did not end as it should.

    Raises:
        KeyboardInterrupt: After Ctrl-C, with the command that resumes the run.
        UserError: For whatever a person can mend.
    """
    config = plan.config
    if config.sabotage.rollouts:
        return _monte_carlo(config)
    cases = chosen(config.sabotage.cases)
    policies = policies_of(config.lifetime)  # refused before anything lives
    folder = resumed or RunFolder.create(Path(config.output_dir), config.name, datetime.now(UTC))
    with checkpoint.resumable(folder):
        jobs = [CaseJob(config, case.name, seed) for case in cases for seed in plan.seeds]
        found = run_jobs(jobs, lambda one: None if quiet else _tell(one), shelf_of(plan, policies, folder))
        _write(folder, plan, found)
    checkpoint.remove(folder)
    if not quiet:
        print(table(found))
        print(f"\nreport   {folder.path / REPORT}\nsummary  {folder.path / SUMMARY}")
    return int(any(surprises(found)))


def surprises(found: Sequence[CaseOutcome]) -> list[CaseOutcome]:
    """Cases that did not end as they should."""
    return [one for one in found if not one.as_wanted]


def table(found: Sequence[CaseOutcome]) -> str:
    """One line for each case and seed."""
    head = ("case", "wanted", "ended", "by", "days", "exposure", "effect", "worst site", "as wanted")
    rows = [
        (
            f"{one.case} ({one.seed})",
            one.wanted,
            one.ended,
            one.stopped_by or "-",
            f"{one.days:.1f}",
            f"{100 * one.exposure:.2f} %",
            f"{100 * one.effect:+.1f}",
            f"{100 * one.worst_site_effect:+.1f}",
            "yes" if one.as_wanted else "NO",
        )
        for one in found
    ]
    widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]
    ]
    return "\n".join(line.rstrip() for line in [*lines, "", verdict(found)])


def _tell(one: CaseOutcome) -> None:
    mark = "as wanted" if one.as_wanted else "NOT AS WANTED"
    print(
        f"{one.case}, seed {one.seed}: {one.ended} ({mark}), {one.wall_s:.0f} s", file=sys.stderr, flush=True
    )


def _write(folder: RunFolder, plan: Plan, found: Sequence[CaseOutcome]) -> None:
    """Every file, the summary last."""
    files = {
        CONFIG: folder.write(CONFIG, plan.to_yaml().encode()),
        CASES: folder.write(CASES, table_bytes(CaseOutcome, list(found))),
        REPORT: folder.write(REPORT, render_sabotage(found).encode()),
    }
    summary = {
        "kind": "sabotage",
        "format": FORMAT,
        "cases": to_plain(tuple(found)),
        "surprises": [one.case for one in surprises(found)],
        "files": files,
    }
    folder.write(SUMMARY, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
    folder.point_latest()


def _monte_carlo(config: Config) -> int:
    """Gates on simulated indicators, ours beside a static threshold and a peeked z-test."""
    from sim.gates.__main__ import run
    from sim.gates.cases import GatesConfig

    wanted = config.sabotage
    run(
        GatesConfig(
            num_rollouts=wanted.rollouts,
            num_devices=wanted.devices,
            correlations=wanted.correlations,
            events_per_day=wanted.events_per_day,
            seed=config.seed,
        )
    )
    return 0
