"""The fold: `apply(state, event) -> state`, the first state, and replay.

Rules of this file:
    * An event without a row in `TRANSITIONS`, or that a guard refuses, raises `IllegalTransition`; states are frozen, so the one
      at hand is what it was.
    * The machine trusts no caller: the sequence, the clock, the order's counter and the direction of exposure are checked for every event, so
      a log that replays is a log in which each gate passed.
    * What follows from an event for the world is `effects.py`; nothing here acts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedretrain.core.errors import FedretrainError
from fedretrain.rollout.causes import EventKind, Phase
from fedretrain.rollout.events import gate_name
from fedretrain.rollout.state import Consent, RolloutState
from fedretrain.rollout.transitions import BY_SOURCE, FALLING, ORDERING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from fedretrain.rollout.events import RolloutEvent


class IllegalTransition(FedretrainError):  # noqa: N818 - the name that the design gives it
    """An event that may not follow in the state at hand."""


def begin(event: RolloutEvent) -> RolloutState:
    """The first state.

    Raises:
        IllegalTransition: If `event` is not the beginning of a rollout.
    """
    if event.kind is not EventKind.CREATED or event.plan is None or event.sequence != 0:
        raise IllegalTransition(f"a rollout begins with created, not with {event.kind} {event.sequence}")
    return RolloutState(
        event.rollout,
        event.plan,
        entered_at=event.at,
        created_at=event.at,
        updated_at=event.at,
        fallback=event.plan.champion,
        num_events=1,
    )


def apply(state: RolloutState, event: RolloutEvent) -> RolloutState:
    """The state after `event`.

    Raises:
        IllegalTransition: If the event may not follow; `state` is unchanged.
    """
    row = BY_SOURCE.get((state.phase, event.kind))
    if row is None:
        raise IllegalTransition(f"{state.rollout}: no {event.kind} in {state.phase}")
    for fault in (_misplaced(state, event), _misordered(state, event)):
        if fault:
            raise IllegalTransition(f"{state.rollout}: {event.kind} in {state.phase}: {fault}")
    for guard in row.guards:
        fault = guard(state, event)
        if fault:
            raise IllegalTransition(f"{state.rollout}: {event.kind} in {state.phase}: {fault}")
    moved = _moved(state, event, row.target)
    return replace(moved, **_PARTICULARS[event.kind](state, event))


def replay(events: Iterable[RolloutEvent]) -> RolloutState:
    """The state that a log leads to.

    Raises:
        IllegalTransition: If the log is empty, has gaps or breaks the table.
    """
    state: RolloutState | None = None
    for event in events:
        state = begin(event) if state is None else apply(state, event)
    if state is None:
        raise IllegalTransition("an empty log is no rollout")
    return state


def step_after(state: RolloutState, kind: EventKind) -> int:
    """The step that an event of `kind` leads to."""
    if kind in (EventKind.CANARY_STARTED, EventKind.RAMP_STARTED, EventKind.PROMOTED):
        return state.step + 1
    if kind in (EventKind.DE_ESCALATION_STARTED, EventKind.STEPPED_DOWN):
        return state.step - 1
    return 0 if kind is EventKind.UNFROZEN else state.step


def attempt_after(state: RolloutState, kind: EventKind) -> int:
    """The attempt that an event of `kind` leads to."""
    again = kind in (EventKind.EXTENDED, EventKind.UNFROZEN, EventKind.RETARGETED)
    return state.attempt + again


def _misplaced(state: RolloutState, event: RolloutEvent) -> str:
    """What is wrong with the event's place in the log."""
    if event.rollout != state.rollout:
        return f"an event of {event.rollout}"
    if event.sequence != state.num_events:
        return f"event {event.sequence} where {state.num_events} is next"
    if not event.at >= state.updated_at:
        return f"at {event.at}, before the last event at {state.updated_at}"
    expected = step_after(state, event.kind), attempt_after(state, event.kind)
    if (event.step, event.attempt) != expected:
        return f"step and attempt {(event.step, event.attempt)} where {expected} is next"
    return ""


def _misordered(state: RolloutState, event: RolloutEvent) -> str:
    """What is wrong with the event's order: exposure falls only by rollback, and rises only by the plan."""
    order = event.order
    if (order is not None) != (event.kind in ORDERING):
        return "an order where none belongs, or none where one does"
    if order is None:
        return ""
    if order.candidate != state.plan.candidate:
        return f"an order for version {order.candidate}"
    if order.counter != state.counter + 1:
        return f"order {order.counter} where {state.counter + 1} is next"
    if order.fraction < state.exposure_fraction and event.kind not in FALLING:
        return "exposure falls only by a rollback"
    if order.fraction > state.exposure_fraction and event.kind in FALLING:
        return "a rollback never exposes more"
    if order.fallback != state.fallback and event.kind not in FALLING:
        return "the fallback changes only on the way back"
    return ""


