"""The policy: what may be written in a file, and what its triggers do."""

from __future__ import annotations

import pytest
import yaml

from fedretrain.core.build import build, plain
from fedretrain.core.errors import ConfigError
from fedretrain.retraining.config import (
    BudgetRules,
    Cause,
    MetricTrigger,
    Mode,
    OnlineGuard,
    RetrainingPolicy,
    Strategy,
    StrategyRule,
    WhenShort,
    Worse,
)
from fedretrain.retraining.signals import Condition, Op, Signals

POLICY = """
mode: metric
cool_down_s: 3600
triggers:
  - {name: shift, signal: psi_max, fire_at: 0.3, rearm_at: 0.1, when: [{signal: drift_scope, op: "!=", value: device}]}
  - {name: broken, signal: kpi_breached, fire_at: true, cause: kpi}
  - {name: silence, signal: telemetry_fraction, fire_at: 0.4, rearm_at: 0.6, worse: lower, cause: kpi}
rules:
  - {name: quick, strategy: incremental, when: [{signal: wanted_within_s, op: below, value: 7200}], causes: [drift]}
  - {name: rest, strategy: full, supersede: true, min_labels: 5}
budget: {when_short: defer, reserve_epsilon: 1}
online: {max_step: 0.5}
"""


def test_a_policy_is_built_from_a_file():
    policy = build(RetrainingPolicy, yaml.safe_load(POLICY))
    assert policy.mode is Mode.METRIC
    assert policy.triggers[0].when == (Condition("drift_scope", Op.IS_NOT, "device"),)
    assert policy.triggers[1].fire_at is True
    assert policy.triggers[2].worse is Worse.LOWER
    assert policy.rules[0] == StrategyRule(
        "quick", Strategy.INCREMENTAL, (Condition("wanted_within_s", Op.BELOW, 7200.0),), (Cause.DRIFT,)
    )
    assert policy.rules[1].supersede
    assert policy.budget == BudgetRules(WhenShort.DEFER, 1.0)
    assert policy.online.max_step == 0.5


def test_the_shipped_policy_survives_a_file():
    policy = RetrainingPolicy()
    assert build(RetrainingPolicy, yaml.safe_load(yaml.safe_dump(plain(policy)))) == policy


def test_an_unknown_signal_in_a_file_is_one_line_with_its_key():
    values = yaml.safe_load(POLICY.replace("wanted_within_s", "wanted_within"))
    with pytest.raises(ConfigError) as caught:
        build(RetrainingPolicy, values, where="retraining")
    assert str(caught.value) == (
        "there is no signal 'wanted_within' [retraining.rules[0].when[0].signal] - "
        "did you mean 'wanted_within_s'?"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interval_s": 0}, "interval_s"),
        ({"cool_down_s": -1}, "cool_down_s"),
        ({"retry_s": -1}, "retry_s"),
        ({"hysteresis": 1.5}, "hysteresis"),
        ({"min_labels": -1}, "min_labels"),
        ({"min_pool_rows": 0}, "min_pool_rows"),
        ({"mode": "sometimes"}, "is not one of never, scheduled"),
        ({"budget": {"reserve_epsilon": -1}}, "budget.reserve_epsilon"),
        ({"online": {"max_step": 0}}, "online.max_step"),
        ({"online": {"loss_margin": 1.0}}, "online.loss_margin"),
        ({"online": {"max_reverts": 0}}, "online.max_reverts"),
        ({"online": {"mean_samples_to_false_revert": 1}}, "online.mean_samples_to_false_revert"),
        ({"rules": [{"name": "", "strategy": "full"}]}, "without a name"),
        ({"rules": [{"name": "a", "strategy": "federated", "then_federated": True}]}, "then_federated"),
        ({"rules": [{"name": "a", "strategy": "full", "min_labels": -1}]}, "min_labels"),
        (
            {"rules": [{"name": "a", "strategy": "full"}, {"name": "a", "strategy": "online"}]},
            r"\['a'\] named",
        ),
        ({"triggers": [{"name": "", "signal": "psi_max", "fire_at": 1}]}, "without a name"),
        ({"triggers": [{"name": "a", "signal": "psi", "fire_at": 1}]}, "did you mean"),
        ({"triggers": [{"name": "a", "signal": "drift_scope", "fire_at": 1}]}, "is a word"),
        ({"triggers": [{"name": "a", "signal": "psi_max", "fire_at": True}]}, "psi_max is a number"),
        (
            {"triggers": [{"name": "a", "signal": "kpi_breached", "fire_at": True, "rearm_at": 0}]},
            "no second",
        ),
        ({"triggers": [{"name": "a", "signal": "psi_max", "fire_at": 1, "rearm_at": 2}]}, "the bad side"),
        (
            {"triggers": [{"name": "a", "signal": "psi_max", "fire_at": 1, "cause": "schedule"}]},
            "no cause of a",
        ),
    ],
)
def test_an_impossible_policy_is_refused_and_names_the_key(values, message):
    with pytest.raises(ConfigError, match=message):
        build(RetrainingPolicy, values)


def test_a_trigger_fires_at_its_level_and_calms_strictly_beyond_the_lower():
    trigger = MetricTrigger("t", "psi_max", 0.2, 0.1)
    assert [trigger.fires(Signals(psi_max=x)) for x in (None, 0.19, 0.2, 5.0)] == [False, False, True, True]
    calm = [trigger.is_calm(Signals(psi_max=x), 0.5) for x in (None, 0.0, 0.0999, 0.1, 0.2)]
    assert calm == [False, True, True, False, False]


def test_a_trigger_on_a_falling_signal_is_the_mirror_image():
    trigger = MetricTrigger("t", "telemetry_fraction", 0.4, 0.6, Worse.LOWER)
    assert [trigger.fires(Signals(telemetry_fraction=x)) for x in (0.41, 0.4, 0.0)] == [False, True, True]
    assert [trigger.is_calm(Signals(telemetry_fraction=x), 0.5) for x in (0.6, 0.61)] == [False, True]


def test_the_hysteresis_of_the_policy_gives_a_missing_lower_level():
    assert MetricTrigger("t", "psi_max", 0.2).level(0.25) == pytest.approx(0.15)
    assert MetricTrigger("t", "score_drop", 0.4, worse=Worse.LOWER).level(0.25) == pytest.approx(0.5)
    assert MetricTrigger("t", "score_drop", -0.4).level(0.25) == pytest.approx(-0.5)


def test_what_must_hold_besides_can_keep_a_trigger_silent():
    trigger = MetricTrigger("t", "psi_max", 0.2, when=(Condition("drift_confirmed", Op.IS, True),))
    assert not trigger.fires(Signals(psi_max=1.0))
    assert trigger.fires(Signals(psi_max=1.0, drift_confirmed=True))


def test_lists_from_a_file_are_tuples():
    policy = RetrainingPolicy(rules=[StrategyRule("a", Strategy.FULL, when=[])])  # type: ignore[arg-type]
    assert policy.rules == (StrategyRule("a", Strategy.FULL),)
    assert OnlineGuard() == policy.online


def test_plain_words_do_for_enums():
    rule = StrategyRule("a", "full", (Condition("psi_max", ">=", 0.2),))  # type: ignore[arg-type]
    policy = RetrainingPolicy(mode="metric", rules=(rule,), budget=BudgetRules("defer"))  # type: ignore[arg-type]
    assert policy.mode is Mode.METRIC
    assert policy.budget.when_short is WhenShort.DEFER
    assert rule.strategy is Strategy.FULL
    assert rule.when[0].op is Op.AT_LEAST
