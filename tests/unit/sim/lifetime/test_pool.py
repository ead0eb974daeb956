"""The shipped rules of strategy carried out in a small life: on the pool, from scratch or not, or on the devices alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedretrain.coordinator.cycle import Candidate
from fedretrain.core.errors import ConfigError
from fedretrain.core.ids import ClientId
from fedretrain.core.rng import seed_for
from fedretrain.core.types import ClientData
from fedretrain.retraining import trigger
from fedretrain.retraining.config import Mode, RetrainingPolicy, Strategy, StrategyRule, Where
from fedretrain.retraining.decision import TriggerState
from fedretrain.retraining.signals import Signals
from fedretrain.training.executor import ClientWork, executor_for
from fedretrain.training.methods.make import make_task
from sim.configure import configure
from sim.lifetime.loop import Living
from sim.lifetime.policies import policies_of
from sim.lifetime.pool import Pool
from sim.lifetime.underway import live

SMALL = (
    "experiment=lifetime_synthetic",
    "runner=local",
    "drift=none",
    "availability=always",
    "labels=immediate",
    "fleet.num_devices=12",
    "fleet.num_sites=1",
    "fleet.num_types=1",
    "campaign.cohort_size=12",
    "lifetime.duration_s=259200",
    "lifetime.pool_devices=5",
    "lifetime.initial_rounds=2",
    "lifetime.retrain_rounds=2",
    "policies=[hybrid]",
)
NOW = 12 * 3600.0


def born(*more):
    config = configure([*SMALL, *more])
    living = Living(config, policies_of(config.lifetime)[0], 0)
    living.begin()
    for tick in range(12):
        living.tick(tick)
    return living


@pytest.fixture(scope="module")
def living():
    return born()


def decided(living, policy=None, **signals):
    """What a policy decides when all else is quiet and labels have come."""
    known = {"num_labels": 10_000, "num_pool_rows": living.campaigns.pool.num_rows(NOW), **signals}
    rules = replace(policy or RetrainingPolicy(), min_pool_rows=100)
    return trigger.decide(rules, TriggerState.first(0.0), Signals(**known), NOW)


def carried_out(living, decision):
    """The campaign that follows."""
    living.state = replace(living.state, training=Candidate(2, 1))
    living._start(decision, NOW)
    return living.campaigns.run_all(NOW, 60.0)


def pooled_rows(living, at=NOW):
    """The consented devices' labelled rows, row by row."""
    rows, life = living.rows, living.life
    held = []
    for device in range(life.pool_devices):
        mine = np.flatnonzero(rows.device == device)
        kept = [
            r
            for place, r in enumerate(mine)
            if rows.label_at[r] <= at
            and at - life.buffer_s < rows.event_at[r] <= at
            and place % life.holdout_every != life.holdout_every - 1
        ]
        held += kept[-life.buffer_rows :]
    return np.array(held)


def by_hand(living, shared, first_round):
    """Two rounds of central training with the reference executor on the same rows."""
    arm = living.arm
    training = replace(arm.training, max_steps=0)
    task = make_task(arm.config.personalization, training, arm.model)
    executor = executor_for("each", task, arm.model, training)
    for k in range(2):
        held = pooled_rows(living, NOW + 60.0 * k)
        data = ClientData(living.rows.x[held], living.rows.y[held])
        seed = seed_for(0, first_round + k, -1, "pool")
        (block,) = executor.train(shared, [ClientWork(ClientId(0), data, None, seed)])
        shared = task.shared.unpack(task.shared.pack(shared) + block.delta_KP[0])
    return shared


def assert_like(found, expected):
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("rule", "signals"),
    [
        ("light_drift", {"psi_max": 0.3, "drift_confirmed": True}),
        ("low_latency", {"kpi_breached": True, "wanted_within_s": 3600.0}),
    ],
)
def test_light_drift_and_hurry_continue_the_champion_on_the_pool(living, rule, signals):
    decision = decided(living, labels_leave_devices=True, **signals)
    assert (decision.evidence["rule"], decision.strategy, decision.where) == (
        rule,
        Strategy.INCREMENTAL,
        Where.POOL,
    )
    begun = living.campaigns._round
    made = carried_out(living, decision)
    assert made.told == "2 rounds on the pool of consented devices"
    assert_like(made.shared, by_hand(living, living.serving.versions.shared[1], begun))


def test_structural_change_begins_anew_on_the_pool(living):
    decision = decided(living, labels_leave_devices=True, structural_change=True)
    assert (decision.evidence["rule"], decision.strategy, decision.where) == (
        "structural_change",
        Strategy.FULL,
        Where.POOL,
    )
    begun = living.campaigns._round
    made = carried_out(living, decision)
    assert_like(made.shared, by_hand(living, living.arm.first_shared(), begun))


