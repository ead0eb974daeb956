"""What example-level DP charges devices for in a campaign: all that they sent, used or not."""

import numpy as np
import pytest

from fedretrain.core.errors import ConfigError
from fedretrain.privacy.example import ExampleDp
from sim.campaign import Campaign
from sim.example_privacy import DELTA, example_epsilons, nothing_sent, worst_epsilon
from sim.local_runner import LocalRunner
from tests.run_cases import quick, quick_arm, quick_run

PRIVATE = (
    "training.example_dp={noise_multiplier: 1.0, clip_norm: 1.0}",
    "training.epochs=0",
    "training.max_steps=3",
    "campaign.num_rounds=2",
)


def sent_by(*words):
    campaign = Campaign("one", quick_arm(*PRIVATE, *words))
    campaign.run(LocalRunner(campaign.arm, campaign.progress.store), lambda _: None)
    return campaign


def test_everybody_who_replied_is_charged_for_each_round():
    campaign = sent_by()
    sent, contributed = campaign.progress.sent, campaign.progress.contributed
    rounds = np.zeros_like(contributed)
    np.add.at(rounds, sent[:, 0], sent[:, 2].astype(np.int32))
    np.testing.assert_array_equal(rounds, contributed)
    assert rounds.sum() == sum(record.replied for record in campaign.progress.records) > 0


@pytest.mark.parametrize(
    "words", [("campaign.deadline_s=1e-6",), ("campaign.deadline_s=1e-6", "privacy=central")]
)
def test_what_came_too_late_was_sent_all_the_same(words):
    late = sent_by(*words)
    assert late.progress.contributed.sum() == 0
    assert late.progress.sent[:, 2].sum() == sent_by().progress.sent[:, 2].sum()


def test_epsilon_is_that_of_what_was_sent():
    arm = quick_arm(*PRIVATE)
    sent = np.array([[1, 40, 2], [1, 80, 1], [4, 60, 5]])
    found = example_epsilons(arm, np.array([0, 1, 4]), sent)
    dp = ExampleDp(1.0, 1.0, arm.config.training.batch_size, DELTA)
    sizes, steps = np.array([40, 80, 60]), 3 * np.array([2, 1, 5])
    np.testing.assert_allclose(found[1:], dp.epsilons(sizes, steps, devices=np.array([0, 0, 1])))
    assert found[0] == 0
    assert worst_epsilon(arm, sent) == found.max() > found.min()
    assert worst_epsilon(arm, nothing_sent()) == 0.0


def test_the_worst_epsilon_is_over_whoever_sent_not_over_whoever_is_scored(tmp_path):
    """Device 0, the only one that is scored, is in neither cohort and spends nothing; others do."""
    one, all_ = (
        quick_run(tmp_path / str(n), *PRIVATE, "seed=1", f"campaign.score_devices={n}") for n in (1, 24)
    )
    worst = one.summary.arms[0].example_epsilon
    assert worst == all_.summary.arms[0].example_epsilon
    assert [(d.device, d.example_epsilon) for d in one.devices] == [(0, 0.0)]
    assert max(d.example_epsilon for d in all_.devices) == worst > 0


def test_nothing_is_kept_or_reported_without_a_claim():
    campaign = sent_by("training.example_dp={noise_multiplier: 0.0, clip_norm: 1.0}")
    assert len(campaign.progress.sent) == len(nothing_sent()) == 0
    assert example_epsilons(campaign.arm, np.arange(3), campaign.progress.sent) is None
    assert worst_epsilon(campaign.arm, campaign.progress.sent) is None


@pytest.mark.parametrize(
    ("unit", "missing"), [("person", "how many devices"), ("recording", "how many there are")]
)
def test_a_unit_that_nobody_counted_is_refused(unit, missing):
    with pytest.raises(ConfigError, match=missing):
        quick("privacy=central", f"privacy.unit={unit}")
    quick("privacy=central", f"privacy.unit={unit}", "privacy.devices_per_person=2", "privacy.delta=1e-6")
