"""Online drift detectors: values of a stream in, a level out.

Rules of this file:
    * A detector is a frozen dataclass of hyperparameters; its state goes in and out and the old one stays as it was.
    * A drift ends what was learnt: the state that comes back with `Level.DRIFT` has begun anew.
    * A value that is NaN or infinite is refused by name: missing is not a value; leave the stream out instead (`seen_K`).
    * Where a detector is arithmetic it serves K streams at once, each exactly as if it were alone (`FleetDetector`).
    * A detector takes successive values as independent. Sensor values are not, so feed it window statistics (a day's PSI,
      a day's accuracy), or count its alarms on the baseline before you believe them.

Here: Page-Hinkley and CUSUM, for changes of a mean. `ks_window` finds any change of a distribution; `adwin` keeps an adaptive window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

import numpy as np

from fedretrain.core.checks import finite, fraction, not_negative, positive, require
from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class Level(StrEnum):
    """What a detector says after a value."""

    STABLE = "stable"
    WARNING = "warning"
    DRIFT = "drift"


LEVELS = tuple(Level)  # the level of a number in `update_many`'s answer
_STABLE, _WARNING, _DRIFT = range(3)

StateT = TypeVar("StateT")


class DriftDetector(Protocol[StateT]):
    """One stream."""

    def init(self) -> StateT:
        """Nothing seen."""
        ...

    def update(self, state: StateT, value: float) -> tuple[StateT, Level]:
        """The next state, and what it says. Refuses NaN and infinity (`DataError`)."""
        ...


class FleetDetector(DriftDetector[StateT], Protocol[StateT]):
    """Many streams at once."""

    def init_many(self, num_streams: int) -> StateT:
        """Nothing seen on any stream."""
        ...

    def update_many(
        self, state: StateT, value_K: ArrayLike, seen_K: ArrayLike | None = None
    ) -> tuple[StateT, NDArray[np.int8]]:
        """The next state and the number in `LEVELS` of each stream's level.

        Args:
            state: Of K streams.
            value_K: ``[K]`` finite values.
            seen_K: ``[K]`` bool; a stream without a value now keeps its state and is stable, whatever its value says.
        """
        ...


@dataclass(frozen=True)
class StreamStates:
    """States of K streams; every field is an array with streams first."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def where(self, mask_K: NDArray[np.bool_], other: Self) -> Self:
        """This state's streams where the mask is true, the other's elsewhere."""
        chosen = {}
        for name in (field.name for field in fields(self)):
            mine = getattr(self, name)
            mask = mask_K.reshape(-1, *[1] * (mine.ndim - 1))
            chosen[name] = np.where(mask, mine, getattr(other, name))
        return replace(self, **chosen)


StatesT = TypeVar("StatesT", bound=StreamStates)


class Streams(ABC, Generic[StatesT]):
    """What the arithmetic detectors share: masks, restarts, and one stream as K = 1."""

    @abstractmethod
    def init_many(self, num_streams: int) -> StatesT:
        """Nothing seen on any stream."""

    @abstractmethod
    def _advance(self, state: StatesT, value_K: NDArray[np.float64]) -> tuple[StatesT, NDArray[np.int8]]:
        """The next state, before any restart, and the levels' numbers."""

    def init(self) -> StatesT:
        """Nothing seen."""
        return self.init_many(1)

    def update(self, state: StatesT, value: float) -> tuple[StatesT, Level]:
        """The next state, and what it says."""
        after, level_K = self.update_many(state, [value])
        return after, LEVELS[int(level_K[0])]

    def update_many(
        self, state: StatesT, value_K: ArrayLike, seen_K: ArrayLike | None = None
    ) -> tuple[StatesT, NDArray[np.int8]]:
        """The next state and the number in `LEVELS` of each stream's level (see `FleetDetector`)."""
        values = np.asarray(value_K, dtype=np.float64)
        if values.shape != (len(state),):
            raise DataError(f"{values.shape} values for {len(state)} streams", where="value_K")
        seen = np.ones(len(values), dtype=bool) if seen_K is None else np.asarray(seen_K, dtype=bool)
        refuse_missing(values[seen])
        after, level_K = self._advance(state, np.where(seen, values, 0.0))
        level_K = np.where(seen, level_K, _STABLE).astype(np.int8)
        after = after.where(seen, state)
        drifted = level_K == _DRIFT
        return (self._restarted(after).where(drifted, after) if drifted.any() else after), level_K

    def _restarted(self, state: StatesT) -> StatesT:
        """The state from which a stream goes on after a drift."""
        return self.init_many(len(state))


