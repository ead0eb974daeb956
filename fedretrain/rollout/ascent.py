"""The way up, and what holds on it: rules of the machine that wait, ask or expose more.

Rules of this file:
    * Each rule looks at state and evidence and writes at most one event; `machine.decide` asks them in turn.
    * Nothing but a gate's PASS, the devices' confirmation, the shortest time and the wanted approvals moves up; a person can repeat a step, and
      cannot pass one.
    * A broken metric source is counted apart: while it lasts nothing moves up, and no limit runs out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.rollout.causes import Cause, EventKind, Phase
from fedretrain.rollout.compose import exposure_record, gate_record, order_of, write
from fedretrain.rollout.config import OnBrokenSource
from fedretrain.rollout.evidence import Answer
from fedretrain.rollout.stops import answer_to, gate_now, may_ask, missing_in_shadow, past_limit, step_rule
from fedretrain.rollout.transitions import approval_point
from fedretrain.rollout.verdict import Reason, Role, Verdict

if TYPE_CHECKING:
    from fedretrain.rollout.config import RolloutPolicy
    from fedretrain.rollout.events import RolloutEvent
    from fedretrain.rollout.evidence import Approval, RolloutEvidence
    from fedretrain.rollout.state import RolloutState

_STEPPING = (Phase.SHADOW, Phase.CANARY, Phase.RAMP)


def watch_sources(
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


def _dead_sources(state: RolloutState, evidence: RolloutEvidence) -> tuple[str, ...] | None:
    """Broken metric sources that a decision needs; None where nothing new is known."""
    report = gate_now(state, evidence)
    if report is None and not evidence.broken_sources:
        return None
    checks = report.checks if report is not None else ()
    dead = {c.metric for c in checks if c.reason is Reason.DEAD_SOURCE and c.role is not Role.INFO}
    return tuple(sorted(dead | set(evidence.broken_sources)))


def note_installed(
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


def note_gate(
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


def go_on(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> RolloutEvent | None:
    """Up: into shadow, to a person, or to the next step."""
    if state.phase is Phase.APPROVAL:
        event = _approved(policy, state, evidence, now)
        if event is not None:
            return event
    if state.paused_by or evidence.installs_stopped or state.broken_at is not None:
        return None
    if state.phase is Phase.PENDING:
        return _into_shadow(policy, state, evidence, now)
    if state.phase not in (*_STEPPING, Phase.APPROVAL) or not state.gate_passed:
        return None
    return _up(policy, state, now)


def _into_shadow(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> RolloutEvent | None:
    """The first step, once all that comes before any device has passed."""
    found = {"validation": evidence.validation, "simulation": evidence.simulation}
    asked = {name: found[name] for name in state.plan.offline}
    if any(verdict is not Verdict.PASS for verdict in asked.values()):
        return None
    order = order_of(policy, state, now, 0.0, shadow=True, holdback=False)
    record = {name: verdict.value for name, verdict in asked.items()}
    reason = f"passed: {', '.join(asked)}"
    return write(state, EventKind.SHADOW_STARTED, now, reason, evidence=record, order=order)


def _up(policy: RolloutPolicy, state: RolloutState, now: float) -> RolloutEvent | None:
    """The next step, or the question that comes before it."""
    kind, fraction = next_step(state)
    wanted = approval_point(kind) in state.plan.approvals
    if wanted and state.phase is not Phase.APPROVAL:
        why = f": {state.plan.four_eyes}" if state.plan.four_eyes else ""
        return write(state, EventKind.APPROVAL_ASKED, now, f"{state.plan.people} must agree to {kind}{why}")
    if wanted and len(state.consents_at(now)) < state.plan.people:
        return None
    by = ", ".join(consent.by for consent in state.consents_at(now)) if wanted else ""
    order = order_of(policy, state, now, fraction)
    return write(state, kind, now, f"exposure {fraction:.1%}", by=by, order=order)


def next_step(state: RolloutState) -> tuple[EventKind, float]:
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
    own = bool(state.plan.four_eyes) and said.by == state.plan.proposed_by
    if answer_to(state, said, now) is not Answer.GRANTED or known or own or until <= now:
        return None
    reason = _with_reason(f"approved by {said.by}", said)
    return write(state, EventKind.APPROVED, now, reason, by=said.by, until=until)


def _with_reason(what: str, said: Approval) -> str:
    """What happened, and why the person says so."""
    return f"{what}: {said.reason}" if said.reason else what


def hold_or_ask(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> RolloutEvent | None:
    """A step that does not move: said once, and at its limit put to a person where the policy says so."""
    if state.phase not in _STEPPING or state.gate_passed or state.broken_at is not None:
        return None
    if state.asked_at is not None:
        said = evidence.approval
        if answer_to(state, said, now) is not Answer.GRANTED:
            return None
        reason = _with_reason(f"one more attempt, by {said.by}", said)
        return write(state, EventKind.EXTENDED, now, reason, by=said.by)
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
