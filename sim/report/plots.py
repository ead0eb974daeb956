"""The drawing of single axes: matplotlib and nothing else; `figures` decides what is drawn and says it in words.

Rules of this file:
    * Every function takes arrays and returns a matplotlib Figure, made without pyplot: no global state, no display.
    * Lines end in their names, so no reader depends on colour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.report.series import Curve, thin_sorted
from sim.report.style import INK, LINE, MUTED, PAPER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

WIDE, HALF = (10.6, 3.1), (5.05, 2.7)  # inches


@dataclass(frozen=True)
class Line:
    """A curve with its name and colour.

    Attributes:
        name: Short name, written at its end.
        colour: Of matplotlib.
        curve: What is drawn.
        style: matplotlib's line style.
    """

    name: str
    colour: str
    curve: Curve
    style: str = "-"


def new_figure(size: tuple[float, float], rows: int = 1, columns: int = 1, **kwargs: Any) -> tuple[Any, Any]:
    """A figure and its axes ``[rows, columns]``, laid out without overlaps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def draw_lines(axes: Any, lines: Sequence[Line], scale: float, *, over_time_s: float = 0.0) -> None:
    """Curves with their bands and their names.

    Args:
        axes: Where.
        lines: What.
        scale: Multiplies the values (100 for percent).
        over_time_s: Draw against virtual time in this unit; against rounds if 0.
    """
    for line in lines:
        c = line.curve
        x = c.at / over_time_s if over_time_s else c.rounds
        if (c.low < c.mean).any() or (c.high > c.mean).any():
            axes.fill_between(x, scale * c.low, scale * c.high, color=line.colour, alpha=0.16, linewidth=0)
        marker = "o" if len(c) < 3 else None
        axes.plot(x, scale * c.mean, color=line.colour, linestyle=line.style, marker=marker, markersize=3.5)
    label_ends(axes, lines, scale, over_time_s)


def label_ends(axes: Any, lines: Sequence[Line], scale: float, over_time_s: float) -> None:
    """Write each line's name at its end, moved apart where ends lie close together."""
    ends = [(float(scale * line.curve.mean[-1]), line) for line in lines if len(line.curve)]
    if not ends:
        return
    ends.sort(key=lambda e: e[0])
    low, high = axes.get_ylim()
    gap = 0.075 * (high - low)
    places = _apart([y for y, _ in ends], gap, low + gap / 2, high)
    for place, (y, line) in zip(places, ends, strict=True):
        c = line.curve
        x = float((c.at / over_time_s if over_time_s else c.rounds)[-1])
        axes.annotate(
            line.name,
            (x, y),
            (1.012, place),
            textcoords=axes.get_yaxis_transform(),
            color=line.colour,
            fontsize=8,
            fontweight="bold",
            va="center",
            annotation_clip=False,
        )


