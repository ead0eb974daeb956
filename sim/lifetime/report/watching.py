"""The figures of what was seen and decided: timeline, heat map, what was known, and delays.

Rules of this file:
    * A figure without data is left out, and so is everything about truth where none was injected.
    * What cannot be averaged (decisions, PSI) is the first seed's, and says so.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sim.lifetime.report import maps, plots
from sim.lifetime.report.detection import Restored, shown_delay
from sim.lifetime.report.series import bare, heat, largest
from sim.lifetime.report.timeline import ROWS, timeline
from sim.lifetime.report.told import percent, points, table_rows
from sim.report import words
from sim.report.figures import Figure
from sim.report.plots import Line
from sim.report.style import INK, SERIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.lifetime.records import Life
    from sim.lifetime.report.told import Told
    from sim.report.series import Curve


def decisions(told: Told) -> Figure | None:
    """Phases and decisions of each policy's first life."""
    named = [
        (head.policy, head.colour, timeline(life, told.run.duration_s))
        for head in told.heads
        if (life := told.lives[head.policy][0]).events
    ]
    if not named:
        return None
    rows = [row for row in ROWS if any(row in found.rows for _, _, found in named)]
    seed = told.lives[named[0][0]][0].summary.seed
    quiet = [h.policy for h in told.heads if h.policy not in {name for name, _, _ in named}]
    nothing = f" Nothing happened under {words.listing(quiet)}." if quiet else ""
    return Figure(
        name="decisions",
        title=f"What was decided, and what became of it (seed {seed})",
        says=f"Bars last, strokes are instants, crosses are candidates taken back; a champion\u2019s bar bears its version.{nothing}",
        plot=lambda: maps.timelines(named, told.first_span),
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
    panels = [
        (h.policy, h.colour, heat(life.features, order, told.run.duration_s), _changes(life))
        for h, life in found
    ]
    hidden = panels[0][2].num_hidden
    which = (
        f" The {len(panels[0][2].features)} features with the largest PSI of {len(order)}." if hidden else ""
    )
    return Figure(
        name="shift",
        title=f"How far features moved from the champion\u2019s baseline: PSI by window (seed {seed})",
        says="Significant means beyond the baseline\u2019s own windows, false discoveries controlled; a new champion brings "
        f"a new baseline.{which}",
        plot=lambda: maps.heats(panels, told.first_span),
        header=(
            "Feature",
            *(f"{name}, {part}" for name, *_ in panels for part in ("largest PSI", "significant")),
        ),
        rows=tuple((name, *_moved(name, [life for _, life in found])) for name in panels[0][2].features),
        wide=True,
    )


def _changes(life: Life) -> list[float]:
    """When a new champion began to serve."""
    return [event.at for event in life.events if event.kind == "champion"]


def _moved(feature: str, lives: Sequence[Life]) -> list[str]:
    """A feature's cells of the table: its largest PSI, and the share of windows in which it was significant."""
    cells = []
    for life in lives:
        own = [record for record in life.features if record.feature == feature]
        share = sum(record.significant for record in own) / len(own) if own else math.nan
        cells += [words.significant(max((r.psi for r in own), default=math.nan)), percent(share)]
    return cells


def beliefs(told: Told) -> Figure | None:
    """What labels and confidence said of the accuracy, beside the oracle."""
    head = told.featured
    named = (
        ("oracle", INK, told.curve(head, lambda s: s.accuracy)),
        ("observed", SERIES[3], told.curve(head, lambda s: s.observed_accuracy, window=1)),
        ("estimate", SERIES[4], told.curve(head, lambda s: s.estimated_accuracy, window=1)),
    )
    lines = [Line(name, colour, bare(curve)) for name, colour, curve in named if len(curve)]
    complete = told.curve(head, lambda s: s.completeness, window=1)
    if len(lines) < 2 or not len(complete):
        return None
    apart = [f"{line.name} {points(_distance(lines[0].curve, line.curve))}" for line in lines[1:]]
    return Figure(
        name="beliefs",
        title=f"What could be known of the accuracy under {head.policy}",
        says=f"Observed: labels that had come back by then, in the monitor\u2019s long window. Estimate: from calibrated "
        f"confidence, without labels. On average they are off the oracle ({told.smoothed}) by: {words.listing(apart)}.",
        plot=lambda: plots.beliefs(lines, complete, told.span),
        header=(told.time_name, *(line.name.capitalize() for line in lines), "Labelled"),
        rows=table_rows(told, [*(line.curve for line in lines), complete]),
        wide=True,
    )


def _distance(a: Curve, b: Curve) -> float:
    """Mean absolute difference at the instants that both know."""
    known = dict(zip(a.at.tolist(), a.mean.tolist(), strict=True))
    gaps = [abs(known[at] - v) for at, v in zip(b.at.tolist(), b.mean.tolist(), strict=True) if at in known]
    return float(np.mean(gaps)) if gaps else math.nan


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
        f" Left out on the right: {harmless} that never harmed their devices noticeably." if harmless else ""
    )
    return Figure(
        name="delays",
        title="From the onset of a drift to the first alert, and to good service (truth)",
        says="A dot is one drift of one seed, a cross one that never was, or not before it ended by itself or the next one "
        f"began.{without}",
        plot=lambda: plots.delays(kinds, [p for p in panels if p[1]], len(lanes), unit),
        legend=tuple((head.colour, "box", head.policy) for head in told.heads),
        header=("Drift", "Policy", "Seed", "Onset", "Noticed after", "Restored after"),
        rows=tuple(
            (
                d.kind,
                d.policy,
                str(d.seed),
                f"{told.when(d.onset_at)} {unit}",
                shown_delay(d.detected_after_s),
                "no harm" if d.restored_after_s == 0 else Restored(d.restored_after_s, d.watched_s).shown,
            )
            for d in found
        ),
        wide=True,
    )
