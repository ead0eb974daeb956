"""Estimates over devices with their uncertainty: linearised ratios, tail means, the jackknife; t and sign-flip tests.

Rules of this file:
    * The unit (a device, or a device's time slice) is what varies independently, never the row. An estimate carries what each
      unit contributes to it, to first order (the delta method), so estimates of one fleet can be subtracted from each
      other and keep their correlation.
    * Where differences of counts all but vanish, the spread is not believed below 2 / rows: at the 5 % level the bound is then
      no narrower than 3 / rows, which is what so many rows without one event allow.
    * Few units: the sign-flip test over units stands beside Student's t, exact up to 12 units.

Sources: Cochran 1977, "Sampling Techniques", 6.4 (ratios); Efron and Stein 1981, "The jackknife estimate of variance",
https://doi.org/10.1214/aos/1176345462; Fisher 1935, "The Design of Experiments", 21 (sign flips); Phipson and Smyth 2010,
arXiv 1603.05766 (the p value of drawn permutations); Kish 1965, "Survey Sampling" (effective number).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core import rng

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXACT_UNITS = 12  # 4,096 sign patterns
FLIPPED_UNITS = 64  # above, the t test of a mean is as good: its error falls as 1 / units
_DRAWS = 4095


@dataclass(frozen=True)
class Estimate:
    """A figure and what it rests on.

    Attributes:
        value: The figure; NaN where there is no data.
        parts_U: ``[U]`` what each unit's deviation adds to it; sums to 0.
        num_units: Effective number of units: their number if all weigh the same, less if not.
        num_rows: Rows of a difference of counts; 0: the figure is no such difference.
        share_U: ``[U]`` each unit's share of the weight, sums to 1; None: no weighted mean of units.
    """

    value: float
    parts_U: NDArray[np.float64]
    num_units: float
    num_rows: int = 0
    share_U: NDArray[np.float64] | None = None

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference of two estimates over the same units."""
        return Estimate(
            self.value - other.value, self.parts_U - other.parts_U, min(self.num_units, other.num_units)
        )

    @property
    def stderr(self) -> float:
        """Standard error; infinite with fewer than two units."""
        if not self.num_units >= 2.0 or math.isnan(self.value):
            return math.inf
        spread = math.sqrt(float(np.square(self.parts_U).sum()) * self.num_units / (self.num_units - 1.0))
        return max(spread, 2.0 / self.num_rows) if self.num_rows else spread

    def below(self, bound: float) -> float:
        """P value of "the truth is at most `bound`": small where it is above. One-sided Student's t."""
        excess, spread = self.value - bound, self.stderr
        if not math.isfinite(spread):
            return 1.0
        if spread == 0.0:
            return 0.0 if excess > 0.0 else 1.0
        return t_tail(excess / spread, self.num_units - 1.0)

    def above(self, bound: float) -> float:
        """P value of "the truth is at least `bound`": small where it is below."""
        return Estimate(-self.value, self.parts_U, self.num_units, self.num_rows).below(-bound)

    def interval(self, alpha: float) -> tuple[float, float]:
        """One-sided bounds, each missed with probability `alpha`."""
        if not math.isfinite(self.stderr):
            return -math.inf, math.inf
        half = t_quantile(alpha, self.num_units - 1.0) * self.stderr
        return self.value - half, self.value + half

    def flips_below(self, bound: float, seed: int) -> float | None:
        """`below` by sign flips, where units are few and their weights known; else None.

        It holds for any distribution that is symmetric about its mean.
        """
        return self._flips(bound, seed, 1.0)

    def flips_above(self, bound: float, seed: int) -> float | None:
        """`above` by sign flips, likewise."""
        return self._flips(bound, seed, -1.0)

    def _flips(self, bound: float, seed: int, sign: float) -> float | None:
        if self.share_U is None or np.count_nonzero(self.share_U) > FLIPPED_UNITS or math.isnan(self.value):
            return None
        return sign_flip_p(sign * (self.parts_U + (self.value - bound) * self.share_U), seed)


