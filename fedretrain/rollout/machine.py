"""The rollout's state machine: `decide(policy, state, evidence, now) -> events`, beside the fold's `apply` and `replay`.

Rules of this file:
    * Level triggered: a tick looks at what holds now and writes the events that follow from it; a tick that is missed or repeated changes
      nothing but the time.
    * The way back is looked at before the way up, in each tick and in each phase, paused or not.
    * A tick moves up by at most one step, and each event is made for the state that the one before it leaves.
    * Nothing but a gate's PASS, the devices' confirmation, the shortest time and the wanted approvals moves up; a person can repeat a step, and
      cannot pass one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.core.errors import ConfigError
from fedretrain.rollout.causes import LIVE, Cause, EventKind, Phase, RollbackKind
from fedretrain.rollout.compose import exposure_record, gate_record, order_of, take_back, write
from fedretrain.rollout.config import OnBrokenSource
from fedretrain.rollout.evidence import Answer, Command, Coverage, Exposure, RolloutEvidence
from fedretrain.rollout.fold import IllegalTransition, apply, begin, replay
from fedretrain.rollout.state import RolloutState
from fedretrain.rollout.stops import (
    answer_to,
    fallback_of,
    find_stop,
    gate_now,
    may_ask,
    missing_in_shadow,
    past_limit,
    step_rule,
)
from fedretrain.rollout.transitions import TRANSITIONS, approval_point
from fedretrain.rollout.verdict import Reason, Role, Verdict

if TYPE_CHECKING:
    from fedretrain.rollout.config import RolloutPolicy
    from fedretrain.rollout.events import RolloutEvent

__all__ = [
    "TRANSITIONS",
    "Coverage",
    "Exposure",
    "IllegalTransition",
    "Phase",
    "RolloutEvidence",
    "RolloutState",
    "apply",
    "begin",
    "decide",
    "replay",
]

_STEPPING = (Phase.SHADOW, Phase.CANARY, Phase.RAMP)
_MOST_EVENTS = 16
"""More events in one tick are a defect of the rules, not of the world; six is the longest chain known."""


def decide(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> tuple[RolloutEvent, ...]:
    """What follows from what is known now.

    Args:
        policy: What the rollout was begun with.
        state: Where it is.
        evidence: Everything known.
        now: Instant, not before the last event.

    Returns:
        Events in their order, each legal after the one before; empty where nothing follows.

    Raises:
        ConfigError: If the policy's steps are no longer those of the plan.
    """
    if tuple(step.exposure_fraction for step in policy.steps) != state.plan.fractions:
        raise ConfigError(
            "the policy's steps are not those the rollout began with",
            where=f"rollout {state.rollout}",
            fix="finish it with its own policy",
        )
    events: list[RolloutEvent] = []
    while (event := _next(policy, state, evidence, now)) is not None:
        state = apply(state, event)
        events.append(event)
        assert len(events) <= _MOST_EVENTS, events
    return tuple(events)


def _next(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> RolloutEvent | None:
    """The next event, or None."""
    stop = find_stop(policy, state, evidence, now)
    if stop is not None:
        to = fallback_of(state, evidence)
        return take_back(
            policy,
            state,
            now,
            stop.cause,
            stop.reason,
            kind=stop.kind,
            fallback=to,
            evidence=stop.evidence,
            by=stop.by,
        )
    for rule in (
        _pause,
        _on_the_way_back,
        _frozen,
        _sources,
        _installed,
        _gate,
        _onward,
        _undecided,
        _holdback,
    ):
        event = rule(policy, state, evidence, now)
        if event is not None:
            return event
    return None


def _pause(
    _policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> RolloutEvent | None:
    """A person holds the way up, or lets it go on."""
    ask = evidence.operator
    wanted = {Command.PAUSE: EventKind.PAUSED, Command.RESUME: EventKind.RESUMED}.get(ask.command)
    if wanted is None or not ask.by or state.phase not in LIVE:
        return None
    if (wanted is EventKind.PAUSED) == bool(state.paused_by):
        return None
    return write(state, wanted, now, ask.reason or f"{ask.command} by {ask.by}", by=ask.by)


def _on_the_way_back(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> RolloutEvent | None:
    """Down the steps, to another fallback where the first is withdrawn, and closed once every device is back."""
    if state.phase is Phase.DE_ESCALATING:
        return _down(policy, state, now)
    if state.phase not in (Phase.ROLLING_BACK, Phase.FROZEN):
        return None
    to, seen = fallback_of(state, evidence), evidence.exposure
    if to != state.fallback:
        frozen = state.phase is Phase.FROZEN
        order = order_of(policy, state, now, 0.0, fallback=to, shadow=frozen, holdback=False)
        reason = f"version {state.fallback} is withdrawn, back to {to}"
        cause = Cause.CHAMPION_WITHDRAWN
        return write(state, EventKind.RETARGETED, now, reason, cause=cause, order=order)
    if state.phase is Phase.FROZEN or not _everybody_back(state, seen):
        return None
    reason = f"{seen.num_confirmed} devices confirmed, {seen.num_expired} expired"
    return write(state, EventKind.ROLLED_BACK, now, reason, evidence=exposure_record(seen))


def _everybody_back(state: RolloutState, seen: Exposure) -> bool:
    """Whether every device that was ever exposed has confirmed the fallback or has expired, under the present order.

    A device that refuses the fallback still runs the candidate: it is as open as one that is silent.
    """
    if state.peak_fraction == 0.0:
        return True
    return seen.counter == state.counter and seen.num_pending == 0 and seen.num_failed == 0


def _down(policy: RolloutPolicy, state: RolloutState, now: float) -> RolloutEvent | None:
    """One step down, when the present one has lasted."""
    if now - state.entered_at < policy.de_escalation_step_s:
        return None
    cause = state.cause or Cause.OPERATOR
    if state.step < 2:
        reason = "down from the lowest step"
        return take_back(policy, state, now, cause, reason, kind=RollbackKind.IMMEDIATE)
    order = order_of(policy, state, now, state.plan.fractions[state.step - 2])
    return write(
        state, EventKind.STEPPED_DOWN, now, f"down to {order.fraction:.1%}", cause=cause, order=order
    )


def _frozen(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> RolloutEvent | None:
    """A person ends the freeze: back to shadow with every gate before it, or back for good."""
    ask = evidence.operator
    if state.phase is not Phase.FROZEN or not ask.by:
        return None
    if ask.command is Command.UNFREEZE:
        order = order_of(policy, state, now, 0.0, shadow=True, holdback=False)
        return write(state, EventKind.UNFROZEN, now, ask.reason or "unfrozen", by=ask.by, order=order)
    if ask.command is not Command.ROLL_BACK:
        return None
    cause = state.cause or Cause.OPERATOR
    return take_back(
        policy, state, now, cause, ask.reason or "given up", kind=RollbackKind.IMMEDIATE, by=ask.by
    )


def _dead_sources(state: RolloutState, evidence: RolloutEvidence) -> tuple[str, ...] | None:
    """Broken metric sources that a decision needs; None where nothing new is known."""
    report = gate_now(state, evidence)
    if report is None and not evidence.broken_sources:
        return None
    checks = report.checks if report is not None else ()
    dead = {c.metric for c in checks if c.reason is Reason.DEAD_SOURCE and c.role is not Role.INFO}
    return tuple(sorted(dead | set(evidence.broken_sources)))


def _sources(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> RolloutEvent | None:
    """Broken metric sources, counted apart from a bad model."""
    if state.phase not in (*_STEPPING, Phase.APPROVAL):
        return None
    dead = _dead_sources(state, evidence)
    if dead and state.broken_at is None:
        record, names = {"sources": list(dead)}, ", ".join(dead)
        return write(
            state,
            EventKind.SOURCE_BROKE,
            now,
            f"no word from {names}",
            evidence=record,
            cause=Cause.METRIC_SOURCE,
        )
    if state.broken_at is None:
        return None
    lasted = now - state.broken_at
    if dead == ():
        return write(state, EventKind.SOURCE_MENDED, now, f"metric sources are back after {lasted:.0f} s")
    hold = policy.on_broken_source is OnBrokenSource.HOLD
    if hold and lasted >= policy.source_limit_s and not state.overdue:
        reason = f"broken for {lasted:.0f} s; held until it is back"
        return write(state, EventKind.SOURCE_OVERDUE, now, reason, cause=Cause.METRIC_SOURCE)
    return None


def _installed(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> RolloutEvent | None:
    """Enough of the reachable devices say that they run the ordered digest."""
    seen, rules = evidence.exposure, policy.installs
    if state.phase not in (Phase.CANARY, Phase.RAMP) or state.installed_at is not None:
        return None
    if seen.counter != state.counter or seen.num_confirmed == 0:
        return None
    if (
        seen.reachable_fraction < rules.min_reachable_fraction
        or seen.confirmed_fraction < rules.min_confirmed_fraction
    ):
        return None
    reason = f"{seen.num_confirmed} of {seen.num_reachable} reachable devices run it"
    return write(state, EventKind.INSTALLED, now, reason, evidence=exposure_record(seen))


def _gate(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> RolloutEvent | None:
    """A PASS of the present step, paused or not, once the step has lasted and has seen what it must."""
    report = gate_now(state, evidence)
    if state.phase not in _STEPPING or state.gate_passed or state.broken_at is not None:
        return None
    if report is None or report.verdict is not Verdict.PASS or not _lasted(policy, state, now):
        return None
    if state.phase is Phase.SHADOW and missing_in_shadow(policy, evidence) is not None:
        return None
    record = gate_record(state, report)
    return write(state, EventKind.GATE_PASSED, now, f"gate {record['gate']} passes", evidence=record)


def _lasted(policy: RolloutPolicy, state: RolloutState, now: float) -> bool:
    """Whether the step has lasted its shortest time, outages of metric sources apart."""
    if state.phase is Phase.SHADOW:
        return now - state.entered_at - state.broken_for(now) >= policy.shadow.min_s
    if state.installed_at is None:
        return False
    return now - state.installed_at - state.broken_for(now) >= step_rule(policy, state).min_s


def _onward(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> RolloutEvent | None:
    """Up: into shadow, to a person, or to the next step."""
    if state.phase is Phase.APPROVAL:
        event = _approved(policy, state, evidence, now)
        if event is not None:
            return event
    if state.paused_by or state.broken_at is not None:
        return None
    if state.phase is Phase.PENDING:
        if evidence.validation is not Verdict.PASS:
            return None
        order = order_of(policy, state, now, 0.0, shadow=True, holdback=False)
        record = {"validation": evidence.validation.value}
        return write(
            state, EventKind.SHADOW_STARTED, now, "the validation passes", evidence=record, order=order
        )
    if state.phase not in (*_STEPPING, Phase.APPROVAL) or not state.gate_passed:
        return None
    return _up(policy, state, now)


def _up(policy: RolloutPolicy, state: RolloutState, now: float) -> RolloutEvent | None:
    """The next step, or the question that comes before it."""
    kind, fraction = _next_step(state)
    wanted = approval_point(kind) in state.plan.approvals
    if wanted and state.phase is not Phase.APPROVAL:
        return write(state, EventKind.APPROVAL_ASKED, now, f"{state.plan.people} must agree to {kind}")
    if wanted and len(state.consents_at(now)) < state.plan.people:
        return None
    by = ", ".join(consent.by for consent in state.consents_at(now)) if wanted else ""
    order = order_of(policy, state, now, fraction)
    return write(state, kind, now, f"exposure {fraction:.1%}", by=by, order=order)


def _next_step(state: RolloutState) -> tuple[EventKind, float]:
    """What comes after the present step, and its exposure."""
    if state.step == state.last_step:
        return EventKind.PROMOTED, 1.0
    kind = EventKind.CANARY_STARTED if state.step == 0 else EventKind.RAMP_STARTED
    return kind, state.plan.fractions[state.step]


def _approved(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> RolloutEvent | None:
    """A person's yes, recorded with their name and its expiry."""
    said = evidence.approval
    until = said.at + policy.approvals.valid_s
    known = any(consent.by == said.by for consent in state.consents_at(now))
    if answer_to(state, said, now) is not Answer.GRANTED or known or until <= now:
        return None
    return write(state, EventKind.APPROVED, now, f"approved by {said.by}", by=said.by, until=until)


