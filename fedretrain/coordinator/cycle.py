"""The closed loop as one pure tick: watch, decide, retrain, validate, release, take back.

Rules of this file:
    * `tick` looks at policy, state and evidence and changes nothing; `apply` folds an event. The log of events is all
      that is needed to rebuild the state, and what follows for the world (a campaign, an order, a tag) follows from events.
    * Each part decides by its own package; here they are only put in order: what monitors say, what is unsafe, who is kept out, how
      a retrain ended, what becomes of candidates, whether to retrain.
    * A shell stores a tick's events, then does what they ask for: a retrain `Decision` begins a campaign or a refresh, a `Trained`
      that made nothing stops one, a rollout's events have `rollout.effects`, and `served` says what everybody else runs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fedretrain.coordinator.cycle_events import (
    Admitted,
    Begun,
    Body,
    CycleEvent,
    Discarded,
    Proposed,
    Refused,
    ServedAgain,
    Trained,
    Withdrawn,
    from_record,
    incident_of,
)
from fedretrain.coordinator.cycle_evidence import (
    Discard,
    Evidence,
    Order,
    Propose,
    Quarantine,
    Resubmit,
    Retrain,
    ServeAgain,
    UnderWay,
    Withdraw,
)
from fedretrain.coordinator.cycle_fold import apply, begin, replay
from fedretrain.coordinator.cycle_release import Log, end_retrain, run
from fedretrain.coordinator.cycle_state import Candidate, CycleState, OpenIncident, refresh_due, served
from fedretrain.coordinator.permission import refusal
from fedretrain.coordinator.signals import readings_of
from fedretrain.monitoring import recipes
from fedretrain.retraining import trigger
from fedretrain.retraining.config import Where
from fedretrain.retraining.decision import Action, Ending, Outcome
from fedretrain.rollout.causes import Phase
from fedretrain.rollout.evidence import Approval, Command, Operator
from fedretrain.rollout.quarantine import (
    Fault,
    QuarantineEvent,
    QuarantineEventKind,
    QuarantineEvidence,
    Release,
    Subject,
    decide_quarantine,
)
from fedretrain.rollout.safety import (
    SafetyEvent,
    SafetyEventKind,
    SafetyOrder,
    Switch,
    decide_safety,
)
from fedretrain.rollout.stops import RULES_BASELINE

if TYPE_CHECKING:
    from fedretrain.coordinator.permission import Said
    from fedretrain.coordinator.policy import Policy
    from fedretrain.retraining.signals import Signals

__all__ = [
    "Admitted",
    "Begun",
    "Body",
    "Candidate",
    "CycleEvent",
    "CycleState",
    "Discard",
    "Discarded",
    "Evidence",
    "OpenIncident",
    "Order",
    "Propose",
    "Proposed",
    "Quarantine",
    "Refused",
    "Resubmit",
    "Retrain",
    "ServeAgain",
    "ServedAgain",
    "Trained",
    "UnderWay",
    "Withdraw",
    "Withdrawn",
    "apply",
    "begin",
    "from_record",
    "incident_of",
    "refresh_due",
    "replay",
    "served",
    "tick",
]


def tick(policy: Policy, state: CycleState, evidence: Evidence, now: float) -> tuple[CycleEvent, ...]:
    """Everything that follows from what is known now, each event for the state that those before it leave.

    Args:
        policy: What a person decided beforehand.
        state: Where the loop stands.
        evidence: What is known.
        now: The instant, not before the last one.
    """
    log = Log(policy, state, now, evidence.num_devices, evidence.decides_otherwise)
    evidence = _permitted(log, evidence)
    _watch(log, evidence)
    _guard(log, evidence)
    withdrawn = _keep_out(log, evidence)
    _end_training(log, evidence.trained, evidence.under_way)
    _propose(log, evidence)
    taken_back = _taken_back(log, withdrawn)
    if state.champion in withdrawn:
        _without_model(log)  # before the rollouts: none begins in safe mode
    run(log, evidence.rollout, taken_back)
    if state.champion in withdrawn:
        _without_model(log)  # its own rollout may have taken it back just now
    if evidence.signals is not None:
        asked = [order for order in evidence.orders if isinstance(order, Retrain) and order.by]
        _retrain(log, replace(evidence.signals, asked_by=asked[-1].by if asked else ""))
    return tuple(log.events)


def _permitted(log: Log, evidence: Evidence) -> Evidence:
    """The evidence without orders that their givers may not give; each of those is written down, and what was nobody's word."""
    asked, seen = evidence.roles, evidence.rollout
    log.add(*evidence.refused)

    def may(said: Said) -> bool:
        if isinstance(said, (Resubmit, Discard)) and not said.by:
            return False
        reason = refusal(asked, log.state, said, log.now) if said.by else ""
        if reason:
            log.add(Refused(type(said).__name__.lower(), said.by, reason))
        return not reason

    orders = tuple(order for order in evidence.orders if may(order))
    approval = seen.approval if may(seen.approval) else Approval()
    operator = seen.operator if may(seen.operator) else Operator()
    return replace(evidence, orders=orders, rollout=replace(seen, approval=approval, operator=operator))


