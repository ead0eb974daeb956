"""Retrain now, later, or not: the decision as a fold.

Rules of this file:
    * `decide` looks at policy, state and signals and changes nothing; `apply` looks at the decision alone. So the log of
      decisions is enough to rebuild the state, and a decision that leaves the state as it is need not be logged.
    * A decision is NONE (nothing is wanted, or training is killed), DEFER (wanted, but something forbids it now) or
      RETRAIN. Only RETRAIN starts the cool-down, disarms triggers, counts labels as used, or costs anything.
    * A trigger that a retrain has answered is armed again once its signal is beyond the lower level, or once that
      retrain came to nothing: then the cause is still there. With another champion all are (`coordinator.cycle_fold`): its
      signals are measured against its own baseline, and one that never falls below the lower level is a new cause.
    * A retrain that a trigger caused may be followed up by another, once its labels are more. Any retrain meanwhile, a
      trigger's too, is that follow-up and has none of its own; one that came to nothing leaves nothing to follow.
    * Asked in this order: kill switch, wish, plan and budget, running work, safe mode, rollout, cool-down, labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fedretrain.core.errors import DataError
from fedretrain.retraining.config import Cause, Mode, Strategy, Where
from fedretrain.retraining.decision import (
    Action,
    Before,
    Decision,
    Ending,
    Obstacle,
    Outcome,
    TriggerState,
)
from fedretrain.retraining.signals import all_hold
from fedretrain.retraining.strategy import plan as plan_for

if TYPE_CHECKING:
    from fedretrain.retraining.config import MetricTrigger, RetrainingPolicy
    from fedretrain.retraining.signals import Signals
    from fedretrain.retraining.strategy import Plan


def decide(policy: RetrainingPolicy, state: TriggerState, signals: Signals, now: float) -> Decision:
    """Whether to retrain, and how.

    Args:
        policy: The rules.
        state: What was decided before.
        signals: What is known now.
        now: The instant, in seconds.
    """
    rearmed = _calm(policy, state, signals)
    if policy.mode is Mode.NEVER and not signals.asked_by:
        return Decision(
            Action.NONE, "This policy never retrains.", {"mode": policy.mode.value}, rearmed=rearmed
        )
    if signals.training_killed:
        said = "Training is switched off by its kill switch."
        return Decision(Action.NONE, said, {"training_killed": 1.0}, rearmed=rearmed)
    wish = _wish(policy, state, signals, now)
    if wish.cause is Cause.NONE:
        return Decision(Action.NONE, wish.reason, wish.evidence, rearmed=rearmed, skipped=wish.skipped)
    return replace(_answer(policy, state, signals, wish, now), rearmed=rearmed)


def _answer(
    policy: RetrainingPolicy, state: TriggerState, signals: Signals, wish: _Wish, now: float
) -> Decision:
    """RETRAIN or DEFER for what is wanted."""
    planned = plan_for(policy, signals, wish.cause)
    wanted = Decision(
        Action.RETRAIN,
        f"{wish.reason} {planned.reason}",
        {**wish.evidence, **_facts(policy, state, signals, planned, now)},
        wish.cause,
        planned.strategy,
        planned.where,
        fired=wish.fired,
    )
    obstacle, why = _obstacle(policy, state, signals, planned, now)
    if obstacle is not Obstacle.NONE:
        return replace(wanted, action=Action.DEFER, obstacle=obstacle, reason=f"{wish.reason} Not now: {why}")
    return replace(
        wanted,
        then_federated=planned.then_federated,
        supersedes=signals.rollout_in_progress,
        epsilon=planned.epsilon,
        num_labels=signals.num_labels,
        number=state.num_retrains + 1,
    )


@dataclass(frozen=True)
class _Wish:
    """What a policy would like, before anything is asked about whether it may."""

    cause: Cause
    reason: str
    evidence: dict[str, float | str] = field(default_factory=dict)
    fired: tuple[str, ...] = ()
    skipped: bool = False


def _calm(policy: RetrainingPolicy, state: TriggerState, signals: Signals) -> tuple[str, ...]:
    """Names of disarmed triggers that are armed again."""
    return tuple(
        trigger.name
        for trigger in policy.triggers
        if trigger.name in state.disarmed and trigger.is_calm(signals, policy.hysteresis)
    )


def _wish(policy: RetrainingPolicy, state: TriggerState, signals: Signals, now: float) -> _Wish:
    """What a person asks for, else the mode; metrics come before the schedule."""
    if signals.asked_by:
        return _Wish(Cause.PERSON, f"{signals.asked_by} wants a retrain.", {"asked_by": signals.asked_by})
    if policy.mode is Mode.ALWAYS:
        return _Wish(Cause.ALWAYS, "This policy retrains whenever it may.", {"mode": policy.mode.value})
    if policy.mode is not Mode.SCHEDULED:
        # One that is armed again by these very signals is calm, so it does not fire now.
        fired = [t for t in policy.triggers if t.name not in state.disarmed and t.fires(signals)]
        if fired:
            return _metric_wish(fired, signals)
        if policy.follow_up_s and state.follow_from_at is not None:
            waited_s = now - state.follow_from_at
            if waited_s >= policy.follow_up_s:
                return _follow_wish(policy, waited_s)
    if policy.mode is Mode.METRIC:
        watched = tuple(trigger.signal for trigger in policy.triggers)
        return _Wish(Cause.NONE, "No armed trigger fires.", _numbers(signals, watched))
    return _schedule_wish(policy, state, signals, now)


def _metric_wish(fired: list[MetricTrigger], signals: Signals) -> _Wish:
    first = fired[0]
    found = signals.value(first.signal)
    evidence = {"trigger": first.name, **_numbers(signals, tuple(trigger.signal for trigger in fired))}
    evidence |= {f"{trigger.signal}.fire_at": float(trigger.fire_at) for trigger in fired}
    said = (
        f"{first.signal} is {str(found).lower()}"
        if isinstance(found, bool)
        else f"{first.signal} is {found:.3g}, its limit {first.fire_at:.3g}"
    )
    also = f" (and {', '.join(t.name for t in fired[1:])})" if len(fired) > 1 else ""
    names = tuple(trigger.name for trigger in fired)
    return _Wish(first.cause, f"Trigger {first.name}{also} fires: {said}.", evidence, names)


def _follow_wish(policy: RetrainingPolicy, waited_s: float) -> _Wish:
    said = f"{waited_s / 86_400:.1f} days since a trigger's retrain: labels of what changed have come since."
    return _Wish(Cause.FOLLOW_UP, said, {"waited_s": waited_s, "follow_up_s": policy.follow_up_s})


def _schedule_wish(policy: RetrainingPolicy, state: TriggerState, signals: Signals, now: float) -> _Wish:
    waited = now - state.schedule_from_at
    evidence: dict[str, float | str] = {"waited_s": waited, "interval_s": policy.interval_s}
    if waited < policy.interval_s:
        return _Wish(Cause.NONE, "Nothing fires and no scheduled retrain is due.", evidence)
    is_net = policy.mode is not Mode.SCHEDULED
    if is_net and policy.well and all_hold(policy.well, signals):
        proof = " and ".join(str(condition) for condition in policy.well)
        evidence |= _numbers(signals, tuple(condition.signal for condition in policy.well))
        return _Wish(Cause.NONE, f"A scheduled retrain is due and skipped: {proof}.", evidence, skipped=True)
    doubt = next((str(c) for c in policy.well if not c.holds(signals)), "") if is_net else ""
    said = f", and nobody can say that {doubt}" if doubt else ""
    return _Wish(Cause.SCHEDULE, f"{waited / 86_400:.1f} days since the schedule began anew{said}.", evidence)


def _obstacle(
    policy: RetrainingPolicy, state: TriggerState, signals: Signals, planned: Plan, now: float
) -> tuple[Obstacle, str]:
    """The first thing that forbids the planned retrain now."""
    if planned.short:
        return Obstacle.BUDGET, planned.short
    if planned.strategy is Strategy.PERSONAL_ONLY and not signals.can_personalize:
        return Obstacle.NOT_POSSIBLE, "these devices have no personal state to refresh."
    if signals.retrain_running:
        return Obstacle.RUNNING, "a retrain is running."
    if signals.safe_mode:
        return Obstacle.SAFE_MODE, "the fleet is in safe mode, which a person must end."
    if planned.where is not Where.DEVICE and (signals.rollouts_killed or signals.installs_killed):
        return Obstacle.KILL_SWITCH, "a kill switch keeps any candidate from the devices."
    if signals.rollout_in_progress and not planned.rule.supersede:
        return Obstacle.ROLLOUT, f"a rollout is in progress, which rule {planned.rule.name} may not stop."
    return _too_early(policy, state, signals, planned, now)


def _too_early(
    policy: RetrainingPolicy, state: TriggerState, signals: Signals, planned: Plan, now: float
) -> tuple[Obstacle, str]:
    """Whether the cool-down or the labels ask for patience; a person who asks has none."""
    if signals.asked_by:
        return Obstacle.NONE, ""
    wait_s = _wait_s(policy, state, now)
    if wait_s > 0:
        return Obstacle.COOL_DOWN, f"{wait_s / 3_600:.1f} hours of the cool-down are left."
    got, needed = _new_labels(state, signals), _needed_labels(policy, planned)
    if got < needed:
        return Obstacle.LABELS, f"{got} labels since the last retrain, {needed} are needed."
    return Obstacle.NONE, ""


def _wait_s(policy: RetrainingPolicy, state: TriggerState, now: float) -> float:
    """Seconds until the next retrain may be decided; 0 or less if it may now."""
    waits = [0.0]
    if state.retrained_at is not None:
        waits.append(policy.cool_down_s - (now - state.retrained_at))
    if state.failed_at is not None and state.num_failures:
        # Capped doubling: 2^30 times any wait is beyond every cap, and a float holds it.
        pause_s = min(policy.retry_s * 2.0 ** min(state.num_failures - 1, 30), policy.max_retry_s)
        waits.append(pause_s - (now - state.failed_at))
    return max(waits)


def _new_labels(state: TriggerState, signals: Signals) -> int:
    return max(0, signals.num_labels - state.labels_used)


def _numbers(signals: Signals, names: tuple[str, ...]) -> dict[str, float | str]:
    """The named signals as evidence; truth values as 0 and 1, unknown ones left out."""
    found = {name: signals.value(name) for name in names}
    return {n: v if isinstance(v, str) else float(v) for n, v in found.items() if v is not None}


def _needed_labels(policy: RetrainingPolicy, planned: Plan) -> int:
    return policy.min_labels if planned.rule.min_labels is None else planned.rule.min_labels


def _facts(
    policy: RetrainingPolicy, state: TriggerState, signals: Signals, planned: Plan, now: float
) -> dict[str, float | str]:
    """What every wanted retrain rests on besides its cause."""
    looked_at = tuple(condition.signal for condition in planned.rule.when)
    return {
        "rule": planned.rule.name,
        "num_new_labels": float(_new_labels(state, signals)),
        "num_labels_needed": float(_needed_labels(policy, planned)),
        "wait_s": _wait_s(policy, state, now),
        **_numbers(signals, (*looked_at, "num_pool_rows", "remaining_epsilon", "campaign_epsilon")),
    }


def apply(state: TriggerState, event: Decision | Outcome, now: float) -> TriggerState:
    """The state after a decision was taken or a retrain ended.

    Raises:
        DataError: If the instant is before one already applied, or the event does not follow from the state.
    """
    if now < state.seen_at:
        raise DataError(
            f"instant {now} after {state.seen_at}", where="retraining", fix="apply events in order of time"
        )
    if isinstance(event, Outcome):
        return _end(state, event, now)
    disarmed = tuple(name for name in state.disarmed if name not in event.rearmed)
    if event.action is Action.RETRAIN:
        return _begin(replace(state, disarmed=disarmed), event, now)
    deferred_at = None
    if event.action is Action.DEFER:
        deferred_at = now if state.deferred_at is None else state.deferred_at
    after = replace(
        state,
        disarmed=disarmed,
        schedule_from_at=now if event.skipped else state.schedule_from_at,
        obstacle=event.obstacle,
        deferred_at=deferred_at,
    )
    return state if after == state else replace(after, seen_at=now)


def _begin(state: TriggerState, decision: Decision, now: float) -> TriggerState:
    if decision.number != state.num_retrains + 1:
        raise DataError(
            f"retrain {decision.number} after {state.num_retrains}",
            where="retraining",
            fix="apply each decision once, to the state it was made from",
        )
    return replace(
        state,
        schedule_from_at=now,
        seen_at=now,
        retrained_at=now,
        labels_used=decision.num_labels,
        disarmed=tuple(sorted({*state.disarmed, *decision.fired})),
        num_retrains=decision.number,
        before=Before(state.schedule_from_at, state.labels_used, decision.fired, state.follow_from_at),
        follow_from_at=now if decision.fired and state.follow_from_at is None else None,
        obstacle=Obstacle.NONE,
        deferred_at=None,
    )


def _end(state: TriggerState, outcome: Outcome, now: float) -> TriggerState:
    """A retrain that a later one superseded ends without effect."""
    if 0 < outcome.number < state.num_retrains:
        return state
    before = state.before
    if outcome.number != state.num_retrains or before is None:
        raise DataError(
            f"retrain {outcome.number} is not running", where="retraining", fix="end each retrain once"
        )
    if outcome.ending is Ending.DONE:
        return replace(state, before=None, num_failures=0, failed_at=None, seen_at=now)
    ended = replace(
        state,
        before=None,
        num_failures=state.num_failures + 1,
        failed_at=now,
        seen_at=now,
        disarmed=tuple(name for name in state.disarmed if name not in before.fired),
        follow_from_at=None,
    )
    if outcome.ending is Ending.REJECTED:
        # Its labels made a candidate that was refused; the same labels would make it again.
        return ended
    return replace(
        ended,
        schedule_from_at=before.schedule_from_at,
        labels_used=before.num_labels,
        follow_from_at=before.follow_from_at,
    )