def _undecided(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> RolloutEvent | None:
    """A step that does not move: said once, and at its limit put to a person where the policy says so."""
    if state.phase not in _STEPPING or state.gate_passed or state.broken_at is not None:
        return None
    if state.asked_at is not None:
        said = evidence.approval
        if answer_to(state, said, now) is not Answer.GRANTED:
            return None
        return write(state, EventKind.EXTENDED, now, f"one more attempt, by {said.by}", by=said.by)
    lacking = past_limit(policy, state, evidence, now)
    if lacking is not None and may_ask(policy, state):
        return write(state, EventKind.ASKED, now, f"{lacking} at its limit", cause=lacking)
    holding = _holding(policy, state, evidence, now)
    if holding is None or holding is state.held:
        return None
    return write(state, EventKind.HELD, now, f"held: {holding}", cause=holding)


def _holding(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> Cause | None:
    """Why a step that has lasted long enough does not move on; None before that."""
    if state.phase is not Phase.SHADOW and state.installed_at is None:
        slow = now - state.entered_at >= step_rule(policy, state).min_s
        return Cause.NOT_INSTALLED if slow else None
    if not _lasted(policy, state, now):
        return None
    missing = missing_in_shadow(policy, evidence) if state.phase is Phase.SHADOW else None
    return missing or Cause.INCONCLUSIVE


def _holdback(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> RolloutEvent | None:
    """The holdback ends with its time, or with the version that it serves."""
    if not state.holdback_open or state.promoted_at is None:
        return None
    kept = state.plan.holdback_version
    gone = evidence.champion_withdrawn and kept == state.plan.champion
    if not gone and now - state.promoted_at < state.plan.holdback_s:
        return None
    order = order_of(policy, state, now, 1.0, holdback=False)
    reason = f"version {kept} is withdrawn" if gone else f"version {kept} has been held back long enough"
    return write(state, EventKind.HOLDBACK_ENDED, now, reason, order=order)
