"""One arm with one seed, put together: the world, the model, the method and the executor that runs it.

Rules of this file:
    * The same configuration and seed give the same arm in any process: a worker builds its own from a `Config`.
    * World and model depend on the seed and on their own sections alone, so arms of one seed differ in nothing but
      what their overrides say, and share one world per process (`Arms`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain.core.errors import ConfigError, PrivacyError
from fedretrain.core.rng import seed_for
from fedretrain.training import models
from fedretrain.training.config import LossKind, Upload
from fedretrain.training.executor import executor_for
from fedretrain.training.losses import balanced_class_weights
from fedretrain.training.methods.make import make_task
from sim.datasets.base import Timeline
from sim.fleet import FleetKind
from sim.rules import campaign_rules
from sim.schema import PrivacyKind
from sim.sections import ModelKind
from sim.world import WorldConfig, build_world

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedretrain.core.params import Params
    from fedretrain.training.config import LocalTraining
    from fedretrain.training.executor import Executor
    from fedretrain.training.models import ModelBundle
    from fedretrain.training.task import LocalTask
    from sim.datasets.base import SensorDataset
    from sim.rules import CampaignRules
    from sim.schema import Config
    from sim.world import World


_INSTANT_S = 1e-6


@dataclass(frozen=True)
class Setting:
    """What the arms of one seed have in common.

    Attributes:
        dataset: The data; None for a generated fleet.
        world: The fleet and what surrounds it.
    """

    dataset: SensorDataset | None
    world: World


@dataclass(frozen=True)
class Arm:
    """Everything that one arm with one seed computes with.

    Attributes:
        config: The arm's resolved configuration.
        seed: The repetition's seed.
        setting: Data and world.
        start: Parameters to begin with instead of the model's own first ones, those of every name given.
    """

    config: Config
    seed: int
    setting: Setting
    start: Params | None = field(default=None, kw_only=True)

    @property
    def world(self) -> World:
        """The fleet and what surrounds it."""
        return self.setting.world

    @cached_property
    def model(self) -> ModelBundle:
        """The model with its first parameters."""
        made = self._fresh_model()
        return made if self.start is None else made.starting(self.start)

    def _fresh_model(self) -> ModelBundle:
        fleet, wanted = self.world.fleet, self.config.model
        seed = seed_for(self.seed, -1, 0, "model")
        shape, outputs = fleet.input_shape, fleet.num_outputs
        if wanted.kind is ModelKind.CUSTOM:
            return models.from_path(wanted.custom.path, shape, outputs, seed, **wanted.custom.options)
        factories: dict[ModelKind, Callable[..., ModelBundle]] = {
            ModelKind.MLP: models.mlp,
            ModelKind.CNN1D: models.cnn1d,
            ModelKind.GRU: models.gru,
        }
        section = getattr(wanted, wanted.kind)
        options = {one.name: getattr(section, one.name) for one in fields(section)}
        return factories[wanted.kind](shape, outputs, seed, **options)

    @cached_property
    def task(self) -> LocalTask:
        """The personalization method."""
        loss, objective = self.config.training.loss, self.world.fleet.objective
        if (loss is LossKind.CROSS_ENTROPY) != (objective == "classification"):
            raise ConfigError(
                f"the loss {loss} does not fit a {objective}",
                where="training.loss",
                fix="use cross_entropy for classes, mse or huber for values",
            )
        weights, classes = self.training.class_weights, self.world.fleet.num_outputs
        if weights is not None and len(weights) != classes:
            raise ConfigError(
                f"{len(weights)} class weights were given for {classes} classes",
                where="training.class_weights",
                fix="give one for each class, in the order of their names",
            )
        return make_task(self.config.personalization, self.training, self.model)

    @cached_property
    def training(self) -> LocalTraining:
        """Local training; balanced class weights are those of all devices' training rows, so not with a DP claim."""
        wanted, dataset = self.config.training, self.setting.dataset
        if not self.config.dataset.balance_classes:
            return wanted
        if dataset is None or dataset.objective != "classification":
            raise ConfigError("there are no classes to balance", where="dataset.balance_classes")
        private = self.config.privacy.kind is not PrivacyKind.NONE or wanted.example_dp is not None
        labels = dataset.y[~dataset.future]
        weights = balanced_class_weights(labels, dataset.num_outputs, private=private)
        return replace(wanted, class_weights=weights)

    @property
    def state_size(self) -> int:
        """What a device keeps from one training to the next: its personal state, and what quantising its update left over."""
        residual = self.task.shared.size if self.training.upload is Upload.INT8 else 0
        return self.task.personal.size + residual

    @cached_property
    def executor(self) -> Executor:
        """What trains clients."""
        return executor_for(self.config.runner.executor, self.task, self.model, self.training)

    @cached_property
    def rules(self) -> CampaignRules:
        """What the coordinator goes by; raises whatever is wrong with the privacy claim."""
        self._check_package()
        return campaign_rules(
            self.config, num_devices=self.world.fleet.num_devices, num_params=self.task.shared.size
        )

    def _check_package(self) -> None:
        """Refuse what would ride in the model package without noise (DESIGN section 6, three channels).

        Raises:
            PrivacyError: If scalers or targets rest on un-noised data of the devices that a claim protects.
        """
        pipeline, dataset = self.world.fleet.pipeline, self.setting.dataset
        by_example = self.config.training.example_dp is not None
        if self.config.privacy.kind is PrivacyKind.NONE and not by_example:
            return
        if dataset is None or not dataset.server_held:
            pipeline.require_private()
        if dataset is not None and dataset.target_pooled:
            raise PrivacyError(
                "the targets are scaled by the mean and spread of all devices' labels",
                where="table.target_scale",
                fix="give a number that does not come from the data",
            )
        if by_example and pipeline.has_local:
            raise PrivacyError(
                "a device's own scaler carries every example into the inputs of all others",
                where="training.example_dp",
                fix="use a pipeline without a local scaler (watch: dataset.options.pipeline=fixed)",
            )

    def first_shared(self) -> Params:
        """The global model before the first round: the shared parameters alone."""
        first = self.model.first_params()
        return {name: first[name] for name in self.task.shared.names}


