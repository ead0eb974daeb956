"""Permutation tests on device summaries: exact under randomised exposure, however few or skewed the devices are.

Rules of this file:
    * The statistic is studentised, so that the test stays valid in large samples too where the arms' variances differ (Chung and Romano 2013,
      https://doi.org/10.1214/13-AOS1090), and exact where the arms are exchangeable.
    * The observed order counts as one of the permutations: a p-value is never 0.
    * One-sided: the p-value is small where the first sample is the larger one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core import rng

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TILE = 1_000_000  # elements drawn at once


def two_sample_p(
    first_K: NDArray[np.float64], second_L: NDArray[np.float64], *, num_permutations: int, seed: int
) -> float:
    """P-value of "the mean of `first_K` is not above that of `second_L`".

    Args:
        first_K: ``[K]`` at least 2.
        second_L: ``[L]`` at least 2.
        num_permutations: Random relabellings beside the observed one.
        seed: Of the relabellings.
    """
    swap = len(second_L) < len(first_K)
    values = np.concatenate([second_L, first_K] if swap else [first_K, second_L])
    values = (values - values.mean()) * (-1.0 if swap else 1.0)
    size, total = min(len(first_K), len(second_L)), len(values)
    observed = _statistic(values[:size].sum(), (values[:size] ** 2).sum(), size, values)
    draws = rng.generator(seed)
    at_least, left = 1, num_permutations
    while left:
        rows = min(left, max(1, _TILE // size))
        drawn = values[_subsets(draws, rows, size, total)]
        at_least += int(np.sum(_statistic(drawn.sum(1), (drawn**2).sum(1), size, values) >= observed - 1e-12))
        left -= rows
    return at_least / (num_permutations + 1)


def sign_flip_p(difference_K: NDArray[np.float64], *, num_permutations: int, seed: int) -> float:
    """P-value of "paired differences are not above 0", by flipping their signs at random.

    Args:
        difference_K: ``[K]`` at least 2.
        num_permutations: Random flips beside the observed signs.
        seed: Of the flips.
    """
    # The sum of squares does not change under flips, so the plain sum orders them as the studentised one does.
    observed = difference_K.sum()
    slack = 1e-12 * np.abs(difference_K).sum()
    draws = rng.generator(seed)
    at_least, left = 1, num_permutations
    while left:
        rows = min(left, max(1, _TILE // len(difference_K)))
        signs = draws.integers(0, 2, (rows, len(difference_K)), dtype=np.int8) * 2.0 - 1.0
        at_least += int(np.sum(signs @ difference_K >= observed - slack))
        left -= rows
    return at_least / (num_permutations + 1)


def _statistic(sum_R: Any, squares_R: Any, size: int, values: NDArray[np.float64]) -> Any:
    """Welch's t of `size` values with these sums against the rest of `values` (whose sum is 0)."""
    rest = len(values) - size
    mean_R, rest_mean_R = sum_R / size, -sum_R / rest
    var_R = (squares_R - size * mean_R**2) / (size - 1)
    rest_var_R = ((values @ values) - squares_R - rest * rest_mean_R**2) / (rest - 1)
    spread_R = np.sqrt(np.maximum(var_R / size + rest_var_R / rest, 1e-30))
    return (mean_R - rest_mean_R) / spread_R


def _subsets(draws: np.random.Generator, rows: int, size: int, total: int) -> NDArray[np.int64]:
    """Uniform subsets without replacement, ``[rows, size]``."""
    if 4 * size > total:
        return np.argpartition(draws.random((rows, total)), size - 1, axis=1)[:, :size]
    chosen = np.sort(draws.integers(0, total, (rows, size)), axis=1)
    while True:  # keep each row's distinct values and draw again in the place of the others
        again = np.zeros(chosen.shape, dtype=bool)
        again[:, 1:] = chosen[:, 1:] == chosen[:, :-1]
        if not again.any():
            return chosen
        chosen[again] = draws.integers(0, total, int(again.sum()))
        chosen.sort(axis=1)
