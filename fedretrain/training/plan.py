"""How the devices of a campaign train, as plain data: one description for the server and for every device.

Rules of this file:
    * A plan names models of this package alone: a message from a server never names code to import.
    * The same plan gives the same first parameters and the same training on every device.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fedretrain.core.build import build, plain
from fedretrain.core.errors import ConfigError
from fedretrain.training.config import LocalTraining, MethodConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedretrain.core.params import Params
    from fedretrain.training.executor import Executor
    from fedretrain.training.models import ModelBundle
    from fedretrain.training.task import LocalTask


class ModelName(StrEnum):
    """The models of `training.models`."""

    MLP = "mlp"
    CNN1D = "cnn1d"
    GRU = "gru"


@dataclass(frozen=True)
class TrainingPlan:
    """What a device trains, and how.

    Attributes:
        model: Which model.
        input_shape: Of one sample.
        num_outputs: Classes, or 1 for a value.
        model_seed: Of the model's first parameters, personal ones among them.
        options: The model's hyperparameters.
        method: Which parameters are personal, and how.
        training: Local training.
        executor: `each` or `batched`.
    """

    model: ModelName
    input_shape: tuple[int, ...]
    num_outputs: int
    model_seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    method: MethodConfig = field(default_factory=MethodConfig)
    training: LocalTraining = field(default_factory=LocalTraining)
    executor: str = "each"

    def to_text(self) -> str:
        """As canonical JSON."""
        return json.dumps(plain(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> TrainingPlan:
        """The plan of `to_text`.

        Raises:
            ConfigError: If it is none.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"no readable training plan: {error}", where="plan") from error
        return build(cls, values, where="plan")

    def make(self, start: Params | None = None, *, secret: bool = False) -> Trainer:
        """Everything that trains by this plan.

        Args:
            start: Parameters to begin with instead of fresh ones, those of every name given.
            secret: On a device: the noise and coins of example-level DP are the system's entropy.

        Raises:
            ConfigError: If its parts do not fit each other.
        """
        return Trainer(self, start, secret=secret)


class Trainer:
    """The model, method and executor of a plan, each made when it is first asked for.

    Args:
        plan: Which.
        start: See `TrainingPlan.make`.
        secret: Likewise.
    """

    def __init__(self, plan: TrainingPlan, start: Params | None = None, *, secret: bool = False) -> None:
        self.plan, self._start, self._secret = plan, start, secret

    @cached_property
    def model(self) -> ModelBundle:
        """The model with its first parameters."""
        from fedretrain.training import models

        factories: dict[ModelName, Callable[..., ModelBundle]] = {
            ModelName.MLP: models.mlp,
            ModelName.CNN1D: models.cnn1d,
            ModelName.GRU: models.gru,
        }
        plan = self.plan
        try:
            made = factories[plan.model](plan.input_shape, plan.num_outputs, plan.model_seed, **plan.options)
        except TypeError as error:
            raise ConfigError(
                f"the model {plan.model} does not take these options: {error}", where="plan.options"
            ) from error
        return made if self._start is None else made.starting(self._start)

    @cached_property
    def task(self) -> LocalTask:
        """The personalization method."""
        from fedretrain.training.methods.make import make_task

        return make_task(self.plan.method, self.plan.training, self.model)

    @cached_property
    def executor(self) -> Executor:
        """What trains."""
        from fedretrain.training.executor import executor_for

        plan = self.plan
        return executor_for(plan.executor, self.task, self.model, plan.training, secret=self._secret)

    def first_shared(self) -> Params:
        """The shared parameters of a model that nobody has trained."""
        first = self.model.first_params()
        return {name: first[name] for name in self.task.shared.names}
