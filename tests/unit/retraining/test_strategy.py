"""How to retrain, by cause and cost: the shipped rules one by one, place and budget."""

from __future__ import annotations

import pytest

from fedretrain.core.clock import DAY_S
from fedretrain.retraining.budget import BudgetView, afford
from fedretrain.retraining.config import (
    BudgetRules,
    Cause,
    Mode,
    RetrainingPolicy,
    Strategy,
    StrategyRule,
    WhenShort,
    Where,
)
from fedretrain.retraining.signals import Condition, Op, Signals
from fedretrain.retraining.strategy import choose, place, plan

SHIPPED = RetrainingPolicy()
POOL = {"num_pool_rows": 5_000, "labels_leave_devices": True}


def chosen(cause: Cause = Cause.DRIFT, **signals) -> tuple[str, Strategy, Where]:
    found = plan(SHIPPED, Signals(**signals), cause)
    return found.rule.name, found.strategy, found.where


def test_incremental_for_light_sensor_drift():
    assert chosen(**POOL, drift_confirmed=True, psi_max=0.3) == (
        "light_drift",
        Strategy.INCREMENTAL,
        Where.POOL,
    )
    assert chosen(**POOL, drift_confirmed=True, psi_max=2.0)[0] == "default"


def test_incremental_for_low_latency():
    assert chosen(**POOL, wanted_within_s=DAY_S / 2) == ("low_latency", Strategy.INCREMENTAL, Where.POOL)
    assert chosen(**POOL, wanted_within_s=10 * DAY_S)[0] == "default"


def test_full_for_structural_change():
    assert chosen(Cause.STRUCTURE, **POOL, structural_change=True) == (
        "structural_change",
        Strategy.FULL,
        Where.POOL,
    )


def test_full_for_a_new_feature_set():
    assert chosen(Cause.STRUCTURE, **POOL, schema_changed=True) == (
        "new_feature_set",
        Strategy.FULL,
        Where.POOL,
    )


def test_federated_when_labels_cannot_leave_devices():
    light = {"drift_confirmed": True, "psi_max": 0.3, "num_pool_rows": 5_000}
    assert chosen(**light, labels_leave_devices=False) == (
        "labels_stay",
        Strategy.FEDERATED,
        Where.FEDERATED,
    )


def test_federated_when_personalization_is_worth_much():
    light = {**POOL, "drift_confirmed": True, "psi_max": 0.3}
    assert chosen(**light, personal_gain=0.1) == ("personalization", Strategy.FEDERATED, Where.FEDERATED)
    assert chosen(**light, personal_gain=0.001)[0] == "light_drift"


def test_without_a_pool_full_and_incremental_are_federated():
    leave = {"labels_leave_devices": True, "num_pool_rows": SHIPPED.min_pool_rows - 1}
    assert chosen(**leave, structural_change=True)[1:] == (Strategy.FULL, Where.FEDERATED)
    assert chosen(**leave, wanted_within_s=60.0)[1:] == (Strategy.INCREMENTAL, Where.FEDERATED)


@pytest.mark.parametrize("strategy", [Strategy.ONLINE, Strategy.PERSONAL_ONLY])
def test_what_each_device_does_for_itself_needs_no_pool(strategy):
    assert place(strategy, SHIPPED, Signals(**POOL)) is Where.DEVICE


def test_the_first_rule_that_fits_is_taken_and_the_default_where_none_does():
    rules = (
        StrategyRule("kpi only", Strategy.FULL, causes=(Cause.KPI,)),
        StrategyRule("bad", Strategy.ONLINE, (Condition("psi_max", Op.ABOVE, 1.0),)),
        StrategyRule("worse", Strategy.FULL, (Condition("psi_max", Op.ABOVE, 2.0),)),
    )
    policy = RetrainingPolicy(rules=rules, default_strategy=Strategy.INCREMENTAL)
    assert choose(policy, Signals(psi_max=3.0), Cause.DRIFT).name == "bad"
    assert choose(policy, Signals(psi_max=3.0), Cause.KPI).name == "kpi only"
    default = choose(policy, Signals(), Cause.DRIFT)
    assert (default.name, default.strategy) == ("default", Strategy.INCREMENTAL)


def test_the_personal_only_mode_knows_one_strategy():
    policy = RetrainingPolicy(mode=Mode.PERSONAL_ONLY)
    found = plan(
        policy, Signals(structural_change=True, remaining_epsilon=0.0, campaign_epsilon=1.0), Cause.DRIFT
    )
    assert (found.strategy, found.where, found.epsilon, found.short) == (
        Strategy.PERSONAL_ONLY,
        Where.DEVICE,
        0.0,
        "",
    )


SHORT = {"remaining_epsilon": 0.5, "campaign_epsilon": 1.0}


