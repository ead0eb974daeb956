"""The table: which event may follow in which phase, under which guards, and where it leads.

Rules of this file:
    * Every legal move is a row of `TRANSITIONS`; what has no row is illegal. The diagram in the documentation is drawn from it.
    * A row has one target. What decides between two targets is two kinds of event.
    * A guard looks at the state and the event alone, and answers with what is wrong, or with nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from fedretrain.rollout.causes import LIVE, ApprovalPoint, EventKind, Phase
from fedretrain.rollout.events import gate_name

if TYPE_CHECKING:
    from collections.abc import Mapping

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


def gate_says_pass(state: RolloutState, event: RolloutEvent) -> str:
    """The report is a PASS of the present step's gate, which is the next of the plan."""
    name = gate_name(state.step)
    if event.evidence.get("gate") != name or event.evidence.get("verdict") != "pass":
        return f"no PASS of the gate {name!r}"
    due = state.passed == state.plan.gates[: state.step + 1]
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
    """The approval is good now and its giver has not given one already."""
    if event.until <= event.at:
        return "the approval has expired"
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


def _rows() -> tuple[Transition, ...]:
    """The table, from the way up to the ways down."""
    p, k = Phase, EventKind
    stepping = (p.SHADOW, p.CANARY, p.RAMP)
    forward = (gates_passed, not_paused, source_alive, agreed)
    starts = {
        k.CANARY_STARTED: (p.CANARY, (p.SHADOW, p.APPROVAL), (step_left, *forward)),
        k.RAMP_STARTED: (p.RAMP, (p.CANARY, p.RAMP, p.APPROVAL), (step_left, *forward)),
        k.PROMOTED: (p.CHAMPION, (*stepping, p.APPROVAL), (no_step_left, *forward)),
    }
    stays: dict[EventKind, tuple[tuple[Phase, ...], tuple[Guard, ...]]] = {
        k.GATE_PASSED: (stepping, (gate_says_pass, installed)),
        k.APPROVED: ((p.APPROVAL,), (by_a_person, consent_counts)),
        k.INSTALLED: ((p.CANARY, p.RAMP), ()),
        k.HELD: (LIVE, (has_cause,)),
        k.ASKED: (stepping, (has_cause,)),
        k.EXTENDED: (stepping, (asked, by_a_person)),
        k.SOURCE_BROKE: (LIVE, (source_alive,)),
        k.SOURCE_OVERDUE: (LIVE, (source_broken,)),
        k.SOURCE_MENDED: (LIVE, (source_broken,)),
        k.PAUSED: (LIVE, (by_a_person, not_paused)),
        k.RESUMED: (LIVE, (by_a_person, paused)),
        k.STEPPED_DOWN: ((p.DE_ESCALATING,), (one_step_down,)),
        k.RETARGETED: ((p.ROLLING_BACK, p.FROZEN), (exposure_gone, has_cause)),
        k.HOLDBACK_ENDED: ((p.CHAMPION,), (holdback_on,)),
    }
    back = (exposure_gone, has_cause)
    return (
        Transition(p.PENDING, k.SHADOW_STARTED, p.SHADOW, (validation_passed, not_paused)),
        *(Transition(s, k.APPROVAL_ASKED, p.APPROVAL, (gates_passed, not_paused)) for s in stepping),
        *(Transition(s, kind, to, guards) for kind, (to, from_, guards) in starts.items() for s in from_),
        *(Transition(s, kind, s, guards) for kind, (phases, guards) in stays.items() for s in phases),
        *(Transition(s, k.ROLLBACK_STARTED, p.ROLLING_BACK, back) for s in (*LIVE, p.CHAMPION)),
        Transition(p.DE_ESCALATING, k.ROLLBACK_STARTED, p.ROLLING_BACK, back),
        Transition(p.FROZEN, k.ROLLBACK_STARTED, p.ROLLING_BACK, (*back, by_a_person)),
        *(
            Transition(s, k.DE_ESCALATION_STARTED, p.DE_ESCALATING, (one_step_down, has_cause))
            for s in (p.APPROVAL, p.RAMP)
        ),
        *(Transition(s, k.FROZEN, p.FROZEN, back) for s in LIVE[1:]),
        Transition(p.FROZEN, k.UNFROZEN, p.SHADOW, (by_a_person,)),
        Transition(p.ROLLING_BACK, k.ROLLED_BACK, p.ROLLED_BACK, (everybody_back,)),
    )


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
