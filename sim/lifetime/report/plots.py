"""The drawing of a lifetime's curves and delays: matplotlib and nothing else; `figures` says it in words.

Rules of this file:
    * A policy keeps its colour on the whole page, and lines end in their names.
    * Figures are made without pyplot, as in `sim.report.plots`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sim.lifetime.report.axes import backdrop, letters, settled, share_area, shortened, strip, time_axis
from sim.lifetime.report.detection import NEVER
from sim.report.plots import HALF, WIDE, draw_lines, new_figure
from sim.report.style import LINE, MUTED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.lifetime.report.axes import Span
    from sim.report.plots import Line
    from sim.report.series import Curve


def scores(lines: Sequence[Line], gains: Sequence[Line], drifted: Curve | None, span: Span, base: str) -> Any:
    """Accuracy over time, its difference from the first policy's, and how many devices carry an injected drift.

    Args:
        lines: Accuracy of each policy.
        gains: Difference of each other policy, with bands; may be empty.
        drifted: Share of the devices; None if nothing was injected.
        span: The stretch of time.
        base: Name of the first policy.
    """
    ratios = (0.18, 2.5, *([1.8] if gains else []), *([0.7] if drifted is not None else []))
    figure, axes = new_figure(
        (WIDE[0], 0.3 + 1.2 * sum(ratios)), len(ratios), 1, sharex=True, height_ratios=ratios
    )
    strip(axes[0, 0], span)
    for place in axes[1:, 0]:
        backdrop(place, span)
    draw_lines(axes[1, 0], lines, 100.0, over_time_s=span.unit[0])
    axes[1, 0].set_title("Mean device: accuracy, %")
    letters(axes[1, 0], span)
    if gains:
        axes[2, 0].axhline(0, color=MUTED, linewidth=0.8)
        draw_lines(axes[2, 0], gains, 100.0, over_time_s=span.unit[0])
        axes[2, 0].set_title(f"Accuracy above that of {base}, points")
    if drifted is not None:
        share_area(axes[-1, 0], drifted, span)
        axes[-1, 0].set_ylim(0, max(5.0, 115 * float(drifted.mean.max(initial=0))))
        axes[-1, 0].set_title("Devices with an injected drift (truth), %")
    time_axis(axes[-1, 0], span)
    return settled(figure)


def beliefs(lines: Sequence[Line], complete: Curve, span: Span) -> Any:
    """What is known of the accuracy over time, above the share of predictions that have a label."""
    figure, axes = new_figure((WIDE[0], 4.3), 2, 1, sharex=True, height_ratios=(2.3, 0.8))
    for place in axes[:, 0]:
        backdrop(place, span)
    draw_lines(axes[0, 0], lines, 100.0, over_time_s=span.unit[0])
    axes[0, 0].set_title("Accuracy, %")
    below = axes[1, 0]
    share_area(below, complete, span)
    below.set_ylim(0, 104)
    below.set_title("Predictions of the monitor\u2019s long window that have a label, %")
    time_axis(below, span)
    return settled(figure)


def trend(lines: Sequence[Line], scale: float, title: str, span: Span) -> Any:
    """A quantity over time, half the page wide."""
    figure, axes = new_figure(HALF)
    place = axes[0, 0]
    backdrop(place, span)
    draw_lines(place, lines, scale, over_time_s=span.unit[0])
    if all(float(line.curve.low.min(initial=0.0)) >= 0 for line in lines):
        place.set_ylim(bottom=max(0.0, place.get_ylim()[0]))
    place.set_title(title)
    time_axis(place, span)
    return settled(figure)


def delays(
    kinds: Sequence[str],
    panels: Sequence[tuple[str, Sequence[tuple[int, str, float]]]],
    num_lanes: int,
    unit: str,
) -> Any:
    """A dot for each drift: (row of its kind with its lane, colour, delay in `unit`; NaN if it did not happen).

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
        ticks = [t for t in place.get_xticks() if t <= 0.92 * most]
        place.set_xticks([*ticks, 1.09 * most], [*(f"{t:g}" for t in ticks), NEVER])
        place.set_title(title)
        place.set_xlabel(f"{unit} after the onset")
        place.set_ylim(len(kinds) - 0.45, -0.55)
        place.set_yticks(range(len(kinds)), [shortened(kind) for kind in kinds])
    return settled(figure)