def test_a_federated_campaign_costs_and_a_pool_or_a_device_does_not():
    rich = {"remaining_epsilon": 2.0, "campaign_epsilon": 1.0}
    assert plan(SHIPPED, Signals(**rich), Cause.DRIFT).epsilon == 1.0
    assert plan(SHIPPED, Signals(**rich, **POOL, structural_change=True), Cause.DRIFT).epsilon == 0.0
    online = RetrainingPolicy(rules=(StrategyRule("o", Strategy.ONLINE),))
    assert plan(online, Signals(**SHORT), Cause.DRIFT).epsilon == 0.0


def test_a_short_budget_makes_it_personal_only_or_says_what_is_lacking():
    found = plan(SHIPPED, Signals(**SHORT), Cause.DRIFT)
    assert (found.strategy, found.where, found.epsilon) == (Strategy.PERSONAL_ONLY, Where.DEVICE, 0.0)
    assert "costs epsilon 1, but epsilon 0.5 is left" in found.reason
    deferring = RetrainingPolicy(budget=BudgetRules(WhenShort.DEFER))
    assert "epsilon 0.5 is left" in plan(deferring, Signals(**SHORT), Cause.DRIFT).short
    assert plan(SHIPPED, Signals(**SHORT, can_personalize=False), Cause.DRIFT).short


def test_a_rule_may_say_for_itself_what_a_short_budget_means():
    new_features = plan(SHIPPED, Signals(**SHORT, schema_changed=True), Cause.STRUCTURE)
    assert new_features.strategy is Strategy.FULL
    assert new_features.short
    patient = RetrainingPolicy(
        rules=(StrategyRule("p", Strategy.FEDERATED, when_short=WhenShort.PERSONAL_ONLY),),
        budget=BudgetRules(WhenShort.DEFER),
    )
    assert plan(patient, Signals(**SHORT), Cause.DRIFT).strategy is Strategy.PERSONAL_ONLY


def test_a_pools_result_can_seed_a_campaign_if_that_can_be_paid_for():
    policy = RetrainingPolicy(rules=(StrategyRule("seed", Strategy.FULL, then_federated=True),))
    rich = plan(policy, Signals(**POOL, remaining_epsilon=2.0, campaign_epsilon=1.0), Cause.DRIFT)
    assert (rich.where, rich.then_federated, rich.epsilon) == (Where.POOL, True, 1.0)
    poor = plan(policy, Signals(**POOL, **SHORT), Cause.DRIFT)
    assert (poor.where, poor.then_federated, poor.epsilon, poor.short) == (Where.POOL, False, 0.0, "")
    assert "No campaign follows" in poor.reason
    no_pool = plan(policy, Signals(remaining_epsilon=2.0, campaign_epsilon=1.0), Cause.DRIFT)
    assert (no_pool.where, no_pool.then_federated, no_pool.epsilon) == (Where.FEDERATED, False, 1.0)


@pytest.mark.parametrize(
    ("remaining", "cost", "reserve", "use_reserve", "filter_allows", "allowed"),
    [
        (None, 3.0, 0.0, False, None, True),
        (None, 3.0, 0.0, False, False, False),
        (2.0, 2.0, 0.0, False, None, True),
        (2.0, 2.1, 0.0, False, None, False),
        (2.0, 1.5, 1.0, False, None, False),
        (2.0, 1.5, 1.0, True, None, True),
        (2.0, 1.0, 1.0, False, None, True),
        # The filter composes better than a sum: it may allow what the difference forbids, and forbid what it allows.
        (2.0, 2.1, 0.0, False, True, True),
        (2.0, 1.0, 0.0, False, False, False),
        (2.0, 1.5, 1.0, False, True, False),
        (2.0, 2.1, 1.0, True, True, True),
        (0.0, 0.0, 0.0, False, None, True),
    ],
)
def test_what_can_be_paid_for(remaining, cost, reserve, use_reserve, filter_allows, allowed):
    view = BudgetView(remaining, cost, filter_allows)
    answer = afford(view, BudgetRules(reserve_epsilon=reserve), use_reserve=use_reserve)
    assert answer.allowed is allowed
    assert answer.epsilon == cost
    assert answer.reason.endswith(".")


def test_shipped_rules_for_structural_change_may_spend_the_reserve():
    policy = RetrainingPolicy(budget=BudgetRules(reserve_epsilon=1.0))
    left = {"remaining_epsilon": 1.2, "campaign_epsilon": 1.0}
    assert plan(policy, Signals(**left), Cause.DRIFT).strategy is Strategy.PERSONAL_ONLY
    assert plan(policy, Signals(**left, structural_change=True), Cause.STRUCTURE).epsilon == 1.0
