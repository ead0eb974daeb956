"""What local training is told: frozen dataclasses, checked when they are made.

Rules of this file:
    * Enums, plain numbers, tuples and optional dataclasses only, so that OmegaConf can hold every type here.
    * An impossible value is a `ConfigError` that names the field. Sequences become tuples, so that a list from a
      configuration file is as good as a tuple.
    * Combinations that would falsify a privacy claim are a `PrivacyError` (DESIGN section 6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from fedretrain.core.errors import ConfigError, PrivacyError
from fedretrain.core.types import MethodKind


class OptimizerKind(StrEnum):
    """How a device turns gradients into steps."""

    SGD = "sgd"
    ADAM = "adam"


class LossKind(StrEnum):
    """What a device minimises."""

    CROSS_ENTROPY = "cross_entropy"
    MSE = "mse"
    HUBER = "huber"


class Upload(StrEnum):
    """How a client sends its update."""

    FULL = "full"  # float32
    INT8 = "int8"  # 8-bit codes by channel, with error feedback: `training.upload`


def _demand(holds: bool, what: str, where: str, fix: str = "") -> None:
    if not holds:
        raise ConfigError(what, where=where, fix=fix)


def _demand_at_least(value: float, low: float, where: str, *, above: bool = False) -> None:
    holds = math.isfinite(value) and (value > low if above else value >= low)
    _demand(
        holds, f"{value!r} is impossible: a finite number {'above' if above else 'of at least'} {low}", where
    )


@dataclass(frozen=True)
class OptimizerConfig:
    """A device's own optimizer; its state begins anew in every round.

    Attributes:
        kind: `sgd` or `adam`, each as torch.optim defines it.
        lr: Learning rate.
        momentum: SGD's momentum, 0 to below 1.
        nesterov: Nesterov's form of the momentum.
        weight_decay: L2 term added to the gradient.
        betas: Adam's two decay rates.
        eps: Adam's denominator term.
    """

    kind: OptimizerKind = OptimizerKind.SGD
    lr: float = 0.05
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", OptimizerKind(self.kind))
        object.__setattr__(self, "betas", tuple(self.betas))
        _demand_at_least(self.lr, 0.0, "optimizer.lr", above=True)
        _demand_at_least(self.weight_decay, 0.0, "optimizer.weight_decay")
        _demand_at_least(self.eps, 0.0, "optimizer.eps", above=True)
        _demand(0 <= self.momentum < 1, f"{self.momentum!r} is not in [0, 1)", "optimizer.momentum")
        _demand(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            f"{self.betas!r} are not two numbers in [0, 1)",
            "optimizer.betas",
        )
        _demand(
            not self.nesterov or self.momentum > 0,
            "nesterov needs a momentum above 0",
            "optimizer.nesterov",
            "set optimizer.momentum",
        )
        _demand(
            self.kind is OptimizerKind.SGD or self.momentum == 0,
            "adam takes no momentum",
            "optimizer.momentum",
            "set optimizer.betas instead, or optimizer.kind=sgd",
        )


@dataclass(frozen=True)
class ExampleDp:
    """Example-level DP on the device (DP-SGD, arXiv 1607.00133, https://arxiv.org/abs/1607.00133).

    Attributes:
        noise_multiplier: Noise standard deviation on the sum of clipped gradients, in clip norms. 0 turns the
            noise off and claims nothing.
        clip_norm: The most that one example's gradient may measure.
    """

    noise_multiplier: float = 1.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        _demand_at_least(self.noise_multiplier, 0.0, "example_dp.noise_multiplier")
        _demand_at_least(self.clip_norm, 0.0, "example_dp.clip_norm", above=True)


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains in one round.

    Attributes:
        batch_size: Samples of a batch; with `example_dp` the expected size of a Poisson batch.
        epochs: Passes over the client's samples. 0: exactly `max_steps` steps, whatever the number of samples.
        max_steps: The most steps of a phase; 0: no bound.
        optimizer: The device's optimizer.
        loss: What is minimised.
        huber_delta: Where Huber's loss turns from square to absolute.
        prox_mu: FedProx's term mu/2 |w - base|^2 over the shared parameters (arXiv 1812.06127); 0: none.
        grad_clip_norm: The most that a batch's gradient may measure; 0: no clipping.
        class_weights: A factor for each class's losses, or None.
        example_dp: Example-level DP, or None.
        upload: How the update is sent.
    """

    batch_size: int = 10
    epochs: int = 1
    max_steps: int = 0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossKind = LossKind.CROSS_ENTROPY
    huber_delta: float = 1.0
    prox_mu: float = 0.0
    grad_clip_norm: float = 0.0
    class_weights: tuple[float, ...] | None = None
    example_dp: ExampleDp | None = None
    upload: Upload = Upload.FULL

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", LossKind(self.loss))
        object.__setattr__(self, "upload", Upload(self.upload))
        if self.class_weights is not None:
            object.__setattr__(self, "class_weights", tuple(float(w) for w in self.class_weights))
        _demand_at_least(self.batch_size, 1, "training.batch_size")
        _demand_at_least(self.epochs, 0, "training.epochs")
        _demand_at_least(self.max_steps, 0, "training.max_steps")
        _demand_at_least(self.huber_delta, 0.0, "training.huber_delta", above=True)
        _demand_at_least(self.prox_mu, 0.0, "training.prox_mu")
        _demand_at_least(self.grad_clip_norm, 0.0, "training.grad_clip_norm")
        _demand(
            self.epochs > 0 or self.max_steps > 0,
            "epochs and max_steps are both 0, so nothing would be trained",
            "training.epochs",
            "set one of them",
        )
        self._check_class_weights()
        self._check_example_dp()

    @property
    def claims_examples(self) -> bool:
        """Whether an example-level claim is made: example-level DP is on, and so is its noise."""
        return self.example_dp is not None and self.example_dp.noise_multiplier > 0

    def _check_class_weights(self) -> None:
        if self.class_weights is None:
            return
        _demand(
            self.loss is LossKind.CROSS_ENTROPY,
            f"class weights have no meaning with the loss {self.loss}",
            "training.class_weights",
            "remove them, or set training.loss=cross_entropy",
        )
        _demand(len(self.class_weights) > 0, "no class weights given", "training.class_weights")
        for weight in self.class_weights:
            _demand_at_least(weight, 0.0, "training.class_weights", above=True)

    def _check_example_dp(self) -> None:
        if self.example_dp is None:
            return
        if self.class_weights is not None:
            raise PrivacyError(
                "example-level DP does not allow class weights: they are taken un-noised from the data",
                where="training.class_weights",
                fix="remove the class weights or example_dp",
            )
        if self.epochs != 0:
            raise PrivacyError(
                "with example-level DP the number of steps must not depend on a device's number of samples",
                where="training.epochs",
                fix="set training.epochs=0 and training.max_steps to the constant number of steps",
            )


@dataclass(frozen=True)
class MethodConfig:
    """Which parameters are personal, and how.

    Attributes:
        kind: The method.
        personal_patterns: Names of the personal parameters as fnmatch patterns (`fedper`, `fedrep`).
        personal_epochs: Passes of a personal phase and of a re-fit.
        personal_max_steps: The most steps of a personal phase; 0: as `LocalTraining.max_steps`.
        ditto_lambda: How strongly Ditto's personal model is tied to the global one.
        apfl_alpha: APFL's first mixing weight of the personal model, 0 to 1.
        apfl_alpha_lr: Learning rate of the mixing weight; 0: it stays as it is.
    """

    kind: MethodKind = MethodKind.FEDAVG
    personal_patterns: tuple[str, ...] = ("head.*",)
    personal_epochs: int = 1
    personal_max_steps: int = 0
    ditto_lambda: float = 0.1
    apfl_alpha: float = 0.5
    apfl_alpha_lr: float = 0.05

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", MethodKind(self.kind))
        object.__setattr__(self, "personal_patterns", tuple(self.personal_patterns))
        _demand_at_least(self.personal_epochs, 1, "personalization.personal_epochs")
        _demand_at_least(self.personal_max_steps, 0, "personalization.personal_max_steps")
        _demand_at_least(self.ditto_lambda, 0.0, "personalization.ditto_lambda")
        _demand_at_least(self.apfl_alpha_lr, 0.0, "personalization.apfl_alpha_lr")
        _demand(
            0 <= self.apfl_alpha <= 1, f"{self.apfl_alpha!r} is not in [0, 1]", "personalization.apfl_alpha"
        )
        _demand(
            self.kind not in {MethodKind.FEDPER, MethodKind.FEDREP} or bool(self.personal_patterns),
            f"{self.kind} needs the names of its personal parameters",
            "personalization.personal_patterns",
            "for example ['head.*']",
        )
