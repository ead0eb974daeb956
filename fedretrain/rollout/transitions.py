"""The table: which event may follow in which phase, under which guards, and where it leads.

Rules of this file:
    * Every legal move is a row of `TRANSITIONS`; what has no row is illegal. The diagram in the documentation is drawn from it.
    * A row has one target. What decides between two targets is two kinds of event.
    * A guard looks at the state and the event alone, and answers with what is wrong, or with nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from fedretrain.rollout.causes import LIVE, ApprovalPoint, EventKind, Phase
from fedretrain.rollout.events import gate_name

if TYPE_CHECKING:
    from fedretrain.rollout.events import RolloutEvent
    from fedretrain.rollout.state import RolloutState

Guard = Callable[["RolloutState", "RolloutEvent"], str]
"""What is wrong with this event in this state; empty where nothing is."""

FALLING = frozenset(
    {
        EventKind.DE_ESCALATION_STARTED,
        EventKind.STEPPED_DOWN,
        EventKind.FROZEN,
        EventKind.ROLLBACK_STARTED,
        EventKind.RETARGETED,
    }
)
"""The only events after which fewer devices serve the candidate."""

ORDERING = FALLING | {
    EventKind.SHADOW_STARTED,
    EventKind.CANARY_STARTED,
    EventKind.RAMP_STARTED,
    EventKind.PROMOTED,
    EventKind.UNFROZEN,
    EventKind.HOLDBACK_ENDED,
}
"""The events that carry an order to the devices; no other does."""


def validation_passed(_: RolloutState, event: RolloutEvent) -> str:
    """The offline validation says PASS."""
    return "" if event.evidence.get("validation") == "pass" else "the validation has not passed"


def simulation_passed(state: RolloutState, event: RolloutEvent) -> str:
    """The simulation gate says PASS, if the plan wants that."""
    ok = not state.plan.simulation or event.evidence.get("simulation") == "pass"
    return "" if ok else "the simulation gate has not passed"


def gate_says_pass(state: RolloutState, event: RolloutEvent) -> str:
    """The report is a PASS of the present step's gate, which is the next of the plan."""
    name = gate_name(state.step)
    if event.evidence.get("gate") != name or event.evidence.get("verdict") != "pass":
        return f"no PASS of the gate {name!r}"
    plan = state.plan
    due = state.passed == plan.gates[: len(plan.offline) + state.step]
    return "" if due else f"the gate {name!r} is not due after {list(state.passed)}"


def installed(state: RolloutState, _: RolloutEvent) -> str:
    """The step's devices have confirmed what they run."""
    ok = state.step == 0 or state.installed_at is not None
    return "" if ok else "the devices have not confirmed the step"


def gates_passed(state: RolloutState, _: RolloutEvent) -> str:
    """Every gate up to and with the present step's has passed."""
    return "" if state.gate_passed else f"gates passed so far: {list(state.passed)}"


def not_paused(state: RolloutState, _: RolloutEvent) -> str:
    """Nobody has paused it."""
    return f"paused by {state.paused_by}" if state.paused_by else ""


def paused(state: RolloutState, _: RolloutEvent) -> str:
    """Somebody has paused it."""
    return "" if state.paused_by else "nobody has paused it"


def step_left(state: RolloutState, event: RolloutEvent) -> str:
    """The plan has a next step, and the order is the plan's."""
    if state.step >= state.last_step:
        return "the plan has no further step"
    planned = state.plan.fractions[state.step]
    ok = event.order is not None and event.order.fraction == planned
    return "" if ok else f"the next step of the plan is {planned}"


def no_step_left(state: RolloutState, event: RolloutEvent) -> str:
    """All steps of the plan are done, and the order is for everybody."""
    if state.step < state.last_step:
        return f"{state.last_step - state.step} steps are left"
    return "" if event.order is not None and event.order.fraction == 1.0 else "no order for everybody"


def agreed(state: RolloutState, event: RolloutEvent) -> str:
    """Enough people agree to what begins, if the plan wants that."""
    if approval_point(event.kind) not in state.plan.approvals:
        return ""
    have, need = len(state.consents_at(event.at)), state.plan.people
    return "" if have >= need else f"{have} of {need} approvals"


def by_a_person(_: RolloutState, event: RolloutEvent) -> str:
    """Somebody's name stands behind it."""
    return "" if event.by else "needs the name of a person"


def consent_counts(state: RolloutState, event: RolloutEvent) -> str:
    """The approval is good now, and its giver has not given one already, nor proposed what needs four eyes."""
    if event.until <= event.at:
        return "the approval has expired"
    if state.plan.four_eyes and event.by == state.plan.proposed_by:
        return f"{event.by} proposed it, and {state.plan.four_eyes}: two others must agree"
    doubled = any(consent.by == event.by for consent in state.consents_at(event.at))
    return f"{event.by} has approved already" if doubled else ""


def asked(state: RolloutState, _: RolloutEvent) -> str:
    """A person was asked before."""
    return "" if state.asked_at is not None else "nobody was asked"


def source_broken(state: RolloutState, _: RolloutEvent) -> str:
    """A metric source is broken."""
    return "" if state.broken_at is not None else "no metric source is broken"


def source_alive(state: RolloutState, _: RolloutEvent) -> str:
    """No metric source is known to be broken."""
    return "" if state.broken_at is None else "the source was broken already"


def has_cause(_: RolloutState, event: RolloutEvent) -> str:
    """The event says why."""
    return "" if event.cause is not None else "no cause given"


def exposure_gone(_: RolloutState, event: RolloutEvent) -> str:
    """The order takes the candidate away from everybody."""
    return "" if event.order is not None and event.order.fraction == 0.0 else "devices stay exposed"


