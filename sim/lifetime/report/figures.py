"""The figures of a lifetime: what each shows, its one sentence, its legend and its table.

Rules of this file:
    * A figure without data is left out, and so is everything about truth where none was injected.
    * The sentence under a title is computed from the data that is drawn, and claims no cause.
    * Curves are means over seeds; what cannot be averaged (decisions, PSI) is the first seed's, and says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.lifetime.report import plots
from sim.lifetime.report.detection import shown_delay, span_days
from sim.lifetime.report.headline import featured, headlines, lives_of
from sim.lifetime.report.plots import Span
from sim.lifetime.report.series import heat, largest, onsets, over_time, window_of
from sim.lifetime.report.timeline import timeline, used_rows
from sim.report import words
from sim.report.figures import MAX_ROWS, Figure
from sim.report.plots import Line
from sim.report.style import INK, MUTED, SERIES
from sim.statistics import FRACTION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sim.lifetime.records import Life, LifetimeRun, StepRecord
    from sim.lifetime.report.headline import Headline
    from sim.lifetime.report.series import Heat
    from sim.report.series import Curve

NBSP = words.NBSP


@dataclass(frozen=True)
class Told:
    """A run, made ready to be drawn.

    Attributes:
        run: The run.
        heads: Its policies with their colours.
        lives: Policy -> its lives, by seed.
        span: The stretch of time that figures show.
        window: Steps over which curves are smoothed.
        smoothed: What that comes to, for people.
    """

    run: LifetimeRun
    heads: list[Headline]
    lives: dict[str, list[Life]]
    span: Span
    window: int
    smoothed: str

    @classmethod
    def of(cls, run: LifetimeRun) -> Told:
        """Make a run ready."""
        heads = headlines(run)
        lives = {head.policy: lives_of(run, head.policy) for head in heads}
        everyone = [life for found in lives.values() for life in found]
        window = window_of(everyone)
        unit = words.time_unit(run.duration_s)
        span = Span(run.duration_s, unit, run.segments, tuple(onsets(run.truth)))
        step_s = _step_s(everyone)
        smoothed = f"each point is the mean of the {span_days(window * step_s)} before it"
        return cls(run, heads, lives, span, window, smoothed)

    @property
    def featured(self) -> Headline:
        """The policy of single-policy figures: the most accurate of those that ever retrained, if any did."""
        active = [h for h in self.heads if h.counts["retrains"].value > 0]
        return featured(active or self.heads)

    def curve(self, head: Headline, value: Callable[[StepRecord], float], window: int = 0) -> Curve:
        """A policy's mean over seeds, smoothed unless told otherwise."""
        return over_time(self.lives[head.policy], value, window or self.window, FRACTION)

    def lines(self, value: Callable[[StepRecord], float]) -> list[Line]:
        """A curve of every policy that has one."""
        made = [Line(head.policy, head.colour, self.curve(head, value)) for head in self.heads]
        return [line for line in made if len(line.curve)]

    def when(self, at: float) -> str:
        """An instant in a table."""
        return f"{at / self.span.unit[0]:.4g}"


def _step_s(lives: Sequence[Life]) -> float:
    """Between two steps; 0 if that cannot be told."""
    gaps = [b.at - a.at for life in lives[:1] for a, b in zip(life.steps, life.steps[1:], strict=False)]
    return float(np.median(gaps)) if gaps else 0.0


def accuracy(told: Told) -> Figure | None:
    """Accuracy over time, with parts of the life and injected drifts."""
    lines = told.lines(lambda step: step.accuracy)
    if not lines:
        return None
    drifted = _drifted(told)
    least = [
        f"{line.name} {_percent(float(line.curve.mean.min()))} after "
        f"{told.when(float(line.curve.at[int(line.curve.mean.argmin())]))} {told.span.unit[1]}"
        for line in lines
    ]
    several = len(told.run.seeds) > 1
    band = f" Bands are 95{NBSP}% intervals over {len(told.run.seeds)} seeds." if several else ""
    drift = " Dotted lines are injected drifts (truth), by letter." if told.span.onsets else ""
    return Figure(
        name="accuracy",
        title="Accuracy over time, as only the simulator can know it (oracle)",
        says=f"Lowest: {words.listing(least)}; {told.smoothed}.{band}{drift}",
        plot=lambda: plots.scores(lines, drifted, told.span, "Mean device: accuracy, %"),
        legend=tuple((MUTED, "dash", _onset_name(told, i)) for i in range(len(told.span.onsets))),
        header=(_time_header(told), *(line.name for line in lines)),
        rows=_rows(told, [line.curve for line in lines]),
        wide=True,
    )


def _onset_name(told: Told, index: int) -> str:
    """What a letter stands for."""
    onset = told.span.onsets[index]
    several = "" if onset.last_at == onset.first_at else " (shaded: over seeds)"
    return f"{onset.sign} {onset.kind}, {words.count(onset.num_devices)} devices{several}"


