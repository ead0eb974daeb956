"""Safe mode, the kill switches and withdrawn champions in the closed loop."""

from __future__ import annotations

from dataclasses import replace

from fedretrain.coordinator import cycle
from fedretrain.coordinator.cycle import (
    Propose,
    ServeAgain,
    Trained,
    Withdraw,
    Withdrawn,
)
from fedretrain.monitoring.state import MonitorState
from fedretrain.retraining.decision import Action, Ending, Obstacle
from fedretrain.rollout.causes import Cause, IncidentKind, Phase
from fedretrain.rollout.config import OnSecond
from fedretrain.rollout.evidence import Command, Exposure
from fedretrain.rollout.quarantine import (
    Fault,
    QuarantineEvidence,
    Release,
    Subject,
)
from fedretrain.rollout.safety import (
    Reading,
    SafetyCommand,
    SafetyEvent,
    SafetyEventKind,
    SafetyOrder,
    Switch,
)
from tests.cycle_cases import (
    DRIFT,
    LEAVE,
    POLICY,
    Drive,
    kinds,
    outcomes,
    policy_with,
    start,
    stop,
)
from tests.rollout_cases import FAIL, said

LOW = (Reading("hits", 0.01, 50),)
FINE = (Reading("hits", 0.8, 50),)


def test_a_safety_limit_enters_safe_mode_and_takes_the_rollout_back() -> None:
    drive = Drive()
    drive.retrained()
    drive.to(Phase.RAMP)
    bodies = drive.tick(readings=LOW, signals=DRIFT)
    assert kinds(bodies)[:2] == ["entered", "rollback_started"]
    assert drive.state.safety.safe_mode
    assert cycle.served(POLICY, drive.state) == 0
    assert drive.state.champion == 1
    assert [one.kind for one in drive.state.incidents] == [IncidentKind.FLEET] * 2
    drive.to(Phase.ROLLED_BACK)
    assert outcomes(drive)[-1].ending is Ending.FAILED  # safe mode says nothing about the candidate
    assert not drive.state.quarantined


def test_a_window_enters_safe_mode_too() -> None:
    drive = Drive()
    entered = [body for body in drive.watch(hits=0.01) if isinstance(body, SafetyEvent)]
    assert [(event.kind, event.limits) for event in entered] == [(SafetyEventKind.ENTERED, ("too few hits",))]
    other = Drive()
    assert "entered" in kinds(other.watch(missing=0.95))


def test_only_a_person_leaves_safe_mode_and_only_on_a_good_reading() -> None:
    drive = Drive()
    drive.tick(readings=LOW)
    assert drive.tick(readings=FINE) == []
    assert drive.tick(orders=(LEAVE,)) == []  # nothing was read
    assert drive.tick(orders=(LEAVE,), readings=LOW) == []
    assert drive.tick(orders=(replace(LEAVE, by=""),), readings=FINE) == []
    assert kinds(drive.tick(orders=(LEAVE,), readings=FINE)) == ["left"]
    assert cycle.served(POLICY, drive.state) == 1
    assert drive.state.incidents == ()


def test_no_retrain_in_safe_mode_and_no_rollout() -> None:
    drive = Drive()
    drive.tick(signals=DRIFT)
    drive.tick(readings=LOW)
    made = drive.tick(trained=Trained(2, made=True))
    assert kinds(made) == ["Trained", "Admitted"]  # what was begun may end; it waits
    assert drive.tick() == []
    drive.tick(readings=FINE, orders=(LEAVE,))
    assert drive.state.rollout_open
    other = Drive()
    other.tick(readings=LOW)
    deferred = other.tick(signals=DRIFT)
    assert [(body.action, body.obstacle) for body in deferred] == [(Action.DEFER, Obstacle.SAFE_MODE)]
    assert other.tick(signals=DRIFT) == []  # the same obstacle is written down once


