"""What the health of a served model is judged by: one `Sample` for each quarter of a minute, counted as predictions are made.

Rules of this file:
    * Recording costs a few comparisons for each prediction and memory that does not grow: counts, never samples.
    * The limits of latency are known before the quarter-minute begins, so being slow is counted exactly, not read off bins.
    * Memory is the *lowest* reading of the quarter-minute: what a garbage collector gives back within it never shows.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from fedretrain.monitoring.reports import LATENCY_EDGES_S, NUM_LATENCY_BINS

SAMPLE_S = 15.0
"""How long a sample is collected for, seconds."""
_MIB = 2.0**20


@dataclass(frozen=True)
class Sample:
    """What one quarter-minute of service looked like.

    Attributes:
        num_served: Predictions that succeeded.
        num_failed: Predictions that raised, or whose output was not finite.
        num_slow: Of those that succeeded, slower than the ratio to the model's own record allows.
        num_over: Of those that succeeded, slower than the absolute limit.
        latency_L: Those that succeeded, by latency on `LATENCY_EDGES_S`; empty if nobody counted.
        memory_mib: The lowest reading of the process's own memory, MiB; None if it was not read.
        num_labelled: Predictions of this version whose label arrived.
        num_correct: Those among them that were right.
        num_insane: Sanity vectors that failed.
    """

    num_served: int = 0
    num_failed: int = 0
    num_slow: int = 0
    num_over: int = 0
    latency_L: tuple[int, ...] = ()
    memory_mib: float | None = None
    num_labelled: int = 0
    num_correct: int = 0
    num_insane: int = 0


class Recorder:
    """Counts until it is asked for the sample; not for several threads at once.

    Args:
        slow_s: A prediction that takes longer is slow by the model's own record.
        over_s: A prediction that takes longer is over the absolute limit.
    """

    def __init__(self, slow_s: float, over_s: float = math.inf) -> None:
        self._slow_s, self._over_s = slow_s, over_s
        self._clear()

    def _clear(self) -> None:
        self._latency = [0] * NUM_LATENCY_BINS
        self._failed = self._slow = self._over = 0
        self._labelled = self._correct = self._insane = 0
        self._lowest_bytes: int | None = None

    def prediction(self, latency_s: float, *, failed: bool = False) -> None:
        """Count a prediction; how long a failed one took says nothing."""
        if failed:
            self._failed += 1
            return
        self._latency[bisect_right(LATENCY_EDGES_S, latency_s)] += 1
        if latency_s > self._slow_s:
            self._slow += 1
        if latency_s > self._over_s:
            self._over += 1

    def memory(self, own_bytes: int) -> None:
        """Note how much memory the process has of its own; some readings in every sample are enough."""
        if self._lowest_bytes is None or own_bytes < self._lowest_bytes:
            self._lowest_bytes = own_bytes

    def label(self, *, correct: bool) -> None:
        """Count a label that arrived for a prediction of the served version."""
        self._labelled += 1
        self._correct += correct

    def sanity(self, num_failed: int) -> None:
        """Count the sanity vectors that failed."""
        self._insane += num_failed

    def take(self) -> Sample:
        """The sample since the last one; counting begins anew."""
        sample = Sample(
            num_served=sum(self._latency),
            num_failed=self._failed,
            num_slow=self._slow,
            num_over=self._over,
            latency_L=tuple(self._latency),
            memory_mib=None if self._lowest_bytes is None else self._lowest_bytes / _MIB,
            num_labelled=self._labelled,
            num_correct=self._correct,
            num_insane=self._insane,
        )
        self._clear()
        return sample
