"""From a configuration to the coordinator's rules of a campaign: sampling, aggregation, privacy.

Rules of this file:
    * Everything that a claim of privacy rests on is checked here, before anything has trained.
    * The noise multiplier is solved for the participations that the sampler *enforces*.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.aggregation.aggregator import ExampleWeightedMean, FixedDenominatorMean
from fedretrain.aggregation.robust import CoordinateMedian, TrimmedMean
from fedretrain.aggregation.server_optimizer import SGD, Adam, Yogi
from fedretrain.coordinator.charging import CentralDp
from fedretrain.coordinator.persons import OnePerPerson
from fedretrain.coordinator.round import RoundRules
from fedretrain.coordinator.sampling import FixedSize, MinSeparation, Poisson
from fedretrain.core.errors import ConfigError, PrivacyError
from fedretrain.privacy.adaptive import AdaptiveClip, delta_noise_multiplier
from fedretrain.privacy.advice import advise
from fedretrain.privacy.budget import Budget, check_promise
from fedretrain.privacy.calibrate import Schedule, participations_at_most, solve_noise_multiplier
from fedretrain.privacy.claims import check_claims
from fedretrain.privacy.event import Sampling
from fedretrain.privacy.mechanism import Relation, SeededNoise, Unit, lattice_gaussian, noise_stddev
from sim.plugins import load
from sim.schema import AggregatorKind, PrivacyKind, ServerOptimizerKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.aggregation.aggregator import Aggregator
    from fedretrain.aggregation.server_optimizer import ServerOptimizer
    from fedretrain.coordinator.sampling import Sampler
    from fedretrain.privacy.advice import Advice
    from sim.schema import Config, ServerOptimizerConfig


@dataclass(frozen=True)
class CampaignRules:
    """What the coordinator goes by.

    Attributes:
        sampler: Draws cohorts.
        rounds: How a round is run.
        clip_norm: C of the first round; None: no clipping.
        budget: The promise; None: no limit.
        delta: Of every epsilon printed; 0 without DP.
        advice: Whether the fleet is large enough; None without DP.
    """

    sampler: Sampler
    rounds: RoundRules
    clip_norm: float | None
    budget: Budget | None = None
    delta: float = 0.0
    advice: Advice | None = None


def campaign_rules(config: Config, *, num_devices: int, num_params: int) -> CampaignRules:
    """The rules of a campaign.

    Args:
        config: The arm's configuration.
        num_devices: The fleet.
        num_params: P, shared parameters.

    Raises:
        ConfigError: If the cohort does not fit the fleet.
        PrivacyError: If the claim would be false or the budget is impossible.
    """
    sampler = _sampler(config, num_devices)
    expected = sampler.expected(num_devices)
    aggregator = _aggregator(config, expected)
    optimizer = _server_optimizer(config.aggregation.server)
    quorum = max(1, int(np.ceil(config.campaign.quorum_fraction * expected)))
    deadline_s = config.campaign.deadline_s
    if config.privacy.kind is PrivacyKind.NONE:
        rules = RoundRules(aggregator, optimizer, quorum, deadline_s)
        return CampaignRules(sampler, rules, config.privacy.clip_norm or None)
    return _private_rules(config, sampler, aggregator, optimizer, quorum, num_devices, num_params)


def _private_rules(
    config: Config,
    sampler: Sampler,
    aggregator: Aggregator[Any],
    optimizer: ServerOptimizer,
    quorum: int,
    num_devices: int,
    num_params: int,
) -> CampaignRules:
    privacy, campaign = config.privacy, config.campaign
    check_claims(
        relation=privacy.relation,
        unit=privacy.unit,
        sampling=campaign.sampling,
        amplified=privacy.amplified,
        aggregator=config.aggregation.kind,
        weights="examples" if config.aggregation.kind is AggregatorKind.EXAMPLE_WEIGHTED else "uniform",
        stop_at_quorum=campaign.over_selection > 1,
    )
    num_units = _num_units(config, num_devices)
    delta = privacy.delta or min(1e-5, 0.1 / num_units)
    check_promise(privacy.target_epsilon or 1.0, delta, num_units)
    dp = _central_dp(config, num_devices, delta, sampler.expected(num_devices))
    _check_noise(dp, aggregator)
    budget = Budget(privacy.target_epsilon, delta, num_units) if privacy.target_epsilon else None
    advice = advise(
        num_params=num_params,
        noise_multiplier=dp.noise_multiplier,
        cohort=sampler.expected(num_devices),
        fleet=num_devices,
        num_rounds=campaign.num_rounds,
    )
    rules = RoundRules(
        aggregator,
        optimizer,
        0 if privacy.relation is Relation.ADD_REMOVE else quorum,
        campaign.deadline_s,
        dp,
    )
    return CampaignRules(sampler, rules, privacy.clip_norm, budget, delta, advice)


def _central_dp(config: Config, num_devices: int, delta: float, expected: float) -> CentralDp:
    """The mechanism, its noise solved for the target where none is given."""
    privacy = config.privacy
    adaptive = _adaptive(config, expected)
    total = _noise_multiplier(config, num_devices, delta)
    return CentralDp(
        noise_multiplier=_share(config, total, adaptive),
        clip_norm=privacy.clip_norm,
        population=config.name,
        campaign=config.name,
        relation=privacy.relation,
        unit=privacy.unit,
        amplified=privacy.amplified,
        adaptive=adaptive,
        unit_of=person_of(config, num_devices),
    )


def _noise_multiplier(config: Config, num_devices: int, delta: float) -> float:
    """The noise on the whole release (update and clipping bit together), given or solved for the target.

    Raises:
        PrivacyError: If no noise keeps the target, or the one given breaks it in the first round.
    """
    privacy, schedule = config.privacy, _schedule(config, num_devices)
    given, target = privacy.noise_multiplier, privacy.target_epsilon
    if not given:
        with np.errstate(divide="ignore"):  # dp-accounting meets log(0) where epsilon is next to nothing
            return solve_noise_multiplier(target, delta, schedule)
    if (
        target
        and (once := replace(schedule, num_rounds=1, max_participations=1).epsilon(given, delta)) > target
    ):
        raise PrivacyError(
            f"one round with this noise costs epsilon {once:.3g}, above the target of {target:g}",
            where="privacy.noise_multiplier",
            fix="leave it out (0): it is then solved for the target",
        )
    return given


def _check_noise(dp: CentralDp, aggregator: Aggregator[Any]) -> None:
    """Refuse noise that drowns the sum to its last digit: 64-bit fixed point cannot carry it."""
    try:
        step = aggregator.init(1, dp.clip_norm).step
        lattice_gaussian(SeededNoise(0), 1, noise_stddev(dp.clip_norm, dp.noise_multiplier), step)
    except PrivacyError as error:
        raise PrivacyError(
            f"a noise multiplier of {dp.noise_multiplier:.3g} leaves nothing of any update",
            where="privacy.target_epsilon",
            fix="ask for a larger epsilon, fewer rounds or fewer participations",
        ) from error


def _schedule(config: Config, num_devices: int) -> Schedule:
    """What the sampler enforces, whatever happens."""
    privacy, campaign = config.privacy, config.campaign
    most = campaign.num_rounds
    if campaign.sampling is Sampling.MIN_SEPARATION:
        most = participations_at_most(campaign.num_rounds, campaign.separation)
        most = min(most, campaign.max_participations or most)
    return Schedule(
        num_rounds=campaign.num_rounds,
        max_participations=most,
        relation=privacy.relation,
        unit=privacy.unit,
        sampling=campaign.sampling,
        sampling_fraction=campaign.cohort_size / _num_units(config, num_devices)
        if campaign.sampling is Sampling.POISSON
        else 0.0,
        amplified=privacy.amplified,
    )


def _num_units(config: Config, num_devices: int) -> int:
    """Whom the campaign's sampler draws: devices, or persons where they are the unit."""
    person_is_unit = config.privacy.kind is PrivacyKind.CENTRAL and config.privacy.unit is Unit.PERSON
    return -(-num_devices // config.privacy.devices_per_person) if person_is_unit else num_devices


def person_of(config: Config, num_devices: int) -> NDArray[np.int64] | None:
    """``[N]`` the person of each device, neighbours being one person's; None where a device is the unit."""
    if config.privacy.kind is PrivacyKind.NONE or config.privacy.unit is not Unit.PERSON:
        return None
    return np.arange(num_devices, dtype=np.int64) // config.privacy.devices_per_person


def _adaptive(config: Config, expected: float) -> AdaptiveClip | None:
    """Adaptive clipping with the bit's noise that the paper advises: a twentieth of the cohort."""
    privacy = config.privacy
    if not privacy.adaptive_clip:
        return None
    return AdaptiveClip(
        privacy.clip_norm,
        max(expected / 20, 1.0),
        quantile=privacy.clip_quantile,
        learning_rate=privacy.clip_lr,
    )


def _share(config: Config, total: float, adaptive: AdaptiveClip | None) -> float:
    """The update's noise multiplier, so that update and bit together cost what `total` says."""
    if adaptive is None:
        return total
    privacy = config.privacy
    return delta_noise_multiplier(
        total, adaptive.bit_noise_stddev, adaptive.quantile, privacy.relation, privacy.unit
    )


def _sampler(config: Config, num_devices: int) -> Sampler:
    """Draws devices; or persons, where they are the unit, and one device of each."""
    persons = person_of(config, num_devices)
    who = "devices" if persons is None else "persons"
    drawn = _unit_sampler(config, _num_units(config, num_devices), who)
    return drawn if persons is None else OnePerPerson(drawn, persons)


def _unit_sampler(config: Config, num_units: int, who: str) -> Sampler:
    campaign = config.campaign
    wanted = int(np.ceil(campaign.cohort_size * campaign.over_selection))
    if wanted > num_units:
        raise ConfigError(
            f"a cohort of {wanted} (with over-selection) out of {num_units} {who}",
            where="campaign.cohort_size",
            fix="ask fewer, or make the fleet larger",
        )
    if campaign.sampling is Sampling.POISSON:
        return Poisson(campaign.cohort_size / num_units)
    if campaign.sampling is Sampling.FIXED_SIZE:
        return FixedSize(campaign.cohort_size, campaign.over_selection)
    return MinSeparation(
        campaign.cohort_size,
        campaign.separation,
        campaign.max_participations or 2**31 - 1,
        campaign.over_selection,
    )


def _aggregator(config: Config, expected: float) -> Aggregator[Any]:
    wanted = config.aggregation
    if wanted.kind is AggregatorKind.MEAN:
        return FixedDenominatorMean(expected)
    if wanted.kind is AggregatorKind.EXAMPLE_WEIGHTED:
        return ExampleWeightedMean()
    most = max(256, int(np.ceil(config.campaign.cohort_size * config.campaign.over_selection)))
    if wanted.kind is AggregatorKind.MEDIAN:
        return CoordinateMedian(max_clients=most)
    if wanted.kind is AggregatorKind.TRIMMED_MEAN:
        return TrimmedMean(max_clients=most, trim_fraction=wanted.trim_fraction)
    made: Aggregator[Any] = load(
        wanted.path,
        wanted.options,
        needs=("max_cohort", "init", "accumulate", "merge", "release"),
        key="aggregation.path",
    )
    return made


def _server_optimizer(wanted: ServerOptimizerConfig) -> ServerOptimizer:
    lr = {"lr": wanted.lr} if wanted.lr else {}
    if wanted.kind is ServerOptimizerKind.SGD:
        return SGD(momentum=wanted.momentum, **lr)
    return Adam(**lr) if wanted.kind is ServerOptimizerKind.ADAM else Yogi(**lr)
