"""One place for a rollout: who waits, who takes it, who is refused, and holdbacks."""

from __future__ import annotations

from dataclasses import replace

from fedretrain.coordinator.cycle import (
    Admitted,
    Propose,
    Proposed,
    Trained,
)
from fedretrain.retraining.decision import Ending, Obstacle
from fedretrain.rollout.causes import Cause, Phase
from fedretrain.rollout.config import HoldbackRules, OnRetrain, OnSecond, OnUnderpowered
from fedretrain.rollout.evidence import Exposure
from fedretrain.rollout.quarantine import Fault, QuarantineEvidence, Subject
from fedretrain.rollout.reconcile import Admission
from fedretrain.rollout.safety import (
    Switch,
)
from tests.cycle_cases import (
    DRIFT,
    POLICY,
    STRUCTURE,
    Drive,
    kinds,
    outcomes,
    policy_with,
    stop,
)


def test_a_second_rollout_is_refused_or_waits() -> None:
    refusing = Drive()
    refusing.retrained()
    bodies = refusing.tick(orders=(Propose(9, "ada"),))
    assert bodies[:2] == [Proposed(9, "ada"), Admitted(9, Admission.REFUSE, "rollout-1 is on, in pending")]
    queueing = Drive(policy_with(on_second=OnSecond.QUEUE))
    queueing.retrained()
    queueing.tick(orders=(Propose(9, "ada"), Propose(8, "ada"), Propose(9, "bob")))
    assert [candidate.version for candidate in queueing.state.waiting] == [9, 8]
    queueing.to(Phase.CHAMPION)  # a person's candidate supersedes nothing
    assert queueing.state.champion == 2
    queueing.to(Phase.PENDING)
    assert queueing.state.rollout is not None
    assert queueing.state.rollout.plan.candidate == 9
    assert [candidate.version for candidate in queueing.state.waiting] == [8]


def test_a_newer_retrain_takes_the_place_once_the_older_is_back() -> None:
    drive = Drive()
    drive.retrained()
    drive.to(Phase.CANARY)
    newer = drive.retrained(STRUCTURE)
    rollout = drive.state.rollout
    assert rollout is not None
    assert (rollout.plan.candidate, rollout.cause) == (2, Cause.SUPERSEDED)
    drive.to(Phase.SHADOW)
    assert drive.state.rollout is not None
    assert drive.state.rollout.plan.candidate == newer
    drive.to(Phase.CHAMPION)
    assert [(one.number, one.ending) for one in outcomes(drive)] == [(2, Ending.DONE)]


def test_a_superseding_candidate_waits_until_every_device_is_back() -> None:
    drive = Drive()
    drive.retrained()
    drive.to(Phase.CANARY)
    drive.tick()
    newer = drive.retrained(STRUCTURE)
    rollout = drive.state.rollout
    assert rollout is not None
    assert rollout.phase is Phase.ROLLING_BACK  # the order to go back has just been given
    half = Exposure(10, 5, 0, 5, num_offline=5, counter=rollout.counter)
    told = drive.tick(seen=drive.seen(exposure=half))
    assert [body.answer for body in told] == [Admission.QUEUE]
    gone = Exposure(10, 5, 5, 0, counter=rollout.counter)
    assert kinds(drive.tick(seen=drive.seen(exposure=gone))) == ["rolled_back"]
    assert kinds(drive.tick()) == ["created"]
    assert drive.state.rollout is not None
    assert drive.state.rollout.plan.candidate == newer


def test_where_rollouts_finish_a_retrain_waits() -> None:
    drive = Drive(policy_with(on_second=OnSecond.QUEUE, on_retrain=OnRetrain.FINISH))
    drive.retrained()
    drive.to(Phase.CANARY)
    newer = drive.retrained(STRUCTURE)
    drive.to(Phase.CHAMPION)
    assert drive.state.champion == 2
    drive.to(Phase.CHAMPION, step=4)
    drive.to(Phase.PENDING).to(Phase.CHAMPION)
    assert drive.state.champion == newer


def test_no_retrain_while_a_candidate_waits() -> None:
    drive = Drive()
    drive.tick(signals=DRIFT)
    drive.tick(orders=(stop(Switch.ROLLOUTS),))
    drive.tick(trained=Trained(2, made=True))
    assert [body.obstacle for body in drive.tick(5.0, signals=STRUCTURE)] == [Obstacle.RUNNING]


def test_a_holdback_goes_on_until_the_next_rollout_begins() -> None:
    held = replace(POLICY.rollout, holdback=HoldbackRules(0.1))
    drive = Drive(policy_with(rollout=held))
    drive.promoted()
    rollout = drive.state.rollout
    assert rollout is not None
    assert rollout.holdback_open
    assert not drive.state.rollout_open
    drive.tick(2.0, signals=DRIFT)  # a retrain leaves it alone
    assert drive.state.rollout is rollout
    bodies = drive.tick(trained=Trained(3, made=True))
    assert kinds(bodies) == ["Trained", "holdback_ended", "created"]


def test_a_candidate_that_may_not_begin_does_not_end_a_holdback() -> None:
    held = replace(POLICY.rollout, holdback=HoldbackRules(0.1), on_underpowered=OnUnderpowered.REFUSE)
    drive = Drive(policy_with(rollout=held))
    drive.promoted()
    bodies = drive.tick(orders=(Propose(9, "ada", detectable=(0.5, 0.1, 0.05)),))
    assert [body.answer for body in bodies[1:]] == [Admission.REFUSE]
    assert "cannot detect" in bodies[1].reason
    assert drive.state.rollout is not None
    assert drive.state.rollout.holdback_open


def test_an_underpowered_retrain_ends_untried() -> None:
    rules = replace(POLICY.rollout, on_underpowered=OnUnderpowered.REFUSE)
    drive = Drive(policy_with(rollout=rules))
    drive.tick(signals=DRIFT)
    bodies = drive.tick(trained=Trained(2, made=True, detectable=(0.5, 0.1, 0.05)))
    assert kinds(bodies) == ["Trained", "Admitted", "Outcome"]
    assert outcomes(drive)[-1].ending is Ending.FAILED
    assert not drive.state.retrain_running


def test_devices_that_are_kept_out_do_not_count_for_a_step() -> None:
    rules = replace(POLICY.rollout, on_underpowered=OnUnderpowered.REFUSE)
    for kept, answers in (((), []), (range(26), [Admission.REFUSE])):
        drive = Drive(policy_with(rollout=rules))
        faults = tuple(Fault(Subject.DEVICE, device, "a child's toy") for device in kept)
        drive.tick(faults=QuarantineEvidence(0, faults))
        bodies = drive.tick(orders=(Propose(9, "ada", detectable=(0.01, 0.01, 0.01)),), num_devices=500)
        assert [body.answer for body in bodies if isinstance(body, Admitted)] == answers
        assert not kept or "9 devices of 474" in bodies[1].reason


def test_the_champion_itself_is_no_candidate() -> None:
    drive = Drive()
    bodies = drive.tick(orders=(Propose(1, "ada"),))
    assert [type(body) for body in bodies] == [Proposed, Admitted]
    assert drive.state.waiting == ()
