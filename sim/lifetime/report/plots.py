"""The drawing of a lifetime's figures: matplotlib and nothing else; `figures` decides what is drawn and says it.

Rules of this file:
    * Time runs from left to right in the same unit and over the same stretch in every figure of a page.
    * A policy keeps its colour; injected drifts are lines with a letter, parts of the life are bands with a name.
    * Figures are made without pyplot, as in `sim.report.plots`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.lifetime.report.series import LEVELS, runs_of
from sim.report.plots import HALF, WIDE, draw_lines, new_figure
from sim.report.style import INK, LINE, MUTED, PAPER, SERIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.lifetime.report.series import Heat, Onset
    from sim.lifetime.report.timeline import Timeline
    from sim.report.plots import Line
    from sim.report.series import Curve

HEAT, BEYOND = SERIES[1], SERIES[2]
_DEPTHS = np.linspace(0.06, 1.0, len(LEVELS) + 1)  # opacity of each level
_LETTER_IN = 0.13  # room of a letter, inches


@dataclass(frozen=True)
class Span:
    """The stretch of time that every figure of a page shows.

    Attributes:
        duration_s: Of the life.
        unit: Seconds of a unit, and its name.
        segments: Named parts: name -> (from, to) in seconds.
        onsets: Injected drifts.
    """

    duration_s: float
    unit: tuple[float, str]
    segments: dict[str, tuple[float, float]]
    onsets: tuple[Onset, ...]

    @property
    def end(self) -> float:
        """The life's end in the unit."""
        return self.duration_s / self.unit[0]

    @property
    def label(self) -> str:
        """Of the time axis."""
        return f"virtual time, {self.unit[1]}"


def scores(lines: Sequence[Line], drifted: Curve | None, span: Span, title: str) -> Any:
    """A score over time in percent, below a strip that names parts and drifts; drifted devices beneath."""
    ratios = (0.42, 2.5) + ((0.75,) if drifted is not None else ())
    figure, axes = new_figure(
        (WIDE[0], 1.25 * sum(ratios)), len(ratios), 1, sharex=True, height_ratios=ratios
    )
    _strip(axes[0, 0], span)
    for place in axes[1:, 0]:
        _backdrop(place, span)
    draw_lines(axes[1, 0], lines, 100.0, over_time_s=span.unit[0])
    axes[1, 0].set_title(title)
    if drifted is not None:
        share = axes[2, 0]
        x = drifted.at / span.unit[0]
        share.fill_between(x, 0, 100 * drifted.mean, color=INK, alpha=0.14, linewidth=0)
        share.plot(x, 100 * drifted.mean, color=MUTED, linewidth=1.2)
        share.set_ylim(0, max(5.0, 115 * float(drifted.mean.max(initial=0))))
        share.set_title("Devices with an injected drift (truth), %")
    _time(axes[-1, 0], span)
    return figure


def _time(place: Any, span: Span) -> None:
    place.set_xlim(0, span.end)
    place.set_xlabel(span.label)


def _backdrop(place: Any, span: Span, *, bands: bool = True) -> None:
    """Every other part of the life shaded, and where drifts began."""
    for i, (start, end) in enumerate(span.segments.values()):
        if bands and i % 2:
            place.axvspan(
                start / span.unit[0], end / span.unit[0], color=LINE, alpha=0.35, linewidth=0, zorder=0
            )
    for onset in span.onsets:
        if onset.last_at > onset.first_at:
            place.axvspan(
                onset.first_at / span.unit[0],
                onset.last_at / span.unit[0],
                color=MUTED,
                alpha=0.12,
                linewidth=0,
                zorder=0.4,
            )
        place.axvline(onset.at / span.unit[0], color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0.5)


def _strip(place: Any, span: Span) -> None:
    """Names of the life's parts, and below them the letters of its drifts."""
    place.set_ylim(0, 2)
    place.set_xlim(0, span.end)
    place.set_axis_off()
    width_in = 0.93 * WIDE[0]
    for i, (name, (start, end)) in enumerate(span.segments.items()):
        a, b = start / span.unit[0], end / span.unit[0]
        place.fill_between([a, b], 1.15, 2, color=LINE, alpha=0.85 if i % 2 else 0.45, linewidth=0)
        room = int((b - a) / span.end * width_in / 0.065)  # letters of the small type
        shown = name if len(name) <= room else name.rsplit(maxsplit=1)[-1]
        if len(shown) <= room:
            place.text((a + b) / 2, 1.56, shown, ha="center", va="center", fontsize=7.5, color=MUTED)
    gap = span.end * _LETTER_IN / width_in
    wanted = [onset.at / span.unit[0] for onset in span.onsets]
    for onset, x in zip(span.onsets, spread(wanted, gap, gap / 2, span.end - gap / 2), strict=True):
        place.text(x, 0.55, onset.sign, ha="center", va="center", fontsize=8, fontweight="bold", color=INK)
        place.plot([x, onset.at / span.unit[0]], [0.2, -0.1], color=MUTED, linewidth=0.8, clip_on=False)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for sorted wishes, `gap` apart, each group of crowded ones centred on what it wished.

    Neighbours that collide are pooled and share the mean of their wishes, as in isotonic regression.
    """
    groups: list[tuple[float, int]] = []  # (sum of wishes, each less its place in the group; size)
    for wish in wanted:
        total, size = wish, 1
        while groups and _first(groups[-1], gap, low, high) + groups[-1][1] * gap > _first(
            (total, size), gap, low, high
        ):
            before, num = groups.pop()
            total, size = before + total - size * num * gap, num + size
        groups.append((total, size))
    return [_first(group, gap, low, high) + i * gap for group in groups for i in range(group[1])]


def _first(group: tuple[float, int], gap: float, low: float, high: float) -> float:
    """Where a group's first member stands."""
    total, size = group
    return max(low, min(total / size, high - (size - 1) * gap))


