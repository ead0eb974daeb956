"""The fleet's one place for a rollout: who gets it, what happens to the rollout that has it, and how its retrain ends.

Rules of this file:
    * One rollout at a time. A candidate that comes while one is on waits, takes its place, or is refused, as the policy says.
    * A holdback does not keep the place: it goes on until the next rollout begins, which needs its devices.
    * Whoever waited in a queue begins in the tick after the place became free, and is run from the tick after that on: what is known
      at a tick was measured for the rollout that was on when it began.
    * A retrain ends when its candidate does. Only what judged the candidate rejects it; a switch, safe mode or a broken metric source
      leave it untried, and its labels unused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fedretrain.coordinator.cycle_events import Admitted, CycleEvent
from fedretrain.coordinator.cycle_fold import apply
from fedretrain.core.errors import ConfigError
from fedretrain.retraining.decision import Ending, Outcome
from fedretrain.rollout import compose, machine
from fedretrain.rollout.causes import Cause, EventKind, Phase
from fedretrain.rollout.config import OnSecond
from fedretrain.rollout.effects import EffectKind, effects
from fedretrain.rollout.quarantine import QuarantineEvent, QuarantineEventKind, Subject
from fedretrain.rollout.reconcile import Admission, admit
from fedretrain.rollout.safety import Switch

if TYPE_CHECKING:
    from fedretrain.coordinator.cycle_events import Body
    from fedretrain.coordinator.cycle_state import Candidate, CycleState
    from fedretrain.coordinator.policy import Policy
    from fedretrain.rollout.config import RolloutPolicy
    from fedretrain.rollout.events import RolloutEvent
    from fedretrain.rollout.evidence import Operator, RolloutEvidence

UNTRIED = frozenset({Cause.KILL, Cause.SAFE_MODE, Cause.CHAMPION_WITHDRAWN, Cause.METRIC_SOURCE})
"""Causes that say nothing about the candidate."""


class Log:
    """The events of a tick, and the state that they lead to.

    Args:
        policy: What a person decided beforehand.
        state: Where the loop stands.
        now: The instant.
        num_devices: Devices of the fleet; None where nobody has counted them.
        decides_otherwise: Waiting versions whose decision thresholds are not the champion's.
    """

    def __init__(
        self,
        policy: Policy,
        state: CycleState,
        now: float,
        num_devices: int | None = None,
        decides_otherwise: frozenset[int] = frozenset(),
    ) -> None:
        self.policy, self.state, self.now, self.num_devices = policy, state, now, num_devices
        self.decides_otherwise = decides_otherwise
        self.events: list[CycleEvent] = []

    def add(self, *bodies: Body) -> None:
        """Each event for the state that those before it leave."""
        for body in bodies:
            event = CycleEvent(self.now, body)
            self.state = apply(self.policy, self.state, event)
            self.events.append(event)


def end_retrain(log: Log, retrain: int, ending: Ending, reason: str) -> None:
    """How a retrain ended, unless it is over or a later one was begun."""
    running = log.state.trigger.before is not None
    if running and retrain == log.state.trigger.num_retrains:
        log.add(Outcome(retrain, ending, reason))


def run(log: Log, seen: RolloutEvidence, taken: Operator | None) -> None:
    """What follows for the rollout that is on, or whose version is champion; then the next one, if its place is free.

    Args:
        log: Of the tick.
        seen: What is known of the rollout.
        taken: The order to take its candidate back, if that was quarantined now.
    """
    next_up = _answers(log)
    rollout = log.state.rollout
    if rollout is not None and rollout.phase is not Phase.ROLLED_BACK:
        known = _completed(log.state, seen, next_up)
        for event in machine.decide(
            log.policy.rollout, rollout, known if taken is None else replace(known, operator=taken), log.now
        ):
            log.add(event)
            _follow(log, event)
    if next_up is not None and not log.state.rollout_open:
        _begin(log)


def _completed(state: CycleState, seen: RolloutEvidence, next_up: int | None) -> RolloutEvidence:
    """A rollout's evidence with what the loop knows itself."""
    assert state.rollout is not None
    plan, safety = state.rollout.plan, state.safety
    serves = state.champion not in (*state.quarantined, plan.candidate)
    return replace(
        seen,
        kill=seen.kill or Switch.ROLLOUTS in safety.stopped,
        installs_stopped=seen.installs_stopped or Switch.INSTALLS in safety.stopped,
        safe_mode=seen.safe_mode or safety.safe_mode,
        champion_withdrawn=seen.champion_withdrawn or plan.champion in state.quarantined,
        last_good=state.champion if serves else state.last_good,
        superseded_by=next_up,
    )