def _watch(log: Log, evidence: Evidence) -> None:
    """What monitors say, and a person's word that the fallback is over."""
    for view in evidence.views:
        if evidence.baseline is not None and view.version == log.state.champion:
            monitoring = log.policy.monitoring
            log.add(*recipes.decide(monitoring, log.state.monitor, view, evidence.baseline))
    for order in evidence.orders:
        if isinstance(order, ServeAgain) and order.by and log.state.in_fallback:
            log.add(ServedAgain(log.state.champion, order.by, order.reason))


def _guard(log: Log, evidence: Evidence) -> None:
    """Safe mode and the kill switches."""
    readings = [reading for view in evidence.views for reading in readings_of(view)]
    orders = [order for order in evidence.orders if isinstance(order, SafetyOrder)]
    log.add(
        *decide_safety(log.policy.safety, log.state.safety, (*readings, *evidence.readings), orders, log.now)
    )


def _keep_out(log: Log, evidence: Evidence) -> dict[int, Operator]:
    """Quarantine and its ways back; the versions that were withdrawn now, each with the order to take it back."""
    orders = evidence.orders
    names = {order.version: order for order in orders if isinstance(order, Withdraw) and order.by}
    words, seen = _of_devices(orders), evidence.faults or QuarantineEvidence(-1)
    seen = replace(
        seen,
        faults=(*seen.faults, *_named(log, orders, words)),
        releases=(*seen.releases, *_freed(orders, words)),
    )
    events = decide_quarantine(log.policy.quarantine, log.state.quarantine, seen, log.now)
    log.add(*events)
    given_up = [order for order in orders if isinstance(order, Discard)]
    log.add(*(Discarded(order.version, order.by, order.reason) for order in given_up))
    _let_in(log, seen)
    return {
        event.ident: Operator(
            Command.ROLL_BACK, names[event.ident].by if event.ident in names else "quarantine", event.reason
        )
        for event in events
        if event.kind is QuarantineEventKind.ENTERED and event.subject is Subject.VERSION
    }


def _of_devices(orders: tuple[Order, ...]) -> tuple[Quarantine | Release, ...]:
    """The orders to keep a device out or to let it in; of two about one device the later one is meant."""
    last: dict[int, Quarantine | Release] = {}
    for order in orders:
        if isinstance(order, Quarantine) and order.by:
            last[order.device] = order
        if isinstance(order, Release) and order.by and order.subject is Subject.DEVICE:
            last[order.ident] = order
    return tuple(last.values())


def _named(log: Log, orders: tuple[Order, ...], words: tuple[Quarantine | Release, ...]) -> list[Fault]:
    """Whom people keep out: versions that they withdraw or give up, and devices."""
    found = {
        order.version: Fault(Subject.VERSION, order.version, f"withdrawn by {order.by}: {order.reason}")
        for order in orders
        if isinstance(order, Withdraw) and order.by and order.version > RULES_BASELINE
    }
    given_up = [
        Fault(Subject.VERSION, order.version, f"given up by {order.by}: {order.reason}")
        for order in orders
        if isinstance(order, Discard) and order.version not in log.state.quarantined
    ]
    devices = [
        Fault(Subject.DEVICE, order.device, f"kept out by {order.by}: {order.reason}", order.by)
        for order in words
        if isinstance(order, Quarantine)
    ]
    return [*found.values(), *given_up, *devices]


