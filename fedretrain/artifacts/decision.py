"""From a model's outputs to a decision: calibration, decision rule, confidence and entropy.

Rules of this file:
    * Everything is numpy and row by row; the simulated fleet and the device decide with these functions.
    * A decision is the largest score, so whoever compares scores compares decisions (sanity vectors do).
    * An output that is not finite gives no decision: label -1, confidence 0, entropy 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import DataError
from fedretrain.core.types import Objective

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOT_FINITE = -1
"""The label of outputs that are not finite."""


@dataclass(frozen=True)
class Calibration:
    """What a model's outputs are turned into before anything is decided: ``outputs * scale + offsets``.

    For classes this is temperature scaling (scale 1 / T) or vector scaling; for a value it mends slope and bias.
    Source: Guo et al. 2017, On calibration of modern neural networks, https://arxiv.org/abs/1706.04599, section 4.2.

    Attributes:
        scale: Above 0, so that it changes no order.
        offsets: One for each output; empty for none.
    """

    scale: float = 1.0
    offsets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", float(self.scale))
        object.__setattr__(self, "offsets", tuple(float(offset) + 0.0 for offset in self.offsets))
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise DataError(f"{self.scale} is not above 0", where="calibration.scale")
        if not all(math.isfinite(offset) for offset in self.offsets):
            raise DataError("an offset is not finite", where="calibration.offsets")

    def apply(self, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Calibrated outputs ``[N, M]``; the very same ones where there is nothing to do."""
        if self.scale != 1.0:
            outputs = outputs * np.float32(self.scale)
        if self.offsets:
            outputs = outputs + np.asarray(self.offsets, dtype=np.float32)
        return outputs


@dataclass(frozen=True)
class Decision:
    """How class probabilities become a class: the largest of probability times weight.

    Attributes:
        weights: One for each class, above 0 (a missed fault may cost more than a false one); empty: all alike.
    """

    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(float(weight) for weight in self.weights))
        if not all(math.isfinite(weight) and weight > 0 for weight in self.weights):
            raise DataError("a class weight is not a number above 0", where="decision.weights")

    @classmethod
    def threshold(cls, value: float) -> Decision:
        """Of two classes the second one where its probability is above `value`.

        Raises:
            DataError: If the value is not between 0 and 1.
        """
        if not 0 < value < 1:
            raise DataError(f"{value} is not between 0 and 1", where="decision.threshold")
        return cls((value, 1.0 - value))

    def scores(
        self, outputs: NDArray[np.float32], objective: Objective = Objective.CLASSIFICATION
    ) -> NDArray[np.float32]:
        """``[N, M]`` what the decision is the largest of; of a regression its values ``[N, 1]``.

        Args:
            outputs: Calibrated.
            objective: Classes or a value.
        """
        return outputs if objective is Objective.REGRESSION else self.weighted(class_probabilities(outputs))

    def weighted(self, share: NDArray[np.float32]) -> NDArray[np.float32]:
        """Class probabilities ``[N, M]`` times weights."""
        return share * np.asarray(self.weights, dtype=np.float32) if self.weights else share


@dataclass(frozen=True, eq=False)
class Answers:
    """What a device answers to N rows.

    Attributes:
        label: ``[N]`` int64 class indices, `NOT_FINITE` where there is none; float32 values for a regression.
        confidence: ``[N]`` float32 probability of the decided class; NaN for a regression.
        entropy: ``[N]`` float32 of the class probabilities, over log M; NaN for a regression.
    """

    label: NDArray[Any]
    confidence: NDArray[np.float32]
    entropy: NDArray[np.float32]


def class_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Class probabilities ``[N, M]`` of logits; NaN where an output is not finite."""
    finite = np.isfinite(logits).all(axis=1, keepdims=True)
    safe = np.where(finite, logits, 0.0)
    share = np.exp(safe - safe.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    return np.where(finite, share, np.nan).astype(np.float32)


def decide(
    logits: NDArray[np.float32],
    decision: Decision | None = None,
    objective: Objective = Objective.CLASSIFICATION,
) -> Answers:
    """What calibrated outputs say.

    Args:
        logits: ``[N, M]`` for M classes, ``[N, 1]`` for a value.
        decision: None: the most probable class.
        objective: Classes or a value.
    """
    if objective is Objective.REGRESSION:
        unknown = np.full(len(logits), np.nan, dtype=np.float32)
        return Answers(logits[:, 0].astype(np.float32), unknown, unknown)
    share = class_probabilities(logits)
    finite = np.isfinite(share).all(axis=1)
    label = (decision or Decision()).weighted(share).argmax(axis=1)
    confidence = share[np.arange(len(share)), label]
    entropy = -(share * np.log(np.maximum(share, 1e-12))).sum(axis=1) / np.log(max(share.shape[1], 2))
    return Answers(
        np.where(finite, label, NOT_FINITE),
        np.where(finite, confidence, 0.0).astype(np.float32),
        np.where(finite, entropy, 1.0).astype(np.float32),
    )
