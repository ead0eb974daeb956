"""Intervals and tests of a share when the device, not the event, is what is independent.

Rules of this file:
    * Counts come with devices on the first axis; further axes (classes, features) are judged side by side.
    * Events of one device are alike, so the spread between devices decides, never the number of events alone.
    * Nothing is answered with a number that was not earned: no data gives NaN bounds, or a p-value of 1.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_MANY_DEGREES = 1000  # beyond them t and normal quantiles at 99.9 % differ by less than 0.2 %


class Interval(NamedTuple):
    """An estimate with its bounds, arrays of one shape; NaN where there is no data."""

    estimate: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def normal_quantile(confidence: float) -> float:
    """The z such that a standard normal value lies in ``[-z, z]`` with probability `confidence`."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def student_sf(t: float, degrees: int) -> float:
    """P(T > t) of Student's distribution with a whole number of degrees of freedom.

    A finite series in the angle atan(t / sqrt(degrees)), so no special function is needed (Abramowitz and Stegun 1964,
    Handbook of Mathematical Functions, 26.7.3 and 26.7.4; 26.7.8 beyond 1,000 degrees).
    """
    if degrees > _MANY_DEGREES:
        return NormalDist().cdf(-t * (1 - 1 / (4 * degrees)) / math.sqrt(1 + t * t / (2 * degrees)))
    angle, odd = math.atan2(t, math.sqrt(degrees)), degrees % 2
    i = np.arange(1, (degrees - 2 - odd) // 2 + 1)
    ratios = (2 * i - 1 + odd) / (2 * i + odd) * math.cos(angle) ** 2
    series = math.sin(angle) * (1.0 + float(np.cumprod(ratios).sum()))
    if odd:
        series = 2 / math.pi * (angle + (math.cos(angle) * series if degrees > 1 else 0.0))
    return (1 - series) / 2


@lru_cache(maxsize=1024)
def student_quantile(confidence: float, degrees: int) -> float:
    """The t such that a Student value lies in ``[-t, t]`` with probability `confidence`: by bisection on its tail."""
    tail, low, high = (1 - confidence) / 2, 0.0, 1.0
    while student_sf(high, degrees) > tail:
        low, high = high, 2 * high
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if student_sf(middle, degrees) > tail else (low, middle)
    return high


def wilson(hits: ArrayLike, trials: ArrayLike, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a share of *independent* trials.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference, JASA 22,
    https://doi.org/10.1080/01621459.1927.10502953

    Args:
        hits: Any shape; need not be whole numbers.
        trials: Of the same shape, at least `hits`.
        confidence: Two-sided.
    """
    hits, trials = np.asarray(hits, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    if np.any((hits < 0) | (hits > trials)):
        raise DataError(
            "a share needs 0 <= hits <= trials", fix="count each trial once, and hits among trials"
        )
    share = divide(hits, trials)
    return Interval(share, *_wilson_bounds(share, trials, normal_quantile(confidence)))


def device_share(hits_D: ArrayLike, trials_D: ArrayLike, confidence: float = 0.95) -> Interval:
    """The share of all trials that are hits, with an interval that takes the *device* as the unit.

    The ratio's variance comes from the spread between devices; it says how many independent trials the sample is
    worth, and Wilson's interval is given that number, lowered for the few degrees of freedom. It never exceeds the
    number of trials. Where all devices hit always, or never, the spread says nothing: a device counts as one trial.

    Source: Korn and Graubard 1998, Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data, Survey Methodology 24 (here on Wilson's interval instead of Clopper's and Pearson's);
    the ratio's variance is Cochran 1977, Sampling Techniques, section 2.11.

    Args:
        hits_D: ``[D, ...]`` hits of each device.
        trials_D: ``[D, ...]`` trials of each device; devices without any do not count.
        confidence: Two-sided.

    Returns:
        Arrays ``[...]``; with fewer than two devices the bounds are 0 and 1, for one device says nothing about others.
    """
    hits_D, trials_D = np.asarray(hits_D, dtype=np.float64), np.asarray(trials_D, dtype=np.float64)
    if np.any((hits_D < 0) | (hits_D > trials_D)):
        raise DataError(
            "a share needs 0 <= hits <= trials", fix="count each trial once, and hits among trials"
        )
    trials, num = trials_D.sum(axis=0), (trials_D > 0).sum(axis=0)
    share = divide(hits_D.sum(axis=0), trials)
    variance = _ratio_variance(hits_D - share * trials_D, trials, num)
    spread = share * (1 - share)
    worth = np.where(spread > 0, np.fmin(divide(spread, variance), trials), np.minimum(num, trials))
    z = normal_quantile(confidence)
    t = np.reshape([student_quantile(confidence, max(int(n) - 1, 1)) for n in np.ravel(num)], np.shape(num))
    low, high = _wilson_bounds(share, worth * (z / t) ** 2, z)
    alone = num < 2
    return Interval(share, np.where(alone & (num > 0), 0.0, low), np.where(alone & (num > 0), 1.0, high))


def share_above(hits_D: ArrayLike, trials_D: ArrayLike, limit: float) -> float:
    """p-value of "the share of hits is above `limit`", one-sided, with the device as the unit.

    Each device's surplus over the limit is one value; their sum is compared with their own spread by Student's t.

    Args:
        hits_D: ``[D]`` hits of each device.
        trials_D: ``[D]`` trials of each device; devices without any do not count.
        limit: The share allowed.

    Returns:
        The p-value; 1 with fewer than two devices.
    """
    hits_D, trials_D = np.asarray(hits_D, dtype=np.float64), np.asarray(trials_D, dtype=np.float64)
    num, trials = int((trials_D > 0).sum()), trials_D.sum()
    if num < 2:
        return 1.0
    share = float(hits_D.sum() / trials)
    error = math.sqrt(_ratio_variance(hits_D - share * trials_D, trials, np.asarray(num)))
    if error == 0.0:  # devices that agree to the last event are evidence of their number, not of certainty
        error = math.sqrt(max(limit * (1 - limit), 0.0) / num)
    return student_sf((share - limit) / error, num - 1) if error > 0 else float(share <= limit)


def divide(a: NDArray[np.float64], b: ArrayLike) -> NDArray[np.float64]:
    """The ratio a / b, NaN where b is 0."""
    b = np.asarray(b, dtype=np.float64)
    a, b = np.broadcast_arrays(a, b)
    ratio: NDArray[np.float64] = np.divide(a, b, out=np.full(np.shape(b), np.nan), where=b != 0)
    return ratio


def _ratio_variance(rest_D: NDArray[np.float64], trials: ArrayLike, num: ArrayLike) -> NDArray[np.float64]:
    """The variance of a ratio of sums over devices, from each device's residual."""
    num = np.asarray(num, dtype=np.float64)
    squares = (rest_D**2).sum(axis=0)
    return divide(squares * num, np.maximum(num - 1, 1) * np.asarray(trials, dtype=np.float64) ** 2)


def _wilson_bounds(
    share: NDArray[np.float64], trials: NDArray[np.float64], z: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson's bounds; NaN where the share is."""
    trials = np.maximum(trials, 1e-9)  # where there are none the share is NaN
    slack = z * z / trials
    centre = (share + slack / 2) / (1 + slack)
    half = np.sqrt(slack * share * (1 - share) + slack**2 / 4) / (1 + slack)
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)
