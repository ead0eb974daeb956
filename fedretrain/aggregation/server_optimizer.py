"""Server optimizers: what the coordinator does with the aggregated update (FedOpt, arXiv 2003.00295).

Rules of this file:
    * Pure functions on packed vectors: state and update in, state and step out; new parameters are parameters plus step.
    * An update is already a descent direction (local minus base), so steps *add*.
    * State is a dictionary of float64 arrays ``[P]``, ready for a checkpoint.
    * As in the paper, Adam and Yogi use no bias correction: `tau` sets how adaptive they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fedretrain.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Vector = NDArray[np.float64]
    OptimizerState = Mapping[str, NDArray[np.float64]]


class ServerOptimizer(Protocol):
    """A frozen dataclass of hyperparameters."""

    def init(self, size: int) -> OptimizerState:
        """The state before the first round, for updates of `size` elements."""
        ...

    def apply(
        self, state: OptimizerState, update: NDArray[np.floating[Any]]
    ) -> tuple[OptimizerState, Vector]:
        """The new state and the step to add to the parameters, ``[P]`` float64. Changes no argument."""
        ...


@dataclass(frozen=True)
class SGD:
    """Step = lr * velocity, velocity = momentum * velocity + update. lr 1 and momentum 0 is FedAvg.

    Attributes:
        lr: Learning rate.
        momentum: FedAvgM's momentum, from 0 to below 1.
    """

    lr: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        _check_positive(lr=self.lr)
        _check_fractions(momentum=self.momentum)

    def init(self, size: int) -> OptimizerState:
        """Velocity zero; no state at all without momentum."""
        return {"velocity": np.zeros(size)} if self.momentum else {}

    def apply(
        self, state: OptimizerState, update: NDArray[np.floating[Any]]
    ) -> tuple[OptimizerState, Vector]:
        """One step."""
        velocity = update.astype(np.float64)
        if not self.momentum:
            return {}, self.lr * velocity
        velocity = self.momentum * state["velocity"] + velocity
        return {"velocity": velocity}, self.lr * velocity


@dataclass(frozen=True)
class Adam:
    """FedAdam.

    Attributes:
        lr: Learning rate.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        tau: Added to the root of the second moment: the paper's degree of adaptivity.
    """

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check_positive(lr=self.lr, tau=self.tau)
        _check_fractions(beta1=self.beta1, beta2=self.beta2)

    def init(self, size: int) -> OptimizerState:
        """First moment zero, second moment tau squared (the paper's start)."""
        return {"first": np.zeros(size), "second": np.full(size, self.tau**2)}

    def apply(
        self, state: OptimizerState, update: NDArray[np.floating[Any]]
    ) -> tuple[OptimizerState, Vector]:
        """One step."""
        wide = update.astype(np.float64)
        first = self.beta1 * state["first"] + (1.0 - self.beta1) * wide
        second = self._second(state["second"], np.square(wide))
        return {"first": first, "second": second}, self.lr * first / (np.sqrt(second) + self.tau)

    def _second(self, second: Vector, square: Vector) -> Vector:
        """The next second moment."""
        return self.beta2 * second + (1.0 - self.beta2) * square


@dataclass(frozen=True)
class Yogi(Adam):
    """FedYogi: the second moment moves by a fixed fraction of the squared update, so it falls slowly."""

    def _second(self, second: Vector, square: Vector) -> Vector:
        """The next second moment; it stays positive, since it moves toward `square` and never past zero."""
        moved: Vector = second - (1.0 - self.beta2) * square * np.sign(second - square)
        return moved


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise ConfigError(f"{name} is {value}", where=f"aggregation.{name}", fix="give a positive number")


def _check_fractions(**values: float) -> None:
    for name, value in values.items():
        if not 0.0 <= value < 1.0:
            raise ConfigError(
                f"{name} is {value}", where=f"aggregation.{name}", fix="give a number from 0 to below 1"
            )
