"""What every figure of a lifetime shares: the stretch of time, its parts, and where drifts began.

Rules of this file:
    * Time runs from left to right in the same unit and over the same stretch in every figure of a page.
    * Parts of the life are bands with a name, injected drifts lines with a letter; what has no room is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sim.report.plots import WIDE
from sim.report.style import INK, LINE, MUTED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.lifetime.report.series import Onset
    from sim.report.series import Curve

WIDTH_IN = 0.9 * WIDE[0]  # of the axes of a wide figure, about
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


def settled(figure: Any) -> Any:
    """A figure laid out for good, its axes at rounded places.

    The solver of the constrained layout visits its terms in the order of their addresses, so places differ in their
    last bits from drawing to drawing, and with them the names of clipping paths: the page would not repeat.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for place in figure.axes:
        place.set_position([round(float(v), 5) for v in place.get_position().bounds])
    return figure


def time_axis(place: Any, span: Span) -> None:
    """The whole life on the axis."""
    place.set_xlim(0, span.end)
    place.set_xlabel(span.label)


def backdrop(place: Any, span: Span, *, bands: bool = True) -> None:
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


def strip(place: Any, span: Span) -> None:
    """Names of the life's parts, those that have room."""
    place.set_ylim(0, 1)
    place.set_xlim(0, span.end)
    place.set_axis_off()
    for i, (name, (start, end)) in enumerate(span.segments.items()):
        a, b = start / span.unit[0], end / span.unit[0]
        place.fill_between([a, b], 0, 1, color=LINE, alpha=0.85 if i % 2 else 0.45, linewidth=0)
        room = int((b - a) / span.end * WIDTH_IN / 0.065)  # letters of the small type
        shown = name if len(name) <= room else name.rsplit(maxsplit=1)[-1]
        if len(shown) <= room:
            place.text((a + b) / 2, 0.47, shown, ha="center", va="center", fontsize=7.5, color=MUTED)


def letters(place: Any, span: Span) -> None:
    """The letters of drifts, along the top of the axes above where they began."""
    if not span.onsets:
        return
    low, high = place.get_ylim()
    place.set_ylim(low, high + 0.12 * (high - low))
    gap = span.end * _LETTER_IN / WIDTH_IN
    wanted = [onset.at / span.unit[0] for onset in span.onsets]
    for onset, x in zip(span.onsets, spread(wanted, gap, gap / 2, span.end - gap / 2), strict=True):
        y = place.get_xaxis_transform()
        place.text(
            x,
            0.955,
            onset.sign,
            ha="center",
            va="center",
            fontsize=8,
            fontweight="bold",
            color=INK,
            transform=y,
        )
        ends = [x, onset.at / span.unit[0]]
        place.plot(ends, [0.915, 0.875], color=MUTED, linewidth=0.8, transform=y, scalex=False, scaley=False)


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


def share_area(place: Any, share: Curve, span: Span) -> None:
    """A share in percent as an area."""
    x = share.at / span.unit[0]
    place.fill_between(x, 0, 100 * share.mean, color=INK, alpha=0.14, linewidth=0)
    place.plot(x, 100 * share.mean, color=MUTED, linewidth=1.2)


def shortened(name: str, most: int = 22) -> str:
    """A name that fits beside a row."""
    return name if len(name) <= most else f"{name[: most - 1]}\u2026"