class Arms:
    """Builds arms in one process; arms that differ in training alone share their data and world."""

    def __init__(self) -> None:
        self._settings: dict[str, Setting] = {}
        self._arms: dict[str, Arm] = {}

    def get(self, config: Config, seed: int) -> Arm:
        """The arm of a configuration and seed, built at the first call."""
        key = f"{seed}|{config!r}"
        if key not in self._arms:
            self._arms[key] = Arm(config, seed, self._setting(config, seed))
        return self._arms[key]

    def _setting(self, config: Config, seed: int) -> Setting:
        c, when = config, timeline(config)
        world = WorldConfig(c.fleet, c.drift, c.availability, c.network, c.labels)
        key = repr((world, c.dataset, c.table, c.data_dir, when, seed))
        if key not in self._settings:
            generated = c.fleet.kind is FleetKind.GENERATED
            dataset = None if generated else load_dataset(c, when, seed)
            built = build_world(
                world, seed=seed, dataset=dataset, timeline=when, cache_bytes=c.runner.cache_bytes
            )
            self._settings = {key: Setting(dataset, built)}  # one at a time: seeds come one after the other
            self._arms = {}
        return self._settings[key]


def timeline(config: Config) -> Timeline:
    """When the campaign is, in virtual time; a lifetime begins where the history ends, and has no campaign before it."""
    if config.lifetime.duration_s:
        return Timeline(config.dataset.history_s, _INSTANT_S, config.lifetime.duration_s, live_fraction=0.0)
    return Timeline(
        history_s=config.dataset.history_s,
        campaign_s=config.campaign.num_rounds * config.campaign.round_interval_s,
        future_s=config.dataset.future_s,
        live_fraction=config.dataset.live_fraction,
    )


def load_dataset(config: Config, when: Timeline, seed: int) -> SensorDataset:
    """The configured data set.

    Raises:
        ConfigError: If there is no such data set, or its loader refuses its options.
        DataError: If its files are absent or damaged.
    """
    from sim.datasets.registry import load

    data = config.dataset
    options = dict(data.options)
    if data.name == "table":
        options["spec"] = config.table
    folder = Path(config.data_dir) if config.data_dir else None
    return load(data.name, folder, timeline=when, split=data.split, seed=seed, **options)
