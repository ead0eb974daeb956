"""The fold of the closed loop: `apply(policy, state, event) -> state`, the first state, and replay.

Rules of this file:
    * States are frozen: an event that may not follow raises, and the state at hand is what it was.
    * The fold trusts no caller. A version becomes champion only by a rollout that its machine lets through, or by being the one
      before; nothing goes up while rollouts or installs are stopped; nothing is retrained in safe mode.
    * A new champion starts with a new monitor: what was said was about the other model.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import singledispatch
from typing import TYPE_CHECKING, Any

from fedretrain.coordinator.cycle_events import (
    Admitted,
    Begun,
    CycleEvent,
    Discarded,
    Proposed,
    Refused,
    ServedAgain,
    Trained,
    Withdrawn,
)
from fedretrain.coordinator.cycle_state import Candidate, CycleState, OpenIncident, fresh_monitor
from fedretrain.core.errors import DataError
from fedretrain.monitoring import recipes
from fedretrain.monitoring.alerts import Alert
from fedretrain.monitoring.kpi import DecayState
from fedretrain.monitoring.state import MonitorState
from fedretrain.retraining import trigger
from fedretrain.retraining.config import Strategy, Where
from fedretrain.retraining.decision import Action, Decision, Outcome, TriggerState
from fedretrain.rollout import machine
from fedretrain.rollout.causes import Change, EventKind, IncidentKind
from fedretrain.rollout.effects import EffectKind, effects
from fedretrain.rollout.events import RolloutEvent
from fedretrain.rollout.quarantine import QuarantineEvent, QuarantineEventKind, Subject, apply_quarantine
from fedretrain.rollout.reconcile import Admission
from fedretrain.rollout.safety import SafetyEvent, SafetyEventKind, Switch, apply_safety
from fedretrain.rollout.stops import RULES_BASELINE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fedretrain.coordinator.cycle_events import Body
    from fedretrain.coordinator.policy import Policy

_UP = frozenset(
    {EventKind.SHADOW_STARTED, EventKind.CANARY_STARTED, EventKind.RAMP_STARTED, EventKind.PROMOTED}
)
SAFE_MODE_INCIDENT = "safe_mode/"
"""How the ids of safe mode's incidents begin."""


def begin(event: CycleEvent) -> CycleState:
    """The first state.

    Raises:
        DataError: If the event is not the beginning of a fleet.
    """
    body = event.body
    if not isinstance(body, Begun) or body.champion < 0 or not math.isfinite(event.at):
        raise _illegal(f"a log begins with begun, not with {type(body).__name__}")
    return CycleState(
        body.champion,
        MonitorState(body.champion),
        TriggerState.first(event.at, body.num_labels),
        next_version=body.champion + 1,
        updated_at=event.at,
        num_events=1,
    )


def apply(policy: Policy, state: CycleState, event: CycleEvent) -> CycleState:
    """The state after an event.

    Args:
        policy: What the loop runs under.
        state: Before it; unchanged.
        event: What happened.

    Raises:
        DataError: If the event does not follow from the state.
        FedretrainError: If a part of the state refuses it: `IllegalTransition`, `IllegalSafetyEvent`, `IllegalQuarantine`.
    """
    if not event.at >= state.updated_at:
        raise _illegal(f"an event at {event.at}, before the last one at {state.updated_at}")
    counted = replace(state, num_events=state.num_events + 1, updated_at=event.at)
    body = event.body
    if not isinstance(body, Alert):
        return _after(body, counted, event.at)
    if body.version != state.monitor.version:
        raise _illegal(f"a window of version {body.version}, watched is {state.monitor.version}")
    return replace(counted, monitor=recipes.apply(policy.monitoring, state.monitor, body))


def replay(policy: Policy, events: Iterable[CycleEvent]) -> CycleState:
    """The state that a log leads to.

    Args:
        policy: What the loop ran under.
        events: The log, oldest first; it begins with `Begun`.

    Raises:
        DataError: If the log is empty, has gaps, or was written under another policy.
    """
    state: CycleState | None = None
    for event in events:
        if state is not None:
            state = apply(policy, state, event)
            continue
        state = begin(event)
        wanted = event.body.policy if isinstance(event.body, Begun) else ""
        if wanted not in ("", policy.digest):
            raise DataError(
                f"the log was written under the policy {wanted[:12]}, this one is {policy.digest[:12]}",
                where="event log",
                fix="replay it with its own policy file",
            )
    if state is None:
        raise _illegal("an empty log is no fleet")
    return state


def _illegal(what: str) -> DataError:
    return DataError(what, where="cycle", fix="apply each event once, to the state that it was made from")


@singledispatch
def _after(body: Body, _state: CycleState, _at: float) -> CycleState:
    """The state after one kind of event; a kind that may not come here is refused."""
    raise _illegal(f"{type(body).__name__} may not follow")