def timelines(named: Sequence[tuple[str, str, Timeline]], rows: Sequence[str], span: Span) -> Any:
    """Rows of stretches and instants, a panel for each (policy, colour, timeline)."""
    height = 0.17 * len(rows) + 0.3
    figure, axes = new_figure((WIDE[0], 0.4 + height * len(named)), len(named), 1, sharex=True)
    for place, (policy, colour, found) in zip(axes[:, 0], named, strict=True):
        _backdrop(place, span, bands=False)
        _timeline(place, colour, found, rows, span)
        place.set_title(policy, color=colour)
    _time(axes[-1, 0], span)
    return figure


def _timeline(place: Any, colour: str, found: Timeline, rows: Sequence[str], span: Span) -> None:
    unit, least = span.unit[0], 0.002 * span.end  # what is shorter would not be seen
    letters = 0.93 * WIDE[0] / 0.07 / span.end
    for y, row in enumerate(rows):
        for i, stretch in enumerate(found.stretches.get(row, ())):
            start, end = stretch.start_at / unit, stretch.end_at / unit
            pale = row == "champion" and i % 2
            place.broken_barh(
                [(start, max(end - start, least))],
                (y - 0.38, 0.76),
                color=colour,
                alpha=0.6 if pale else 0.9,
                linewidth=0,
            )
            if stretch.label and (end - start) * letters > len(stretch.label) + 1:
                place.text(
                    (start + end) / 2, y, stretch.label, ha="center", va="center", fontsize=7, color=PAPER
                )
        at = np.unique(np.round(np.array(found.marks.get(row, ())) / unit / least) * least)
        if len(at):
            marker = "x" if row == "rolled back" else "|"
            place.plot(at, np.full(len(at), float(y)), marker, color=INK, markersize=5, markeredgewidth=1.2)
    place.set_ylim(len(rows) - 0.4, -0.6)
    place.set_yticks(range(len(rows)), rows, fontsize=7.5)
    place.grid(axis="y", linewidth=0.5)


def heats(panels: Sequence[tuple[str, str, Heat]], span: Span) -> Any:
    """PSI of features over time, a panel for each (title, colour, heat)."""
    heights = [0.25 + 0.15 * len(found.features) for _, _, found in panels]
    figure, axes = new_figure(
        (WIDE[0], 0.75 + sum(heights)), len(panels) + 1, 1, height_ratios=(0.28, *heights)
    )
    _scale(axes[0, 0])
    for place, (title, colour, found) in zip(axes[1:, 0], panels, strict=True):
        _heat(place, found, span)
        place.set_title(title, color=colour)
        _time(place, span)
        if place is not axes[-1, 0]:
            place.set_xlabel("")
            place.set_xticklabels([])
    return figure


def _scale(place: Any) -> None:
    """What each depth of colour stands for."""
    place.set_axis_off()
    place.set_xlim(0, 1)
    place.set_ylim(0, 1)
    names = [f"< {LEVELS[0]:g}", *(f"{level:g}" for level in LEVELS)]
    place.text(0.0, 0.5, "PSI at least", fontsize=8, va="center", color=MUTED)
    for i, (name, depth) in enumerate(zip(names, _DEPTHS, strict=True)):
        x = 0.085 + 0.062 * i
        place.fill_between([x, x + 0.016], 0.15, 0.85, color=HEAT, alpha=depth, linewidth=0)
        place.text(x + 0.021, 0.5, name, fontsize=8, va="center", color=MUTED)
    x = 0.085 + 0.062 * len(names) + 0.02
    place.plot([x, x + 0.02], [0.5, 0.5], color=BEYOND, linewidth=1.8, solid_capstyle="butt")
    place.text(x + 0.026, 0.5, "significant", fontsize=8, va="center", color=MUTED)


