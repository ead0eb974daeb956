"""The table that people read of the Monte-Carlo of gates, and its verdicts on the stated reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.gates.controllers import End

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.gates.cases import Summary

HEADER = (
    f"{'controller':<17} {'candidate':<33} {'devices':>7} {'corr':>5} {'ev/d':>5} {'champion':>16} {'rolled back':>16} "
    f"{'undecided':>16} {'days':>5} {'p90':>5} {'exposed':>8} {'own':>7}"
)


def line(summary: Summary) -> str:
    """One case; a rate is followed by its one-sided 95 % bounds."""
    model = summary.case.model
    rates = " ".join(f"{_rate(summary, end):>16}" for end in End)
    return (
        f"{summary.case.controller:<17} {summary.case.candidate.name:<33} {model.num_devices:>7} {model.correlation:>5.2f} "
        f"{model.events_per_day:>5.0f} {rates} {summary.days_median:>5.1f} {summary.days_p90:>5.1f} "
        f"{summary.exposure_median:>8.4f} {summary.own_exposure_median:>7.4f}"
    )


def _rate(summary: Summary, end: End) -> str:
    rate, low, high = summary.rate(end)
    return f"{100 * rate:.1f} [{100 * low:.1f},{100 * high:.1f}]"


def reach(summaries: Sequence[Summary]) -> list[str]:
    """What the stated reach says of our gates, one line per demand; the bound decides, not the rate."""
    ours = [summary for summary in summaries if summary.case.controller == "ours"]
    good = [summary for summary in ours if not summary.case.candidate.harmful]
    equal = [summary for summary in good if summary.case.candidate.name == "equal"]
    bad = [summary for summary in ours if summary.case.candidate.harmful]
    worst = [summary for summary in bad if summary.case.candidate.name.startswith("5 points")]
    site = [summary for summary in bad if summary.case.candidate.site is not None]
    fleet_wide = [summary for summary in bad if summary.case.candidate.site is None]
    said = [
        _demand("5 points worse and promoted: at most 1 %", [s.rate(End.CHAMPION)[2] for s in worst], 0.01),
        _demand("equal and rolled back: at most 5 %", [s.rate(End.ROLLED_BACK)[2] for s in equal], 0.05),
        _demand(
            "good and not champion in 14 days: at most 10 %",
            [1.0 - s.rate(End.CHAMPION)[1] for s in good],
            0.10,
        ),
        _demand("good and undecided: at most 5 %", [s.rate(End.UNDECIDED)[2] for s in good], 0.05),
        _demand("median exposure to harm: at most 1 %", [s.exposure_median for s in fleet_wide], 0.01),
        _demand("one site harmed and promoted: at most 1 %", [s.rate(End.CHAMPION)[2] for s in site], 0.01),
        _demand(
            "one site harmed, rolled back by a gate: at least 95 %",
            [1.0 - s.rate(End.ROLLED_BACK)[1] for s in site],
            0.05,
        ),
    ]
    return [line_ for line_ in said if line_]


def _demand(name: str, values: list[float], limit: float) -> str:
    if not values:
        return ""
    met = sum(value <= limit + 1e-12 for value in values)
    return f"{name:<48} {met} of {len(values)} cases, worst {100 * max(values):.2f} %"