def one_step_down(state: RolloutState, event: RolloutEvent) -> str:
    """The order is the plan's step below."""
    if state.step < 2:
        return "there is no step below"
    planned = state.plan.fractions[state.step - 2]
    ok = event.order is not None and event.order.fraction == planned
    return "" if ok else f"the step below is {planned}"


def everybody_back(state: RolloutState, event: RolloutEvent) -> str:
    """Each device that was ever exposed has confirmed the fallback or has expired."""
    if state.peak_fraction == 0.0:
        return ""
    if event.evidence.get("counter") != state.counter:
        return "nothing is known of the order to go back"
    still = event.evidence.get("num_pending", 1) + event.evidence.get("num_failed", 0)
    return f"{still} exposed devices have not confirmed" if still else ""


def holdback_on(state: RolloutState, _: RolloutEvent) -> str:
    """A holdback still serves its own version."""
    return "" if state.holdback_open else "there is no holdback"


@dataclass(frozen=True)
class Transition:
    """One row of the table."""

    source: Phase
    kind: EventKind
    target: Phase
    guards: tuple[Guard, ...] = ()


_P, _K = Phase, EventKind
_STEPPING = (_P.SHADOW, _P.CANARY, _P.RAMP)
_FORWARD = (gates_passed, not_paused, source_alive, agreed)
_BACK = (exposure_gone, has_cause)
_Block = Mapping[EventKind, tuple[tuple[Phase, ...], tuple[Guard, ...]]]
"""For each kind of event the phases it may come in, and its guards."""

_UP: Mapping[Phase, _Block] = {
    _P.SHADOW: {_K.SHADOW_STARTED: ((_P.PENDING,), (validation_passed, simulation_passed, not_paused))},
    _P.APPROVAL: {_K.APPROVAL_ASKED: (_STEPPING, (gates_passed, not_paused))},
    _P.CANARY: {_K.CANARY_STARTED: ((_P.SHADOW, _P.APPROVAL), (step_left, *_FORWARD))},
    _P.RAMP: {_K.RAMP_STARTED: ((_P.CANARY, _P.RAMP, _P.APPROVAL), (step_left, *_FORWARD))},
    _P.CHAMPION: {_K.PROMOTED: ((*_STEPPING, _P.APPROVAL), (no_step_left, *_FORWARD))},
}
_STAYS: _Block = {
    _K.GATE_PASSED: (_STEPPING, (gate_says_pass, installed)),
    _K.APPROVED: ((_P.APPROVAL,), (by_a_person, consent_counts)),
    _K.INSTALLED: ((_P.CANARY, _P.RAMP), ()),
    _K.HELD: (LIVE, (has_cause,)),
    _K.ASKED: (_STEPPING, (has_cause,)),
    _K.EXTENDED: (_STEPPING, (asked, by_a_person)),
    _K.SOURCE_BROKE: (LIVE, (source_alive,)),
    _K.SOURCE_OVERDUE: (LIVE, (source_broken,)),
    _K.SOURCE_MENDED: (LIVE, (source_broken,)),
    _K.PAUSED: (LIVE, (by_a_person, not_paused)),
    _K.RESUMED: (LIVE, (by_a_person, paused)),
    _K.STEPPED_DOWN: ((_P.DE_ESCALATING,), (one_step_down,)),
    _K.RETARGETED: ((_P.ROLLING_BACK, _P.FROZEN), _BACK),
    _K.HOLDBACK_ENDED: ((_P.CHAMPION,), (holdback_on,)),
}
_DOWN: Mapping[Phase, _Block] = {
    _P.ROLLING_BACK: {_K.ROLLBACK_STARTED: ((*LIVE, _P.CHAMPION, _P.DE_ESCALATING), _BACK)},
    _P.DE_ESCALATING: {_K.DE_ESCALATION_STARTED: ((_P.APPROVAL, _P.RAMP), (one_step_down, has_cause))},
    _P.FROZEN: {_K.FROZEN: (LIVE[1:], _BACK)},
    _P.SHADOW: {_K.UNFROZEN: ((_P.FROZEN,), (by_a_person,))},
    _P.ROLLED_BACK: {_K.ROLLED_BACK: ((_P.ROLLING_BACK,), (everybody_back,))},
}


def _rows() -> tuple[Transition, ...]:
    """The table: the way up, what leaves the phase as it is, the ways down."""
    moves = (
        Transition(source, kind, target, guards)
        for part in (_UP, _DOWN)
        for target, block in part.items()
        for kind, (sources, guards) in block.items()
        for source in sources
    )
    stays = (
        Transition(source, kind, source, guards)
        for kind, (sources, guards) in _STAYS.items()
        for source in sources
    )
    # What is frozen is taken back by a person only.
    given_up = Transition(_P.FROZEN, _K.ROLLBACK_STARTED, _P.ROLLING_BACK, (*_BACK, by_a_person))
    return (*moves, given_up, *stays)


TRANSITIONS: tuple[Transition, ...] = _rows()
"""Every legal move."""

BY_SOURCE: Mapping[tuple[Phase, EventKind], Transition] = MappingProxyType(
    {(row.source, row.kind): row for row in TRANSITIONS}
)


def approval_point(kind: EventKind) -> ApprovalPoint | None:
    """The approval that an event may need."""
    return {
        EventKind.CANARY_STARTED: ApprovalPoint.CANARY,
        EventKind.RAMP_STARTED: ApprovalPoint.RAMP,
        EventKind.PROMOTED: ApprovalPoint.CHAMPION,
    }.get(kind)