def _heat(place: Any, found: Heat, span: Span) -> None:
    """Equal cells of a row are one rectangle, and all of one level one path: small, however long the life."""
    edges = found.edges_at / span.unit[0]
    boxes: dict[int, list[tuple[float, float, float, float]]] = {}
    for y, level_T in enumerate(found.level_FT):
        for first, end, level in runs_of(level_T):
            if level >= 0:
                boxes.setdefault(level, []).append((edges[first], edges[end], y - 0.46, y + 0.46))
    for level, found_boxes in sorted(boxes.items()):
        _boxes(place, found_boxes, HEAT, float(_DEPTHS[level]))
    beyond = [
        (edges[a], edges[b], y + 0.08, y + 0.30)
        for y, row_T in enumerate(found.significant_FT)
        for a, b, value in runs_of(row_T.astype(np.int64))
        if value
    ]
    _boxes(place, beyond, BEYOND, 1.0)
    _backdrop(place, span, bands=False)
    place.set_ylim(len(found.features) - 0.4, -0.6)
    place.set_yticks(range(len(found.features)), [shortened(name) for name in found.features], fontsize=7.5)
    place.grid(visible=False)


def shortened(name: str, most: int = 22) -> str:
    """A name that fits beside a row."""
    return name if len(name) <= most else f"{name[: most - 1]}\u2026"


def _boxes(place: Any, boxes: Sequence[tuple[float, float, float, float]], colour: str, alpha: float) -> None:
    """Rectangles (left, right, top, bottom) as one path."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if not boxes:
        return
    corners = [[(a, c), (b, c), (b, d), (a, d), (a, c)] for a, b, c, d in boxes]
    codes = [Path.MOVETO, *[Path.LINETO] * 3, Path.CLOSEPOLY]
    path = Path(np.array(corners).reshape(-1, 2), codes * len(boxes))
    place.add_patch(PathPatch(path, facecolor=colour, alpha=alpha, linewidth=0))


def beliefs(lines: Sequence[Line], complete: Curve, span: Span) -> Any:
    """What is known of the accuracy over time, above the share of predictions that have a label."""
    figure, axes = new_figure((WIDE[0], 4.3), 2, 1, sharex=True, height_ratios=(2.3, 0.8))
    for place in axes[:, 0]:
        _backdrop(place, span)
    draw_lines(axes[0, 0], lines, 100.0, over_time_s=span.unit[0])
    axes[0, 0].set_title("Accuracy, %")
    below, x = axes[1, 0], complete.at / span.unit[0]
    below.fill_between(x, 0, 100 * complete.mean, color=INK, alpha=0.14, linewidth=0)
    below.plot(x, 100 * complete.mean, color=MUTED, linewidth=1.2)
    below.set_ylim(0, 104)
    below.set_title("Predictions of the monitor\u2019s long window that have a label, %")
    _time(below, span)
    return figure


def trend(lines: Sequence[Line], scale: float, title: str, span: Span) -> Any:
    """A quantity over time, half the page wide."""
    figure, axes = new_figure(HALF)
    place = axes[0, 0]
    _backdrop(place, span)
    draw_lines(place, lines, scale, over_time_s=span.unit[0])
    if all(float(line.curve.low.min(initial=0.0)) >= 0 for line in lines):
        place.set_ylim(bottom=max(0.0, place.get_ylim()[0]))
    place.set_title(title)
    _time(place, span)
    return figure


def delays(
    kinds: Sequence[str],
    panels: Sequence[tuple[str, Sequence[tuple[int, str, float]]]],
    num_lanes: int,
    unit: str,
) -> Any:
    """A dot for each drift: (row of its kind with its lane, colour, delay in `unit`; NaN for never).

    Args:
        kinds: Names of the rows, from the top.
        panels: (title, dots); a dot's row is ``kind * num_lanes + lane``.
        num_lanes: Policies side by side in each row.
        unit: Of the delays.
    """
    height = max(1.6, 0.7 + (0.12 * num_lanes + 0.16) * len(kinds))
    figure, axes = new_figure((WIDE[0], height), 1, len(panels), sharey=True)
    for place, (title, dots) in zip(axes[0], panels, strict=True):
        known = [delay for _, _, delay in dots if np.isfinite(delay)]
        most = 1.08 * max(known, default=1.0) or 1.0
        for row, colour, delay in dots:
            kind, lane = divmod(row, num_lanes)
            y = kind + 0.7 * ((lane + 0.5) / num_lanes - 0.5)
            never = not np.isfinite(delay)
            place.plot(
                1.09 * most if never else delay,
                y,
                "x" if never else "o",
                color=colour,
                markersize=4.5,
                markeredgewidth=1.4 if never else 0.0,
                alpha=0.85,
                clip_on=False,
            )
        place.axvspan(1.03 * most, 1.15 * most, color=LINE, alpha=0.5, linewidth=0, zorder=0)
        place.set_xlim(0, 1.15 * most)
        ticks = [t for t in place.get_xticks() if t <= most]
        place.set_xticks([*ticks, 1.09 * most], [*(f"{t:g}" for t in ticks), "never"])
        place.set_title(title)
        place.set_xlabel(f"{unit} after the onset")
        place.set_ylim(len(kinds) - 0.45, -0.55)
        place.set_yticks(range(len(kinds)), [shortened(kind) for kind in kinds])
    return figure
