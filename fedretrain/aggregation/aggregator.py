"""Aggregators: how the updates of a cohort become one. A monoid over blocks of updates `[K, P]`.

Rules of this file:
    * `merge` is associative and commutative with `init` as its zero, so workers and the coordinator each hold one state and
      the order in which blocks and shards arrive does not matter.
    * An update is ``factor_K[k] * delta_KP[k]``: the reducer says by how much to shrink a row (the clip) and the
      aggregator never clips by itself.
    * The denominator of `FixedDenominatorMean` is a public constant from before the round. Dividing by the number that
      answered would raise the sensitivity while the noise stays (a peer's defect: at 3 replies of 10 its noise
      multiplier of 1.0 is worth 0.29).
    * With differential privacy only `FixedDenominatorMean` is sound: `require_private` refuses the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from fedretrain.aggregation.fixed_point import FixedPointSum
from fedretrain.core.errors import ConfigError, PrivacyError

if TYPE_CHECKING:
    from numpy.typing import NDArray

S = TypeVar("S")


@dataclass(frozen=True)
class Updates:
    """A block of updates as the reducer hands it on: finite, one per client, in the cohort.

    Attributes:
        delta_KP: ``[K, P]`` float32, before the factor.
        factor_K: ``[K]`` float64 what each row is to be multiplied with: min(1, clip norm / norm), or 1.
        norm_K: ``[K]`` float64 Euclidean norms before the factor.
        num_examples: ``[K]`` int64, at least 1.
    """

    delta_KP: NDArray[np.float32]
    factor_K: NDArray[np.float64]
    norm_K: NDArray[np.float64]
    num_examples: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.factor_K)

    def scaled(self) -> NDArray[np.float64]:
        """The updates themselves, ``[K, P]``: a copy, for aggregators that need single rows."""
        return self.delta_KP * self.factor_K[:, None]


class Aggregator(Protocol[S]):
    """Combines client updates. A frozen dataclass of hyperparameters; the state is a picklable value."""

    @property
    def max_cohort(self) -> int | None:
        """The most clients that one round may have, or None for any number."""
        ...

    def init(self, size: int, clip_norm: float | None) -> S:
        """The empty state for updates of `size` elements, each at most `clip_norm` long (None: not clipped)."""
        ...

    def accumulate(self, state: S, updates: Updates) -> S:
        """The state with a block added. May reuse the memory of `state`, never that of `updates`."""
        ...

    def merge(self, a: S, b: S) -> S:
        """The state of both; changes neither."""
        ...

    def release(self, state: S) -> NDArray[np.float64]:
        """The aggregated update, ``[P]``. Called with at least one update accumulated."""
        ...


@dataclass(frozen=True)
class FixedDenominatorMean:
    """The sum of the updates over a public constant: the only mean whose noise can be computed beforehand.

    Attributes:
        n: The expected cohort: the size asked for, or q times the population under Poisson sampling.
    """

    n: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.n) and self.n > 0):
            raise ConfigError(
                f"the denominator is {self.n}", where="aggregation.n", fix="give the expected cohort"
            )

    @property
    def max_cohort(self) -> int | None:
        """Any number."""
        return None

    def init(self, size: int, clip_norm: float | None) -> FixedPointSum:
        """The empty sum."""
        return FixedPointSum.zero(size, clip_norm)

    def accumulate(self, state: FixedPointSum, updates: Updates) -> FixedPointSum:
        """The sum with a block added, in place."""
        return state.add(updates.delta_KP, updates.factor_K, updates.norm_K)

    def merge(self, a: FixedPointSum, b: FixedPointSum) -> FixedPointSum:
        """The sum of both."""
        return a + b

    def release(self, state: FixedPointSum) -> NDArray[np.float64]:
        """The sum over n; n does not depend on who answered."""
        return state.value() / self.n

    def release_noised(self, state: FixedPointSum, noise_P: NDArray[np.int64]) -> NDArray[np.float64]:
        """(sum + noise) / n.

        Args:
            state: The sum.
            noise_P: ``[P]`` int64 noise of the *sum*, in its lattice steps: integers are added to integers, so that the
                support of the release does not depend on the data.
        """
        if noise_P.shape != state.total.shape or noise_P.dtype != np.int64:
            raise ValueError(
                f"noise of shape {noise_P.shape}, {noise_P.dtype} for {state.total.shape}, int64"
            )
        return replace(state, total=state.total + noise_P).value() / self.n


@dataclass(frozen=True)
class ExampleWeightedMean:
    """The mean weighted by numbers of examples (FedAvg, arXiv 1602.05629). Not for differential privacy.

    Attributes:
        max_examples: A client's weight is at most this, whatever it claims.
    """

    max_examples: int = 100_000

    def __post_init__(self) -> None:
        if self.max_examples < 1:
            raise ConfigError(
                f"the cap on examples is {self.max_examples}",
                where="aggregation.max_examples",
                fix="give at least 1",
            )

    @property
    def max_cohort(self) -> int | None:
        """Any number."""
        return None

    def init(self, size: int, clip_norm: float | None) -> FixedPointSum:
        """The empty sum."""
        return FixedPointSum.zero(size, clip_norm, weighted=True)

    def accumulate(self, state: FixedPointSum, updates: Updates) -> FixedPointSum:
        """The weighted sum with a block added, in place."""
        weight_K = np.minimum(updates.num_examples, self.max_examples)
        return state.add(updates.delta_KP, updates.factor_K, updates.norm_K, weight_K)

    def merge(self, a: FixedPointSum, b: FixedPointSum) -> FixedPointSum:
        """The sum of both."""
        return a + b

    def release(self, state: FixedPointSum) -> NDArray[np.float64]:
        """The weighted sum over the weights of those who answered."""
        return state.value() / max(state.weight, 1)


def require_private(aggregator: Aggregator[Any]) -> FixedDenominatorMean:
    """The aggregator, if its noise can be accounted for.

    Raises:
        PrivacyError: If it is anything but the mean over a fixed denominator, with the reason.
    """
    if type(aggregator) is FixedDenominatorMean:  # not a subclass: it could weigh as it likes
        return aggregator
    name = type(aggregator).__name__
    why = (
        "one client's weight is not bounded by the clip norm, and the sum of weights is itself private"
        if isinstance(aggregator, ExampleWeightedMean)
        else "how far one client can move its result is not bounded by the clip norm"
    )
    raise PrivacyError(
        f"{name} cannot be used with differential privacy: {why}",
        where="aggregation",
        fix="use the fixed-denominator mean, or switch privacy off",
    )
