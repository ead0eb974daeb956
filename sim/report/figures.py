"""The figures of the report: what each shows, its one sentence, its legend and its table.

Rules of this file:
    * A figure without data is left out, never drawn empty.
    * The sentence under a title is computed from the data that is drawn, and claims no cause.
    * Every plot has its numbers as a table beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.report import plots, words
from sim.report.plots import Line
from sim.report.series import (
    Curve,
    curve,
    device_means,
    of_arm,
    participation,
    served_spread,
    sorted_scores,
)
from sim.report.style import QUIET, SERIES, arm_colours
from sim.results import ArmSummary, Population

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.report.words import Words
    from sim.results import Run

MAX_ROWS = 24


@dataclass(frozen=True)
class Figure:
    """A figure, ready to be put on a page.

    Attributes:
        name: Unique on the page; prefix of its ids.
        title: What it shows.
        says: One sentence computed from it.
        plot: Draws it: a matplotlib figure.
        legend: (colour of matplotlib, kind, name); kinds are `line`, `dash` and `box`.
        header: The table's columns.
        rows: The table's rows.
        wide: Whether it takes the page's full width.
    """

    name: str
    title: str
    says: str
    plot: Callable[[], Any]
    legend: tuple[tuple[str, str, str], ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = field(default=())
    wide: bool = False


def all_figures(run: Run, say: Words) -> list[Figure]:
    """Every figure that the run has data for, in the order of the page."""
    makers = (learning, distribution, gain, drift, epsilon, participants, arrivals, traffic)
    return [figure for maker in makers if (figure := maker(run, say)) is not None]


def learning(run: Run, say: Words) -> Figure | None:
    """Learning curves with interval bands."""
    mean = _lines(run, lambda r: s.mean if (s := served_spread(r)) else None)
    p10 = _lines(run, lambda r: s.p10 if (s := served_spread(r)) else None)
    if not mean:
        return None
    ends = words.listing([f"{line.name} at {say.score(float(line.curve.mean[-1]))}" for line in mean])
    several = len(run.summary.seeds) > 1
    band = "Bands are 95\u00a0% intervals over seeds." if several else "One seed, so no bands."
    return Figure(
        name="learning",
        title="Learning curves: what devices would serve, on rows after the campaign",
        says=f"After the last evaluated round the mean device stands with {ends}, over every device that was scored. {band}",
        plot=lambda: plots.learning(mean, p10, say.scale, say.axis),
        header=("Round", *(f"{line.name}, {part}" for line in mean for part in ("mean", "10th pct."))),
        rows=_curve_rows([c for a, b in zip(mean, p10, strict=True) for c in (a.curve, b.curve)], say.score),
        wide=True,
    )


def distribution(run: Run, say: Words) -> Figure | None:
    """Per-device scores, sorted."""
    groups, rows = [], []
    for colour, arm in _coloured(run):
        for population, style in ((Population.REAL, "-"), (Population.VIRTUAL, ":")):
            scores = sorted_scores(run, arm.arm, population, say.metric)
            if len(scores):
                groups.append((arm.title, colour, scores, style))
                rows.append(_distribution_row(arm.title, population, scores, say))
    if not groups:
        return None
    kinds = {style for _, _, _, style in groups}
    both = " Solid with dots: real devices; dotted: virtual devices." if len(kinds) > 1 else ""
    return Figure(
        name="devices",
        title="Every device, from the worst to the best",
        says=f"The left end is the device served worst; devices that never took part are left out.{both}",
        plot=lambda: plots.distribution(groups, say.scale, say.axis),
        legend=_arm_legend(run),
        header=("Arm", "Devices", "Worst", "10th pct.", "Median", "Best"),
        rows=tuple(rows),
    )


def _distribution_row(title: str, population: Population, scores: Any, say: Words) -> tuple[str, ...]:
    """Scores come from the worst on, so the percentiles are places in their order."""
    places = np.interp([0.0, 0.1, 0.5, 1.0], np.linspace(0, 1, len(scores)), scores)
    return (title, words.people(population, len(scores)), *(say.score(float(v)) for v in places))


def gain(run: Run, say: Words) -> Figure | None:
    """Personal gain of each device."""
    panels, rows, sentences = [], [], []
    for colour, arm in _coloured(run):
        found = device_means(run, arm.arm, lambda d: d.gain(say.metric))
        groups = [
            (words.POPULATIONS[p], np.array(list(found[p].values())))
            for p in (Population.REAL, Population.VIRTUAL)
            if p in found
        ]
        if groups:
            panels.append((arm.title, colour, groups))
            rows += [_gain_row(arm.title, name, values, say) for name, values in groups]
            name, values = groups[0]
            up, down = int((values > 0).sum()), int((values < 0).sum())
            sentences.append(f"{arm.title}: {up} of {len(values)} {name} gain, {down or 'none'} lose.")
    if not panels:
        return None
    axis = "gain, points" if say.scale == 100 else f"gain, {say.unit}".rstrip(", ")
    return Figure(
        name="gain",
        title="What each device gains from its personal model over the same arm's global one",
        says=" ".join(sentences),
        plot=lambda: plots.gains(panels, say.scale, axis),
        header=("Arm", "Devices", "Gain", "Lose", "Mean gain", "Median gain"),
        rows=tuple(rows),
    )


def _gain_row(title: str, name: str, values: Any, say: Words) -> tuple[str, ...]:
    shown = [
        ("" if v >= 0 else words.MINUS) + say.difference(v)
        for v in (float(values.mean()), float(np.median(values)))
    ]
    return (
        title,
        f"{len(values):,} {name}",
        str(int((values > 0).sum())),
        str(int((values < 0).sum())),
        *shown,
    )


def drift(run: Run, say: Words) -> Figure | None:
    """Drift injected against the score over time."""
    lines = _lines(run, lambda r: s.mean if (s := served_spread(r)) else None)
    drifted = curve(run.rounds, lambda r: r.drift_fraction)
    if not lines or not len(drifted):
        return None
    most = float(drifted.mean.max())
    unit = words.time_unit(float(drifted.at.max() - drifted.at.min()))
    says = "No drift was injected." if most == 0 else (
        f"At most {100 * most:.0f}\u00a0% of the devices carried an injected drift at once. What moves together "
        "in time need not be cause and effect."
    )  # fmt: skip
    return Figure(
        name="drift",
        title="Drift injected, and the score over time",
        says=says,
        plot=lambda: plots.drift(lines, drifted, say.scale, say.axis, unit),
        header=("Round", "Devices with a drift", *(line.name for line in lines)),
        rows=_merged_rows(drifted, [line.curve for line in lines], say),
        wide=True,
    )


def epsilon(run: Run, say: Words) -> Figure | None:
    """Epsilon against rounds."""
    del say
    lines = _lines(run, lambda r: r.epsilon)
    if not lines:
        return None
    private = [(a, colour) for colour, a in _coloured(run) if a.privacy is not None]
    targets = [(a.privacy.target_epsilon, c) for a, c in private if a.privacy and a.privacy.target_epsilon]
    claims = [f"{a.title}: {_claim(a)}." for a, _ in private]
    return Figure(
        name="epsilon",
        title="Privacy spent, round by round",
        says=" ".join(claims),
        plot=lambda: plots.epsilon(lines, targets),
        header=("Round", *(line.name for line in lines)),
        rows=_curve_rows([line.curve for line in lines], words.significant),
    )


def _claim(arm: ArmSummary) -> str:
    p = arm.privacy
    assert p is not None
    return f"epsilon {p.epsilon:.2f} at delta {words.power(p.delta)}, {words.term(p.sampling)} sampling, {words.term(p.relation)} relation, per {p.unit}"


_FAILURES = {
    "unavailable": SERIES[0],
    "dropped": SERIES[5],
    "timeout": SERIES[2],
    "no_data": SERIES[4],
}


def participants(run: Run, say: Words) -> Figure | None:
    """Where the cohorts went; the first arm's, others in the table."""
    del say
    if not run.rounds:
        return None
    arm = run.summary.arms[0]
    found = participation(of_arm(run, arm.arm))
    kinds = [(k, QUIET if k == "replied" else _FAILURES.get(k, SERIES[1])) for k in found.shares]
    alike = "" if len(run.summary.arms) == 1 else f" Drawn for {arm.title}; the table has every arm."
    lost = 100 * (
        1 - sum(r.replied for r in of_arm(run, arm.arm)) / max(1, sum(r.cohort for r in of_arm(run, arm.arm)))
    )
    gone = f"; rounds abandoned, mean over seeds: {words.count(found.abandoned)}" if found.abandoned else ""
    return Figure(
        name="participation",
        title="Who was asked, and who answered",
        says=f"{lost:.0f}\u00a0% of the clients asked contributed nothing{gone}.{alike}",
        plot=lambda: plots.stack(found.rounds, found.width, [(c, found.shares[k]) for k, c in kinds]),
        legend=tuple((colour, "box", kind.replace("_", " ")) for kind, colour in kinds),
        header=("Arm", "Replied", "Contributed nothing", "By kind", "Abandoned rounds"),
        rows=tuple(_participation_row(a) for a in run.summary.arms),
    )