def _apart(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Places at least `gap` apart, in the same order, as near as that allows and within the axes where they fit."""
    places: list[float] = []
    for y in wanted:
        places.append(max(y, low) if not places else max(y, places[-1] + gap))
    ceiling = high
    for i in range(len(places) - 1, -1, -1):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    return places


def learning(left: Sequence[Line], right: Sequence[Line], scale: float, axis: str) -> Any:
    """Score against rounds: the mean device beside the 10th percentile, on one scale."""
    figure, axes = new_figure(WIDE, 1, 2, sharey=True)
    for place, lines, title in zip(
        axes[0], (left, right), ("Mean device", "10th-percentile device"), strict=True
    ):
        draw_lines(place, lines, scale)
        place.set_title(f"{title}: {axis}")
        place.set_xlabel("round")
    for place, lines in zip(axes[0], (left, right), strict=True):
        _relabel(place, lines, scale)
        place.yaxis.set_tick_params(labelleft=True)
    return figure


def _relabel(axes: Any, lines: Sequence[Line], scale: float) -> None:
    """Write the names again: with a shared scale its limits are known only once every panel is drawn."""
    for text in list(axes.texts):
        text.remove()
    label_ends(axes, lines, scale, 0.0)


def distribution(groups: Sequence[tuple[str, str, Floats, str]], scale: float, axis: str) -> Any:
    """Each device's score, from the worst to the best: (name, colour, sorted scores, line style)."""
    figure, axes = new_figure(HALF)
    place = axes[0, 0]
    for _, colour, scores, style in groups:
        shown = thin_sorted(scores)
        x = 100 * (np.arange(len(shown)) + 0.5) / len(shown)
        place.plot(x, scale * shown, color=colour, linestyle=style, linewidth=1.5)
        if len(shown) <= 60 and style == "-":
            place.plot(
                x,
                scale * shown,
                "o",
                color=colour,
                markersize=3.6,
                markeredgecolor=PAPER,
                markeredgewidth=0.5,
            )
    place.set_title(axis[0].upper() + axis[1:])
    place.set_xlabel("devices, worst to best, %")
    place.set_xlim(0, 100)
    return figure


def gains(panels: Sequence[tuple[str, str, Sequence[tuple[str, Floats]]]], scale: float, axis: str) -> Any:
    """Personal gain of each device, sorted: (arm, colour, [(population, gains)])."""
    figure, axes = new_figure(
        (HALF[0], max(2.7, 0.5 + 1.25 * len(panels))), len(panels), 1, sharey=True, sharex=False
    )
    for place, (arm, colour, groups) in zip(axes[:, 0], panels, strict=True):
        _gain_panel(place, colour, groups, scale)
        place.set_title(f"{arm}: {axis}")
    return figure


def _gain_panel(place: Any, colour: str, groups: Sequence[tuple[str, Floats]], scale: float) -> None:
    start, ticks = 0.0, []
    for i, (name, values) in enumerate(groups):
        shown = scale * thin_sorted(np.sort(values)[::-1])
        width = (100.0 - 6.0 * (len(groups) - 1)) * (1 / len(groups))
        step = width / len(shown)
        x = start + step * (np.arange(len(shown)) + 0.5)
        colours = np.where(shown >= 0, colour, MUTED)
        place.bar(
            x,
            shown,
            width=step * (0.78 if len(shown) < 100 else 1.0),
            color=colours,
            alpha=1.0 if i == 0 else 0.5,
        )
        ticks.append((start + width / 2, f"{len(values):,} {name}"))
        start += width + 6.0
    place.axhline(0, color=MUTED, linewidth=0.8)
    place.set_xticks([t for t, _ in ticks], [label for _, label in ticks])
    place.tick_params(axis="x", length=0)
    place.spines["bottom"].set_visible(False)


def drift(lines: Sequence[Line], drifted: Curve, scale: float, axis: str, unit: tuple[float, str]) -> Any:
    """Score over time above the share of devices with a drift."""
    figure, axes = new_figure((WIDE[0], 3.5), 2, 1, sharex=True, height_ratios=(2.3, 1))
    draw_lines(axes[0, 0], lines, scale, over_time_s=unit[0])
    axes[0, 0].set_title(axis[0].upper() + axis[1:])
    below, x = axes[1, 0], drifted.at / unit[0]
    below.fill_between(x, 0, 100 * drifted.mean, color=INK, alpha=0.14, linewidth=0)
    below.plot(x, 100 * drifted.mean, color=MUTED, linewidth=1.2)
    below.set_ylim(0, max(5.0, 115 * float(drifted.mean.max(initial=0))))
    below.set_title("Devices with an injected drift, %")
    below.set_xlabel(f"virtual time, {unit[1]}")
    return figure


def epsilon(lines: Sequence[Line], targets: Sequence[tuple[float, str]]) -> Any:
    """Epsilon against rounds, with its budgets."""
    figure, axes = new_figure(HALF)
    place = axes[0, 0]
    place.set_ylim(0, 1.12 * max([float(line.curve.high.max()) for line in lines] + [t for t, _ in targets]))
    draw_lines(place, lines, 1.0)
    for target, colour in targets:
        place.axhline(target, color=colour, linewidth=1, linestyle=(0, (2, 2)))
        place.text(
            0.01,
            target,
            f"budget {target:g}",
            color=colour,
            fontsize=8,
            va="bottom",
            transform=place.get_yaxis_transform(),
        )
    place.set_title("Epsilon spent")
    place.set_xlabel("round")
    return figure


def stack(rounds: Floats, width: int, shares: Sequence[tuple[str, Floats]]) -> Any:
    """Shares of the cohort by round: (colour, shares), from the bottom on."""
    figure, axes = new_figure(HALF)
    place, base = axes[0, 0], np.zeros(len(rounds))
    for colour, share in shares:
        place.bar(rounds + (width - 1) / 2, 100 * share, width * 0.92, bottom=base, color=colour, linewidth=0)
        base = base + 100 * share
    place.set_ylim(0, max(100.0, float(base.max(initial=0))))
    place.set_title("Share of the clients asked, %")
    place.set_xlabel("round" if width == 1 else f"round (bars of {width})")
    return figure


def shares(lines: Sequence[Line], unit: tuple[float, str], title: str) -> Any:
    """Shares in percent over virtual time."""
    figure, axes = new_figure(HALF)
    axes[0, 0].set_ylim(0, 104)
    draw_lines(axes[0, 0], lines, 100.0, over_time_s=unit[0])
    axes[0, 0].set_title(title)
    axes[0, 0].set_xlabel(f"virtual time, {unit[1]}")
    return figure


def traffic(rows: Sequence[tuple[str, str, float, float]], labels: Sequence[tuple[str, str]]) -> Any:
    """Bytes up and down by arm: (arm, colour, up, down), with the written sizes."""
    figure, axes = new_figure((HALF[0], max(1.7, 0.35 + 0.62 * len(rows))))
    place = axes[0, 0]
    y = np.arange(len(rows))[::-1].astype(np.float64)
    most = max(max(up, down) for _, _, up, down in rows) or 1.0
    for at, (_, colour, up, down), (text_up, text_down) in zip(y, rows, labels, strict=True):
        for offset, value, text, alpha in ((0.19, up, text_up, 1.0), (-0.19, down, text_down, 0.45)):
            place.barh(at + offset, value, 0.34, color=colour, alpha=alpha)
            place.text(value + 0.015 * most, at + offset, text, va="center", fontsize=8, color=MUTED)
    place.set_yticks(y, [name for name, _, _, _ in rows])
    place.tick_params(axis="y", labelcolor=INK)
    place.set_xlim(0, 1.28 * most)
    place.set_xticks([])
    place.grid(False)
    place.spines["bottom"].set_visible(False)
    place.axvline(0, color=LINE, linewidth=1)
    return figure
