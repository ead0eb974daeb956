"""A drift detector for any change of a distribution: two windows compared by Kolmogorov and Smirnov's test.

Rules of this file:
    * The test's null distribution is counted exactly, once per window shape; an update only compares whole numbers.
    * Nothing is sampled: the same values give the same levels.

Shapes: K streams, W values in a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.checks import require
from fedretrain.monitoring.detectors import Streams, StreamStates, levels_above

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class KsWindowState(StreamStates):
    """Sliding windows.

    Attributes:
        count_K: int64 values in each window, at most W.
        values_KW: Oldest first, filled from the right.
    """

    count_K: NDArray[np.int64]
    values_KW: NDArray[np.float64]


@dataclass(frozen=True)
class KsWindow(Streams[KsWindowState]):
    """A two-sample Kolmogorov-Smirnov test of a window's newest values against its older ones.

    The test's null distribution is exact (ties make it conservative), and it takes *all* older values where the paper
    samples some, so nothing is random. It is made after every value: `alpha` is the risk of one test, not of a stream.

    Source: Raab, Heusinger and Schleif 2020, Reactive soft prototype computing for concept drift streams,
    https://arxiv.org/abs/2007.05432

    Attributes:
        window: W, values kept.
        recent: How many of them are the new sample.
        alpha: Significance of drift.
        warning_alpha: Significance of a warning, at least `alpha`.
    """

    window: int = 100
    recent: int = 30
    alpha: float = 1e-4
    warning_alpha: float = 1e-3

    def __post_init__(self) -> None:
        require(
            1 <= self.recent < self.window, "the new sample is part of the window", key="ks_window.recent"
        )
        ok = 0 < self.alpha <= self.warning_alpha < 1
        require(ok, "0 < alpha <= warning_alpha < 1", key="ks_window.alpha")
        reachable = ks_critical(self.recent, self.window - self.recent, self.alpha) is not None
        require(
            reachable, "no window this small is ever that significant", key="ks_window.alpha", fix="raise it"
        )

    def init_many(self, num_streams: int) -> KsWindowState:
        """Nothing seen on any stream."""
        return KsWindowState(np.zeros(num_streams, dtype=np.int64), np.zeros((num_streams, self.window)))

    def _advance(
        self, state: KsWindowState, value_K: NDArray[np.float64]
    ) -> tuple[KsWindowState, NDArray[np.int8]]:
        values_KW = np.concatenate([state.values_KW[:, 1:], value_K[:, None]], axis=1)
        after = KsWindowState(np.minimum(state.count_K + 1, self.window), values_KW)
        older = self.window - self.recent
        drift = ks_critical(self.recent, older, self.alpha)
        warning = ks_critical(self.recent, older, self.warning_alpha)
        assert drift is not None
        assert warning is not None
        statistic_K = ks_statistic(values_KW, self.recent).astype(np.float64)
        return after, levels_above(statistic_K, warning - 0.5, drift - 0.5, after.count_K == self.window)

    def _restarted(self, state: KsWindowState) -> KsWindowState:
        """After a drift the newest values are the new world: they stay."""
        return KsWindowState(np.full(len(state), self.recent), state.values_KW)


def ks_statistic(values_KW: NDArray[np.float64], recent: int) -> NDArray[np.int64]:
    """``[K]`` Kolmogorov's distance between the last `recent` values and those before, times both numbers: exact."""
    older = values_KW.shape[1] - recent
    order = np.argsort(values_KW, axis=1, kind="stable")
    sorted_KW = np.take_along_axis(values_KW, order, axis=1)
    gap_KW = np.abs(np.cumsum(np.where(order >= older, older, -recent), axis=1))
    tied_KW = sorted_KW[:, :-1] == sorted_KW[:, 1:]  # distances count only after the last of equal values
    gap_KW[:, :-1][tied_KW] = 0
    distance_K: NDArray[np.int64] = gap_KW.max(axis=1)
    return distance_K


def ks_p_value(distance: int, num_a: int, num_b: int) -> float:
    """P(`ks_statistic` >= distance) when both samples are from one continuous distribution: exact.

    Counts the lattice paths from (0, 0) to (a, b) that stay inside the band; rows are scaled as they go so that nothing
    overflows (Hodges 1958, The significance probability of the Smirnov two-sample test,
    https://doi.org/10.1007/BF02589501).
    """
    j = np.arange(num_b + 1)
    inside = (j * num_a < distance).astype(np.float64)
    for i in range(1, num_a + 1):
        allowed = (
            np.abs(i * num_b - j * num_a) < distance
        )  # a path comes down and goes on through allowed columns only
        inside = np.cumsum(inside * allowed * (i / (i + num_b))) * allowed
    return max(0.0, 1.0 - float(inside[-1]))


@lru_cache(maxsize=64)
def ks_critical(num_a: int, num_b: int, alpha: float) -> int | None:
    """The smallest distance whose p-value is at most `alpha`; None if even complete separation is likelier."""
    low, high = 0, num_a * num_b  # the p-value is 1 at 0 and falls
    if ks_p_value(high, num_a, num_b) > alpha:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if ks_p_value(middle, num_a, num_b) <= alpha else (middle, high)
    return high
