"""Re-fitting a personal linear head without torch: the same steps as `training`'s `fedper`, in plain numpy.

Rules of this file:
    * The features under the head are constants here: the agent's ONNX session computed them, once. What is trained is a softmax over
      ``features @ weight.T + bias``.
    * Same batches in the same order from the same seed as the torch reference (`training.data`), same order of a step: gradient,
      proximal term, gradient clipping, weight decay, optimizer. In float32; sums differ in the last bits only.
    * The proximal term pulls to the parameters of the start. (`fedper` pulls shared parameters alone, so in its re-fit the term is
      nothing: give 0 to equal it. `ditto`'s pulls its personal model to the global one: give its anchor.)
    * What needs more (another loss, example-level DP, deeper personal layers) is refused by name: it needs `[train]`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import UnsupportedModelError
from fedretrain.training import data
from fedretrain.training.config import LossKind, OptimizerKind
from fedretrain.training.keep import Verdict, verdict_of
from fedretrain.training.metrics import accuracy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.core.types import ClientData
    from fedretrain.training.config import LocalTraining, OptimizerConfig
    from fedretrain.training.keep import BlendConfig
    from fedretrain.training.phase import Phase

    Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Head:
    """A linear head.

    Attributes:
        weight: ``[C, H]`` float32.
        bias: ``[C]`` float32.
    """

    weight: Floats
    bias: Floats

    def logits(self, features: Floats) -> Floats:
        """``[N, C]`` of features ``[N, H]``."""
        return features @ self.weight.T + self.bias

    def packed(self) -> Floats:
        """``[Q]`` bias, then weight: the order of sorted names, as a `Layout` packs them."""
        return np.concatenate([self.bias, self.weight.reshape(-1)]).astype(np.float32, copy=False)

    @classmethod
    def unpack(cls, row: Floats, num_features: int) -> Head:
        """The head of a packed row ``[Q]``."""
        classes = len(row) // (num_features + 1)
        return cls(row[classes:].reshape(classes, num_features).copy(), row[:classes].copy())


@dataclass(frozen=True)
class Refit:
    """What became of a refresh.

    Attributes:
        head: What the device goes on with.
        verdict: Why.
        before: Held-out accuracy of what it served; NaN if not scored.
        after: Held-out accuracy of the re-fit; NaN if not scored.
    """

    head: Head
    verdict: Verdict
    before: float
    after: float


def check_supported(local: LocalTraining) -> None:
    """Whether a head can be re-fitted here as `local` says.

    Raises:
        UnsupportedModelError: If not; names what is missing.
    """
    what = ""
    if local.loss is not LossKind.CROSS_ENTROPY:
        what = f"the loss {local.loss.value}"
    elif local.example_dp is not None:
        what = "example-level DP"
    if what:
        raise UnsupportedModelError(
            f"the agent re-fits a head by cross entropy alone, not with {what}",
            where="training",
            fix="install fedretrain[train] on the device, or let it keep its head",
        )


def fit(
    head: Head, features: ClientData, local: LocalTraining, phase: Phase, seed: int, prox_mu: float = 0.0
) -> Head:
    """Train a head on a device's own labelled features.

    Args:
        head: The start.
        features: ``[N, H]`` float32 features under the head, and their classes.
        local: How clients train; its `prox_mu` is for shared parameters, and not used here.
        phase: How long; its name is part of the randomness (``"personal"`` in a re-fit).
        seed: 0 to 2**64 - 1, as `ClientWork.seed`.
        prox_mu: How strongly the head is pulled to the start.

    Raises:
        UnsupportedModelError: If training is set up in a way that needs torch.
    """
    check_supported(local)
    plan = data.plan(
        local, phase, np.array([len(features)], dtype=np.int64), np.array([seed], dtype=np.uint64)
    )
    start, num_features = head.packed(), head.weight.shape[1]
    row = start.copy()
    optimizer = _Optimizer(local.optimizer, row)
    weights = None if local.class_weights is None else np.asarray(local.class_weights, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # a head that runs away is a verdict, not a warning
        for index in range(int(plan.steps[0])):
            chosen = plan.index_KSB[0, index]
            chosen = chosen[chosen >= 0]
            now = Head.unpack(row, num_features)
            grad = _gradient(now, features.x[chosen], features.y[chosen], weights)
            if prox_mu:
                grad += np.float32(prox_mu) * (row - start)
            if local.grad_clip_norm > 0:
                norm = math.sqrt(float(np.vdot(grad, grad)))
                grad *= np.float32(local.grad_clip_norm / max(norm, local.grad_clip_norm))
            optimizer.step(row, grad, index)
    return Head.unpack(row, num_features)


def refresh(
    head: Head, features: ClientData, local: LocalTraining, phase: Phase, seed: int, config: BlendConfig
) -> Refit:
    """Re-fit on the older examples, and keep the result only if the score on the newest does not fall.

    Args:
        head: What the device serves with.
        features: All its labelled features, in the order of time.
        local: How clients train.
        phase: How long.
        seed: Of the batches.
        config: What is held out, and how much the score may fall.
    """
    split = config.split(features)
    if split is None:
        return Refit(head, Verdict.TOO_FEW, math.nan, math.nan)
    older, newest = split
    fitted = fit(head, older, local, phase, seed)
    before, after = (accuracy(one.logits(newest.x), newest.y) for one in (head, fitted))
    verdict = verdict_of(fitted.packed(), before, after, config.tolerance)
    return Refit(fitted if verdict is Verdict.KEPT else head, verdict, before, after)


def _gradient(head: Head, x: Floats, y: NDArray[Any], weights: Floats | None) -> Floats:
    """Of the mean cross entropy of a batch, packed as the head."""
    error = head.logits(x)
    error -= error.max(axis=1, keepdims=True)
    np.exp(error, out=error)
    error /= error.sum(axis=1, keepdims=True)
    error[np.arange(len(y)), y] -= np.float32(1)
    if weights is not None:
        error *= weights[y][:, None]
    error /= np.float32(len(y))
    return Head(error.T @ x, error.sum(axis=0)).packed()


class _Optimizer:
    """SGD or Adam in place on a packed row, as `training.optim`."""

    def __init__(self, config: OptimizerConfig, row: Floats) -> None:
        self._config = config
        self._mean, self._square = np.zeros_like(row), np.zeros_like(row)

    def step(self, row: Floats, grad: Floats, index: int) -> None:
        """One step of `row`; the gradient is changed too."""
        config = self._config
        if config.weight_decay:
            grad += np.float32(config.weight_decay) * row
        if config.kind is OptimizerKind.ADAM:
            self._adam(row, grad, index)
            return
        if config.momentum > 0:
            self._mean *= np.float32(config.momentum)
            self._mean += grad
            grad = grad + np.float32(config.momentum) * self._mean if config.nesterov else self._mean
        row -= np.float32(config.lr) * grad

    def _adam(self, row: Floats, grad: Floats, index: int) -> None:
        config, (beta1, beta2) = self._config, self._config.betas
        self._mean += np.float32(1 - beta1) * (grad - self._mean)
        self._square *= np.float32(beta2)
        self._square += np.float32(1 - beta2) * grad * grad
        root = np.sqrt(self._square) / np.float32(math.sqrt(1 - beta2 ** (index + 1)))
        row -= (
            np.float32(config.lr / (1 - beta1 ** (index + 1))) * self._mean / (root + np.float32(config.eps))
        )
