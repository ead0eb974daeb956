"""The way back, and what a person orders: rules of the machine that never expose more.

Rules of this file:
    * Each rule looks at state and evidence and writes at most one event; `machine.decide` asks them in turn.
    * A rollback is closed by the devices' own word under the present order, or by its expiry, and by nothing else.
    * A freeze is left by a person.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.rollout.causes import LIVE, Cause, EventKind, Phase, RollbackKind
from fedretrain.rollout.compose import exposure_record, order_of, take_back, write
from fedretrain.rollout.evidence import Command
from fedretrain.rollout.stops import fallback_of

if TYPE_CHECKING:
    from fedretrain.rollout.config import RolloutPolicy
    from fedretrain.rollout.events import RolloutEvent
    from fedretrain.rollout.evidence import Exposure, RolloutEvidence
    from fedretrain.rollout.state import RolloutState


def pause_or_resume(
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


def go_back(
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


def leave_freeze(
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


def end_holdback(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> RolloutEvent | None:
    """The holdback ends with its time, with the version that it serves, or with the next rollout, which needs its devices."""
    if not state.holdback_open or state.promoted_at is None:
        return None
    kept, newer = state.plan.holdback_version, evidence.superseded_by
    if evidence.champion_withdrawn and kept == state.plan.champion:
        reason = f"version {kept} is withdrawn"
    elif newer not in (None, state.plan.candidate):
        reason = f"version {newer} begins its rollout"
    elif now - state.promoted_at >= state.plan.holdback_s:
        reason = f"version {kept} has been held back long enough"
    else:
        return None
    order = order_of(policy, state, now, 1.0, holdback=False)
    return write(state, EventKind.HOLDBACK_ENDED, now, reason, order=order)
