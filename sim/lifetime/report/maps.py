"""The drawing of timelines and heat maps: rows over time.

Rules of this file:
    * A row is a question, a panel a policy in its own colour.
    * Equal neighbours are drawn as one, so that a page stays small however long the life.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sim.lifetime.report.axes import WIDTH_IN, backdrop, settled, shortened, time_axis
from sim.lifetime.report.series import LEVELS, runs_of
from sim.report.plots import WIDE, new_figure
from sim.report.style import INK, MUTED, PAPER, SERIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.lifetime.report.axes import Span
    from sim.lifetime.report.series import Heat
    from sim.lifetime.report.timeline import Stretch, Timeline

HEAT, BEYOND = SERIES[5], INK
_DEPTHS = np.linspace(0.06, 1.0, len(LEVELS) + 1)  # opacity of each level


def timelines(named: Sequence[tuple[str, str, Timeline]], span: Span) -> Any:
    """Rows of stretches and instants, a panel for each (policy, colour, timeline) with the rows that it uses."""
    heights = [0.24 + 0.16 * len(found.rows) for _, _, found in named]
    figure, axes = new_figure(
        (WIDE[0], 0.35 + sum(heights)), len(named), 1, sharex=True, height_ratios=heights
    )
    for place, (policy, colour, found) in zip(axes[:, 0], named, strict=True):
        backdrop(place, span, bands=False)
        _timeline(place, colour, found, span)
        place.set_title(policy, color=colour)
    time_axis(axes[-1, 0], span)
    return settled(figure)


def _timeline(place: Any, colour: str, found: Timeline, span: Span) -> None:
    for y, row in enumerate(found.rows):
        _bars(place, y, colour, found.stretches.get(row, ()), span)
        step = 0.002 * span.end  # closer marks could not be told apart
        at = np.unique(np.round(np.array(found.marks.get(row, ())) / span.unit[0] / step) * step)
        if len(at):
            marker = "x" if row == "rolled back" else "|"
            place.plot(at, np.full(len(at), float(y)), marker, color=INK, markersize=5, markeredgewidth=1.2)
    place.set_ylim(len(found.rows) - 0.4, -0.6)
    place.set_yticks(range(len(found.rows)), found.rows, fontsize=7.5)
    place.grid(axis="y", linewidth=0.5)


def _bars(place: Any, y: int, colour: str, stretches: Sequence[Stretch], span: Span) -> None:
    """Stretches of one row; every other labelled one is paler, and a label is written where it has room."""
    for i, stretch in enumerate(stretches):
        start, end = stretch.start_at / span.unit[0], stretch.end_at / span.unit[0]
        width = max(end - start, 0.002 * span.end)  # what is shorter would not be seen
        alpha = 0.72 if stretch.label and i % 2 else 0.9
        place.broken_barh([(start, width)], (y - 0.38, 0.76), color=colour, alpha=alpha, linewidth=0)
        if width / span.end * WIDTH_IN / 0.07 > len(stretch.label) + 1:
            middle = start + width / 2
            place.text(
                middle, y, stretch.label, ha="center", va="center", fontsize=7, color=PAPER, clip_on=True
            )


def heats(panels: Sequence[tuple[str, str, Heat, Sequence[float]]], span: Span) -> Any:
    """PSI of features over time, a panel for each (title, colour, heat, instants of new champions)."""
    heights = [0.25 + 0.15 * len(found.features) for _, _, found, _ in panels]
    figure, axes = new_figure(
        (WIDE[0], 0.75 + sum(heights)), len(panels) + 1, 1, height_ratios=(0.28, *heights)
    )
    _scale(axes[0, 0])
    for place, (title, colour, found, changes) in zip(axes[1:, 0], panels, strict=True):
        _heat(place, found, span)
        for at in changes:
            place.axvline(at / span.unit[0], color=colour, linewidth=1.6)
        place.set_title(title, color=colour)
        time_axis(place, span)
        if place is not axes[-1, 0]:
            place.set_xlabel("")
            place.set_xticklabels([])
    return settled(figure)


def _scale(place: Any) -> None:
    """What each depth of colour stands for."""
    place.set_axis_off()
    place.set_xlim(0, 1)
    place.set_ylim(0, 1)
    names = [f"< {LEVELS[0]:g}", *(f"{level:g}" for level in LEVELS)]
    place.text(0.0, 0.5, "PSI from", fontsize=8, va="center", color=MUTED)
    for i, (name, depth) in enumerate(zip(names, _DEPTHS, strict=True)):
        x = 0.085 + 0.066 * i
        place.fill_between([x, x + 0.016], 0.15, 0.85, color=HEAT, alpha=depth, linewidth=0)
        place.text(x + 0.021, 0.5, name, fontsize=8, va="center", color=MUTED)
    x = 0.085 + 0.066 * len(names) + 0.02
    place.plot([x, x + 0.02], [0.5, 0.5], color=BEYOND, linewidth=1.5, solid_capstyle="butt")
    place.text(x + 0.026, 0.5, "significant", fontsize=8, va="center", color=MUTED)
    place.plot([x + 0.13] * 2, [0.1, 0.9], color=MUTED, linewidth=1.6)
    place.text(x + 0.137, 0.5, "new champion", fontsize=8, va="center", color=MUTED)


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
        (edges[a], edges[b], y + 0.26, y + 0.40)
        for y, row_T in enumerate(found.significant_FT)
        for a, b, value in runs_of(row_T.astype(np.int64))
        if value
    ]
    _boxes(place, beyond, BEYOND, 1.0)
    backdrop(place, span, bands=False)
    place.set_ylim(len(found.features) - 0.4, -0.6)
    place.set_yticks(range(len(found.features)), [shortened(name) for name in found.features], fontsize=7.5)
    place.grid(visible=False)


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
