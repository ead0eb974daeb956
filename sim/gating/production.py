"""A coordinator's campaign as contenders: its own settings in the simulator's words, and the champion that it is compared with.

Rules of this file:
    * Cohorts, rounds, clipping, noise, local training and the beginning are the campaign's own. Who is there, when labels come and how
      classes are mixed are the fitted fleet's (`conditions`). Rows are the server's pool, dealt to virtual devices.
    * The reference is the champion as it serves: in the same worlds, its personal state re-fitted by each device.
    * The candidate's weights are not scored here: the offline validation has scored them on the same pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.artifacts.weights import decode_params
from fedretrain.core.errors import DataError
from fedretrain.privacy.adaptive import total_noise_multiplier
from fedretrain.server.replay_order import read_order
from fedretrain.training.config import LossKind
from sim.fleet import FleetConfig, FleetKind
from sim.gating.gate import Contender
from sim.schema import (
    AggregationConfig,
    AggregatorKind,
    CampaignConfig,
    Config,
    ExecutorKind,
    PrivacyConfig,
    PrivacyKind,
    RunnerConfig,
    RunnerKind,
    ServerOptimizerConfig,
    ServerOptimizerKind,
)
from sim.sections import Cnn1dConfig, DatasetConfig, GruConfig, MlpConfig, ModelConfig, ModelKind

if TYPE_CHECKING:
    from pathlib import Path

    from fedretrain.server.campaign_rules import CampaignRules, PrivacyRule
    from fedretrain.server.replay_order import ReplayOrder
    from fedretrain.training.plan import TrainingPlan

_SECTIONS = {ModelKind.MLP: MlpConfig, ModelKind.CNN1D: Cnn1dConfig, ModelKind.GRU: GruConfig}


def load_campaign(path: Path) -> tuple[Contender, Contender]:
    """The campaign of a coordinator's file, and the champion beside it.

    Args:
        path: The file; those that it names lie in the same folder.

    Raises:
        DataError: If a file is missing or damaged.
        ConfigError: If the campaign cannot be simulated.
    """
    order = read_order(path)
    try:
        champion = decode_params((path.parent / order.champion).read_bytes())
        base = decode_params((path.parent / order.base).read_bytes())
    except OSError as error:
        raise DataError(
            f"its weights cannot be read: {error.strerror}", where=str(path), fix="keep its files together"
        ) from error
    config = config_of(order, path.parent)
    classifies = config.training.loss is LossKind.CROSS_ENTROPY
    start, seeds = {**champion, **base}, (order.seed,)  # what devices keep to themselves stays as it is
    return (
        Contender(order.campaign, config, classifies, seeds, epsilon=order.epsilon, start=start),
        Contender("champion", config, classifies, seeds, start=champion, held=True),
    )


def config_of(order: ReplayOrder, folder: Path) -> Config:
    """A campaign's settings in the simulator's words.

    Args:
        order: The campaign.
        folder: Of its files.

    Raises:
        ConfigError: If they cannot be simulated.
    """
    rules, plan = order.rules, order.plan
    options = {
        "file": str(folder / order.pool),
        "features": str(folder / order.features),
        "outputs": list(order.outputs),
    }
    return Config(
        name="gate",
        seed=order.seed,
        dataset=DatasetConfig(name="pool", options=options),
        fleet=FleetConfig(
            kind=FleetKind.VIRTUAL,
            num_devices=order.num_devices,
            num_sites=order.num_sites,
            num_types=order.num_types,
            keep_natural=False,
        ),
        model=_model(plan),
        training=plan.training,
        personalization=plan.method,
        campaign=_campaign(order),
        aggregation=_aggregation(rules),
        privacy=PrivacyConfig(clip_norm=rules.clip_norm)
        if rules.privacy is None
        else _privacy(rules.privacy, rules.sampling.cohort_size, order.devices_per_person),
        runner=RunnerConfig(kind=RunnerKind.LOCAL, executor=ExecutorKind(plan.executor)),
    )


def _model(plan: TrainingPlan) -> ModelConfig:
    kind = ModelKind(plan.model)
    options = {
        name: tuple(value) if isinstance(value, list) else value for name, value in plan.options.items()
    }
    return ModelConfig(kind, **{str(kind): _SECTIONS[kind](**options)})


def _campaign(order: ReplayOrder) -> CampaignConfig:
    sampling = order.rules.sampling
    return CampaignConfig(
        num_rounds=order.num_rounds,
        round_interval_s=order.interval_s,
        sampling=sampling.kind,
        cohort_size=sampling.cohort_size,
        over_selection=sampling.over_select,
        quorum_fraction=min(1.0, order.rules.quorum / sampling.cohort_size),
        deadline_s=order.rules.deadline_s,
        separation=sampling.separation,
        max_participations=sampling.max_participations,
    )


def _aggregation(rules: CampaignRules) -> AggregationConfig:
    step = rules.step
    return AggregationConfig(
        kind=AggregatorKind(step.aggregator),
        trim_fraction=step.trim_fraction,
        server=ServerOptimizerConfig(ServerOptimizerKind(step.optimizer), step.lr, step.momentum),
    )


def _privacy(rule: PrivacyRule, expected: float, devices_per_person: int) -> PrivacyConfig:
    return PrivacyConfig(
        kind=PrivacyKind.CENTRAL,
        clip_norm=rule.clip_norm,
        noise_multiplier=_total_noise(rule, expected),
        target_epsilon=rule.epsilon,
        delta=rule.delta,
        relation=rule.relation,
        unit=rule.unit,
        devices_per_person=devices_per_person,
        amplified=rule.amplified,
        adaptive_clip=bool(rule.adaptive_quantile),
        clip_quantile=rule.adaptive_quantile or 0.5,
        clip_lr=rule.adaptive_lr,
    )


def _total_noise(rule: PrivacyRule, expected: float) -> float:
    """The noise multiplier of update and clipping bit together, as the simulator's configuration has it; a definition gives the update's."""
    adaptive = rule.make("gate", "gate", expected).adaptive
    if adaptive is None:
        return rule.noise_multiplier
    return total_noise_multiplier(
        rule.noise_multiplier, adaptive.bit_noise_stddev, adaptive.quantile, rule.relation, rule.unit
    )