def _drifted(told: Told) -> Curve | None:
    """Share of devices with an injected drift: the same under every policy."""
    if not told.run.truth or not told.run.num_devices:
        return None
    found = told.curve(told.heads[0], lambda step: step.drifted_devices / told.run.num_devices, window=1)
    return found if len(found) else None


def decisions(told: Told) -> Figure | None:
    """Phases and decisions of each policy's first life."""
    named = [
        (head.policy, head.colour, timeline(life, told.run.duration_s))
        for head in told.heads
        if (life := told.lives[head.policy][0]).events
    ]
    if not named:
        return None
    rows = used_rows([found for _, _, found in named])
    seed = told.lives[named[0][0]][0].summary.seed
    quiet = [h.policy for h in told.heads if h.policy not in {name for name, _, _ in named}]
    nothing = f" Nothing happened under {words.listing(quiet)}." if quiet else ""
    return Figure(
        name="decisions",
        title=f"What was decided, and what became of it (seed {seed})",
        says=f"Bars last, strokes are instants, crosses are candidates taken back; a champion\u2019s bar bears its version.{nothing}",
        plot=lambda: plots.timelines(named, rows, told.span),
        header=("Policy", *(row.capitalize() for row in rows)),
        rows=tuple(
            (name, *(str(len(found.stretches.get(row, ())) + len(found.marks.get(row, ()))) for row in rows))
            for name, _, found in named
        ),
        wide=True,
    )


def shift(told: Told) -> Figure | None:
    """PSI of features over time, of the first policy and of the featured one."""
    heads = list({head.policy: head for head in (told.heads[0], told.featured)}.values())
    found = [(head, life) for head in heads if (life := told.lives[head.policy][0]).features]
    if not found:
        return None
    order = largest([record for _, life in found for record in life.features])
    if not order:
        return None
    seed = found[0][1].summary.seed
    panels = [(h.policy, h.colour, heat(life.features, order, told.run.duration_s)) for h, life in found]
    hidden = panels[0][2].num_hidden
    which = (
        f" The {len(panels[0][2].features)} features with the largest PSI of {len(order)}." if hidden else ""
    )
    return Figure(
        name="shift",
        title=f"How far features moved from the champion\u2019s baseline: PSI by window (seed {seed})",
        says="Significant means beyond the baseline\u2019s own windows, false discoveries controlled; a new champion brings "
        f"a new baseline.{which}",
        plot=lambda: plots.heats(panels, told.span),
        header=(
            "Feature",
            *(f"{name}, {part}" for name, _, _ in panels for part in ("largest PSI", "significant")),
        ),
        rows=tuple(
            (name, *_moved(name, [life for _, life in found], panels)) for name in panels[0][2].features
        ),
        wide=True,
    )


def _moved(feature: str, lives: Sequence[Life], panels: Sequence[tuple[str, str, Heat]]) -> list[str]:
    """A feature's cells of the table: its largest PSI, and the share of windows in which it was significant."""
    cells = []
    for life, _ in zip(lives, panels, strict=True):
        own = [record for record in life.features if record.feature == feature]
        share = sum(record.significant for record in own) / len(own) if own else math.nan
        cells += [words.significant(max((r.psi for r in own), default=math.nan)), _percent(share)]
    return cells


def beliefs(told: Told) -> Figure | None:
    """What labels and confidence said of the accuracy, beside the oracle."""
    head = told.featured
    named = (
        ("oracle", INK, told.curve(head, lambda s: s.accuracy)),
        ("observed", SERIES[1], told.curve(head, lambda s: s.observed_accuracy, window=1)),
        ("estimate", SERIES[2], told.curve(head, lambda s: s.estimated_accuracy, window=1)),
    )
    lines = [Line(name, colour, curve) for name, colour, curve in named if len(curve)]
    complete = told.curve(head, lambda s: s.completeness, window=1)
    if len(lines) < 2 or not len(complete):
        return None
    apart = [f"{line.name} by {_points(_distance(lines[0].curve, line.curve))}" for line in lines[1:]]
    return Figure(
        name="beliefs",
        title=f"What could be known of the accuracy under {head.policy}",
        says=f"Observed: labels that had come back by then, in the monitor\u2019s long window. Estimate: from calibrated "
        f"confidence, without labels. On average they are off the oracle ({told.smoothed}): {words.listing(apart)}.",
        plot=lambda: plots.beliefs(lines, complete, told.span),
        header=(_time_header(told), *(line.name.capitalize() for line in lines), "Labelled"),
        rows=_rows(told, [*(line.curve for line in lines), complete]),
        wide=True,
    )


def _distance(a: Curve, b: Curve) -> float:
    """Mean absolute difference at the instants that both know."""
    known = dict(zip(a.at.tolist(), a.mean.tolist(), strict=True))
    gaps = [abs(known[at] - v) for at, v in zip(b.at.tolist(), b.mean.tolist(), strict=True) if at in known]
    return float(np.mean(gaps)) if gaps else math.nan


