"""Retrain now, later or not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedretrain.core.clock import DAY_S, HOUR_S
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
)
from fedretrain.retraining.decision import Action, Ending, Obstacle, Outcome, TriggerState
from fedretrain.retraining.signals import DriftScope, Signals
from fedretrain.retraining.trigger import apply, decide

METRIC = RetrainingPolicy(
    mode=Mode.METRIC,
    cool_down_s=DAY_S,
    min_labels=10,
    triggers=(MetricTrigger("shift", "psi_max", 0.2, 0.1),),
    rules=(),
)
FRESH = TriggerState.first(0.0)
BAD = Signals(psi_max=0.5, num_labels=100)
WELL = Signals(
    psi_max=0.01, score_drop_high=0.0, telemetry_fraction=1.0, label_completeness=0.9, num_labels=100
)


def run(policy, state, steps):
    """Decisions for (instant, signals) in order, and the last state."""
    decisions = []
    for now, signals in steps:
        decisions.append(decide(policy, state, signals, now))
        state = apply(state, decisions[-1], now)
    return decisions, state


def actions(policy, steps, state=FRESH):
    return [decision.action.value for decision in run(policy, state, steps)[0]]


def test_a_metric_retrain_carries_its_reason_and_its_evidence():
    decision = decide(METRIC, FRESH, BAD, 5.0)
    assert decision.action is Action.RETRAIN
    assert decision.cause is Cause.DRIFT
    assert (decision.strategy, decision.where) == (Strategy.FEDERATED, Where.FEDERATED)
    assert decision.reason == "Trigger shift fires: psi_max is 0.5, its limit 0.2. Rule default: federated."
    assert decision.evidence["psi_max"] == 0.5
    assert decision.evidence["psi_max.fire_at"] == 0.2
    assert decision.evidence["num_new_labels"] == 100.0
    assert decision.evidence["rule"] == "default"
    assert (decision.number, decision.num_labels) == (1, 100)


def test_several_triggers_are_answered_by_one_retrain():
    policy = replace(
        METRIC, triggers=(*METRIC.triggers, MetricTrigger("kpi", "kpi_breached", True, cause=Cause.KPI))
    )
    decision = decide(policy, FRESH, replace(BAD, kpi_breached=True), 0.0)
    assert decision.fired == ("shift", "kpi")
    assert decision.evidence["kpi_breached"] == 1.0
    assert apply(FRESH, decision, 0.0).disarmed == ("kpi", "shift")


def test_never_never_retrains():
    worst = replace(BAD, drift_confirmed=True, schema_changed=True, kpi_breached=True)
    steps = [(day * DAY_S, worst) for day in range(0, 1000, 50)]
    assert set(actions(RetrainingPolicy(mode=Mode.NEVER), steps)) == {"none"}


def test_scheduled_retrains_at_its_interval_and_looks_at_no_metric():
    policy = replace(METRIC, mode=Mode.SCHEDULED, interval_s=10 * DAY_S)
    steps = [(day * DAY_S, replace(BAD, num_labels=100 * day)) for day in range(35)]
    decisions, _ = run(policy, FRESH, steps)
    assert [day for day, d in enumerate(decisions) if d.action is Action.RETRAIN] == [10, 20, 30]
    assert {d.cause for d in decisions if d.action is Action.RETRAIN} == {Cause.SCHEDULE}
    assert decisions[10].evidence["waited_s"] == 10 * DAY_S


def test_a_scheduled_policy_skips_nothing():
    policy = replace(METRIC, mode=Mode.SCHEDULED, interval_s=10 * DAY_S)
    assert decide(policy, FRESH, WELL, 10 * DAY_S).action is Action.RETRAIN


def test_always_retrains_whenever_it_may():
    policy = replace(METRIC, mode=Mode.ALWAYS, cool_down_s=2 * DAY_S)
    steps = [(day * DAY_S, Signals(num_labels=100 * (day + 1))) for day in range(6)]
    assert actions(policy, steps) == ["retrain", "defer", "retrain", "defer", "retrain", "defer"]


def test_personal_only_refreshes_the_devices_for_the_causes_of_hybrid():
    policy = replace(METRIC, mode=Mode.PERSONAL_ONLY, interval_s=10 * DAY_S)
    by_metric = decide(policy, FRESH, BAD, DAY_S)
    by_schedule = decide(policy, FRESH, Signals(num_labels=50), 10 * DAY_S)
    assert (by_metric.cause, by_schedule.cause) == (Cause.DRIFT, Cause.SCHEDULE)
    for decision in (by_metric, by_schedule):
        assert (decision.action, decision.strategy) == (Action.RETRAIN, Strategy.PERSONAL_ONLY)
        assert (decision.where, decision.epsilon) == (Where.DEVICE, 0.0)


def test_devices_without_personal_state_cannot_refresh_it():
    policy = replace(METRIC, mode=Mode.PERSONAL_ONLY)
    decision = decide(policy, FRESH, replace(BAD, can_personalize=False), 0.0)
    assert (decision.action, decision.obstacle) == (Action.DEFER, Obstacle.NOT_POSSIBLE)


HYBRID = replace(METRIC, mode=Mode.HYBRID, interval_s=10 * DAY_S)


def test_hybrid_retrains_by_metric_and_moves_its_schedule():
    steps = [(3 * DAY_S, BAD), *((day * DAY_S, Signals(num_labels=1000)) for day in range(4, 15))]
    decisions, _ = run(HYBRID, FRESH, steps)
    causes = {
        now / DAY_S: d.cause
        for (now, _), d in zip(steps, decisions, strict=True)
        if d.action is Action.RETRAIN
    }
    assert causes == {3.0: Cause.DRIFT, 13.0: Cause.SCHEDULE}


FOLLOWED = replace(HYBRID, follow_up_s=4 * DAY_S, interval_s=30 * DAY_S)


def causes_of(policy, steps):
    decisions, _ = run(policy, FRESH, steps)
    days = [now / DAY_S for now, _ in steps]
    return {day: d.cause for day, d in zip(days, decisions, strict=True) if d.action is Action.RETRAIN}


def test_a_triggers_retrain_is_followed_up_once():
    quiet = [(day * DAY_S, Signals(num_labels=100 * day)) for day in range(4, 40)]
    steps = [(3 * DAY_S, BAD), *quiet]
    assert causes_of(FOLLOWED, steps) == {3.0: Cause.DRIFT, 7.0: Cause.FOLLOW_UP, 37.0: Cause.SCHEDULE}
    assert causes_of(replace(FOLLOWED, mode=Mode.METRIC), steps) == {3.0: Cause.DRIFT, 7.0: Cause.FOLLOW_UP}
    assert causes_of(replace(FOLLOWED, mode=Mode.SCHEDULED), steps) == {30.0: Cause.SCHEDULE}
    assert causes_of(replace(FOLLOWED, follow_up_s=0.0), steps) == {3.0: Cause.DRIFT, 33.0: Cause.SCHEDULE}


def test_a_follow_up_waits_for_what_forbids_it_and_is_then_still_due():
    waiting = [(day * DAY_S, replace(BAD, psi_max=0.15, rollout_in_progress=True)) for day in range(4, 9)]
    later = [(day * DAY_S, Signals(num_labels=1000)) for day in range(9, 12)]
    assert causes_of(FOLLOWED, [(3 * DAY_S, BAD), *waiting, *later]) == {
        3.0: Cause.DRIFT,
        9.0: Cause.FOLLOW_UP,
    }


def test_a_retrain_that_came_meanwhile_is_the_follow_up_and_has_none_of_its_own():
    again = [(4 * DAY_S, replace(BAD, psi_max=0.0)), (5 * DAY_S, replace(BAD, num_labels=900))]
    quiet = [(day * DAY_S, Signals(num_labels=2000)) for day in range(6, 12)]
    found = causes_of(FOLLOWED, [(3 * DAY_S, BAD), *again, *quiet])
    assert found == {3.0: Cause.DRIFT, 5.0: Cause.DRIFT}


@pytest.mark.parametrize(("ending", "due"), [(Ending.REJECTED, False), (Ending.FAILED, True)])
def test_a_follow_up_that_came_to_nothing_is_due_again_only_if_nothing_was_trained(ending, due):
    policy = replace(FOLLOWED, retry_s=HOUR_S)
    _, state = run(policy, FRESH, [(3 * DAY_S, BAD), (7 * DAY_S, Signals(num_labels=500))])
    state = apply(state, Outcome(2, ending), 8 * DAY_S)
    decision = decide(policy, state, Signals(num_labels=900), 9 * DAY_S)
    assert (decision.cause is Cause.FOLLOW_UP) == due


def test_a_triggers_retrain_that_came_to_nothing_is_not_followed_up():
    _, state = run(FOLLOWED, FRESH, [(3 * DAY_S, BAD)])
    for ending in (Ending.REJECTED, Ending.FAILED):
        after = apply(state, Outcome(1, ending), 4 * DAY_S)
        assert decide(FOLLOWED, after, Signals(num_labels=900), 20 * DAY_S).action is Action.NONE


def test_hybrid_skips_its_safety_net_only_while_all_is_provably_well():
    skipped = decide(HYBRID, FRESH, WELL, 10 * DAY_S)
    assert (skipped.action, skipped.skipped) == (Action.NONE, True)
    assert skipped.evidence["score_drop_high"] == 0.0
    state = apply(FRESH, skipped, 10 * DAY_S)
    assert decide(HYBRID, state, WELL, 19 * DAY_S).skipped is False
    assert decide(HYBRID, state, WELL, 20 * DAY_S).skipped is True
    due = decide(HYBRID, state, replace(WELL, score_drop_high=0.05), 20 * DAY_S)
    assert (due.action, due.cause) == (Action.RETRAIN, Cause.SCHEDULE)


@pytest.mark.parametrize(
    "unknown", ["psi_max", "score_drop_high", "telemetry_fraction", "label_completeness"]
)
def test_missing_telemetry_or_labels_prove_nothing(unknown):
    decision = decide(HYBRID, FRESH, replace(WELL, **{unknown: None}), 10 * DAY_S)
    assert decision.action is Action.RETRAIN
    assert f"nobody can say that {unknown}" in decision.reason


def test_hybrid_without_a_proof_never_skips():
    assert decide(replace(HYBRID, well=()), FRESH, WELL, 10 * DAY_S).action is Action.RETRAIN


def test_metric_alone_has_no_safety_net():
    assert decide(METRIC, FRESH, Signals(num_labels=10), 1000 * DAY_S).action is Action.NONE


def test_after_a_retrain_a_trigger_waits_for_its_lower_level():
    psi = [0.3, 0.3, 0.15, 0.3, 0.1, 0.3, 0.09, 0.19, 0.25]
    steps = [(2 * day * DAY_S, Signals(psi_max=x, num_labels=100 * (day + 1))) for day, x in enumerate(psi)]
    decisions, _ = run(METRIC, FRESH, steps)
    assert [d.action.value for d in decisions] == ["retrain", *["none"] * 7, "retrain"]
    assert [d.rearmed for d in decisions if d.rearmed] == [("shift",)]


def test_an_unknown_signal_does_not_arm_a_trigger_again():
    steps = [
        (0.0, BAD),
        (2 * DAY_S, Signals(num_labels=500)),
        (4 * DAY_S, replace(BAD, num_labels=900)),
    ]
    assert actions(METRIC, steps) == ["retrain", "none", "none"]


def test_the_cool_down_defers_and_a_deferred_trigger_stays_armed():
    _, state = run(METRIC, FRESH, [(0.0, BAD), (HOUR_S, WELL)])
    again = replace(BAD, num_labels=200)
    early = decide(METRIC, state, again, 23 * HOUR_S)
    assert (early.action, early.obstacle) == (Action.DEFER, Obstacle.COOL_DOWN)
    assert "1.0 hours of the cool-down are left" in early.reason
    assert early.evidence["wait_s"] == HOUR_S
    state = apply(state, early, 23 * HOUR_S)
    assert (state.obstacle, state.deferred_at) == (Obstacle.COOL_DOWN, 23 * HOUR_S)
    assert decide(METRIC, state, again, 24 * HOUR_S).action is Action.RETRAIN


def test_a_minimum_of_labels_since_the_last_retrain():
    assert decide(METRIC, FRESH, replace(BAD, num_labels=9), 0.0).obstacle is Obstacle.LABELS
    _, state = run(METRIC, FRESH, [(0.0, BAD), (HOUR_S, WELL)])
    few = decide(METRIC, state, replace(BAD, num_labels=109), 2 * DAY_S)
    assert few.obstacle is Obstacle.LABELS
    assert "9 labels since the last retrain, 10 are needed" in few.reason
    assert decide(METRIC, state, replace(BAD, num_labels=110), 2 * DAY_S).action is Action.RETRAIN
    policy = replace(METRIC, rules=(StrategyRule("any", Strategy.FULL, min_labels=0),))
    assert decide(policy, state, replace(BAD, num_labels=100), 2 * DAY_S).action is Action.RETRAIN


def test_a_pool_that_lost_rows_does_not_count_as_negative_labels():
    state = TriggerState.first(0.0, num_labels=1000)
    assert decide(METRIC, state, BAD, 0.0).evidence["num_new_labels"] == 0.0


def test_a_retrain_while_a_rollout_is_on_waits_unless_its_rule_supersedes():
    rolling = replace(BAD, rollout_in_progress=True)
    waits = decide(METRIC, FRESH, rolling, 0.0)
    assert (waits.action, waits.obstacle, waits.supersedes) == (Action.DEFER, Obstacle.ROLLOUT, False)
    bold = replace(METRIC, rules=(StrategyRule("bold", Strategy.FEDERATED, supersede=True),))
    goes = decide(bold, FRESH, rolling, 0.0)
    assert (goes.action, goes.supersedes) == (Action.RETRAIN, True)
    assert decide(bold, FRESH, BAD, 0.0).supersedes is False


def test_a_retrain_while_one_runs_waits_even_if_it_may_supersede():
    bold = replace(METRIC, rules=(StrategyRule("bold", Strategy.FEDERATED, supersede=True),))
    decision = decide(bold, FRESH, replace(BAD, retrain_running=True), 0.0)
    assert (decision.action, decision.obstacle) == (Action.DEFER, Obstacle.RUNNING)


def test_a_short_budget_defers_or_refreshes_the_devices():
    short = replace(BAD, remaining_epsilon=0.5, campaign_epsilon=1.0)
    refresh = decide(METRIC, FRESH, short, 0.0)
    assert (refresh.action, refresh.strategy) == (Action.RETRAIN, Strategy.PERSONAL_ONLY)
    assert refresh.epsilon == 0.0
    deferring = replace(METRIC, budget=BudgetRules(WhenShort.DEFER))
    waits = decide(deferring, FRESH, short, 0.0)
    assert (waits.action, waits.obstacle, waits.epsilon) == (Action.DEFER, Obstacle.BUDGET, 0.0)
    assert waits.evidence["remaining_epsilon"] == 0.5
    assert waits.evidence["campaign_epsilon"] == 1.0
    assert decide(deferring, FRESH, replace(short, remaining_epsilon=1.0), 0.0).epsilon == 1.0


def test_training_killed_means_none_whatever_is_wanted():
    killed = replace(BAD, training_killed=True)
    for mode in Mode:
        decision = decide(replace(METRIC, mode=mode), FRESH, killed, 1000 * DAY_S)
        assert decision.action is Action.NONE
        assert not decision.skipped


def test_in_safe_mode_a_retrain_waits_for_a_person():
    decision = decide(METRIC, FRESH, replace(BAD, safe_mode=True), 0.0)
    assert (decision.action, decision.obstacle) == (Action.DEFER, Obstacle.SAFE_MODE)


@pytest.mark.parametrize("switch", ["rollouts_killed", "installs_killed"])
def test_no_candidate_is_made_that_could_not_be_shipped(switch):
    decision = decide(METRIC, FRESH, replace(BAD, **{switch: True}), 0.0)
    assert (decision.action, decision.obstacle) == (Action.DEFER, Obstacle.KILL_SWITCH)
    policy = replace(METRIC, mode=Mode.PERSONAL_ONLY)
    assert decide(policy, FRESH, replace(BAD, **{switch: True}), 0.0).action is Action.RETRAIN


def ended(ending, num_times=1, policy=METRIC):
    """A state after so many retrains that ended so, one a day later each; and its instant."""
    state, now = FRESH, 0.0
    for index in range(num_times):
        decision = decide(policy, state, replace(BAD, num_labels=100 * (index + 1)), now)
        assert decision.action is Action.RETRAIN
        state = apply(state, decision, now)
        state = apply(state, Outcome(decision.number, ending), now + HOUR_S)
        now += 10 * DAY_S
    return state, now


def test_a_retrain_that_took_effect_leaves_its_triggers_disarmed():
    state, now = ended(Ending.DONE)
    assert (state.disarmed, state.num_failures) == (("shift",), 0)
    assert decide(METRIC, state, replace(BAD, num_labels=500), now).action is Action.NONE


def test_a_refused_candidate_arms_its_triggers_again_but_needs_new_labels():
    state, now = ended(Ending.REJECTED)
    assert decide(METRIC, state, BAD, now).obstacle is Obstacle.LABELS
    assert decide(METRIC, state, replace(BAD, num_labels=110), now).action is Action.RETRAIN


def test_a_campaign_that_failed_gives_labels_and_schedule_back():
    state, now = ended(Ending.FAILED)
    assert (state.labels_used, state.schedule_from_at, state.disarmed) == (0, 0.0, ())
    assert decide(METRIC, state, BAD, now).action is Action.RETRAIN


def test_pauses_double_with_each_failure_and_end_with_a_success():
    policy = replace(METRIC, cool_down_s=0.0, retry_s=HOUR_S, max_retry_s=3 * HOUR_S)
    for num_times, hours in ((1, 1), (2, 2), (3, 3), (50, 3)):
        state, _ = ended(Ending.FAILED, num_times, policy)
        over_at = state.failed_at + hours * HOUR_S
        signals = replace(BAD, num_labels=10_000)
        assert decide(policy, state, signals, over_at - 1.0).obstacle is Obstacle.COOL_DOWN
        decision = decide(policy, state, signals, over_at)
        assert decision.action is Action.RETRAIN
        state = apply(state, decision, over_at)
        state = apply(state, Outcome(decision.number, Ending.DONE), over_at)
        assert (state.num_failures, state.failed_at) == (0, None)


def test_an_outcome_of_a_superseded_retrain_changes_nothing():
    state, now = ended(Ending.DONE)
    decision = decide(METRIC, replace(state, disarmed=()), replace(BAD, num_labels=500), now)
    state = apply(state, decision, now)
    assert apply(state, Outcome(1, Ending.REJECTED), now) == state


@pytest.mark.parametrize("number", [-1, 0, 1, 2, 7])
def test_an_outcome_without_its_retrain_is_refused(number):
    state, now = (FRESH, 0.0) if number == 1 else ended(Ending.DONE)
    with pytest.raises(DataError, match="is not running"):
        apply(state, Outcome(1 if number == 2 else number, Ending.DONE), now)


def test_a_decision_is_applied_once_and_time_does_not_run_back():
    decision = decide(METRIC, FRESH, BAD, 5.0)
    state = apply(FRESH, decision, 5.0)
    with pytest.raises(DataError, match="retrain 1 after 1"):
        apply(state, decision, 6.0)
    with pytest.raises(DataError, match="order of time"):
        apply(state, Outcome(1, Ending.DONE), 4.0)


def test_what_changes_nothing_need_not_be_logged():
    deferred = decide(METRIC, FRESH, replace(BAD, num_labels=0), 0.0)
    state = apply(FRESH, deferred, 0.0)
    later = decide(METRIC, state, replace(BAD, num_labels=1), HOUR_S)
    assert apply(state, later, HOUR_S) == state
    assert apply(FRESH, decide(METRIC, FRESH, WELL, HOUR_S), HOUR_S) == FRESH
    over = apply(state, decide(METRIC, state, WELL, 2 * HOUR_S), 2 * HOUR_S)
    assert (over.obstacle, over.deferred_at) == (Obstacle.NONE, None)


def test_from_scratch_is_what_full_means():
    policy = replace(METRIC, default_strategy=Strategy.FULL)
    assert decide(policy, FRESH, BAD, 0.0).from_scratch
    assert not decide(METRIC, FRESH, BAD, 0.0).from_scratch


SHIPPED = RetrainingPolicy(mode=Mode.METRIC, min_labels=0)


@pytest.mark.parametrize(
    ("signals", "cause"),
    [
        ({"schema_changed": True}, Cause.STRUCTURE),
        ({"structural_change": True}, Cause.STRUCTURE),
        ({"score_drop_low": 0.04}, Cause.SCORE),
        ({"kpi_breached": True}, Cause.KPI),
        ({"psi_max": 0.3, "drift_confirmed": True, "drift_scope": DriftScope.CLUSTER}, Cause.DRIFT),
        ({"confidence_decayed": True}, Cause.CONFIDENCE),
    ],
)
def test_each_shipped_trigger_fires_for_its_cause(signals, cause):
    assert decide(SHIPPED, FRESH, Signals(**signals), 0.0).cause is cause


@pytest.mark.parametrize(
    "signals",
    [
        {"psi_max": 0.9},
        {"psi_max": 0.9, "drift_confirmed": True, "drift_scope": DriftScope.DEVICE},
        {"score_drop": 0.2, "score_drop_low": -0.1},
    ],
)
def test_no_shipped_trigger_fires_for_what_is_not_proved_or_not_the_models_fault(signals):
    assert decide(SHIPPED, FRESH, Signals(**signals), 0.0).action is Action.NONE


@pytest.mark.parametrize("mode", list(Mode))
def test_a_person_waits_for_no_trigger_schedule_or_cool_down(mode):
    policy = replace(METRIC, mode=mode, interval_s=100 * DAY_S)
    asked = Signals(num_labels=0, asked_by="anna")
    (first, second), _ = run(policy, FRESH, [(1.0, asked), (2.0, replace(asked, asked_by="ben"))])
    assert (first.action, first.cause) == (Action.RETRAIN, Cause.PERSON)
    assert first.reason.startswith("anna wants a retrain.")
    assert second.action is Action.RETRAIN


@pytest.mark.parametrize(
    ("forbidden", "obstacle"),
    [
        ({"retrain_running": True}, Obstacle.RUNNING),
        ({"safe_mode": True}, Obstacle.SAFE_MODE),
        ({"installs_killed": True}, Obstacle.KILL_SWITCH),
        ({"remaining_epsilon": 0.5, "campaign_epsilon": 1.0}, Obstacle.BUDGET),
    ],
)
def test_what_forbids_a_retrain_forbids_a_persons(forbidden, obstacle):
    policy = replace(METRIC, budget=BudgetRules(when_short=WhenShort.DEFER))
    decision = decide(policy, FRESH, Signals(num_labels=100, asked_by="anna", **forbidden), 1.0)
    assert (decision.action, decision.obstacle) == (Action.DEFER, obstacle)