@_after.register(Decision)
def _decided(body: Decision, state: CycleState, at: float) -> CycleState:
    if body.action is not Action.RETRAIN:
        return replace(state, trigger=trigger.apply(state.trigger, body, at))
    if state.safety.safe_mode or not state.safety.allows(Switch.TRAINING):
        raise _illegal("no retrain in safe mode, nor while training is stopped")
    if state.retrain_running:
        raise _illegal("a retrain is running")
    after = replace(state, trigger=trigger.apply(state.trigger, body, at))
    if body.where is Where.DEVICE:
        refreshes = body.strategy is Strategy.PERSONAL_ONLY
        return replace(after, refresh=after.trigger.num_retrains) if refreshes else after
    change = Change.FULL if body.from_scratch else Change.INCREMENTAL
    aggregated = body.where is Where.FEDERATED or body.then_federated
    candidate = Candidate(
        state.next_version, after.trigger.num_retrains, change=change, aggregated=aggregated
    )
    return replace(after, training=candidate, next_version=state.next_version + 1)


@_after.register(Outcome)
def _ended(body: Outcome, state: CycleState, at: float) -> CycleState:
    return replace(state, trigger=trigger.apply(state.trigger, body, at))


@_after.register(Trained)
def _trained(body: Trained, state: CycleState, _at: float) -> CycleState:
    candidate = state.training
    if candidate is None or candidate.version != body.version:
        raise _illegal(f"version {body.version} is not being trained")
    ready = (replace(candidate, detectable=body.detectable, clusters=body.clusters),) if body.made else ()
    return replace(state, training=None, waiting=(*state.waiting, *ready))


@_after.register(Proposed)
def _proposed(body: Proposed, state: CycleState, _at: float) -> CycleState:
    taken = {
        candidate.version for candidate in (*state.waiting, *([state.training] if state.training else []))
    }
    if not body.by or body.version <= RULES_BASELINE or body.version in taken | state.discarded:
        raise _illegal(f"version {body.version} by {body.by or 'nobody'}")
    change = Change.RESUBMITTED if body.again else Change.IMPORTED
    candidate = Candidate(body.version, detectable=body.detectable, change=change, by=body.by)
    following = max(state.next_version, body.version + 1)
    return replace(state, waiting=(*state.waiting, candidate), next_version=following)


@_after.register(Admitted)
def _admitted(body: Admitted, state: CycleState, _at: float) -> CycleState:
    if body.version not in {candidate.version for candidate in state.waiting}:
        raise _illegal(f"version {body.version} does not wait")
    told = tuple(
        replace(candidate, answer=body.answer) if candidate.version == body.version else candidate
        for candidate in state.waiting
    )
    if body.answer is Admission.REFUSE:
        told = tuple(candidate for candidate in told if candidate.version != body.version)
    return replace(state, waiting=told)


@_after.register(Withdrawn)
def _withdrawn(body: Withdrawn, state: CycleState, _at: float) -> CycleState:
    if body.version != state.champion or body.version not in state.quarantined:
        raise _illegal(f"version {body.version} is no champion that is quarantined")
    if body.fallback != state.last_good:
        raise _illegal(f"back to {body.fallback}, where {state.last_good} is the last good version")
    return _crowned(state, body.fallback)


@_after.register(ServedAgain)
def _served_again(body: ServedAgain, state: CycleState, _at: float) -> CycleState:
    if not body.by or body.version != state.champion or not state.in_fallback:
        raise _illegal(f"no fallback of version {body.version} that {body.by or 'nobody'} could end")
    return replace(state, monitor=replace(state.monitor, decay=DecayState()))


@_after.register(Discarded)
def _discarded(body: Discarded, state: CycleState, _at: float) -> CycleState:
    if not body.by or body.version not in state.quarantined or body.version in state.discarded:
        raise _illegal(
            f"version {body.version} is given up by {body.by or 'nobody'}, or was, or is not in quarantine"
        )
    return replace(state, discarded=state.discarded | {body.version})


@_after.register(Refused)
def _refused(_body: Refused, state: CycleState, _at: float) -> CycleState:
    return state  # for the audit log alone


@_after.register(SafetyEvent)
def _safety(body: SafetyEvent, state: CycleState, at: float) -> CycleState:
    after = replace(state, safety=apply_safety(state.safety, body))
    kind = SafetyEventKind
    if body.kind is kind.ENTERED:
        name = f"{SAFE_MODE_INCIDENT}{state.num_events}"
        opened = OpenIncident(name, IncidentKind.FLEET, body.reason, at)
        return replace(after, incidents=(*state.incidents, opened))
    if body.kind is not kind.LEFT:
        return after
    left = tuple(one for one in state.incidents if not one.incident.startswith(SAFE_MODE_INCIDENT))
    return replace(after, incidents=left)


