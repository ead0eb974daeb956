"""Whether a person's order may be followed, and in one line why not.

Rules of this file:
    * One function for whoever asks: the command line before it writes an order down, the loop before it follows one.
    * Four eyes are two people, neither of whom proposed the candidate. Saying no, stopping and going back need no second person.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.coordinator.cycle_evidence import Discard, Propose, Resubmit, ServeAgain
from fedretrain.coordinator.roles import Right
from fedretrain.rollout.ascent import next_step
from fedretrain.rollout.causes import ApprovalPoint, Phase
from fedretrain.rollout.evidence import Answer, Approval, Command
from fedretrain.rollout.quarantine import Release, Subject
from fedretrain.rollout.safety import SafetyCommand, SafetyOrder
from fedretrain.rollout.stops import RULES_BASELINE
from fedretrain.rollout.transitions import approval_point

if TYPE_CHECKING:
    from typing import TypeAlias

    from fedretrain.coordinator.cycle_evidence import Order
    from fedretrain.coordinator.cycle_state import CycleState
    from fedretrain.coordinator.roles import Roles
    from fedretrain.rollout.evidence import Operator
    from fedretrain.rollout.state import RolloutState

    Said: TypeAlias = Order | Approval | Operator

_POINTS = {
    ApprovalPoint.CANARY: Right.APPROVE_CANARY,
    ApprovalPoint.RAMP: Right.APPROVE_RAMP,
    ApprovalPoint.CHAMPION: Right.APPROVE_CHAMPION,
}
_ON_THE_WAY = (Command.PAUSE, Command.RESUME, Command.UNFREEZE)
"""Orders that mean nothing to a champion; it can still be taken back."""
_RESTORING = (SafetyCommand.LEAVE, SafetyCommand.START)


def refusal(
    roles: Roles, state: CycleState | None, said: Said, now: float, account: str | None = None
) -> str:
    """Why an order may not be followed; empty where it may.

    An approval that answers no question is refused by `unasked`, and an order to a rollout that is not on by `unsteered`: the loop passes
    over them, whoever types them is told.

    Args:
        roles: Of the population.
        state: Of its loop; None where it has not begun.
        said: What somebody orders.
        now: Instant.
        account: From which it is ordered; None where that is not asked.
    """
    if not isinstance(said, Approval):
        return roles.lacks(said.by, _right(said), account) or _of_version(state, said)
    rollout = None if state is None else state.rollout
    if rollout is None or said.answer is Answer.NONE:
        return ""
    right = _right_to_answer(rollout)
    if right is None:
        return ""
    return roles.lacks(said.by, right, account) or _second_person(rollout, said, now)


def unasked(state: CycleState | None) -> str:
    """What is wrong with any answer now; empty where a question is open."""
    rollout = None if state is None else state.rollout
    if rollout is None or not rollout.is_open:
        return "there is no rollout that asks for anything"
    if rollout.phase is Phase.APPROVAL or rollout.asked_at is not None:
        return ""
    return f"the rollout of version {rollout.plan.candidate} is in {rollout.phase} and asks for nothing"


def unsteered(state: CycleState | None, command: Command) -> str:
    """Why an order to the rollout would change nothing; empty where there is one to steer."""
    rollout = None if state is None else state.rollout
    if rollout is None or rollout.phase is Phase.ROLLED_BACK:
        return "there is no rollout that is on"
    if rollout.phase is Phase.CHAMPION and command in _ON_THE_WAY:
        return f"the rollout of version {rollout.plan.candidate} is over, it is the champion"
    return ""


def _of_version(state: CycleState | None, said: Order | Operator) -> str:
    """What is wrong with an order about a version; a version that was given up is never tried again."""
    if state is None:
        return ""
    if isinstance(said, Release):
        gone = said.subject is Subject.VERSION and said.ident in state.discarded
        return f"version {said.ident} was discarded" if gone else ""
    if not isinstance(said, (Propose, Resubmit, Discard)):
        return ""
    version, rollout = said.version, state.rollout
    if version in state.discarded:
        return f"version {version} was discarded"
    if isinstance(said, Propose):
        return ""
    on = rollout is not None and rollout.is_open and rollout.plan.candidate == version
    coming = (*state.waiting, *(() if state.training is None else (state.training,)))
    for holds, why in (
        (version <= RULES_BASELINE, "is the rules baseline"),
        (version == state.champion, "is the champion"),
        (on, "has a rollout that is on"),
        (any(one.version == version for one in coming), "waits for its rollout"),
    ):
        if holds:
            return f"version {version} {why}"
    return ""


def _right(said: Order | Operator) -> Right:
    """What an order that is no approval needs."""
    restores = isinstance(said, (Release, ServeAgain, Resubmit))
    restores |= isinstance(said, SafetyOrder) and said.command in _RESTORING
    return Right.RESTORE if restores else Right.OPERATE


def _right_to_answer(rollout: RolloutState) -> Right | None:
    """What the open question needs; None where none is open."""
    if rollout.phase is not Phase.APPROVAL:
        return Right.APPROVE_ATTEMPT if rollout.asked_at is not None else None
    if rollout.plan.four_eyes:
        return Right.APPROVE_CRITICAL
    point = approval_point(next_step(rollout)[0])
    return None if point is None else _POINTS[point]


def _second_person(rollout: RolloutState, said: Approval, now: float) -> str:
    """What is wrong with a yes beside its giver's rights."""
    if said.answer is not Answer.GRANTED or rollout.phase is not Phase.APPROVAL:
        return ""
    plan = rollout.plan
    if plan.four_eyes and said.by == plan.proposed_by:
        return f"{said.by} proposed version {plan.candidate}, and {plan.four_eyes}: two others must agree"
    if any(consent.by == said.by for consent in rollout.consents_at(now)):
        return f"{said.by} has agreed already; {plan.people} different people must"
    return ""
