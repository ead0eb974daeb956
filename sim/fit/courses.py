"""What a daily series did: a step or a ramp away from zero, that stays or ends.

Rules of this file:
    * Before the change, and after its end, the series is not 0 but the baseline's own error, common to all days: a normal prior
      of its variance carries it.
    * A ramp and an end each cost what a parameter chosen among so many explains by chance; without that every noise would have both.

Shape letters: W days.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEAST_VARIANCE = 1e-4
_RAMP_COST = 6.0  # squared standard errors that a ramp has to explain beyond a step: one parameter, eight lengths to choose from
_END_COST = 12.0  # and an end: one parameter, and hundreds of days to choose from (2 ln 365)
_FEWEST = 2  # days touched, and days after an end: what was seen on one day alone may have been that day
_SHORTEST = 5  # days of what is over again: days of few rows have tails, and a weekend is no drift


@dataclass(frozen=True)
class Course:
    """A step or a ramp fitted to one series.

    Attributes:
        size: Its final size.
        far: Standard errors from nothing.
        first: The first day touched.
        lasts: Days to full size; 0 for a step.
        cost: Weighted squared residuals.
        until: The first day that is as before again; None if it stays.
    """

    size: float
    far: float
    first: int
    lasts: int
    cost: float
    until: int | None = None

    @property
    def clear(self) -> float:
        """Standard errors from nothing, less what the choice of an end explains by chance."""
        return float(np.sqrt(max(self.far**2 - (_END_COST if self.until is not None else 0.0), 0.0)))

    @property
    def penalised(self) -> float:
        """What it is chosen by: a ramp and an end have to earn their parameters."""
        return (
            self.cost + (_RAMP_COST if self.lasts else 0.0) + (_END_COST if self.until is not None else 0.0)
        )


@dataclass(frozen=True)
class _Series:
    """The known days of a series.

    Attributes:
        value: ``[W]``.
        weight: ``[W]`` one over the variance.
        day: ``[W]`` which days they are.
        prior: One over the variance of the baseline's error.
    """

    value: Floats
    weight: Floats
    day: NDArray[np.int64]
    prior: float


def course(value_W: Floats, variance_W: Floats, base_variance: float) -> Course | None:
    """The best step or ramp of a series, with an end where there was one; None without a day.

    Args:
        value_W: ``[W]``; NaN where unknown.
        variance_W: ``[W]`` of each day's noise.
        base_variance: Of the baseline's error, which all days share.
    """
    known = np.isfinite(value_W)
    if not known.any():
        return None
    series = _Series(
        value_W[known],
        1.0 / variance_W[known],
        np.flatnonzero(known),
        1.0 / max(base_variance, LEAST_VARIANCE),
    )
    stays = _best(series, len(series.day))
    until = _until(series)
    ended = None if until is None else _best(series, until)
    found = [one for one in (stays, ended) if one is not None]
    return min(found, key=lambda one: one.penalised, default=None)


def _best(series: _Series, until: int) -> Course | None:
    """The best onset and length of a change that is over from a place in the series on (its length: that stays)."""
    best: Course | None = None
    place = np.arange(len(series.day))
    fewest = _FEWEST if until == len(series.day) else _SHORTEST
    for first in range(max(until - fewest + 1, 0)):
        for lasts in _lengths(until - first):
            shape = np.clip((place - first + 1.0) / max(lasts, 1), 0.0, 1.0) * (place < until)
            one = _fitted(series, shape, first, lasts, until)
            if best is None or one.penalised < best.penalised:
                best = one
    return best


def _lengths(left: int) -> list[int]:
    """Lengths of ramps to try, in days: 0 is a step; a ramp of fewer than three days is one too."""
    return [0, *(length for length in (3, 5, 8, 13, 21, 34, 55, 89) if length <= left)]


def _fitted(series: _Series, shape: Floats, first: int, lasts: int, until: int) -> Course:
    """Least squares of a shape and the baseline's error, the latter held by its prior."""
    value, weight, prior = series.value, series.weight, series.prior
    begins = int(series.day[first])
    ends = int(series.day[until]) if until < len(series.day) else None
    a, b, c = (weight * shape * shape).sum(), (weight * shape).sum(), weight.sum() + prior
    right = (weight * shape * value).sum(), (weight * value).sum()
    determinant = a * c - b * b
    if determinant <= 0.0:
        return Course(0.0, 0.0, begins, lasts, float("inf"), ends)
    size = (c * right[0] - b * right[1]) / determinant
    error = (a * right[1] - b * right[0]) / determinant
    rest = value - size * shape - error
    cost = float((weight * rest * rest).sum() + prior * error * error)
    return Course(float(size), float(abs(size) / np.sqrt(c / determinant)), begins, lasts, cost, ends)


def _until(series: _Series) -> int | None:
    """Where the stretch that explains most ends, every onset and end tried at once; None if none fits in.

    The normal equations of a stretch ``[f, e)`` need only sums over it, so all pairs are a matrix of differences of running sums.
    """
    num = len(series.day)
    weight = np.concatenate([[0.0], np.cumsum(series.weight)])
    moment = np.concatenate([[0.0], np.cumsum(series.weight * series.value)])
    first, end = np.arange(num)[:, None], np.arange(num)[None, :]
    within = weight[end] - weight[first]
    right = moment[end] - moment[first]
    whole = weight[-1] + series.prior
    determinant = within * whole - within * within
    allowed = (end - first >= _SHORTEST) & (end <= num - _FEWEST) & (determinant > 0.0)
    if not allowed.any():
        return None
    size = (whole * right - within * moment[-1]) / np.where(allowed, determinant, 1.0)
    explained = np.where(allowed, size * size * determinant / whole, -np.inf)
    return int(np.unravel_index(int(explained.argmax()), explained.shape)[1])
