"""The rollout's state machine: `decide(policy, state, evidence, now) -> events`, beside the fold's `apply` and `replay`.

Rules of this file:
    * Level triggered: a tick looks at what holds now and writes the events that follow from it; a tick that is missed or repeated changes
      nothing but the time.
    * The way back is looked at before the way up, in each tick and in each phase, paused or not.
    * A tick moves up by at most one step, and each event is made for the state that the one before it leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.core.errors import ConfigError
from fedretrain.rollout.ascent import go_on, hold_or_ask, note_gate, note_installed, watch_sources
from fedretrain.rollout.causes import Phase
from fedretrain.rollout.compose import take_back
from fedretrain.rollout.descent import end_holdback, go_back, leave_freeze, pause_or_resume
from fedretrain.rollout.evidence import Coverage, Exposure, RolloutEvidence
from fedretrain.rollout.fold import IllegalTransition, apply, begin, replay
from fedretrain.rollout.state import RolloutState
from fedretrain.rollout.stops import fallback_of, find_limit, find_stop
from fedretrain.rollout.transitions import TRANSITIONS

if TYPE_CHECKING:
    from fedretrain.rollout.config import RolloutPolicy
    from fedretrain.rollout.events import RolloutEvent
    from fedretrain.rollout.stops import Stop

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

_MOST_EVENTS = 16
"""More events in one tick are a defect of the rules, not of the world."""


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
        return _stopped(policy, state, evidence, now, stop)
    for rule in _RULES:
        event = rule(policy, state, evidence, now)
        if event is not None:
            return event
    return None


def _give_up(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> RolloutEvent | None:
    """Back, where a step is still undecided at its limit and nobody may be asked."""
    stop = find_limit(policy, state, evidence, now)
    return None if stop is None else _stopped(policy, state, evidence, now, stop)


def _stopped(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float, stop: Stop
) -> RolloutEvent:
    """The event that takes the candidate back for `stop`."""
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


_RULES = (
    pause_or_resume,
    go_back,
    leave_freeze,
    watch_sources,
    note_installed,
    note_gate,
    go_on,
    _give_up,
    hold_or_ask,
    end_holdback,
)
"""Asked in this order once no cause to go back is found; the first event counts, and then all are asked again."""
