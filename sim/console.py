"""What a finished run says on the terminal: a table of arms, and where to look."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from fedretrain.privacy.example import example_scope_text
from sim.example_privacy import DELTA
from sim.report.words import Words, count

if TYPE_CHECKING:
    from sim.outputs import RunFolder
    from sim.results import ArmSummary, Estimate, PopulationScores, Run


def announce(run: Run, folder: RunFolder, stream: TextIO | None = None) -> None:
    """Print the run's table.

    Args:
        run: Finished.
        folder: Where it was written.
        stream: Standard output if not given.
    """
    out = stream or sys.stdout
    say = Words(run.summary.metric, run.summary.metric_unit)
    rows = [row for arm in run.summary.arms for row in _rows(arm, say)]
    header = ("arm", "devices", f"global {say.name}", "personalized", "gain", "epsilon")
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    out.write("\n")
    for row in [header, *rows]:
        out.write(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"
        )
    out.write("\n")
    for caveat in run.summary.caveats:
        if "no round was released" in caveat:
            out.write(f"{caveat}\n")
    for arm in run.summary.arms:
        if arm.privacy is not None:
            out.write(f"{arm.title}: {arm.privacy.scope}\n")
            if arm.privacy.advice:
                out.write(f"{arm.title}: {arm.privacy.advice}\n")
        if arm.example_epsilon is not None:
            out.write(f"{arm.title}: {example_scope_text(arm.example_epsilon, DELTA)}\n")
    out.write(f"report   {folder.path / 'report.html'}\nsummary  {folder.path / 'summary.json'}\n")


def _rows(arm: ArmSummary, say: Words) -> list[tuple[str, ...]]:
    """One row for each population of an arm."""
    epsilon = "" if arm.privacy is None else f"{arm.privacy.epsilon:.2f}"
    return [
        (
            arm.title if first else "",
            f"{count(found.num_devices)} {found.population.replace('_', ' ')}",
            _estimate(found.global_model.score.mean, say),
            "" if found.personalized is None else _estimate(found.personalized.score.mean, say),
            _gain(found, say),
            epsilon if first else "",
        )
        for first, found in ((i == 0, population) for i, population in enumerate(arm.populations))
    ]


def _estimate(value: Estimate, say: Words) -> str:
    return f"{say.cell(value.value)} {say.interval(value)}".rstrip()


def _gain(found: PopulationScores, say: Words) -> str:
    return "" if found.gain is None else say.change(_signed(found.gain.value, say))


def _signed(gain: float, say: Words) -> float:
    """A gain (positive is better) as a difference of scores, which `Words` reads."""
    return gain if say.metric.higher_is_better else -gain
