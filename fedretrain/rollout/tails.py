"""Tails of the normal and of Student's t distribution, for numpy-only decision code.

Rules of this file:
    * Probabilities are upper tails: `*_above(x)` is P(X > x), so that small ones keep their digits.
    * Quantiles are found by bisection on the tail: slow, obvious, and remembered.

Source: the incomplete beta function by its continued fraction (DLMF 8.17.22, https://dlmf.nist.gov/8.17), evaluated by the modified Lentz method.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_TINY = 1e-300
_STEPS = 300
_NORMAL_FROM = 1e6  # degrees of freedom from which on Student's t is the normal to 1e-6


def normal_above(x: float) -> float:
    """P(Z > x) for a standard normal Z."""
    return 0.5 * math.erfc(x / math.sqrt(2.0))


@lru_cache(maxsize=4096)
def normal_quantile(above: float) -> float:
    """The x with P(Z > x) = `above`, for 0 < above < 1."""
    return _solve(normal_above, above)


def student_above(t: float, dof: float) -> float:
    """P(T > t) for Student's t with `dof` > 0 degrees of freedom (infinite: the normal)."""
    if dof > _NORMAL_FROM:
        return normal_above(t)
    half = 0.5 * _incomplete_beta(dof / 2.0, 0.5, dof / (dof + t * t))
    return half if t > 0 else 1.0 - half


@lru_cache(maxsize=65536)
def student_quantile(above: float, dof: float) -> float:
    """The t with P(T > t) = `above`, for 0 < above < 1."""
    if dof > _NORMAL_FROM:
        return normal_quantile(above)
    return _solve(lambda t: student_above(t, dof), above)


def _solve(tail: Callable[[float], float], above: float) -> float:
    if not 0.0 < above < 1.0:
        raise ValueError(f"{above} is not a probability strictly between 0 and 1")
    if above > 0.5:  # symmetric about 0
        return -_solve(tail, 1.0 - above)
    low, high = 0.0, 1.0
    while tail(high) > above:
        low, high = high, 2.0 * high
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if tail(middle) > above else (low, middle)
    return 0.5 * (low + high)


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b)."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    if x > (a + 1.0) / (a + b + 2.0):  # the fraction converges fast below this point only
        return 1.0 - _incomplete_beta(b, a, 1.0 - x)
    log_front = (
        math.lgamma(a + b)
        - math.lgamma(a)
        - math.lgamma(b)
        + a * math.log(x)
        + b * math.log1p(-x)
        - math.log(a)
    )
    return math.exp(log_front) * _beta_fraction(a, b, x)


def _beta_fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1.0 / _apart(1.0 - (a + b) * x / (a + 1.0))
    value = d
    for m in range(1, _STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / _apart(1.0 + term * d)
            c = _apart(1.0 + term / c)
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


def _apart(x: float) -> float:
    """`x`, kept from being 0."""
    return x if abs(x) > _TINY else _TINY
