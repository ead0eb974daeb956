"""From a configuration to the coordinator's rules: what is solved, and what is refused before anything trains."""

from __future__ import annotations

import pytest

from fedretrain.aggregation.aggregator import ExampleWeightedMean, FixedDenominatorMean
from fedretrain.aggregation.robust import CoordinateMedian, TrimmedMean
from fedretrain.aggregation.server_optimizer import SGD, Adam, Yogi
from fedretrain.coordinator.sampling import FixedSize, MinSeparation, Poisson
from fedretrain.core.errors import ConfigError, PrivacyError
from fedretrain.privacy.calibrate import Schedule
from fedretrain.privacy.event import Sampling
from fedretrain.privacy.mechanism import Relation
from sim.rules import campaign_rules
from tests.run_cases import quick

POISSON = (
    "privacy=central",
    "campaign.sampling=poisson",
    "privacy.amplified=true",
    "privacy.relation=add_remove",
)


def rules_of(*words, num_devices=1000, num_params=50):
    return campaign_rules(quick(*words), num_devices=num_devices, num_params=num_params)


def test_without_privacy_there_is_no_clip_no_noise_and_no_budget():
    rules = rules_of()
    assert rules.rounds.dp is None
    assert (rules.clip_norm, rules.budget, rules.delta, rules.advice) == (None, None, 0.0, None)
    assert rules.sampler == FixedSize(6, 1.0)
    assert rules.rounds.aggregator == FixedDenominatorMean(6.0)
    assert rules.rounds.server_optimizer == SGD()
    assert rules.rounds.quorum == 3


def test_the_sampler_is_the_one_asked_for():
    assert rules_of("campaign.sampling=poisson").sampler == Poisson(6 / 1000)
    asked = rules_of(
        "campaign.sampling=min_separation",
        "campaign.separation=4",
        "campaign.max_participations=7",
        "campaign.over_selection=1.5",
    ).sampler
    assert asked == MinSeparation(6, 4, 7, 1.5)


def test_the_aggregator_and_the_server_optimizer_are_those_asked_for():
    assert isinstance(rules_of("aggregation=example_weighted").rounds.aggregator, ExampleWeightedMean)
    assert isinstance(rules_of("aggregation=median").rounds.aggregator, CoordinateMedian)
    trimmed = rules_of("aggregation=trimmed_mean", "aggregation.trim_fraction=0.2").rounds.aggregator
    assert isinstance(trimmed, TrimmedMean)
    assert trimmed.trim_fraction == 0.2
    server = rules_of(
        "aggregation.server.kind=sgd", "aggregation.server.momentum=0.9", "aggregation.server.lr=0.5"
    )
    assert server.rounds.server_optimizer == SGD(lr=0.5, momentum=0.9)
    assert isinstance(rules_of("aggregation.server.kind=adam").rounds.server_optimizer, Adam)
    assert isinstance(rules_of("aggregation.server.kind=yogi").rounds.server_optimizer, Yogi)


@pytest.mark.parametrize(
    ("words", "schedule"),
    [
        ([], Schedule(20, 20)),
        (
            ["campaign.sampling=min_separation", "campaign.separation=4"],
            Schedule(20, 5, sampling=Sampling.MIN_SEPARATION),
        ),
        (
            ["campaign.sampling=min_separation", "campaign.separation=4", "campaign.max_participations=2"],
            Schedule(20, 2, sampling=Sampling.MIN_SEPARATION),
        ),
        (
            [*POISSON],
            Schedule(
                20,
                20,
                relation=Relation.ADD_REMOVE,
                sampling=Sampling.POISSON,
                sampling_fraction=6 / 1000,
                amplified=True,
            ),
        ),
    ],
    ids=["fixed", "separation", "participations", "poisson"],
)
@pytest.mark.parametrize("target", [2.0, 8.0])
def test_the_noise_keeps_the_target_for_what_the_sampler_enforces(words, schedule, target):
    rules = rules_of("privacy=central", *words, f"privacy.target_epsilon={target}", "campaign.num_rounds=20")
    spent = schedule.epsilon(rules.rounds.dp.noise_multiplier, rules.delta)
    assert 0.97 * target < spent <= target
    assert rules.budget.epsilon == target
    assert rules.delta == 1e-5