def test_the_training_switch_ends_the_campaign_and_stops_nothing_else() -> None:
    drive = Drive()
    drive.tick(signals=DRIFT)
    bodies = drive.tick(orders=(stop(Switch.TRAINING),), signals=DRIFT)
    assert kinds(bodies) == ["stopped", "Trained", "Outcome"]
    assert drive.state.training is None
    assert outcomes(drive)[-1].ending is Ending.FAILED
    assert drive.tick(5.0, signals=DRIFT) == []
    proposed = drive.tick(orders=(Propose(9, "ada"),))
    assert kinds(proposed) == ["Proposed", "created"]
    drive.to(Phase.CHAMPION)
    drive.tick(orders=(start(Switch.TRAINING),))
    assert [body.action for body in drive.tick(5.0, signals=DRIFT)] == [Action.RETRAIN]
    assert drive.state.training is not None
    assert drive.state.training.version == 10  # numbers are never used twice


def test_a_campaign_that_ends_while_it_is_stopped_counts() -> None:
    drive = Drive()
    drive.tick(signals=DRIFT)
    bodies = drive.tick(orders=(stop(Switch.TRAINING),), trained=Trained(2, made=True))
    assert kinds(bodies) == ["stopped", "Trained", "created"]


def test_an_order_without_a_name_or_an_effect_is_none() -> None:
    drive = Drive()
    nameless = (
        stop(Switch.ROLLOUTS, by=""),
        Propose(9, ""),
        Withdraw(1, ""),
        ServeAgain(""),
        Release(Subject.DEVICE, 4, ""),
    )
    assert drive.tick(orders=nameless) == []
    useless = (
        start(Switch.ROLLOUTS),
        LEAVE,
        Propose(0, "ada"),
        Withdraw(0, "ada"),
        ServeAgain("ada"),
        Release(Subject.DEVICE, 4, "ada"),
    )
    assert drive.tick(orders=useless) == []


def test_the_rollouts_switch_takes_back_and_keeps_waiting() -> None:
    drive = Drive()
    drive.retrained()
    drive.to(Phase.CANARY)
    bodies = drive.tick(orders=(stop(Switch.ROLLOUTS),))
    assert kinds(bodies)[:2] == ["stopped", "rollback_started"]
    assert drive.state.rollout is not None
    assert drive.state.rollout.cause is Cause.KILL
    drive.to(Phase.ROLLED_BACK)
    told = drive.tick(orders=(Propose(9, "ada"),))
    assert kinds(told) == ["Proposed", "Admitted"]
    assert drive.tick() == []
    assert kinds(drive.tick(orders=(start(Switch.ROLLOUTS),))) == ["started", "created"]


def test_the_installs_switch_holds_the_way_up_and_not_the_way_back() -> None:
    drive = Drive()
    drive.retrained()
    drive.to(Phase.CANARY)
    drive.tick(orders=(stop(Switch.INSTALLS),))
    for _ in range(20):
        drive.tick()
    assert drive.state.rollout is not None
    assert drive.state.rollout.phase is Phase.CANARY
    assert "rollback_started" in kinds(drive.tick(seen=drive.seen(gate=FAIL)))


def test_a_withdrawn_champion_without_a_rollout_falls_to_the_last_good() -> None:
    drive = Drive()
    drive.promoted()
    version = drive.retrained()
    drive.to(Phase.CANARY)
    drive.tick(seen=drive.seen(gate=FAIL))
    drive.to(Phase.ROLLED_BACK)
    bodies = drive.tick(orders=(Withdraw(2, "ada", "it leaks"),))
    assert Withdrawn(2, 1, "withdrawn by ada: it leaks") in bodies
    assert (drive.state.champion, drive.state.quarantined) == (1, {2, version})
    assert drive.state.monitor.version == 1
    assert not drive.state.safety.safe_mode