def levels_above(
    statistic_K: NDArray[np.float64], warning: float, drift: float, ready_K: NDArray[np.bool_]
) -> NDArray[np.int8]:
    """The levels' numbers of statistics *above* two thresholds."""
    return (ready_K * ((statistic_K > warning).astype(np.int8) + (statistic_K > drift))).astype(np.int8)


def refuse_missing(values: NDArray[np.float64]) -> None:
    """Raise a `DataError` unless every value is finite."""
    if not np.all(np.isfinite(values)):
        raise DataError(
            "a drift detector was given NaN or an infinite value",
            where="value",
            fix="leave missing values out; a share of missing values is a stream of its own",
        )


class Direction(StrEnum):
    """Which changes of the mean count."""

    BOTH = "both"
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True)
class PageHinkleyState(StreamStates):
    """Page and Hinkley's sums.

    Attributes:
        count_K: int64 values since the start.
        mean_K: Their mean.
        up_K: Discounted sum of deviations above the mean, less the tolerance.
        up_min_K: Its smallest value.
        down_K: Discounted sum of deviations, plus the tolerance.
        down_max_K: Its largest value.
    """

    count_K: NDArray[np.int64]
    mean_K: NDArray[np.float64]
    up_K: NDArray[np.float64]
    up_min_K: NDArray[np.float64]
    down_K: NDArray[np.float64]
    down_max_K: NDArray[np.float64]


@dataclass(frozen=True)
class PageHinkley(Streams[PageHinkleyState]):
    """The Page-Hinkley test: deviations from the running mean that add up in one direction.

    Source: Page 1954, Continuous inspection schemes, Biometrika 41, https://doi.org/10.1093/biomet/41.1-2.100; in the
    form with a forgetting factor of Gama et al. 2014, https://doi.org/10.1145/2523813

    Attributes:
        tolerance: A change of the mean that is allowed, in the values' unit.
        threshold: Sum beyond which there is drift, in the values' unit.
        forgetting: Factor on each sum per value, in (0, 1]; 1 forgets nothing.
        min_values: Values before anything is said.
        direction: Which changes count.
        warning_fraction: Part of the threshold from which there is a warning.
    """

    tolerance: float = 0.005
    threshold: float = 50.0
    forgetting: float = 0.9999
    min_values: int = 30
    direction: Direction = Direction.BOTH
    warning_fraction: float = 0.5

    def __post_init__(self) -> None:
        not_negative("page_hinkley.tolerance", self.tolerance)
        positive("page_hinkley.threshold", self.threshold)
        positive("page_hinkley.forgetting", self.forgetting)
        for name in ("forgetting", "warning_fraction"):
            fraction(f"page_hinkley.{name}", getattr(self, name))

    def init_many(self, num_streams: int) -> PageHinkleyState:
        """Nothing seen on any stream."""
        zero, far = np.zeros(num_streams), np.full(num_streams, np.inf)
        return PageHinkleyState(np.zeros(num_streams, dtype=np.int64), zero, zero, far, zero, -far)

    def _advance(
        self, state: PageHinkleyState, value_K: NDArray[np.float64]
    ) -> tuple[PageHinkleyState, NDArray[np.int8]]:
        count_K = state.count_K + 1
        mean_K = state.mean_K + (value_K - state.mean_K) / count_K
        up_K = self.forgetting * state.up_K + (value_K - mean_K) - self.tolerance
        down_K = self.forgetting * state.down_K + (value_K - mean_K) + self.tolerance
        after = PageHinkleyState(
            count_K,
            mean_K,
            up_K,
            np.minimum(state.up_min_K, up_K),
            down_K,
            np.maximum(state.down_max_K, down_K),
        )
        rise_K, fall_K = up_K - after.up_min_K, after.down_max_K - down_K
        chosen = {Direction.UP: rise_K, Direction.DOWN: fall_K, Direction.BOTH: np.maximum(rise_K, fall_K)}
        warning = self.warning_fraction * self.threshold
        return after, levels_above(
            chosen[self.direction], warning, self.threshold, count_K >= self.min_values
        )