@_after.register(QuarantineEvent)
def _quarantine(body: QuarantineEvent, state: CycleState, _at: float) -> CycleState:
    """A person who lets a device in again overrules both ledgers; nobody lets in a version that was given up."""
    leaves = body.kind is QuarantineEventKind.RELEASED and body.subject is Subject.VERSION
    if leaves and body.ident in state.discarded:
        raise _illegal(f"version {body.ident} was given up")
    monitor, kept = state.monitor, state.quarantine.find(body.subject, body.ident)
    freed = body.kind is QuarantineEventKind.RELEASED and bool(body.by) and body.subject is Subject.DEVICE
    if freed and body.ident in monitor.quarantined:
        others = {device: streak for device, streak in monitor.devices.items() if device != body.ident}
        state = replace(
            state,
            monitor=replace(monitor, quarantined=monitor.quarantined - {body.ident}, devices=others),
        )
        if kept is None:
            return state
    return replace(state, quarantine=apply_quarantine(state.quarantine, body))


@_after.register(RolloutEvent)
def _rollout(body: RolloutEvent, state: CycleState, _at: float) -> CycleState:
    if body.kind is EventKind.CREATED:
        return _created(state, body)
    rollout = state.rollout
    if rollout is None:
        raise _illegal(f"{body.kind} without a rollout")
    candidate = rollout.plan.candidate
    if body.kind in _UP and not (
        state.safety.allows(Switch.ROLLOUTS) and state.safety.allows(Switch.INSTALLS)
    ):
        raise _illegal(f"{body.kind} while rollouts or installs are stopped")
    if body.kind in _UP and (candidate in state.quarantined or rollout.plan.champion != state.champion):
        raise _illegal(f"{body.kind} of a quarantined version, or against one that no longer serves")
    after = replace(
        state, rollout=machine.apply(rollout, body), incidents=_incidents_after(state.incidents, body)
    )
    if body.kind is EventKind.PROMOTED:
        return _crowned(after, candidate, (state.champion,))
    taken_back = body.kind is EventKind.ROLLBACK_STARTED and state.champion == candidate
    if not taken_back or body.order is None:
        return after
    if body.order.fallback not in (RULES_BASELINE, *state.before):
        raise _illegal(f"back to version {body.order.fallback}, which never was champion")
    return _crowned(after, body.order.fallback)


def _created(state: CycleState, body: RolloutEvent) -> CycleState:
    """A rollout begins: of the candidate that has waited longest, against the champion, in the fleet's one place."""
    begun = machine.begin(body)
    first = state.waiting[0] if state.waiting else None
    if first is None or first.version != begun.plan.candidate or begun.plan.champion != state.champion:
        raise _illegal(f"a rollout of version {begun.plan.candidate} against {begun.plan.champion}")
    if state.rollout_open or (state.rollout is not None and state.rollout.holdback_open):
        raise _illegal("a second rollout, or a holdback that needs the same devices")
    if first.version in state.quarantined or not state.safety.allows(Switch.ROLLOUTS):
        raise _illegal(f"version {first.version} is quarantined, or rollouts are stopped")
    return replace(
        state,
        rollout=begun,
        waiting=state.waiting[1:],
        num_rollouts=state.num_rollouts + 1,
        rollout_retrain=first.retrain,
    )


def _crowned(state: CycleState, champion: int, added: tuple[int, ...] = ()) -> CycleState:
    """Another champion; `added` may be gone back to."""
    before = tuple(v for v in (*added, *state.before) if v not in (RULES_BASELINE, champion))
    return replace(
        state,
        champion=champion,
        before=before,
        monitor=fresh_monitor(champion, state.monitor),
        # What is measured against a champion begins anew with it: no trigger waits for the end of what the last one suffered.
        trigger=replace(state.trigger, disarmed=()),
    )


def _incidents_after(incidents: tuple[OpenIncident, ...], event: RolloutEvent) -> tuple[OpenIncident, ...]:
    """Troubles of a rollout, by what follows from its event; all are over when it is."""
    if event.kind in (EventKind.ROLLED_BACK, EventKind.PROMOTED):
        return tuple(one for one in incidents if not one.incident.startswith(f"{event.rollout}/"))
    for effect in effects(event):
        payload: dict[str, Any] = effect.payload
        known = {one.incident for one in incidents}
        if effect.kind is EffectKind.OPEN_INCIDENT and payload["incident"] not in known:
            kind, reason = IncidentKind(payload["kind"]), str(payload["reason"])
            incidents = (*incidents, OpenIncident(str(payload["incident"]), kind, reason, event.at))
        if effect.kind is EffectKind.CLOSE_INCIDENT:
            incidents = tuple(one for one in incidents if one.incident != payload["incident"])
    return incidents