def _participation_row(arm: ArmSummary) -> tuple[str, ...]:
    kinds = ", ".join(f"{kind.replace('_', ' ')} {words.count(num)}" for kind, num in arm.dropouts.items())
    lost = words.count(sum(arm.dropouts.values()))
    return (arm.title, words.count(arm.replied), lost, kinds or words.DASH, words.count(arm.abandoned))


def arrivals(run: Run, say: Words) -> Figure | None:
    """Labels that have arrived and devices that could be asked, over time."""
    del say
    arm = of_arm(run, run.summary.arms[0].arm)
    named = (
        ("labels", "labels arrived", SERIES[3], lambda r: r.labels_fraction),
        ("available", "devices available", SERIES[0], lambda r: r.available_fraction),
    )
    found = [(Line(name, colour, curve(arm, value)), full) for name, full, colour, value in named]
    lines = [line for line, _ in found if len(line.curve)]
    if not lines:
        return None
    unit = words.time_unit(float(max(np.ptp(line.curve.at) for line in lines)))
    ends = [
        f"{100 * line.curve.mean[-1]:.0f}\u00a0% of the {full}" for line, full in found if len(line.curve)
    ]
    ends = [
        e.replace("labels arrived", "labels due had arrived").replace(
            "devices available", "devices could be asked"
        )
        for e in ends
    ]
    return Figure(
        name="arrivals",
        title="Labels and devices, as they come and go",
        says=f"At the last round {words.listing(ends)}.",
        plot=lambda: plots.shares(lines, unit, "Share, %"),
        header=("Round", *(line.name for line in lines)),
        rows=_curve_rows([line.curve for line in lines], lambda v: f"{100 * v:.1f}\u00a0%"),
    )