def _moved(state: RolloutState, event: RolloutEvent, target: Phase) -> RolloutState:
    """What every event does: count, clock, order, and a fresh start where phase, step or attempt change."""
    changes: dict[str, Any] = {
        "num_events": state.num_events + 1,
        "updated_at": event.at,
        "phase": target,
        "step": event.step,
        "attempt": event.attempt,
    }
    if event.order is not None:
        changes |= {
            "counter": event.order.counter,
            "exposure_fraction": event.order.fraction,
            "peak_fraction": max(state.peak_fraction, event.order.fraction),
            "fallback": event.order.fallback,
        }
    if (target, event.step, event.attempt) != (state.phase, state.step, state.attempt):
        changes |= {"entered_at": event.at, "held": None, "asked_at": None, **_clean_clock(state, event)}
        # Waiting for a person takes nothing away from what the devices have confirmed.
        if target is not Phase.APPROVAL:
            changes["installed_at"] = None
    return replace(state, **changes)


def _clean_clock(state: RolloutState, event: RolloutEvent) -> dict[str, Any]:
    """The count of broken time from now on; an outage goes on."""
    return {"broken_s": 0.0, "broken_at": None if state.broken_at is None else event.at}


def _restarted(state: RolloutState, _event: RolloutEvent) -> dict[str, Any]:
    return {"passed": state.plan.offline, "cause": None, "consents": ()}


def _gate_passed(state: RolloutState, _event: RolloutEvent) -> dict[str, Any]:
    return {"passed": (*state.passed, gate_name(state.step)), "held": None, "asked_at": None}


def _approved(state: RolloutState, event: RolloutEvent) -> dict[str, Any]:
    return {"consents": (*state.consents, Consent(event.by, event.until))}


def _nothing_agreed(_state: RolloutState, _event: RolloutEvent) -> dict[str, Any]:
    return {"consents": ()}


def _promoted(state: RolloutState, event: RolloutEvent) -> dict[str, Any]:
    kept = state.plan.holdback_fraction > 0
    return {"consents": (), "promoted_at": event.at, "holdback_open": kept}


def _installed(state: RolloutState, event: RolloutEvent) -> dict[str, Any]:
    return {"installed_at": event.at, "held": None, **_clean_clock(state, event)}


def _taken_back(_state: RolloutState, event: RolloutEvent) -> dict[str, Any]:
    return {"cause": event.cause, "paused_by": "", "holdback_open": False}


def _extended(state: RolloutState, event: RolloutEvent) -> dict[str, Any]:
    # The devices that run the step go on running it: the new attempt begins installed where the old one was.
    since = None if state.installed_at is None else event.at
    return {"extensions": state.extensions + 1, "installed_at": since}


def _mended(state: RolloutState, event: RolloutEvent) -> dict[str, Any]:
    return {"broken_at": None, "overdue": False, "broken_s": state.broken_for(event.at)}


_PARTICULARS: Mapping[EventKind, Callable[[RolloutState, RolloutEvent], dict[str, Any]]] = {
    EventKind.SHADOW_STARTED: _restarted,
    EventKind.UNFROZEN: _restarted,
    EventKind.GATE_PASSED: _gate_passed,
    EventKind.APPROVAL_ASKED: _nothing_agreed,
    EventKind.APPROVED: _approved,
    EventKind.CANARY_STARTED: _nothing_agreed,
    EventKind.RAMP_STARTED: _nothing_agreed,
    EventKind.PROMOTED: _promoted,
    EventKind.INSTALLED: _installed,
    EventKind.HOLDBACK_ENDED: lambda _state, _event: {"holdback_open": False},
    EventKind.DE_ESCALATION_STARTED: _taken_back,
    EventKind.FROZEN: _taken_back,
    EventKind.ROLLBACK_STARTED: _taken_back,
    EventKind.HELD: lambda _state, event: {"held": event.cause},
    EventKind.ASKED: lambda _state, event: {"asked_at": event.at, "held": event.cause},
    EventKind.EXTENDED: _extended,
    EventKind.SOURCE_BROKE: lambda _state, event: {"broken_at": event.at, "overdue": False},
    EventKind.SOURCE_OVERDUE: lambda _state, _event: {"overdue": True},
    EventKind.SOURCE_MENDED: _mended,
    EventKind.PAUSED: lambda _state, event: {"paused_by": event.by},
    EventKind.RESUMED: lambda _state, _event: {"paused_by": ""},
    EventKind.STEPPED_DOWN: lambda _state, _event: {},
    EventKind.RETARGETED: lambda _state, _event: {},
    EventKind.ROLLED_BACK: lambda _state, _event: {},
}
"""What each kind of event does beside moving."""
