"""The closed loop under arbitrary evidence, orders and forged events.

No new champion without validation and every gate; one rollout at a time; no retrain in safe mode or while training is stopped; another
champion is another monitor; illegal events leave the state unchanged; replay of the log gives the same state.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedretrain.coordinator import cycle
from fedretrain.coordinator.cycle import CycleEvent, Propose, Quarantine, ServeAgain, Trained, Withdraw
from fedretrain.coordinator.policy import OnDecay
from fedretrain.core.clock import HOUR_S
from fedretrain.core.errors import FedretrainError
from fedretrain.monitoring.state import MonitorState, Streak
from fedretrain.retraining.config import Mode
from fedretrain.retraining.decision import Action, Decision, Ending, Outcome
from fedretrain.rollout.causes import Cause, EventKind, Phase
from fedretrain.rollout.config import HoldbackRules, OnRetrain, OnSecond
from fedretrain.rollout.events import RolloutEvent
from fedretrain.rollout.evidence import Command, Exposure, RolloutEvidence
from fedretrain.rollout.quarantine import (
    Fault,
    QuarantineEvent,
    QuarantineEventKind,
    QuarantineEvidence,
    Release,
    Subject,
)
from fedretrain.rollout.reconcile import Admission
from fedretrain.rollout.safety import (
    Reading,
    SafetyCommand,
    SafetyEvent,
    SafetyEventKind,
    SafetyOrder,
    Switch,
)
from fedretrain.rollout.verdict import Verdict
from tests.cycle_cases import CALM, DRIFT, LEAVE, POLICY, STRUCTURE, Drive, policy_with
from tests.rollout_cases import DEAD, FAIL, PASS, UNSURE, said

NAMES = st.sampled_from(["ada", "ada", "ada", ""])
VERSIONS = st.integers(0, 9)
DEVICES = st.integers(0, 3)
SIGNALS = st.sampled_from([DRIFT, DRIFT, STRUCTURE, CALM, None])
SECONDS = st.sampled_from(
    [
        (OnSecond.QUEUE, OnRetrain.SUPERSEDE),
        (OnSecond.REFUSE, OnRetrain.SUPERSEDE),
        (OnSecond.QUEUE, OnRetrain.FINISH),
    ]
)
ORDERS = st.one_of(
    st.builds(SafetyOrder, st.sampled_from(SafetyCommand), NAMES, st.sampled_from([None, *Switch])),
    st.builds(SafetyOrder, st.just(SafetyCommand.START), NAMES, st.sampled_from(list(Switch))),
    st.just(LEAVE),
    st.builds(Release, st.just(Subject.VERSION), VERSIONS, NAMES),
    st.builds(Release, st.just(Subject.DEVICE), DEVICES, NAMES),
    st.builds(Propose, VERSIONS, NAMES),
    st.builds(Withdraw, VERSIONS, NAMES),
    st.builds(Quarantine, DEVICES, NAMES),
    st.builds(ServeAgain, NAMES),
)
FORGED = st.one_of(
    st.builds(
        Decision,
        st.sampled_from(Action),
        st.just("forged"),
        number=st.integers(0, 4),
        fired=st.sampled_from([(), ("drift",)]),
    ),
    st.builds(Outcome, st.integers(0, 4), st.sampled_from(Ending)),
    st.builds(Trained, VERSIONS, st.booleans()),
    st.builds(cycle.Begun, VERSIONS),
    st.builds(cycle.Proposed, VERSIONS, NAMES),
    st.builds(cycle.Admitted, VERSIONS, st.sampled_from(Admission), st.just("forged")),
    st.builds(cycle.Withdrawn, VERSIONS, VERSIONS),
    st.builds(cycle.ServedAgain, VERSIONS, NAMES),
    st.builds(
        SafetyEvent,
        st.sampled_from(SafetyEventKind),
        st.just(0.0),
        by=NAMES,
        switch=st.sampled_from([None, *Switch]),
    ),
    st.builds(
        QuarantineEvent,
        st.sampled_from(QuarantineEventKind),
        st.sampled_from(Subject),
        DEVICES,
        st.just(0.0),
        by=NAMES,
    ),
)


class Loops(RuleBasedStateMachine):
    """Drives one fleet's loop with whatever the world may bring."""

    @initialize(
        second=SECONDS,
        holdback=st.sampled_from([0.0, 0.1]),
        mode=st.sampled_from([Mode.HYBRID, Mode.ALWAYS, Mode.PERSONAL_ONLY]),
        on_decay=st.sampled_from(OnDecay),
        champion=st.sampled_from([0, 1]),
    )
    def begin(
        self,
        second: tuple[OnSecond, OnRetrain],
        holdback: float,
        mode: Mode,
        on_decay: OnDecay,
        champion: int,
    ) -> None:
        policy = policy_with(
            on_second=second[0],
            on_retrain=second[1],
            rollout=replace(POLICY.rollout, holdback=HoldbackRules(holdback, 30 * HOUR_S)),
            retraining=replace(POLICY.retraining, mode=mode),
            on_decay=on_decay,
        )
        self.drive = Drive(policy, champion)
        self.stood = {0, champion}
        self.window = 0

    def _tick(self, hours: float, seen: RolloutEvidence, **known: Any) -> None:
        """A tick, each of its events applied one by one and looked at."""
        drive = self.drive
        drive.now += hours * HOUR_S
        evidence = cycle.Evidence(rollout=seen, **known)
        for event in cycle.tick(drive.policy, drive.state, evidence, drive.now):
            before, drive.state = drive.state, cycle.apply(drive.policy, drive.state, event)
            drive.log.append(event)
            self._look(before, event)

    def _look(self, before: cycle.CycleState, event: CycleEvent) -> None:
        after, body = self.drive.state, event.body
        if isinstance(body, Decision) and body.action is Action.RETRAIN:
            assert not before.safety.safe_mode
            assert Switch.TRAINING not in before.safety.stopped
        if isinstance(body, RolloutEvent) and body.kind is EventKind.CREATED:
            assert not before.rollout_open
            assert not (before.rollout is not None and before.rollout.holdback_open)
        if after.champion == before.champion:
            return
        assert after.monitor == MonitorState(
            after.champion,
            quarantined=before.monitor.quarantined,
            devices=dict.fromkeys(before.monitor.quarantined, Streak()),
        )
        if isinstance(body, RolloutEvent) and body.kind is EventKind.PROMOTED:
            self._proven(before, after.champion)
        else:
            assert after.champion in self.stood
            assert after.champion not in self.drive.state.quarantined - {before.champion}

    def _proven(self, before: cycle.CycleState, champion: int) -> None:
        """The log of the rollout has a passed validation and a PASS of each gate."""
        rollout = before.rollout
        assert rollout is not None
        assert champion not in before.quarantined
        assert before.safety.allows(Switch.ROLLOUTS)
        assert before.safety.allows(Switch.INSTALLS)
        told = [
            e.body
            for e in self.drive.log
            if isinstance(e.body, RolloutEvent) and e.body.rollout == rollout.rollout
        ]
        passed = [body.evidence["gate"] for body in told if body.kind is EventKind.GATE_PASSED]
        assert any(body.evidence.get("validation") == "pass" for body in told)
        assert tuple(passed[-len(rollout.plan.gates) + 1 :]) == rollout.plan.gates[1:]
        self.stood.add(champion)

    def _seen(self, **changes: Any) -> RolloutEvidence:
        return self.drive.seen(**changes)

    @rule(
        hours=st.sampled_from([0.0, 1.0, 3.0, 30.0, 200.0]),
        gate=st.sampled_from([PASS, PASS, UNSURE, None, DEAD, FAIL]),
        validation=st.sampled_from([Verdict.PASS, Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL]),
        pending=st.sampled_from([0, 0, 10]),
        command=st.sampled_from([Command.NONE, Command.NONE, *Command]),
        by=NAMES,
        signals=SIGNALS,
    )
    def time_passes(
        self,
        hours: float,
        gate: Any,
        validation: Verdict,
        pending: int,
        command: Command,
        by: str,
        signals: Any,
    ) -> None:
        rollout = self.drive.state.rollout
        counter = 0 if rollout is None else rollout.counter
        seen = self._seen(
            gate=gate,
            validation=validation,
            exposure=Exposure(20, 20 - pending, num_pending=pending, counter=counter),
            operator=said(command, by),
        )
        self._tick(hours, seen, signals=signals)

    @rule(times=st.sampled_from([3, 40]))
    def all_is_well(self, times: int) -> None:
        for _ in range(times):
            self._tick(3.0, self._seen())

    @rule(orders=st.lists(ORDERS, min_size=1, max_size=3), signals=SIGNALS)
    def people_order(self, orders: list[Any], signals: Any) -> None:
        self._tick(
            1.0, self._seen(), orders=tuple(orders), signals=signals, readings=(Reading("hits", 0.8, 50),)
        )

    @rule()
    def all_is_started_again(self) -> None:
        orders = (LEAVE, *(SafetyOrder(SafetyCommand.START, "ada", switch) for switch in Switch))
        self._tick(1.0, self._seen(), orders=orders, readings=(Reading("hits", 0.8, 50),))

    @rule(hits=st.sampled_from([0.01, 0.8, float("nan")]))
    def a_reading_comes(self, hits: float) -> None:
        self._tick(1.0, self._seen(), readings=(Reading("hits", hits, 50),), signals=DRIFT)

    @rule(subject=st.sampled_from(Subject), ident=st.integers(1, 4), faulty=st.booleans())
    def something_is_measured(self, subject: Subject, ident: int, faulty: bool) -> None:
        self.window += 1
        what = (subject, ident)
        faults = (Fault(*what, "bad"),) if faulty else ()
        seen = QuarantineEvidence(self.window, faults, frozenset({what}))
        self._tick(1.0, self._seen(), faults=seen)

    @rule(psi=st.sampled_from([0.01, 0.9]), unsure=st.booleans(), outliers=st.sampled_from([(), (2,)]))
    def a_day_is_watched(self, psi: float, unsure: bool, outliers: tuple[int, ...]) -> None:
        before, start = self.drive.state, len(self.drive.log)
        self.drive.watch(psi=psi, unsure=unsure, outliers=outliers)
        reached = before
        for event in self.drive.log[start:]:
            last, reached = reached, cycle.apply(self.drive.policy, reached, event)
            promoted = isinstance(event.body, RolloutEvent) and event.body.kind is EventKind.PROMOTED
            if promoted and reached.champion != last.champion:
                self._proven(last, reached.champion)

    @precondition(lambda self: self.drive.state.training is not None)
    @rule(made=st.sampled_from([True, True, False]))
    def a_campaign_ends(self, made: bool) -> None:
        training = self.drive.state.training
        assert training is not None
        self._tick(1.0, self._seen(), trained=Trained(training.version, made))

    @rule(body=FORGED, early=st.booleans())
    def somebody_forges(self, body: Any, early: bool) -> None:
        """What is refused changes nothing; what may follow crowns nobody and opens no second rollout."""
        state = self.drive.state
        kept = cycle.replay(self.drive.policy, self.drive.log)
        event = CycleEvent(state.updated_at - early, body)
        try:
            after = cycle.apply(self.drive.policy, state, event)
        except FedretrainError:
            assert state == kept
            return
        assert not early
        assert after.champion in self.stood
        assert after.rollout == state.rollout
        assert not (isinstance(body, Decision) and body.action is Action.RETRAIN and state.safety.safe_mode)

    @rule(kind=st.sampled_from(EventKind))
    def somebody_forges_a_step(self, kind: EventKind) -> None:
        """A rollout's event without its order, gate or cause."""
        rollout = self.drive.state.rollout
        assume(rollout is not None)
        assert rollout is not None
        body = RolloutEvent(
            kind,
            rollout.rollout,
            rollout.num_events,
            self.drive.now,
            rollout.step,
            rollout.attempt,
            by="eve",
            cause=Cause.KILL,
        )
        try:
            after = cycle.apply(self.drive.policy, self.drive.state, CycleEvent(self.drive.now, body))
        except FedretrainError:
            return
        assert after.champion == self.drive.state.champion
        assert kind not in (
            EventKind.PROMOTED,
            EventKind.ROLLBACK_STARTED,
            EventKind.CREATED,
            EventKind.GATE_PASSED,
        )

    @invariant()
    def one_place(self) -> None:
        if not hasattr(self, "drive"):
            return
        begun = {e.body.rollout for e in self.drive.log if isinstance(e.body, RolloutEvent)}
        over = {
            e.body.rollout
            for e in self.drive.log
            if isinstance(e.body, RolloutEvent) and e.body.kind in (EventKind.ROLLED_BACK, EventKind.PROMOTED)
        }
        mine = {self.drive.state.rollout.rollout} if self.drive.state.rollout is not None else set()
        assert begun - over <= mine
        assert len(begun) == self.drive.state.num_rollouts

    @invariant()
    def the_safe_mode_serves_the_rules_and_exposes_nobody(self) -> None:
        if not hasattr(self, "drive") or not self.drive.state.safety.safe_mode:
            return
        state = self.drive.state
        assert cycle.served(self.drive.policy, state) == 0
        up = (Phase.PENDING, Phase.SHADOW, Phase.APPROVAL, Phase.CANARY, Phase.RAMP, Phase.DE_ESCALATING)
        assert state.rollout is None or state.rollout.phase not in up

    @invariant()
    def what_serves_may_be_served(self) -> None:
        if hasattr(self, "drive"):
            state = self.drive.state
            assert cycle.served(self.drive.policy, state) not in state.quarantined
            assert state.champion in self.stood
            assert state.champion not in state.before
            assert state.training is None or Switch.TRAINING not in state.safety.stopped

    def teardown(self) -> None:
        if hasattr(self, "drive"):
            assert self.drive.replayed() == self.drive.state


TestLoops = Loops.TestCase
TestLoops.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_the_machine_above_reaches_champions() -> None:
    """Lest the properties hold for want of anything that happens."""
    drive = Drive()
    drive.promoted()
    assert drive.promoted() == 3
    with pytest.raises(FedretrainError):
        cycle.apply(drive.policy, drive.state, drive.log[-3])
