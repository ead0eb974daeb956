"""One tick of a rollout, and which rollouts a fleet takes on.

Rules of this file:
    * A tick is pure: the shell stores the events first, then carries out the effects, then remembers their keys.
    * A fleet has one place for a rollout: two candidates at once share devices and alpha, and neither could be blamed. A second one is
      refused, waits, or takes the place of the first, as the policy says.
    * A holdback does not keep the place: it ends when the next rollout begins (`RolloutEvidence.superseded_by`).
    * A frozen rollout keeps the place: a person is looking at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from fedretrain.rollout.causes import Phase
from fedretrain.rollout.config import OnRetrain, OnSecond
from fedretrain.rollout.effects import effects
from fedretrain.rollout.fold import apply
from fedretrain.rollout.machine import decide

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from fedretrain.rollout.config import RolloutPolicy
    from fedretrain.rollout.effects import Effect
    from fedretrain.rollout.events import RolloutEvent
    from fedretrain.rollout.evidence import RolloutEvidence
    from fedretrain.rollout.state import RolloutState


@dataclass(frozen=True)
class Tick:
    """What one tick brought."""

    state: RolloutState
    events: tuple[RolloutEvent, ...]
    effects: tuple[Effect, ...]


def tick(policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float) -> Tick:
    """Decide, apply, and say what follows."""
    events = decide(policy, state, evidence, now)
    for event in events:
        state = apply(state, event)
    return Tick(state, events, tuple(effect for event in events for effect in effects(event)))


class Admission(StrEnum):
    """What becomes of a new candidate."""

    START = "start"
    QUEUE = "queue"  # starts once the place is free
    SUPERSEDE = "supersede"  # waits until the present one has gone back, which it is told to do
    REFUSE = "refuse"


def admit(
    policy: RolloutPolicy,
    candidate: int,
    rollouts: Sequence[RolloutState],
    *,
    is_retrain: bool = False,
    quarantined: Collection[int] = (),
) -> tuple[Admission, str]:
    """Whether a candidate may begin its rollout.

    Args:
        policy: Of the fleet.
        candidate: Its version.
        rollouts: All rollouts of the fleet that are known.
        is_retrain: Whether it comes from a retrain, rather than from a person.
        quarantined: Versions that may not be released.

    Returns:
        The answer and one line for people.
    """
    if candidate in quarantined:
        return Admission.REFUSE, f"version {candidate} is quarantined"
    on = next((rollout for rollout in rollouts if rollout.is_open), None)
    if on is None:
        kept = next((rollout.rollout for rollout in rollouts if rollout.holdback_open), None)
        return Admission.START, "no rollout is on" if kept is None else f"the holdback of {kept} ends"
    if on.plan.candidate == candidate:
        return Admission.REFUSE, f"version {candidate} is on already, in {on.rollout}"
    why = f"{on.rollout} is on, in {on.phase}"
    going = on.phase in (Phase.ROLLING_BACK, Phase.DE_ESCALATING)
    if is_retrain and policy.on_retrain is OnRetrain.SUPERSEDE and on.phase is not Phase.FROZEN:
        return (Admission.QUEUE, f"{why}, and going back") if going else (Admission.SUPERSEDE, why)
    if policy.on_second is OnSecond.QUEUE:
        return Admission.QUEUE, why
    return Admission.REFUSE, why


def last_good(
    rollouts: Sequence[RolloutState], withdrawn: Collection[int], quarantined: Collection[int] = ()
) -> int | None:
    """The version to fall back to where the champion is withdrawn: the latest that became champion and may still be served.

    Args:
        rollouts: All rollouts of the fleet that are known.
        withdrawn: Versions that may no longer be served.
        quarantined: Likewise.

    Returns:
        A version, or None: then the rules baseline serves, in safe mode.
    """
    stood = [(r.promoted_at, r.plan.candidate) for r in rollouts if r.promoted_at is not None]
    stood += [(r.created_at, r.plan.champion) for r in rollouts if r.plan.champion > 0]
    good = [
        pair
        for pair in stood
        if pair[1] not in withdrawn
        and pair[1] not in quarantined
        and not any(r.plan.candidate == pair[1] and r.phase is not Phase.CHAMPION for r in rollouts)
    ]
    return max(good)[1] if good else None