@dataclass(frozen=True)
class CusumState(StreamStates):
    """Cumulative sums.

    Attributes:
        count_K: int64 values since the start.
        mean_K: What deviations are measured from.
        squares_K: Sum of squared deviations during the warm-up.
        high_K: Sum of standardised deviations upward.
        low_K: Downward.
    """

    count_K: NDArray[np.int64]
    mean_K: NDArray[np.float64]
    squares_K: NDArray[np.float64]
    high_K: NDArray[np.float64]
    low_K: NDArray[np.float64]


@dataclass(frozen=True)
class Cusum(Streams[CusumState]):
    """The two-sided cumulative sum control chart, on standardised values.

    With slack 0.5 and threshold 5 it expects a false alarm in 465 independent normal values of known mean and spread, and
    finds a step of one standard deviation in 10.4 (Montgomery 2009, Introduction to Statistical Quality Control, table
    9.3). A mean learnt from a short warm-up makes false alarms more frequent.

    Source: Page 1954, https://doi.org/10.1093/biomet/41.1-2.100

    Attributes:
        slack: Half the step that should be found, in standard deviations.
        threshold: Sum beyond which there is drift, in standard deviations.
        target: The mean, if it is known; else it is learnt in the warm-up.
        std: The standard deviation, known or learnt together with the mean.
        warm_up: Values to learn from.
        warning_fraction: Part of the threshold from which there is a warning.
    """

    slack: float = 0.5
    threshold: float = 5.0
    target: float | None = None
    std: float | None = None
    warm_up: int = 100
    warning_fraction: float = 0.6

    def __post_init__(self) -> None:
        not_negative("cusum.slack", self.slack)
        positive("cusum.threshold", self.threshold)
        fraction("cusum.warning_fraction", self.warning_fraction)
        known = (self.target is not None, self.std is not None)
        require(
            len(set(known)) == 1, "target and std go together", key="cusum.std", fix="give both or neither"
        )
        if self.std is not None and self.target is not None:
            positive("cusum.std", self.std)
            finite("cusum.target", self.target)
        require(self.warm_up >= 2, "a spread needs two values", key="cusum.warm_up")

    def init_many(self, num_streams: int) -> CusumState:
        """Nothing seen on any stream."""
        zero = np.zeros(num_streams)
        mean_K = zero if self.target is None else np.full(num_streams, self.target)
        return CusumState(np.zeros(num_streams, dtype=np.int64), mean_K, zero, zero, zero)

    def _advance(
        self, state: CusumState, value_K: NDArray[np.float64]
    ) -> tuple[CusumState, NDArray[np.int8]]:
        count_K = state.count_K + 1
        learning_K = (state.count_K < self.warm_up) & (self.target is None)
        gap_K = value_K - state.mean_K
        mean_K = np.where(learning_K, state.mean_K + gap_K / count_K, state.mean_K)
        squares_K = np.where(learning_K, state.squares_K + gap_K * (value_K - mean_K), state.squares_K)
        z_K = np.where(learning_K, 0.0, gap_K / self._spread(mean_K, squares_K))
        high_K = np.where(learning_K, 0.0, np.maximum(0.0, state.high_K + z_K - self.slack))
        low_K = np.where(learning_K, 0.0, np.maximum(0.0, state.low_K - z_K - self.slack))
        after = CusumState(count_K, mean_K, squares_K, high_K, low_K)
        warning = self.warning_fraction * self.threshold
        return after, levels_above(np.maximum(high_K, low_K), warning, self.threshold, ~learning_K)

    def _spread(self, mean_K: NDArray[np.float64], squares_K: NDArray[np.float64]) -> NDArray[np.float64]:
        """The standard deviation; never 0, so that a constant sensor that moves is found and rounding is not."""
        if self.std is not None:
            return np.full(len(mean_K), self.std)
        return np.maximum(np.sqrt(squares_K / (self.warm_up - 1)), 1e-9 * (1.0 + np.abs(mean_K)))
