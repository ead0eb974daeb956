"""The trigger as a state machine: whatever the fleet does, these hold."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedretrain.core.build import build, plain
from fedretrain.core.errors import DataError
from fedretrain.retraining.config import (
    BudgetRules,
    Cause,
    MetricTrigger,
    Mode,
    RetrainingPolicy,
    Strategy,
    StrategyRule,
    WhenShort,
    Where,
    Worse,
)
from fedretrain.retraining.decision import Action, Decision, Ending, Outcome, TriggerState
from fedretrain.retraining.signals import Condition, DriftScope, Op, Signals
from fedretrain.retraining.trigger import apply, decide

FAST = settings(max_examples=120, deadline=None)
FRACTIONS = st.one_of(st.none(), st.sampled_from([0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.6, 1.0]))
TRIGGERS = (
    MetricTrigger("shift", "psi_max", 0.2, 0.1),
    MetricTrigger("score", "score_drop_low", 0.2),
    MetricTrigger("silence", "telemetry_fraction", 0.3, 0.6, Worse.LOWER),
    MetricTrigger("schema", "schema_changed", True),
)
WELL = (Condition("psi_max", Op.BELOW, 0.1), Condition("score_drop_high", Op.AT_MOST, 0.1))

signals_now = st.builds(
    Signals,
    psi_max=FRACTIONS,
    score_drop_low=FRACTIONS,
    score_drop_high=FRACTIONS,
    telemetry_fraction=FRACTIONS,
    schema_changed=st.booleans(),
    drift_scope=st.sampled_from(DriftScope),
    num_pool_rows=st.sampled_from([0, 10_000]),
    labels_leave_devices=st.booleans(),
    can_personalize=st.booleans(),
    retrain_running=st.sampled_from([False, False, False, True]),
    rollout_in_progress=st.sampled_from([False, False, True]),
    safe_mode=st.sampled_from([False, False, False, True]),
    training_killed=st.sampled_from([False, False, False, True]),
    rollouts_killed=st.sampled_from([False, False, False, True]),
    remaining_epsilon=st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0, 4.0])),
    campaign_epsilon=st.sampled_from([0.0, 0.5, 1.0]),
    filter_allows=st.sampled_from([None, None, True, False]),
)
rules = st.lists(
    st.builds(
        StrategyRule,
        name=st.uuids().map(str),
        strategy=st.sampled_from(Strategy),
        when=st.sampled_from([(), WELL[:1], (Condition("schema_changed", Op.IS, True),)]),
        supersede=st.booleans(),
        min_labels=st.sampled_from([None, 0, 5]),
        use_reserve=st.booleans(),
        when_short=st.sampled_from([None, *WhenShort]),
    ),
    max_size=3,
)
policies = st.builds(
    RetrainingPolicy,
    mode=st.sampled_from(Mode),
    interval_s=st.floats(1.0, 50.0),
    follow_up_s=st.sampled_from([0.0, 0.0, 3.0, 12.0]),
    cool_down_s=st.floats(0.0, 20.0),
    retry_s=st.floats(0.0, 5.0),
    hysteresis=st.floats(0.0, 1.0),
    min_labels=st.integers(0, 20),
    triggers=st.just(TRIGGERS),
    well=st.sampled_from([(), WELL]),
    rules=rules,
    budget=st.builds(
        BudgetRules, when_short=st.sampled_from(WhenShort), reserve_epsilon=st.sampled_from([0.0, 0.5])
    ),
)
steps = st.lists(
    st.tuples(st.floats(0.0, 8.0), signals_now, st.integers(0, 15), st.sampled_from([None, None, *Ending])),
    min_size=1,
    max_size=40,
)


def live(policy, ticks):
    """(instant, signals, state before, event, state after) of a life; an ending follows its tick, if one may."""
    state, now, num_labels, life = TriggerState.first(0.0), 0.0, 0, []
    for wait, signals, new_labels, ending in ticks:
        now, num_labels = now + wait, num_labels + new_labels
        seen = replace(signals, num_labels=num_labels)
        decision = decide(policy, state, seen, now)
        after = apply(state, decision, now)
        life.append((now, seen, state, decision, after))
        state = after
        if ending is not None and state.before is not None:
            outcome = Outcome(state.num_retrains, ending)
            after = apply(state, outcome, now)
            life.append((now, seen, state, outcome, after))
            state = after
    return life


def decisions_of(life):
    return [entry for entry in life if not isinstance(entry[3], Outcome)]


@FAST
@given(policies, steps)
def test_the_cool_down_is_never_violated(policy, ticks):
    retrains = [now for now, _, _, d, _ in decisions_of(live(policy, ticks)) if d.action is Action.RETRAIN]
    for earlier, later in pairwise(retrains):
        # Instants are sums of floats; the decision compares their difference with the cool-down.
        assert later - earlier >= policy.cool_down_s


@FAST
@given(policies, steps)
def test_after_a_retrain_a_trigger_fires_again_only_beyond_its_lower_level_or_after_nothing_came_of_it(
    policy, ticks
):
    waiting: set[str] = set()
    by_name = {trigger.name: trigger for trigger in policy.triggers}
    answered: tuple[str, ...] = ()
    for _, signals, _, event, _ in live(policy, ticks):
        if isinstance(event, Outcome):
            if event.ending is not Ending.DONE:
                waiting -= set(answered)
            continue
        for name in list(waiting):
            found = signals.value(by_name[name].signal)
            level = by_name[name].fire_at
            if found is None:
                continue
            if isinstance(level, bool):
                calm = found is not level
            else:
                low = by_name[name].rearm_at
                low = level * (1 - policy.hysteresis) if low is None else low
                calm = found > low if by_name[name].worse is Worse.LOWER else found < low
            waiting -= {name} if calm else set()
        assert not waiting & set(event.fired)
        if event.action is Action.RETRAIN:
            waiting |= set(event.fired)
            answered = event.fired


@FAST
@given(policies, steps)
def test_a_follow_up_comes_after_a_triggers_retrain_in_its_time_and_once(policy, ticks):
    cause, at = None, 0.0
    for now, _, _, event, _ in live(policy, ticks):
        if isinstance(event, Outcome):
            cause = None if event.ending is Ending.REJECTED else cause
            continue
        if event.cause is Cause.FOLLOW_UP:
            assert policy.follow_up_s > 0
            assert policy.mode in {Mode.METRIC, Mode.HYBRID, Mode.PERSONAL_ONLY}
        if event.action is not Action.RETRAIN:
            continue
        if event.cause is Cause.FOLLOW_UP:
            assert cause not in {None, Cause.SCHEDULE, Cause.ALWAYS}
            assert now - at >= policy.follow_up_s
            # What failed left its own cause open: the next is again a follow-up of the same retrain.
            continue
        cause, at = event.cause, now


@FAST
@given(policies, steps)
def test_only_a_retrain_spends_and_only_what_the_budget_allows(policy, ticks):
    for _, signals, before, decision, after in decisions_of(live(policy, ticks)):
        if decision.action is not Action.RETRAIN:
            assert (decision.epsilon, decision.number, decision.then_federated) == (0.0, 0, False)
            assert (after.num_retrains, after.labels_used) == (before.num_retrains, before.labels_used)
            assert after.retrained_at == before.retrained_at
        elif decision.where is Where.FEDERATED:
            assert decision.epsilon == signals.campaign_epsilon
            assert signals.filter_allows is not False
            left = signals.remaining_epsilon
            assert left is None or signals.filter_allows or decision.epsilon <= left
        else:
            assert decision.epsilon == 0.0


@FAST
@given(policies, steps)
def test_nothing_retrains_against_a_switch_a_safe_mode_a_running_retrain_or_without_labels(policy, ticks):
    for _, signals, before, decision, _ in decisions_of(live(policy, ticks)):
        if signals.training_killed or policy.mode is Mode.NEVER:
            assert decision.action is Action.NONE
        if decision.action is not Action.RETRAIN:
            continue
        assert not signals.safe_mode
        assert not signals.retrain_running
        assert decision.where is Where.DEVICE or not signals.rollouts_killed
        by_name = {rule.name: rule for rule in policy.rules}
        rule = by_name.get(str(decision.evidence["rule"]))
        needed = policy.min_labels if rule is None or rule.min_labels is None else rule.min_labels
        assert signals.num_labels - before.labels_used >= needed
        assert decision.supersedes == signals.rollout_in_progress
        assert not signals.rollout_in_progress or (rule is not None and rule.supersede)


@FAST
@given(policies, steps)
def test_every_decision_says_why_and_on_what(policy, ticks):
    for _, _, _, decision, _ in decisions_of(live(policy, ticks)):
        assert decision.reason.endswith(".")
        assert decision.evidence or decision.action is Action.NONE
        assert all(isinstance(value, (float, str)) for value in decision.evidence.values())
        wanted = decision.action is not Action.NONE
        assert wanted == (decision.strategy is not None) == (decision.where is not None)


@FAST
@given(policies, steps)
def test_the_log_of_what_changed_something_rebuilds_the_state(policy, ticks):
    life = live(policy, ticks)
    log = [
        json.dumps([now, type(event).__name__, plain(event)])
        for now, _, before, event, after in life
        if after != before
    ]
    state = TriggerState.first(0.0)
    for now, kind, values in map(json.loads, log):
        state = apply(state, build({"Decision": Decision, "Outcome": Outcome}[kind], values), now)
    assert state == life[-1][4]
    assert build(TriggerState, json.loads(json.dumps(plain(state)))) == state


@FAST
@given(policies, steps)
def test_the_same_inputs_give_the_same_life(policy, ticks):
    assert live(policy, ticks) == live(policy, ticks)


@FAST
@given(policies, steps, st.integers(-3, 60))
def test_an_ending_that_does_not_follow_is_refused_or_has_no_effect(policy, ticks, number):
    now, _, _, _, state = live(policy, ticks)[-1]
    open_number = state.num_retrains if state.before is not None else None
    outcome = Outcome(number, Ending.REJECTED)
    if number == open_number:
        assert apply(state, outcome, now).num_failures == state.num_failures + 1
    elif 0 < number < state.num_retrains:
        assert apply(state, outcome, now) is state
    else:
        with pytest.raises(DataError, match="is not running"):
            apply(state, outcome, now)