def test_a_champion_withdrawn_during_a_ramp_takes_the_candidate_back_to_the_last_good() -> None:
    drive = Drive()
    drive.promoted()
    drive.retrained()
    drive.to(Phase.RAMP)
    bodies = drive.tick(orders=(Withdraw(2, "ada", "it leaks"),), seen=drive.seen(exposure=Exposure()))
    assert kinds(bodies) == ["entered", "Withdrawn", "rollback_started"]
    rollout = drive.state.rollout
    assert rollout is not None
    assert (rollout.fallback, rollout.cause) == (1, Cause.CHAMPION_WITHDRAWN)
    assert drive.state.champion == 1
    drive.tick(orders=(Withdraw(1, "ada"),), seen=drive.seen(exposure=Exposure()))
    assert drive.state.rollout is not None
    assert drive.state.rollout.fallback == 0
    assert drive.state.safety.safe_mode  # nothing is left
    drive.to(Phase.ROLLED_BACK)
    assert outcomes(drive)[-1].ending is Ending.FAILED


def test_a_champion_withdrawn_after_its_own_rollout_goes_back_by_it() -> None:
    drive = Drive()
    drive.promoted()
    bodies = drive.tick(orders=(Withdraw(2, "ada"),), seen=drive.seen(exposure=Exposure()))
    assert kinds(bodies) == ["entered", "rollback_started"]
    assert (drive.state.champion, drive.state.rollout_open) == (1, True)
    drive.to(Phase.ROLLED_BACK)


def test_the_only_model_withdrawn_leaves_the_rules_in_safe_mode() -> None:
    drive = Drive()
    assert kinds(drive.tick(orders=(Withdraw(1, "ada"),))) == ["entered", "Withdrawn", "entered"]
    assert (drive.state.champion, cycle.served(POLICY, drive.state)) == (0, 0)
    assert drive.state.safety.safe_mode
    drive.tick(orders=(LEAVE, Release(Subject.VERSION, 1, "ada")))
    assert kinds(drive.tick(orders=(Propose(1, "ada"),))) == ["Proposed", "created"]


def test_a_version_proposed_while_the_last_model_is_withdrawn_waits() -> None:
    drive = Drive()
    drive.tick(orders=(Propose(9, "ada"), Withdraw(1, "ada")))
    assert drive.state.safety.safe_mode
    assert drive.state.rollout is None
    assert [one.version for one in drive.state.waiting] == [9]


def test_a_fleet_of_rules_loses_nothing_by_a_withdrawal() -> None:
    drive = Drive(champion=0)
    drive.retrained()
    drive.to(Phase.SHADOW)
    drive.tick(orders=(Withdraw(9, "ada"),))
    assert not drive.state.safety.safe_mode
    drive.to(Phase.CHAMPION)


def test_a_withdrawn_candidate_goes_back_and_a_waiting_one_is_refused() -> None:
    drive = Drive(policy_with(on_second=OnSecond.QUEUE))
    drive.retrained()
    drive.to(Phase.CANARY)
    drive.tick(orders=(Propose(9, "ada"),))
    bodies = drive.tick(orders=(Withdraw(2, "ada"), Withdraw(9, "ada")))
    assert "rollback_started" in kinds(bodies)
    assert drive.state.waiting == ()
    assert drive.state.champion == 1


def test_a_fault_of_a_version_takes_it_back_too() -> None:
    drive = Drive()
    drive.retrained()
    drive.to(Phase.CANARY)
    drive.tick(faults=QuarantineEvidence(1, (Fault(Subject.VERSION, 2, "signature revoked"),)))
    assert drive.state.rollout is not None
    assert drive.state.rollout.cause is Cause.OPERATOR
    assert drive.state.quarantined == {2}


def test_a_person_takes_a_champion_back_long_after() -> None:
    drive = Drive()
    drive.promoted()
    drive.watch(psi=0.9)
    drive.tick(100.0)
    drive.tick(seen=drive.seen(operator=said(Command.ROLL_BACK)))
    assert (drive.state.champion, drive.state.before) == (1, ())
    assert drive.state.monitor == MonitorState(1)


def test_a_person_enters_safe_mode() -> None:
    drive = Drive()
    order = SafetyOrder(SafetyCommand.ENTER, "ada", reason="smoke")
    assert kinds(drive.tick(orders=(order,))) == ["entered"]
    assert cycle.served(POLICY, drive.state) == 0