def test_fewer_participations_need_less_noise():
    def noise(most):
        rules = rules_of(
            "privacy=central",
            "campaign.sampling=min_separation",
            f"campaign.max_participations={most}",
            "campaign.num_rounds=16",
        )
        return rules.rounds.dp.noise_multiplier

    assert noise(1) < noise(4) < noise(16)


def test_the_clipping_bit_is_paid_for_out_of_the_same_budget():
    plain = rules_of("privacy=central").rounds.dp
    adaptive = rules_of("privacy=central", "privacy.adaptive_clip=true").rounds.dp
    assert adaptive.adaptive is not None
    assert adaptive.noise_multiplier > plain.noise_multiplier


def test_delta_is_below_one_over_the_number_of_units():
    assert rules_of("privacy=central", num_devices=24).delta == 1e-5
    assert rules_of("privacy=central", num_devices=1_000_000).delta == pytest.approx(1e-7)


def test_a_person_with_two_devices_is_one_unit():
    rules = rules_of("privacy=central", "privacy.unit=person", "privacy.devices_per_person=2")
    assert rules.rounds.dp.unit_of.max() == 499
    assert rules.budget.num_units == 500
    alone = rules_of("privacy=central")
    assert rules.rounds.dp.noise_multiplier >= alone.rounds.dp.noise_multiplier


def test_poisson_amplification_waits_for_everybody():
    assert rules_of(*POISSON).rounds.quorum == 0
    assert rules_of("privacy=central").rounds.quorum == 3


def test_a_fleet_too_small_is_told_so_and_not_refused():
    small = rules_of("privacy=central", "privacy.target_epsilon=1", num_params=5000)
    assert not small.advice.enough
    assert "devices" in small.advice.text
    large = rules_of("privacy=central", "campaign.cohort_size=20000", num_devices=1_000_000)
    assert large.advice.enough


def test_a_budget_that_the_first_round_breaks_is_refused():
    with pytest.raises(
        PrivacyError, match=r"one round with this noise costs epsilon .* above the target of 8"
    ):
        rules_of("privacy=central", "privacy.noise_multiplier=0.1")
    kept = rules_of("privacy=central", "privacy.noise_multiplier=3").rounds.dp
    assert kept.noise_multiplier == 3


def test_a_budget_that_leaves_nothing_is_refused_without_a_warning(recwarn):
    with pytest.raises(PrivacyError, match=r"leaves nothing of any update \[privacy.target_epsilon\]"):
        rules_of("privacy=central", "privacy.target_epsilon=1e-7")
    assert not recwarn.list


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        (["campaign.cohort_size=1001"], ConfigError, r"1001 .* out of 1000 devices .*campaign.cohort_size"),
        (["campaign.cohort_size=700", "campaign.over_selection=1.5"], ConfigError, "a cohort of 1050"),
        (["privacy=central", "aggregation=example_weighted"], PrivacyError, "example_weighted"),
        (["privacy=central", "aggregation=median"], PrivacyError, "median"),
        (["privacy=central", "aggregation=trimmed_mean"], PrivacyError, "trimmed_mean"),
        (["privacy=central", "privacy.delta=0.001"], PrivacyError, r"delta is 0.001, not in \(0, 1/1000\)"),
        ([*POISSON, "campaign.over_selection=1.5"], ConfigError, "quorum"),
        (["privacy=central", "privacy.amplified=true"], PrivacyError, "amplification claimed for fixed_size"),
        (["aggregation.kind=custom"], ConfigError, "import path"),
        (["aggregation.kind=custom", "aggregation.path=nowhere:Mean"], ConfigError, "nowhere"),
        (["aggregation.kind=custom", "aggregation.path=builtins:dict"], ConfigError, "without"),
        (["aggregation.server.momentum=1.5"], ConfigError, "momentum"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(words, error, match):
    with pytest.raises(error, match=match) as refused:
        rules_of(*words)
    assert "\n" not in str(refused.value)
