"""ADWIN: a window of recent values that drops its oldest part as soon as the two parts' means differ.

Rules of this file:
    * Memory is logarithmic: row r holds at most `max_buckets` buckets of 2**r values each, and two of the oldest are merged
      when there is one more.
    * A drift drops the old part and keeps the new one: the window always is what the present mean is estimated from.
    * One stream per state (rows of streams differ in length, so streams side by side would gain nothing).

Source: Bifet and Gavalda 2007, Learning from time-changing data with adaptive windowing, SIAM SDM,
https://doi.org/10.1137/1.9781611972771.42
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedretrain.core.checks import require
from fedretrain.monitoring.detectors import Level, refuse_missing

if TYPE_CHECKING:
    from collections.abc import Iterator


class Bucket(NamedTuple):
    """A run of values: their sum and the sum of their squared deviations from their mean."""

    total: float
    squares: float


@dataclass(frozen=True)
class AdwinState:
    """The window.

    Attributes:
        rows: Row r: buckets of 2**r values, oldest first; later rows are older.
        width: Values in the window.
        total: Their sum.
        squares: Sum of their squared deviations from their mean.
        num_seen: Values ever seen.
        warned: Whether the last test was near a drift.
    """

    rows: tuple[tuple[Bucket, ...], ...] = ()
    width: int = 0
    total: float = 0.0
    squares: float = 0.0
    num_seen: int = 0
    warned: bool = False

    @property
    def mean(self) -> float:
        """The present mean; NaN before the first value."""
        return self.total / self.width if self.width else math.nan

    @property
    def variance(self) -> float:
        """The window's variance; NaN before the first value."""
        return self.squares / self.width if self.width else math.nan


@dataclass(frozen=True)
class Adwin:
    """Adaptive windowing.

    The bound on false alarms assumes values in [0, 1]; other values work in proportion to the window's own variance.

    Attributes:
        delta: Confidence: a cut needs a difference of means that chance exceeds with at most about this probability.
        warning_delta: The same for a warning, at least `delta`.
        check_every: Values between two tests.
        max_buckets: Of each size.
        min_width: Values before the first test: the window is tested when it holds more.
        min_side: Values that each part of a cut needs.
    """

    delta: float = 0.002
    warning_delta: float = 0.05
    check_every: int = 32
    max_buckets: int = 5
    min_width: int = 10
    min_side: int = 5

    def __post_init__(self) -> None:
        ok = 0 < self.delta <= self.warning_delta < 1
        require(ok, "0 < delta <= warning_delta < 1", key="adwin.delta")
        for name in ("check_every", "max_buckets", "min_width", "min_side"):
            require(getattr(self, name) >= 1, "at least 1", key=f"adwin.{name}")

    def init(self) -> AdwinState:
        """An empty window."""
        return AdwinState()

    def update(self, state: AdwinState, value: float) -> tuple[AdwinState, Level]:
        """The window with a value more, cut where it should be, and what that says.

        Raises:
            DataError: NaN or an infinite value.
        """
        refuse_missing(np.asarray(value, dtype=np.float64))
        state = self._added(state, float(value))
        if state.num_seen % self.check_every or state.width <= self.min_width:
            return state, Level.WARNING if state.warned else Level.STABLE
        start = state.width
        while self._differs(state, self.delta):
            state = _without_oldest(state)
        if state.width < start:
            return replace(state, warned=False), Level.DRIFT
        state = replace(state, warned=self._differs(state, self.warning_delta))
        return state, Level.WARNING if state.warned else Level.STABLE

    def _added(self, state: AdwinState, value: float) -> AdwinState:
        """The window with a value more."""
        squares = state.squares
        if state.width:
            squares += state.width * (value - state.mean) ** 2 / (state.width + 1)
        rows, carried = list(state.rows), [Bucket(value, 0.0)]
        for size_log in range(len(rows) + 1):
            row = (*(rows[size_log] if size_log < len(rows) else ()), *carried)
            carried = []
            if len(row) > self.max_buckets:
                carried, row = [_merged(row[0], row[1], 2**size_log)], row[2:]
            rows[size_log : size_log + 1] = [row]
            if not carried:
                break
        return replace(
            state,
            rows=tuple(rows),
            width=state.width + 1,
            total=state.total + value,
            squares=squares,
            num_seen=state.num_seen + 1,
        )

    def _differs(self, state: AdwinState, delta: float) -> bool:
        """Whether some cut of the window, between two buckets, has means too far apart."""
        log_term = math.log(2 * math.log(state.width) / delta) if state.width > 2 else math.inf
        old_width, old_total = 0, 0.0
        for size, bucket in _oldest_first(state):
            old_width, old_total = old_width + size, old_total + bucket.total
            new_width = state.width - old_width
            if new_width < self.min_side:
                return False
            if old_width < self.min_side:
                continue
            share = 1 / (old_width - self.min_side + 1) + 1 / (new_width - self.min_side + 1)
            bound = math.sqrt(2 * share * state.variance * log_term) + 2 / 3 * share * log_term
            if abs(old_total / old_width - (state.total - old_total) / new_width) > bound:
                return True
        return False


def _oldest_first(state: AdwinState) -> Iterator[tuple[int, Bucket]]:
    """(size, bucket) from the oldest on."""
    for size_log in reversed(range(len(state.rows))):
        for bucket in state.rows[size_log]:
            yield 2**size_log, bucket


def _merged(a: Bucket, b: Bucket, size: int) -> Bucket:
    """Two buckets of one size as one."""
    return Bucket(a.total + b.total, a.squares + b.squares + (a.total - b.total) ** 2 / (2 * size))


def _without_oldest(state: AdwinState) -> AdwinState:
    """The window without its oldest bucket."""
    size, oldest = next(_oldest_first(state))
    rows = (*state.rows[:-1], state.rows[-1][1:])
    width, total = state.width - size, state.total - oldest.total
    between = size * width / (size + width) * (oldest.total / size - total / width) ** 2 if width else 0.0
    return replace(
        state,
        rows=rows if rows[-1] else rows[:-1],
        width=width,
        total=total,
        squares=max(0.0, state.squares - oldest.squares - between),
    )