def worst(told: Told) -> Figure | None:
    """The worst tenth of the devices over time."""
    return _trend(
        told,
        "worst",
        "The worst tenth of the devices (oracle)",
        "Mean accuracy of the tenth of the devices that were served worst lately",
        "Accuracy, %",
        lambda step: step.worst_decile,
    )


def badly(told: Told) -> Figure | None:
    """Devices served by a bad model."""
    num = max(1, told.run.num_devices)
    return _trend(
        told,
        "badly",
        "Devices served by a bad model (oracle)",
        "Bad: the device\u2019s recent accuracy lies well below its own record",
        "Share of the devices, %",
        lambda step: step.bad_devices / num,
    )


def _trend(
    told: Told, name: str, title: str, says: str, axis: str, value: Callable[[StepRecord], float]
) -> Figure | None:
    lines = told.lines(value)
    if not lines:
        return None
    return Figure(
        name=name,
        title=title,
        says=f"{says}; {told.smoothed}.",
        plot=lambda: plots.trend(lines, 100.0, axis, told.span),
        header=(_time_header(told), *(line.name for line in lines)),
        rows=_rows(told, [line.curve for line in lines]),
    )


def epsilon(told: Told) -> Figure | None:
    """Privacy spent over time."""
    made = [
        Line(h.policy, h.colour, over_time(told.lives[h.policy], lambda step: step.epsilon))
        for h in told.heads
    ]
    lines = [line for line in made if len(line.curve)]
    if not lines:
        return None
    ends = words.listing([f"{line.name} {words.significant(float(line.curve.mean[-1]))}" for line in lines])
    return Figure(
        name="epsilon",
        title="Privacy spent",
        says=f"At the end: {ends}. Covers the released shared weights; its delta and unit are in the configuration.",
        plot=lambda: plots.trend(lines, 1.0, "Epsilon", told.span),
        header=(_time_header(told), *(line.name for line in lines)),
        rows=_rows(told, [line.curve for line in lines], words.significant),
    )


def delays(told: Told) -> Figure | None:
    """How long after its onset each injected drift was noticed, and its harm mended."""
    found = [d for life in told.run.lives for d in life.detections]
    if not found:
        return None
    unit_s, unit = words.time_unit(told.run.duration_s)
    kinds = list(dict.fromkeys(d.kind for d in found))
    lanes = {head.policy: i for i, head in enumerate(told.heads)}
    colours = {head.policy: head.colour for head in told.heads}
    noticed, mended = [], []
    for d in found:
        row = kinds.index(d.kind) * len(lanes) + lanes[d.policy]
        noticed.append((row, colours[d.policy], d.detected_after_s / unit_s))
        if d.restored_after_s != 0:
            mended.append((row, colours[d.policy], d.restored_after_s / unit_s))
    panels = [("Noticed", noticed), ("Accuracy of the hit devices restored", mended)]
    harmless = len(noticed) - len(mended)
    without = (
        f" {words.count(harmless)} never harmed its devices noticeably and is not in the second."
        if harmless
        else ""
    )
    return Figure(
        name="delays",
        title="From the onset of a drift to the first alert, and to good service (truth)",
        says=f"A dot is one drift of one seed, a cross one that never was.{without}",
        plot=lambda: plots.delays(kinds, [p for p in panels if p[1]], len(lanes), unit),
        legend=tuple((head.colour, "box", head.policy) for head in told.heads),
        header=("Drift", "Policy", "Seed", "Onset", "Noticed after", "Restored after"),
        rows=tuple(
            (
                d.kind,
                d.policy,
                str(d.seed),
                f"{told.when(d.onset_at)} {unit}",
                *_delays(d.detected_after_s, d.restored_after_s),
            )
            for d in found
        ),
        wide=True,
    )


def _delays(noticed: float, restored: float) -> tuple[str, str]:
    return shown_delay(noticed), "no harm" if restored == 0 else shown_delay(restored)


def _time_header(told: Told) -> str:
    return told.span.unit[1].capitalize()


def _rows(
    told: Told, curves: Sequence[Curve], show: Callable[[float], str] | None = None
) -> tuple[tuple[str, ...], ...]:
    """At most `MAX_ROWS` instants, the last among them."""
    known = [dict(zip(c.at.tolist(), c.mean.tolist(), strict=True)) for c in curves]
    instants = sorted(set().union(*known))
    kept = instants[:: -max(1, -(-len(instants) // MAX_ROWS))][::-1]
    say = show or _percent
    return tuple((told.when(at), *(say(k[at]) if at in k else words.DASH for k in known)) for at in kept)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}{NBSP}%" if math.isfinite(value) else words.DASH


def _points(value: float) -> str:
    return f"{100 * value:.1f}{NBSP}points" if math.isfinite(value) else "an unknown amount"
