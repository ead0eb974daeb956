"""The closed loop as one pure tick: watch, decide, retrain, validate, release, take back.

Rules of this file:
    * `tick` looks at policy, state and evidence and changes nothing; `apply` folds an event. The log of events is all
      that is needed to rebuild the state, and what follows for the world (a campaign, an order, a tag) follows from events.
    * Each part decides by its own package; here they are only put in order: what monitors say, how a retrain ended,
      whether to retrain, what becomes of the candidate.
    * One rollout at a time. A candidate that comes while one is on waits or takes its place, as the policy says.
    * A retrain ends when its candidate does: promoted, refused by a gate, or never made.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from fedretrain.core.errors import DataError
from fedretrain.monitoring import recipes
from fedretrain.monitoring.alerts import MonitorEvent
from fedretrain.monitoring.recipes import MonitorState
from fedretrain.retraining import trigger
from fedretrain.retraining.config import Where
from fedretrain.retraining.decision import Action, Decision, Ending, Outcome, TriggerState
from fedretrain.rollout import compose, machine
from fedretrain.rollout.causes import MODEL_AT_FAULT, EventKind
from fedretrain.rollout.events import RolloutEvent
from fedretrain.rollout.evidence import RolloutEvidence
from fedretrain.rollout.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedretrain.coordinator.policy import Policy
    from fedretrain.monitoring.baseline import Baseline
    from fedretrain.monitoring.view import FleetView
    from fedretrain.retraining.signals import Signals
    from fedretrain.rollout.state import RolloutState


@dataclass(frozen=True)
class Candidate:
    """A version that a retrain makes or has made.

    Attributes:
        version: Its number.
        retrain: Number of the retrain.
        ready: Whether it exists.
    """

    version: int
    retrain: int
    ready: bool = False


@dataclass(frozen=True)
class Trained:
    """How a campaign ended.

    Attributes:
        version: What it was to make.
        made: Whether it did.
        reason: For people.
        detectable: The smallest relative regression that each step of a rollout could detect; empty if not known.
    """

    version: int
    made: bool
    reason: str = ""
    detectable: tuple[float, ...] = ()


@dataclass(frozen=True)
class CycleState:
    """Where a fleet's loop stands.

    Attributes:
        champion: Version that serves.
        last_good: The champion before it.
        next_version: Number of the next candidate.
        monitor: What monitors remember.
        trigger: What retraining remembers.
        training: The candidate under way or waiting for its rollout.
        rollout: The rollout that is on, or the last one.
        num_rollouts: So many were begun.
        rollout_retrain: Number of the retrain that made the rollout's candidate.
        quarantined: Versions that failed, sorted.
        num_events: How many events made this state.
    """

    champion: int
    monitor: MonitorState
    trigger: TriggerState
    last_good: int = 0
    next_version: int = 2
    training: Candidate | None = None
    rollout: RolloutState | None = None
    num_rollouts: int = 0
    rollout_retrain: int = 0
    quarantined: tuple[int, ...] = ()
    num_events: int = 0

    @property
    def rollout_open(self) -> bool:
        """Whether a rollout occupies the fleet's one place."""
        return self.rollout is not None and self.rollout.is_open


@dataclass(frozen=True)
class Evidence:
    """What is known at a tick.

    Attributes:
        views: The monitors' windows that are due; none between strides, or while a new champion has no baseline.
        baseline: The champion's record, where there are views.
        signals: For retraining; None where retraining is not to be decided now.
        trained: A campaign that ended.
        rollout: For the rollout that is on.
    """

    views: tuple[FleetView, ...] = ()
    baseline: Baseline | None = None
    signals: Signals | None = None
    trained: Trained | None = None
    rollout: RolloutEvidence = field(default_factory=RolloutEvidence)


Body: TypeAlias = MonitorEvent | Decision | Outcome | Trained | RolloutEvent


@dataclass(frozen=True)
class CycleEvent:
    """Something that happened, with its instant.

    Attributes:
        at: Instant, seconds.
        body: What, in the words of its package.
    """

    at: float
    body: Body


def tick(policy: Policy, state: CycleState, evidence: Evidence, now: float) -> tuple[CycleEvent, ...]:
    """Everything that follows from what is known now, each event for the state that those before it leave.

    Args:
        policy: What a person decided beforehand.
        state: Where the loop stands.
        evidence: What is known.
        now: The instant, not before the last one.
    """
    log = _Log(policy, state, now)
    for view in evidence.views:
        if evidence.baseline is not None:
            log.add(*recipes.decide(policy.monitoring, log.state.monitor, view, evidence.baseline))
    if evidence.trained is not None:
        _end_training(log, evidence.trained)
    _begin_rollout(policy, log, evidence)
    _run_rollout(policy, log, evidence)
    if evidence.signals is not None:
        _retrain(policy, log, evidence.signals)
    return tuple(log.events)


class _Log:
    """Events of a tick, and the state that they lead to."""

    def __init__(self, policy: Policy, state: CycleState, now: float) -> None:
        self._policy, self.state, self.now = policy, state, now
        self.events: list[CycleEvent] = []

    def add(self, *bodies: Body) -> None:
        for body in bodies:
            event = CycleEvent(self.now, body)
            self.state = apply(self._policy, self.state, event)
            self.events.append(event)


def _end_training(log: _Log, trained: Trained) -> None:
    """A campaign is over; one that made nothing ends its retrain."""
    candidate = log.state.training
    if candidate is None or candidate.version != trained.version:
        return  # a campaign that was given up meanwhile
    log.add(trained)
    if not trained.made:
        log.add(Outcome(candidate.retrain, Ending.FAILED, trained.reason))


