"""Tails of the normal and of Student's t distribution, for numpy-only decision code.

Rules of this file:
    * Probabilities are upper tails: `*_above(x)` is P(X > x), so that small ones keep their digits.
    * Quantiles are found by Newton's steps on the logarithm of the tail, which bisection keeps within a bracket, and remembered.

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
_CLOSE = 1e-13  # a quantile is right to so much of itself, or of 1
_NORMAL_FROM = 1e6  # degrees of freedom from which on Student's t is the normal to 1e-6


def normal_above(x: float) -> float:
    """P(Z > x) for a standard normal Z."""
    return 0.5 * math.erfc(x / math.sqrt(2.0))


@lru_cache(maxsize=4096)
def normal_quantile(above: float) -> float:
    """The x with P(Z > x) = `above`, for 0 < above < 1."""
    return _solve(normal_above, _normal_density, above)


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
    return _solve(lambda t: student_above(t, dof), lambda t: _student_density(t, dof), above)


def _normal_density(x: float) -> float:
    return math.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def _student_density(t: float, dof: float) -> float:
    log_scale = math.lgamma(0.5 * (dof + 1.0)) - math.lgamma(0.5 * dof) - 0.5 * math.log(dof * math.pi)
    return math.exp(log_scale - 0.5 * (dof + 1.0) * math.log1p(t * t / dof))


def _solve(tail: Callable[[float], float], density: Callable[[float], float], above: float) -> float:
    if not 0.0 < above < 1.0:
        raise ValueError(f"{above} is not a probability strictly between 0 and 1")
    if above > 0.5:  # symmetric about 0
        return -_solve(tail, density, 1.0 - above)
    low, high = 0.0, 1.0
    while (found := tail(high)) > above:
        low, high = high, 2.0 * high
    at = high
    for _ in range(_STEPS):
        wanted = at + math.log(found / above) * found / density(at)
        if not low < wanted < high:
            wanted = 0.5 * (low + high)
        if abs(wanted - at) <= _CLOSE * max(1.0, at):
            break
        at, found = wanted, tail(wanted)
        low, high = (at, high) if found > above else (low, at)
    return at


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