def traffic(run: Run, say: Words) -> Figure | None:
    """Bytes up and down by arm."""
    del say
    rows = [(a.title, colour, a.bytes_up, a.bytes_down) for colour, a in _coloured(run)]
    if not any(up or down for _, _, up, down in rows):
        return None
    labels = [(f"{words.size(up)} up", f"{words.size(down)} down") for _, _, up, down in rows]
    return Figure(
        name="traffic",
        title="What went over the network",
        says="All rounds and devices together, mean over seeds; strong: up, pale: down.",
        plot=lambda: plots.traffic(rows, labels),
        header=("Arm", "Up", "Down", "Up, per update"),
        rows=tuple(
            (
                a.title,
                words.size(a.bytes_up),
                words.size(a.bytes_down),
                words.size(a.bytes_up / max(1.0, a.replied)),
            )
            for a in run.summary.arms
        ),
    )


def _lines(run: Run, value: Callable[[Any], float | None]) -> list[Line]:
    """A curve of each arm that has one."""
    made = ((colour, arm, curve(of_arm(run, arm.arm), value)) for colour, arm in _coloured(run))
    return [Line(arm.title, colour, c) for colour, arm, c in made if len(c)]


def _coloured(run: Run) -> list[tuple[str, ArmSummary]]:
    """Each arm with its colour."""
    return list(zip(arm_colours(len(run.summary.arms)), run.summary.arms, strict=True))


def _arm_legend(run: Run) -> tuple[tuple[str, str, str], ...]:
    return tuple((colour, "line", arm.title) for colour, arm in _coloured(run))


def _curve_rows(curves: list[Curve], show: Callable[[float], str]) -> tuple[tuple[str, ...], ...]:
    """At most `MAX_ROWS` rounds, the last among them."""
    known = [dict(zip(c.rounds.tolist(), c.mean.tolist(), strict=True)) for c in curves]
    rounds = sorted(set().union(*known))
    kept = rounds[:: -max(1, -(-len(rounds) // MAX_ROWS))][::-1]
    return tuple((f"{r:.0f}", *(show(k[r]) if r in k else words.DASH for k in known)) for r in kept)


def _merged_rows(drifted: Curve, curves: list[Curve], say: Words) -> tuple[tuple[str, ...], ...]:
    """Score rows at the rounds that were evaluated, with the share of drifted devices."""
    shares = dict(zip(drifted.rounds.tolist(), drifted.mean.tolist(), strict=True))
    rows = _curve_rows(curves, say.score)
    return tuple(
        (r, f"{100 * shares[float(r)]:.1f}\u00a0%" if float(r) in shares else words.DASH, *rest)
        for r, *rest in rows
    )