def _begin_rollout(policy: Policy, log: _Log, evidence: Evidence) -> None:
    """The waiting candidate's rollout, once the place is free."""
    candidate = log.state.training
    if candidate is None or not candidate.ready or log.state.rollout_open:
        return
    trained = evidence.trained
    detectable: Sequence[float] = trained.detectable if trained is not None else ()
    log.add(
        compose.create(
            policy.rollout,
            f"rollout-{log.state.num_rollouts + 1}",
            candidate.version,
            log.state.champion,
            log.now,
            detectable=detectable,
            quarantined=log.state.quarantined,
            policy_digest=policy.digest,
        )
    )


def _run_rollout(policy: Policy, log: _Log, evidence: Evidence) -> None:
    """What follows for the rollout that is on (or whose holdback is), and how its retrain ends with it."""
    rollout = log.state.rollout
    if rollout is None or not (rollout.is_open or rollout.holdback_open):
        return
    waiting = log.state.training
    seen = evidence.rollout
    if waiting is not None and waiting.ready and waiting.version != rollout.plan.candidate:
        seen = replace(seen, superseded_by=waiting.version)
    for event in machine.decide(policy.rollout, rollout, seen, log.now):
        log.add(event)
        ending = _ENDINGS.get(event.kind)
        running = log.state.trigger.before is not None
        if ending is not None and running and log.state.rollout_retrain == log.state.trigger.num_retrains:
            log.add(Outcome(log.state.rollout_retrain, ending, event.reason))


_ENDINGS = {EventKind.PROMOTED: Ending.DONE, EventKind.ROLLED_BACK: Ending.REJECTED}


def _retrain(policy: Policy, log: _Log, signals: Signals) -> None:
    """Whether to retrain; a refresh on the devices is done as soon as it is decided."""
    state = log.state
    known = replace(
        signals, retrain_running=state.training is not None, rollout_in_progress=state.rollout_open
    )
    decision = trigger.decide(policy.retraining, state.trigger, known, log.now)
    if trigger.apply(state.trigger, decision, log.now) == state.trigger and decision.action is Action.NONE:
        return  # nothing that a log would miss
    if decision.action is Action.DEFER and decision.obstacle is state.trigger.obstacle:
        return  # the same obstacle stands; it was written down when it came
    log.add(decision)
    if decision.action is Action.RETRAIN and decision.where is Where.DEVICE:
        log.add(Outcome(decision.number, Ending.DONE, "devices refresh their personal state"))


def apply(policy: Policy, state: CycleState, event: CycleEvent) -> CycleState:
    """The state after an event.

    Args:
        policy: What the loop runs under.
        state: Before it.
        event: What happened.

    Raises:
        DataError: If the event does not follow from the state.
        IllegalTransition: If it is not legal for the rollout.
    """
    counted = replace(state, num_events=state.num_events + 1)
    body = event.body
    if isinstance(body, (Decision, Outcome)):
        return _after_decision(counted, body, event.at)
    if isinstance(body, Trained):
        return _after_training(counted, body)
    if isinstance(body, RolloutEvent):
        return _after_rollout(counted, body)
    return replace(counted, monitor=recipes.apply(policy.monitoring, state.monitor, body))


def _after_decision(state: CycleState, body: Decision | Outcome, at: float) -> CycleState:
    after = replace(state, trigger=trigger.apply(state.trigger, body, at))
    starts = isinstance(body, Decision) and body.action is Action.RETRAIN and body.where is not Where.DEVICE
    if not starts:
        return after
    candidate = Candidate(state.next_version, after.trigger.num_retrains)
    return replace(after, training=candidate, next_version=state.next_version + 1)


def _after_training(state: CycleState, body: Trained) -> CycleState:
    if state.training is None or state.training.version != body.version:
        raise DataError(f"version {body.version} is not being trained", where="cycle")
    return replace(state, training=replace(state.training, ready=True) if body.made else None)


def _after_rollout(state: CycleState, body: RolloutEvent) -> CycleState:
    if body.kind is EventKind.CREATED:
        candidate = state.training
        assert candidate is not None
        begun = machine.begin(body)
        return replace(
            state,
            rollout=begun,
            training=None,
            num_rollouts=state.num_rollouts + 1,
            rollout_retrain=candidate.retrain,
        )
    assert state.rollout is not None
    changes: dict[str, Any] = {"rollout": machine.apply(state.rollout, body)}
    candidate_version = state.rollout.plan.candidate
    if body.kind is EventKind.PROMOTED:
        changes |= {
            "champion": candidate_version,
            "last_good": state.champion,
        }
    if body.kind is EventKind.ROLLBACK_STARTED and body.cause in MODEL_AT_FAULT:
        changes["quarantined"] = tuple(sorted({*state.quarantined, candidate_version}))
    if body.kind is EventKind.ROLLBACK_STARTED and state.champion == candidate_version:
        changes["champion"] = state.rollout.fallback if body.order is None else body.order.fallback
    if changes.get("champion", state.champion) != state.champion:
        changes["monitor"] = MonitorState(changes["champion"])  # what was said was about the other model
    return replace(state, **changes)


def decided(state: CycleState) -> Verdict:
    """How the last rollout ended: PASS promoted, FAIL taken back, INCONCLUSIVE still open or none."""
    if state.rollout is None or state.rollout.is_open:
        return Verdict.INCONCLUSIVE
    return Verdict.PASS if state.rollout.phase is machine.Phase.CHAMPION else Verdict.FAIL