def ratio(total_U: NDArray[np.float64], weight_U: NDArray[np.float64], num_rows: int = 0) -> Estimate:
    """Sum of totals over sum of weights: the mean of ``total / weight``, weighted.

    Args:
        total_U: ``[U]`` what each unit adds.
        weight_U: ``[U]`` at least 0; a unit with 0 is not in it.
        num_rows: See `Estimate.num_rows`.
    """
    weight = float(weight_U.sum())
    if weight <= 0.0:
        return Estimate(math.nan, np.zeros(len(total_U)), 0.0)
    value, share = float(total_U.sum()) / weight, weight_U / weight
    return Estimate(
        value, total_U / weight - value * share, 1.0 / float(np.square(share).sum()), num_rows, share
    )


def tail_mean(value_U: NDArray[np.float64], fraction: float) -> Estimate:
    """The mean of the lowest `fraction` of the units (at least one).

    Its linearisation is that of the expected shortfall (Chen 2008, https://doi.org/10.1093/jjfinec/nbm019). Few units
    carry it, so `num_units` is their number plus one.
    """
    size = len(value_U)
    if not size:
        return Estimate(math.nan, np.zeros(0), 0.0)
    count = max(1, math.ceil(fraction * size))
    lowest = np.sort(value_U)[:count]
    mean, edge = float(lowest.mean()), float(lowest[-1])
    parts = ((np.minimum(value_U, edge) - edge) * size / count + edge - mean) / size
    return Estimate(mean, parts, count + 1.0)


def jackknife(whole: float, without_U: NDArray[np.float64]) -> Estimate:
    """An estimate from its values with one unit left out each time, ``[U]``."""
    size = len(without_U)
    if size < 2:
        return Estimate(whole, np.zeros(size), float(size))
    return Estimate(whole, (without_U.mean() - without_U) * (size - 1) / size, float(size))


def sign_flip_p(value_U: NDArray[np.float64], seed: int) -> float:
    """P value of "the sum is not above 0": the share of sign patterns whose sum is as large as the observed one.

    Exact up to `EXACT_UNITS` units that are not 0; above, 4,095 patterns drawn from `seed` and the observed one.
    """
    value = value_U[value_U != 0.0]
    size, observed = len(value), float(value.sum())
    slack = 1e-12 * float(np.abs(value).sum())  # equal sums in another order of summation are equal
    if size <= EXACT_UNITS:
        bits = np.arange(2**size)[:, None] >> np.arange(size) & 1
        return float(np.mean((2.0 * bits - 1.0) @ value >= observed - slack))
    seeds = rng.seeds_for(seed, -1, np.arange(_DRAWS), "sign flips")
    signs = np.where(rng.uniforms(seeds, size) < 0.5, -1.0, 1.0)
    return (1.0 + float(np.count_nonzero(signs @ value >= observed - slack))) / (_DRAWS + 1.0)


def t_tail(t: float, df: float) -> float:
    """P(T > t) of Student's t with `df` > 0 degrees of freedom."""
    tail = 0.5 * _incomplete_beta(df / (df + t * t), df / 2.0, 0.5)
    return tail if t >= 0.0 else 1.0 - tail


def t_quantile(alpha: float, df: float) -> float:
    """The t above which a share `alpha` < 0.5 of Student's distribution lies.

    Newton's method from 0: the tail is convex there, so that it rises to the root and never passes it.
    """
    t, scale = 0.0, math.lgamma((df + 1.0) / 2.0) - math.lgamma(df / 2.0) - 0.5 * math.log(df * math.pi)
    for _ in range(200):
        density = math.exp(scale - (df + 1.0) / 2.0 * math.log1p(t * t / df))
        step = (t_tail(t, df) - alpha) / density
        t += step
        if step <= 1e-12 * t:
            break
    return t


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function by its continued fraction (DLMF 8.17.22), where that converges fast."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - _incomplete_beta(1.0 - x, b, a)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(front) / (a * _beta_fraction(x, a, b))


def _beta_fraction(x: float, a: float, b: float) -> float:
    """The continued fraction ``1 + d1 / (1 + d2 / (1 + ...))`` by the modified Lentz method."""
    value, c, d = 1.0, 1.0, 0.0
    for step in range(1, 400):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / _away_from_zero(1.0 + term * d)
        c = _away_from_zero(1.0 + term / c)
        value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


def _away_from_zero(x: float) -> float:
    return x if abs(x) > 1e-300 else 1e-300
