"""The regularised upper incomplete gamma function, for tails of chi-square without scipy.

Rules of this file:
    * The series below a + 1, Lentz's continued fraction above: each converges where it is used. Both run over a whole
      array until its slowest entry has converged.

Source: Press et al. 2007, "Numerical Recipes", 3rd edition, section 6.2; DLMF 8.11.4 and 8.9.2 (https://dlmf.nist.gov/8).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_TOLERANCE = 1e-15
_MOST_TERMS = 10_000
_TINY = 1e-300  # in place of a zero denominator


def upper_gamma(a: ArrayLike, x: ArrayLike) -> NDArray[np.float64]:
    """Q(a, x): the chance that a Gamma(a, 1) variable exceeds x.

    Args:
        a: Shapes, 0 (a point mass at 0) or more; arrays broadcast.
        x: Points, 0 or more; NaN gives NaN.

    Returns:
        Values from 0 to 1, to about 1e-13.
    """
    shape, point = np.broadcast_arrays(np.asarray(a, dtype=np.float64), np.asarray(x, dtype=np.float64))
    answer = np.where(np.isnan(point) | np.isnan(shape), np.nan, np.where(point > 0, 0.0, 1.0))
    inside = (shape > 0) & (point > 0) & np.isfinite(point)
    below = inside & (point < shape + 1.0)
    above = inside & ~below
    answer[below] = 1.0 - _series(shape[below], point[below])
    answer[above] = _fraction(shape[above], point[above])
    return np.clip(answer, 0.0, 1.0)


def _front(a: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """x**a exp(-x) / Gamma(a)."""
    shapes, places = np.unique(a, return_inverse=True)  # few distinct degrees of freedom
    logs = np.array([math.lgamma(shape) for shape in shapes])[places] if len(shapes) else np.zeros(0)
    return np.exp(a * np.log(x) - x - logs)


def _series(a: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(a, x) by its power series."""
    term = 1.0 / a
    total = term.copy()
    for step in range(1, _MOST_TERMS):
        term = term * x / (a + step)
        total += term
        if np.all(term <= total * _TOLERANCE):
            break
    return total * _front(a, x)


def _fraction(a: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Q(a, x) by its continued fraction, evaluated from the front."""
    b = x + 1.0 - a
    c = np.full_like(b, 1.0 / _TINY)
    d = 1.0 / np.where(b == 0.0, _TINY, b)
    total = d.copy()
    for step in range(1, _MOST_TERMS):
        numerator = -step * (step - a)
        b += 2.0
        d = numerator * d + b
        d = 1.0 / np.where(np.abs(d) < _TINY, _TINY, d)
        c = b + numerator / c
        c = np.where(np.abs(c) < _TINY, _TINY, c)
        change = c * d
        total *= change
        if np.all(np.abs(change - 1.0) <= 4.0 * _TOLERANCE):
            break
    return total * _front(a, x)
