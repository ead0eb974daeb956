"""Losses by sample, alike for one client and for K stacked ones.

Rules of this file:
    * `per_sample` reads the last axis (outputs) and keeps all others, so leading client axes are free.
    * Padding has weight 0 and adds nothing to a mean; a batch of padding alone has the mean 0, not NaN.
    * A class weight multiplies its samples' losses and the mean still divides by the number of samples: an
      example's share does not depend on its batch (torch's weighted mean cancels the weights of a one-class batch).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedretrain.core.errors import ConfigError, DataError, PrivacyError
from fedretrain.training.config import LocalTraining, LossKind

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """A loss with its hyperparameters.

    Attributes:
        kind: Which loss.
        huber_delta: Where Huber's loss turns from square to absolute.
        class_weights: A factor for each class's losses, or None.
    """

    kind: LossKind
    huber_delta: float = 1.0
    class_weights: tuple[float, ...] | None = None

    @classmethod
    def of(cls, local: LocalTraining) -> Loss:
        """The loss that a client's training asks for."""
        return cls(local.loss, local.huber_delta, local.class_weights)

    def per_sample(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The loss of each sample.

        Args:
            outputs: ``[*lead, B, C]`` logits, or ``[*lead, B, 1]`` values.
            y: ``[*lead, B]`` int64 classes, or float32 targets.

        Returns:
            ``[*lead, B]``.
        """
        if self.kind is LossKind.CROSS_ENTROPY:
            picked = torch.log_softmax(outputs, dim=-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)
            return -picked if self.class_weights is None else -picked * self.weights_of(y, outputs)
        error = outputs.squeeze(-1) - y
        if self.kind is LossKind.MSE:
            return error.square()
        size = error.abs()
        near = size.clamp(max=self.huber_delta)  # equals torch's huber_loss, without a branch
        return near * (size - 0.5 * near)

    def weights_of(self, y: Tensor, outputs: Tensor) -> Tensor:
        """The class weight of each sample, in the shape of `y`."""
        weights = outputs.new_tensor(self.class_weights)
        if len(weights) != outputs.shape[-1]:
            raise ConfigError(
                f"{len(weights)} class weights were given for {outputs.shape[-1]} classes",
                where="training.class_weights",
            )
        return weights[y]


def masked_mean(losses: Tensor, weight: Tensor) -> Tensor:
    """The mean over the samples that are not padding: ``[*lead, B] -> [*lead]``."""
    return (losses * weight).sum(-1) / weight.sum(-1).clamp(min=1.0)


def balanced_class_weights(
    labels: NDArray[np.int64], num_classes: int, *, private: bool = False
) -> tuple[float, ...]:
    """Weights inverse to the classes' frequencies, with mean 1 over the samples.

    Args:
        labels: ``[N]`` class indices that the weights are taken from.
        num_classes: C.
        private: True where a DP claim is made: weights taken un-noised from data are then refused.

    Raises:
        PrivacyError: If `private`.
        DataError: If there are no labels.
    """
    if private:
        raise PrivacyError(
            "class weights taken from the data are not covered by the privacy claim",
            where="training.class_weights",
            fix="give fixed weights from public knowledge, or turn DP off",
        )
    if len(labels) == 0:
        raise DataError("class weights need at least one label", where="training.class_weights")
    counts = np.bincount(labels, minlength=num_classes).astype(np.float64)
    present = counts > 0
    weights = np.ones(num_classes)  # a class never seen has no loss to weigh
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return tuple(float(w) for w in weights)
