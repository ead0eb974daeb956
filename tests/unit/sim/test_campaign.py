"""The rounds of an arm on the virtual clock."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.coordinator.reduce import Reducer
from fedretrain.core import params
from fedretrain.core.ids import ClientId
from fedretrain.core.types import ClientFailure, FailureKind
from sim.campaign import Campaign, first_devices
from sim.local_runner import LocalRunner
from sim.results import Outcome
from tests.run_cases import quick_arm


class BrokenRunner(LocalRunner):
    """A local runner whose evaluation fails at one round: Ctrl-C, or a defect."""

    def __init__(self, arm, store, fails_at):
        super().__init__(arm, store)
        self.fails_at = fails_at

    def evaluate(self, shared, devices, *, round_, at):
        if round_ == self.fails_at:
            raise KeyboardInterrupt
        return super().evaluate(shared, devices, round_=round_, at=at)


class DeafRunner(LocalRunner):
    """Nobody replies in the named rounds."""

    def __init__(self, arm, store, deaf):
        super().__init__(arm, store)
        self.deaf = deaf

    def run(self, spec, cohort):
        if spec.round not in self.deaf:
            yield from super().run(spec, cohort)
            return
        reducer = Reducer(spec, cohort)
        reducer.fail(ClientFailure(ClientId(d), FailureKind.LOST) for d in cohort.tolist())
        yield reducer.result()


def campaign_of(*words):
    return Campaign("one", quick_arm(*words))


def run(campaign, runner=None):
    told = []
    campaign.run(runner or LocalRunner(campaign.arm, campaign.progress.store), told.append)
    return told


def test_every_round_is_told_once_and_at_its_instant():
    campaign = campaign_of("campaign.num_rounds=4", "campaign.round_interval_s=1800")
    told = run(campaign)
    assert told == campaign.progress.records
    assert [record.round for record in told] == [0, 1, 2, 3]
    assert [record.at for record in told] == [0.0, 1800.0, 3600.0, 5400.0]
    assert all(record.outcome is Outcome.COMMITTED and record.cohort == 6 for record in told)
    assert all(record.replied + sum(record.failures.values()) == record.cohort for record in told)
    assert all(record.epsilon is None and record.clip_norm is None for record in told)


def test_the_evaluation_comes_when_due_and_after_the_last_round():
    told = run(campaign_of("campaign.num_rounds=5", "campaign.evaluate_every=2"))
    assert [record.global_score is not None for record in told] == [False, True, False, True, True]


def test_bytes_are_those_of_the_shared_parameters():
    campaign = campaign_of("campaign.num_rounds=1")
    (record,) = run(campaign)
    payload = 4 * campaign.arm.task.shared.size
    assert record.bytes_down == payload * 6
    assert record.bytes_up == payload * 6


def test_personal_layers_are_not_on_the_wire():
    whole = campaign_of("campaign.num_rounds=1")
    headless = campaign_of("campaign.num_rounds=1", "personalization=fedper")
    (sent,), (less,) = run(whole), run(headless)
    assert less.bytes_up == sent.bytes_up - 4 * 6 * headless.arm.task.personal.size
    assert less.personalized_score is not None
    assert sent.personalized_score is None


def test_a_round_below_quorum_changes_nothing_and_charges_nothing():
    campaign = campaign_of("privacy=central", "campaign.num_rounds=3", "personalization=fedper")
    first = campaign.progress.state.tree
    runner = DeafRunner(campaign.arm, campaign.progress.store, {0})
    campaign._round(runner, 0)
    assert campaign.progress.records[0].outcome is Outcome.ABANDONED
    assert campaign.progress.records[0].failures == {"lost": 6}
    assert params.digest(campaign.progress.state.tree) == params.digest(first)
    assert campaign.progress.events == []
    assert not campaign.progress.contributed.any()
    told = run(campaign, runner)
    assert [record.outcome for record in told] == [Outcome.COMMITTED] * 2
    assert len(campaign.progress.events) == 2
    assert campaign.progress.contributed.sum() == sum(record.replied for record in told)


def test_the_budget_ends_the_campaign_and_is_never_exceeded():
    # Noise for two participations of a device, and rounds in which everybody takes part.
    words = ["privacy=central", "fleet.num_devices=6", "privacy.target_epsilon=6"]
    noise = campaign_of(*words, "campaign.num_rounds=2").rules.rounds.dp.noise_multiplier
    campaign = campaign_of(*words, "campaign.num_rounds=9", f"privacy.noise_multiplier={noise}")
    told = run(campaign)
    assert [record.outcome for record in told] == [Outcome.COMMITTED] * 2 + [Outcome.STOPPED]
    assert told[-1].global_score is not None, "the last round is always evaluated"
    assert campaign.progress.over
    assert len(campaign.progress.events) == 2
    assert campaign.epsilon() == max(record.epsilon for record in told)
    assert 5 < campaign.epsilon() <= 6
    assert run(campaign) == [], "a campaign that is over stays over"


def test_epsilon_grows_with_the_rounds_and_keeps_its_target():
    told = run(campaign_of("privacy=central", "fleet.num_devices=6"))
    spent = [record.epsilon for record in told]
    assert spent == sorted(spent)
    assert 7 < spent[-1] <= 8


def test_a_round_interrupted_in_its_evaluation_never_was():
    words = ["personalization=apfl", "privacy=central", "campaign.num_rounds=4"]
    whole, broken = campaign_of(*words), campaign_of(*words)
    run(whole)
    store = broken.progress.store
    with pytest.raises(KeyboardInterrupt):
        run(broken, BrokenRunner(broken.arm, store, 3))
    assert broken.progress.next_round == 3
    assert len(broken.progress.records) == len(broken.progress.events) == 3
    resumed = Campaign("one", broken.arm, broken.progress)
    run(resumed)
    assert params.digest(resumed.progress.state.tree) == params.digest(whole.progress.state.tree)
    theirs, ours = whole.progress.store.to_arrays(), resumed.progress.store.to_arrays()
    np.testing.assert_array_equal(ours["rows"], theirs["rows"])
    np.testing.assert_array_equal(resumed.progress.contributed, whole.progress.contributed)


def test_cold_devices_are_those_whose_update_was_never_used():
    campaign = campaign_of("campaign.num_rounds=2")
    run(campaign)
    scores = campaign.finish(LocalRunner(campaign.arm, campaign.progress.store))
    assert [score.device for score in scores] == list(range(24))
    for score in scores:
        assert score.num_rounds == campaign.progress.contributed[score.device]
        assert score.cold_start == (score.num_rounds == 0)
        assert 0 <= score.global_score <= 1
    assert 0 < sum(score.cold_start for score in scores) < 24


def test_a_sample_of_devices_is_scored_if_asked():
    campaign = campaign_of("campaign.num_rounds=1", "campaign.score_devices=5")
    run(campaign)
    assert len(campaign.finish(LocalRunner(campaign.arm, campaign.progress.store))) == 5
    np.testing.assert_array_equal(first_devices(4, 0), np.arange(4))
    np.testing.assert_array_equal(first_devices(4, 9), np.arange(4))


def test_drift_and_late_labels_are_told():
    (record, *_) = run(campaign_of("drift=mixed", "labels=late", "campaign.num_rounds=2"))
    assert 0 <= record.drift_fraction <= 1
    assert 0 < record.labels_fraction < 1


def test_the_noise_of_two_seeds_differs_and_one_seed_repeats():
    def digest(seed):
        campaign = Campaign("one", quick_arm("privacy=central", "campaign.num_rounds=2", seed=seed))
        run(campaign)
        return params.digest(campaign.progress.state.tree)

    assert digest(0) == digest(0)
    assert digest(0) != digest(1)


def test_amplified_rounds_have_a_budget_too():
    words = (
        "privacy=central",
        "privacy.amplified=true",
        "privacy.relation=add_remove",
        "campaign.sampling=poisson",
        "privacy.target_epsilon=6",
        "campaign.num_rounds=3",
    )
    told = run(campaign_of(*words))
    assert [record.outcome for record in told] == [Outcome.COMMITTED] * 3
    assert 0 < told[0].epsilon < told[2].epsilon <= 6