def _freed(orders: tuple[Order, ...], words: tuple[Quarantine | Release, ...]) -> list[Release]:
    """Whom people let in again."""
    versions = [one for one in orders if isinstance(one, Release) and one.subject is Subject.VERSION]
    again = [
        Release(Subject.VERSION, order.version, order.by, order.reason)
        for order in orders
        if isinstance(order, Resubmit)
    ]
    return [*versions, *(one for one in words if isinstance(one, Release)), *again]


def _let_in(log: Log, seen: QuarantineEvidence) -> None:
    """Devices that a monitor keeps out, and a person lets in again."""
    for said in seen.releases:
        if said.subject is Subject.DEVICE and said.by and said.ident in log.state.monitor.quarantined:
            kind = QuarantineEventKind.RELEASED
            log.add(QuarantineEvent(kind, said.subject, said.ident, log.now, said.reason, by=said.by))


def _end_training(log: Log, trained: Trained | None, under_way: UnderWay | None) -> None:
    """A campaign is over, took too long, or training is stopped; one that made nothing ends its retrain."""
    candidate = log.state.training
    if candidate is None:
        return
    if trained is None or trained.version != candidate.version:  # one that was given up meanwhile
        reason = _given_up(log, candidate.version, under_way)
        if not reason:
            return
        trained = Trained(candidate.version, made=False, reason=reason)
    log.add(trained)
    if not trained.made:
        end_retrain(log, candidate.retrain, Ending.FAILED, trained.reason)


def _given_up(log: Log, version: int, under_way: UnderWay | None) -> str:
    """Why the campaign that makes a version is not waited for; empty where it is."""
    if not log.state.safety.allows(Switch.TRAINING):
        return "training is stopped"
    if under_way is None or under_way.version != version or log.now - under_way.begun_at <= under_way.max_s:
        return ""
    return f"it took longer than {under_way.max_s:g} s"


def _propose(log: Log, evidence: Evidence) -> None:
    """Versions that people bring."""
    for order in evidence.orders:
        if isinstance(order, Resubmit):
            log.add(Proposed(order.version, order.by, order.reason, again=True))
        if not isinstance(order, Propose) or not order.by or order.version <= RULES_BASELINE:
            continue
        training = log.state.training
        coming = {candidate.version for candidate in log.state.waiting}
        if order.version not in coming and (training is None or training.version != order.version):
            log.add(Proposed(order.version, order.by, order.reason, order.detectable))


def _taken_back(log: Log, withdrawn: dict[int, Operator]) -> Operator | None:
    """The champion falls where it was withdrawn and no rollout of its own takes it back; the order to the rollout that does."""
    state, rollout = log.state, log.state.rollout
    reigns = (
        rollout is not None and rollout.phase is Phase.CHAMPION and rollout.plan.candidate == state.champion
    )
    if state.champion in withdrawn and not reigns:
        log.add(Withdrawn(state.champion, state.last_good, withdrawn[state.champion].reason))
    return None if rollout is None else withdrawn.get(rollout.plan.candidate)


def _without_model(log: Log) -> None:
    """Where a withdrawal has left no version that may serve, the rules do, until a person says otherwise."""
    if log.state.champion == RULES_BASELINE and not log.state.safety.safe_mode:
        reason = "the champion is withdrawn, and there is no version to go back to"
        log.add(SafetyEvent(SafetyEventKind.ENTERED, log.now, reason))


def _retrain(log: Log, signals: Signals) -> None:
    """Whether to retrain; a refresh on the devices is done as soon as it is decided."""
    state = log.state
    stopped = state.safety.stopped
    known = replace(
        signals,
        retrain_running=state.retrain_running,
        rollout_in_progress=state.rollout_open,
        safe_mode=signals.safe_mode or state.safety.safe_mode,
        training_killed=signals.training_killed or Switch.TRAINING in stopped,
        rollouts_killed=signals.rollouts_killed or Switch.ROLLOUTS in stopped,
        installs_killed=signals.installs_killed or Switch.INSTALLS in stopped,
    )
    decision = trigger.decide(log.policy.retraining, state.trigger, known, log.now)
    if trigger.apply(state.trigger, decision, log.now) == state.trigger:
        return  # nothing that a log would miss
    log.add(decision)
    if decision.action is Action.RETRAIN and decision.where is Where.DEVICE:
        log.add(Outcome(decision.number, Ending.DONE, "devices refresh their personal state"))