def test_labels_that_stay_on_devices_make_a_federated_campaign(living):
    decision = decided(living, labels_leave_devices=False, psi_max=0.3, drift_confirmed=True)
    assert (decision.evidence["rule"], decision.where) == ("labels_stay", Where.FEDERATED)
    made = carried_out(living, decision)
    assert (made.num_rounds, made.num_pool_rounds) == (2, 0)


def test_a_federated_campaign_can_start_from_what_the_pool_made(living):
    rules = (StrategyRule("both", Strategy.INCREMENTAL, then_federated=True),)
    decision = decided(living, RetrainingPolicy(rules=rules), psi_max=0.3, drift_confirmed=True)
    assert decision.then_federated
    begun, champion = living.campaigns._round, living.serving.versions.shared[1]
    living.state = replace(living.state, training=Candidate(2, 1))
    living._start(decision, NOW)
    assert living.campaigns.advance(NOW + 60.0, 60.0) is None  # the pool's two rounds
    assert_like(living.campaigns._running.state.tree, by_hand(living, champion, begun))
    made = living.campaigns.advance(NOW + 180.0, 60.0)
    assert made.told == "2 rounds on the pool of consented devices, then 2 federated rounds"


def test_the_pool_holds_the_consented_devices_rows_and_counts_their_way_up(living):
    pool, rows = living.campaigns.pool, living.rows
    assert pool.num_rows(NOW) == len(pooled_rows(living))
    fresh = [
        r
        for r in range(len(rows))
        if 0 < rows.label_at[r] <= NOW and rows.device[r] < 5 and not living.fleet.held_out[r]
    ]
    assert pool.copied(0.0, NOW) == len(fresh) * (rows.x[0].nbytes + rows.y[0].nbytes)


def test_signals_know_of_the_pool(living):
    signals = living.watch.signals(living.state, living.campaigns, NOW)
    assert signals.labels_leave_devices
    assert signals.num_pool_rows == living.campaigns.pool.num_rows(NOW)


def test_an_empty_pool_makes_nothing(living):
    before_any_row = -1e9
    base = living.serving.versions.shared[1]
    living.campaigns.begin(2, base, {}, rounds=0, at=before_any_row, pool_rounds=2)
    made = living.campaigns.run_all(before_any_row, 60.0)
    assert made.shared is None
    assert "no labelled rows" in made.reason


def test_the_pool_costs_no_privacy_budget():
    living = born("privacy=central", "campaign.sampling=poisson", "lifetime.retrain_rounds=3")
    spent = living.campaigns.epsilon()
    decision = decided(living, labels_leave_devices=True, psi_max=0.3, drift_confirmed=True)
    assert decision.epsilon == 0
    assert carried_out(living, decision).num_pool_rounds == 3
    assert living.campaigns.epsilon() == spent > 0
    scope = living.campaigns.privacy_scope()
    assert scope.startswith(f"epsilon {spent:.3g} at delta ")
    assert "device" in scope
    price = living.campaigns.campaign_epsilon(3)
    assert carried_out(living, decided(living)).num_pool_rounds == 0
    assert living.campaigns.epsilon() - spent == pytest.approx(price)  # everybody is asked in each round


def test_a_life_retrains_on_its_pool():
    config = configure(SMALL)
    named = policies_of(config.lifetime)[0]
    retraining = replace(
        named.policy.retraining,
        mode=Mode.ALWAYS,
        rules=(),
        default_strategy=Strategy.INCREMENTAL,
        min_pool_rows=100,
        min_labels=0,
    )
    life = live(config, replace(named, policy=replace(named.policy, retraining=retraining)), 0)
    told = [event.text for event in life.events if event.kind == "candidate"]
    assert told[0] == "2 rounds on the pool of consented devices"


def test_more_consented_devices_than_there_are_is_refused(living):
    with pytest.raises(ConfigError, match="pool_devices"):
        Pool(living.arm, living.fleet, 13)


def test_a_campaign_that_takes_longer_than_it_may_is_given_up_and_asks_nobody_any_more():
    living = born("lifetime.retrain_rounds=50", "lifetime.campaign_max_s=10800")
    living.state = replace(living.state, training=Candidate(2, 1))
    living._start(decided(living, psi_max=0.9, drift_confirmed=True), NOW)
    ticks = list(range(12, 20))
    running = []
    for tick in ticks:
        living.tick(tick)
        running.append(living.campaigns.running)
    assert running == [True] * 3 + [False] * 5  # three hours are allowed, the fourth is too long
    assert living.state.training is None
    assert 2 not in living.serving.versions.shared
    told = [(event.at, event.text) for event in living.chronicle._events if event.kind == "no_candidate"]
    assert told == [(NOW + 4 * 3600.0, "it took longer than 10800 s")]