def _follow(log: Log, event: RolloutEvent) -> None:
    """What a rollout's event means for its version and for its retrain."""
    for effect in effects(event):
        version = effect.payload.get("version", 0)
        if effect.kind is EffectKind.QUARANTINE and version not in log.state.quarantined:
            entered, why = QuarantineEventKind.ENTERED, event.reason
            log.add(QuarantineEvent(entered, Subject.VERSION, version, log.now, why))
    if event.kind is EventKind.PROMOTED:
        end_retrain(log, log.state.rollout_retrain, Ending.DONE, event.reason)
    if event.kind is EventKind.ROLLED_BACK and log.state.rollout is not None:
        ending = Ending.FAILED if log.state.rollout.cause in UNTRIED else Ending.REJECTED
        end_retrain(log, log.state.rollout_retrain, ending, event.reason)


def _answers(log: Log) -> int | None:
    """Tell each waiting candidate where it stands; the version that gets the place, now or once what is on has gone back."""
    first: int | None = None
    next_up: int | None = None
    for candidate in log.state.waiting:
        answer, reason = _answer(log, candidate, first)
        if answer is not Admission.REFUSE and first is None:
            first = candidate.version
            next_up = first if answer in (Admission.START, Admission.SUPERSEDE) else None
        if answer not in (Admission.START, candidate.answer):
            log.add(Admitted(candidate.version, answer, reason))
        if answer is Admission.REFUSE:
            end_retrain(log, candidate.retrain, Ending.FAILED, reason)
    return next_up


def _answer(log: Log, candidate: Candidate, first: int | None) -> tuple[Admission, str]:
    """What a waiting candidate is told, where `first` waits before it."""
    state, policy = log.state, log.policy.rollout
    on = () if state.rollout is None else (state.rollout,)
    answer, reason = admit(
        policy,
        candidate.version,
        on,
        is_retrain=candidate.retrain > 0,
        quarantined=state.quarantined,
    )
    if answer is Admission.REFUSE:
        return answer, reason
    if first is not None:
        return _behind(policy, candidate, first)
    if answer is Admission.START:
        try:
            _creation(log, candidate)
        except ConfigError as error:
            return Admission.REFUSE, str(error)
    if not state.safety.allows(Switch.ROLLOUTS):
        return (
            Admission.QUEUE,
            "the fleet is in safe mode" if state.safety.safe_mode else "rollouts are stopped",
        )
    return answer, reason


def _behind(policy: RolloutPolicy, candidate: Candidate, first: int) -> tuple[Admission, str]:
    """A candidate behind another: a retrain's waits; a person's waits or is refused, as for a second rollout."""
    waits = candidate.retrain > 0 or policy.on_second is not OnSecond.REFUSE
    return Admission.QUEUE if waits else Admission.REFUSE, f"version {first} waits before it"


def _creation(log: Log, candidate: Candidate) -> RolloutEvent:
    """The first event of a candidate's rollout."""
    num, kept = log.num_devices, len(log.state.kept_devices)
    return compose.create(
        log.policy.rollout,
        f"rollout-{log.state.num_rollouts + 1}",
        candidate.version,
        log.state.champion,
        log.now,
        detectable=candidate.detectable,
        clusters=candidate.clusters,
        num_devices=None if num is None else num - kept,
        quarantined=log.state.quarantined,
        policy_digest=log.policy.digest,
        change=candidate.change,
        proposed_by=candidate.by,
        decides_otherwise=candidate.version in log.decides_otherwise,
        simulated=candidate.aggregated,
    )


def _begin(log: Log) -> None:
    """The first waiting candidate's rollout, if nothing forbids it by now."""
    state = log.state
    first = state.waiting[0] if state.waiting else None
    holds = state.rollout is not None and state.rollout.holdback_open
    if first is not None and not holds and _answer(log, first, None)[0] is Admission.START:
        log.add(_creation(log, first))
