"""A lifetime made ready to be drawn: policies with their colours, lives by seed, and the stretch of time.

Rules of this file:
    * Curves are means over seeds; those of several policies are drawn without bands, which would hide each other.
    * The policy of single-policy figures is the most accurate of those that ever retrained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sim.lifetime.report.axes import Span
from sim.lifetime.report.detection import span_days
from sim.lifetime.report.headline import featured, headlines, lives_of
from sim.lifetime.report.series import bare, onsets, over_time, window_of
from sim.report import words
from sim.report.figures import MAX_ROWS
from sim.report.plots import Line
from sim.report.words import NBSP

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sim.lifetime.records import Life, LifetimeRun, StepRecord
    from sim.lifetime.report.headline import Headline
    from sim.report.series import Curve


@dataclass(frozen=True)
class Told:
    """A run, made ready to be drawn.

    Attributes:
        run: The run.
        heads: Its policies with their colours.
        lives: Policy -> its lives, by seed.
        span: The stretch of time that figures show, with the drifts of every seed.
        first_span: The same with the first seed's drifts only, for what is drawn of that seed.
        window: Steps over which curves are smoothed.
        smoothed: What that comes to, for people.
    """

    run: LifetimeRun
    heads: list[Headline]
    lives: dict[str, list[Life]]
    span: Span
    first_span: Span
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
        first = min((life.summary.seed for life in everyone), default=0)
        own = tuple(onsets([record for record in run.truth if record.seed == first]))
        step_s = _step_s(everyone)
        smoothed = f"each point is the mean of the {span_days(window * step_s)} before it"
        return cls(run, heads, lives, span, replace(span, onsets=own), window, smoothed)

    @property
    def featured(self) -> Headline:
        """The policy of single-policy figures: the most accurate of those that ever retrained, if any did."""
        active = [h for h in self.heads if h.counts["retrains"].value > 0]
        return featured(active or self.heads)

    def curve(self, head: Headline, value: Callable[[StepRecord], float], window: int = 0) -> Curve:
        """A policy's mean over seeds, smoothed unless told otherwise."""
        return over_time(self.lives[head.policy], value, window or self.window)

    def lines(self, value: Callable[[StepRecord], float]) -> list[Line]:
        """A curve of every policy that has one; bands of several policies would hide each other."""
        made = [Line(head.policy, head.colour, self.curve(head, value)) for head in self.heads]
        if len(self.heads) > 1:
            made = [Line(line.name, line.colour, bare(line.curve)) for line in made]
        return [line for line in made if len(line.curve)]

    @property
    def time_name(self) -> str:
        """The unit of time, as a table's header."""
        return self.span.unit[1].capitalize()

    def when(self, at: float) -> str:
        """An instant in a table."""
        return f"{at / self.span.unit[0]:.4g}"


def _step_s(lives: Sequence[Life]) -> float:
    """Between two steps; 0 if that cannot be told."""
    gaps = [b.at - a.at for life in lives[:1] for a, b in zip(life.steps, life.steps[1:], strict=False)]
    return float(np.median(gaps)) if gaps else 0.0


def table_rows(
    told: Told, curves: Sequence[Curve], show: Callable[[float], str] | None = None
) -> tuple[tuple[str, ...], ...]:
    """At most `MAX_ROWS` instants, the last among them."""
    known = [dict(zip(c.at.tolist(), c.mean.tolist(), strict=True)) for c in curves]
    instants = sorted(set().union(*known))
    kept = instants[:: -max(1, -(-len(instants) // MAX_ROWS))][::-1]
    say = show or percent
    return tuple((told.when(at), *(say(k[at]) if at in k else words.DASH for k in known)) for at in kept)


def percent(value: float) -> str:
    """``91.2 %``, or a dash."""
    return f"{100 * value:.1f}{NBSP}%" if math.isfinite(value) else words.DASH


def points(value: float) -> str:
    """A difference of shares: ``3.1 points``."""
    return f"{100 * value:.1f}{NBSP}points" if math.isfinite(value) else "an unknown amount"
