"""Means with intervals, over repetitions and over devices.

Rules of this file:
    * With several seeds the repetition is the unit: one value per seed, Student's t. Devices of one repetition share
      their global model, so they are never pooled over seeds as if independent.
    * With one seed the device is the unit: a bootstrap over devices. It says how much another draw of devices
      would move the figure, and nothing about another run's luck.
    * An extreme (the worst device) gets an interval over seeds only: its bootstrap is not consistent (Bickel and
      Freedman 1981, https://doi.org/10.1214/aos/1176345637).
    * The bootstrap's draws come from `core.rng`: the same values give the same interval.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core import rng
from sim.results import Estimate, Over

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

    Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]

LEVEL = 0.95
"""Coverage of every interval."""

_MAX_DRAWS = 2_000_000  # indices drawn at once: 16 MB
_MANY = 10_000  # devices from which on batches stand in for resamples: 100 times less work, the same interval
_BATCHES = 50
Bounds = tuple[float, float]
UNBOUNDED: Bounds = (-math.inf, math.inf)
FRACTION: Bounds = (0.0, 1.0)


def over_seeds(values: ArrayLike, bounds: Bounds = UNBOUNDED) -> Estimate:
    """The mean over repetitions with Student's t interval.

    Args:
        values: ``[R]`` one value per seed.
        bounds: Limits of what the values can be; the interval is cut to them.

    Returns:
        The mean; without an interval from a single value, NaN if a value is not finite.

    Source: Student 1908, "The probable error of a mean", https://doi.org/10.1093/biomet/6.1.1
    """
    v = np.asarray(values, dtype=np.float64)
    if not np.isfinite(v).all() or not v.size:
        return Estimate(math.nan, num=v.size)
    mean = float(v.mean())
    if v.size < 2:
        return Estimate(mean)
    half = _t_quantile(v.size - 1) * float(v.std(ddof=1)) / math.sqrt(v.size)
    return Estimate(mean, max(mean - half, bounds[0]), min(mean + half, bounds[1]), v.size, Over.SEEDS)


def over_devices(values: ArrayLike, statistic: Statistic | None = None, seed: int = 0) -> Estimate:
    """A statistic over devices with its expanded percentile bootstrap interval; from 10,000 devices on, of batches.

    The plain percentile interval of a mean is too short by sqrt((n-1)/n) and by t against normal; the expanded one
    takes wider percentiles that mend both.

    Args:
        values: ``[D]`` one value per device.
        statistic: ``[B, D] -> [B]``; the mean if not given.
        seed: Of the resampling.

    Returns:
        The statistic; without an interval from fewer than five devices, NaN if a value is not finite.

    Source: Hesterberg 2015, "What teachers should know about the bootstrap", section 4,
        https://doi.org/10.1080/00031305.2015.1089789
    """
    v = np.asarray(values, dtype=np.float64)
    stat = statistic or mean_rows
    if not np.isfinite(v).all() or not v.size:
        return Estimate(math.nan, num=v.size)
    value = float(stat(v[None])[0])
    if v.size < 5:
        return Estimate(value, num=v.size)
    if v.size >= _MANY:
        half = _batch_half_width(v, stat, seed)
        return Estimate(value, value - half, value + half, v.size, Over.DEVICES)
    low, high = np.quantile(_resample(v, stat, seed), _expanded_percentiles(v.size))
    return Estimate(value, float(low), float(high), v.size, Over.DEVICES)


def estimate(
    per_seed: Sequence[NDArray[np.float64]], statistic: Statistic, bounds: Bounds = UNBOUNDED
) -> Estimate:
    """A statistic over devices: over seeds where there are several, else over devices.

    Args:
        per_seed: For each seed the values ``[D]`` of its devices; seeds without any are left out.
        statistic: ``[B, D] -> [B]``.
        bounds: Limits of what the statistic can be.
    """
    kept = [v for v in per_seed if len(v)]
    if len(kept) == 1:
        return over_devices(kept[0], statistic)
    if any(not np.isfinite(v).all() for v in kept):
        return Estimate(math.nan, num=len(kept))
    return over_seeds([float(statistic(v[None])[0]) for v in kept], bounds)


def paired(a: Sequence[NDArray[np.float64]], b: Sequence[NDArray[np.float64]]) -> Estimate:
    """The mean of b - a, paired by seed and by device.

    Args:
        a: For each seed the values ``[D]`` of its devices.
        b: The same devices of the same seeds, in the same order.
    """
    return estimate([y - x for x, y in zip(a, b, strict=True)], mean_rows)


def mean_rows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each row: ``[B, D] -> [B]``."""
    means: NDArray[np.float64] = values.mean(axis=-1)
    return means


def p10_rows(higher_is_better: bool) -> Statistic:
    """What nine values in ten reach or better, of each row: ``[B, D] -> [B]``."""
    q = 0.1 if higher_is_better else 0.9
    return lambda values: np.quantile(values, q, axis=-1)


def worst_rows(higher_is_better: bool) -> Statistic:
    """The worst value of each row: ``[B, D] -> [B]``."""
    return (lambda v: v.min(axis=-1)) if higher_is_better else (lambda v: v.max(axis=-1))


def _t_quantile(degrees: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + LEVEL / 2))


def _expanded_percentiles(size: int) -> tuple[float, float]:
    from scipy.special import ndtr

    tail = float(ndtr(-math.sqrt(size / (size - 1)) * _t_quantile(size - 1)))
    return tail, 1.0 - tail


def _batch_half_width(values: NDArray[np.float64], statistic: Statistic, seed: int) -> float:
    """Half the t interval of a statistic from its values in random batches of the devices.

    Source: the method of batch means, Schmeiser 1982, https://doi.org/10.1287/opre.30.3.556
    """
    order = np.argsort(rng.words(rng.seeds_for(seed, -1, np.zeros(1), "batches"), len(values))[0])
    kept = values[order[: len(values) // _BATCHES * _BATCHES]].reshape(_BATCHES, -1)
    return _t_quantile(_BATCHES - 1) * float(statistic(kept).std(ddof=1)) / math.sqrt(_BATCHES)


def _resample(values: NDArray[np.float64], statistic: Statistic, seed: int) -> NDArray[np.float64]:
    """The statistic of 2,000 resamples with replacement."""
    size, num = len(values), 2_000
    step = max(1, _MAX_DRAWS // size)
    drawn = []
    for first in range(0, num, step):
        streams = rng.seeds_for(seed, -1, np.arange(first, min(first + step, num)), "bootstrap")
        drawn.append(statistic(values[(rng.uniforms(streams, size) * size).astype(np.int64)]))
    return np.concatenate(drawn)
