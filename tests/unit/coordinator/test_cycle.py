"""The closed loop's tick: watch, retrain, release, fall back; each part's say in its order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedretrain.coordinator import cycle
from fedretrain.coordinator.cycle import (
    Admitted,
    Propose,
    Quarantine,
    ServeAgain,
    ServedAgain,
    Trained,
    UnderWay,
    Withdraw,
)
from fedretrain.coordinator.policy import OnDecay
from fedretrain.core.clock import HOUR_S
from fedretrain.core.errors import DataError
from fedretrain.monitoring.alerts import ConfidenceDecayed, DeviceQuarantined, DeviceReleased, Drifted
from fedretrain.monitoring.state import MonitorState
from fedretrain.retraining.config import Mode, Strategy, StrategyRule
from fedretrain.retraining.decision import Action, Ending, Outcome
from fedretrain.rollout.causes import IncidentKind, Phase
from fedretrain.rollout.evidence import Exposure
from fedretrain.rollout.quarantine import (
    Fault,
    QuarantineEventKind,
    QuarantineEvidence,
    QuarantineRules,
    Release,
    Subject,
)
from fedretrain.rollout.reconcile import Admission
from fedretrain.rollout.safety import (
    Reading,
    Switch,
)
from fedretrain.rollout.simulation import SimulationRules
from fedretrain.rollout.verdict import Verdict
from tests.cycle_cases import (
    CALM,
    DRIFT,
    POLICY,
    Drive,
    baseline_of,
    kinds,
    outcomes,
    policy_with,
    start,
    stop,
    view_of,
)
from tests.rollout_cases import FAIL

LOW = (Reading("hits", 0.01, 50),)


def test_drift_is_noticed_retrained_proven_and_served() -> None:
    drive = Drive()
    assert Drifted in map(type, drive.watch(psi=0.9))
    decided = drive.tick(signals=DRIFT)
    assert [body.action for body in decided] == [Action.RETRAIN]
    assert drive.state.training is not None
    made = drive.tick(trained=Trained(2, made=True))
    assert kinds(made) == ["Trained", "created"]
    drive.to(Phase.CHAMPION)
    assert (drive.state.champion, drive.state.before, drive.state.last_good) == (2, (1,), 1)
    assert drive.state.monitor == MonitorState(2)
    assert outcomes(drive) == [Outcome(1, Ending.DONE, "exposure 100.0%")]
    assert not drive.state.retrain_running
    assert cycle.served(POLICY, drive.state) == 2


def test_the_simulation_gate_is_asked_of_candidates_that_a_federated_campaign_makes_and_of_no_other() -> None:
    simulated = replace(POLICY, rollout=replace(POLICY.rollout, simulation=SimulationRules(required=True)))
    drive = Drive(simulated)
    drive.watch(psi=0.9)
    drive.retrained()
    assert drive.state.rollout is not None
    assert drive.state.rollout.plan.simulation
    refused = drive.tick(seen=drive.seen(simulation=Verdict.FAIL))
    assert "ROLLBACK_STARTED" in [getattr(body.kind, "name", "") for body in refused if hasattr(body, "kind")]
    assert 2 in drive.state.quarantined
    assert [one.ending for one in outcomes(drive)] == [Ending.REJECTED]
    brought = Drive(simulated)
    brought.tick(orders=(Propose(5, "ada"),))
    assert brought.state.rollout is not None
    assert not brought.state.rollout.plan.simulation


def test_a_tick_changes_nothing_and_says_the_same_twice() -> None:
    drive = Drive()
    before = drive.state
    evidence = cycle.Evidence(signals=DRIFT, readings=LOW)
    assert cycle.tick(POLICY, before, evidence, 1.0) == cycle.tick(POLICY, before, evidence, 1.0)
    assert before == cycle.begin(drive.log[0])


def test_a_candidate_that_fails_is_quarantined_its_retrain_rejected_and_the_incident_told() -> None:
    drive = Drive()
    version = drive.retrained()
    drive.to(Phase.CANARY)
    drive.tick()
    bodies = drive.tick(seen=drive.seen(gate=FAIL, exposure=Exposure(10, 0, 0, 10, counter=None)))
    assert kinds(bodies) == ["rollback_started", "entered"]
    assert drive.state.quarantined == {version}
    assert [(one.incident, one.kind) for one in drive.state.incidents] == [
        ("rollout-1/kpi_regression", IncidentKind.MODEL)
    ]
    drive.to(Phase.ROLLED_BACK)
    assert drive.state.incidents == ()
    assert outcomes(drive)[-1].ending is Ending.REJECTED
    told = cycle.incident_of(drive.log, "rollout-1/kpi_regression", (3, 4))
    assert (told.candidate, told.fallback, told.devices) == (version, 1, (3, 4))
    assert told.closed_at == drive.now
    for wrong in ("rollout-1/kill", "rollout-9/kill", "rollout-1/typo", "safe_mode/3"):
        with pytest.raises(DataError, match="no "):
            cycle.incident_of(drive.log, wrong)


@pytest.mark.parametrize(
    ("on_decay", "serves"), [(OnDecay.CHAMPION, 2), (OnDecay.LAST_GOOD, 1), (OnDecay.RULES, 0)]
)
def test_decayed_confidence_serves_the_fallback_until_it_is_over(on_decay: OnDecay, serves: int) -> None:
    drive = Drive(policy_with(on_decay=on_decay))
    drive.promoted()
    assert any(isinstance(body, ConfidenceDecayed) for body in drive.watch(unsure=True))
    assert drive.state.in_fallback
    assert cycle.served(drive.policy, drive.state) == serves
    assert drive.state.champion == 2
    drive.watch()
    assert cycle.served(drive.policy, drive.state) == 2


def test_the_fallback_ends_with_a_person_or_a_new_champion() -> None:
    drive = Drive()
    drive.watch(unsure=True)
    assert cycle.served(POLICY, drive.state) == 0  # there is no champion before the first
    bodies = drive.tick(orders=(ServeAgain("ada", "looked at it"),))
    assert bodies == [ServedAgain(1, "ada", "looked at it")]
    assert not drive.state.in_fallback
    drive.watch(unsure=True)
    drive.promoted()
    assert not drive.state.in_fallback


def test_a_broken_sensor_stays_out_whichever_model_serves_and_comes_back_by_itself() -> None:
    drive = Drive()
    assert DeviceQuarantined in map(type, drive.watch(outliers=(7,)))
    assert drive.state.kept_devices == {7}
    drive.promoted()
    assert drive.state.kept_devices == {7}
    assert drive.state.monitor.inputs == {}
    drive.watch()
    assert DeviceReleased in map(type, drive.watch())
    assert drive.state.kept_devices == frozenset()


def test_a_person_lets_a_device_in_again_and_it_can_be_kept_out_anew() -> None:
    drive = Drive()
    drive.watch(outliers=(7,))
    freed = drive.tick(orders=(Release(Subject.DEVICE, 7, "ada", "sensor replaced"),))
    assert [(body.kind, body.by) for body in freed] == [(QuarantineEventKind.RELEASED, "ada")]
    assert drive.state.kept_devices == frozenset()
    drive.watch(outliers=(7,))
    assert drive.state.kept_devices == {7}


def test_a_device_with_another_fault_comes_back_after_clean_windows() -> None:
    drive = Drive()
    device = (Subject.DEVICE, 4)
    drive.tick(faults=QuarantineEvidence(0, (Fault(*device, "its updates are poisoned"),)))
    assert drive.state.kept_devices == {4}
    for window in range(1, 4):
        assert drive.state.kept_devices == {4}
        drive.tick(faults=QuarantineEvidence(window, measured=frozenset({device})))
    assert drive.state.kept_devices == frozenset()


def test_a_device_in_both_ledgers_needs_both_ways_back_or_a_person() -> None:
    drive = Drive()
    drive.watch(outliers=(4,))
    drive.tick(faults=QuarantineEvidence(0, (Fault(Subject.DEVICE, 4, "poisoned"),)))
    drive.watch()
    drive.watch()
    assert drive.state.monitor.quarantined == frozenset()
    assert drive.state.kept_devices == {4}
    drive.watch(outliers=(4,))
    drive.tick(orders=(Release(Subject.DEVICE, 4, "ada"),))
    assert drive.state.kept_devices == frozenset()


def test_a_person_keeps_a_device_out_until_a_person_lets_it_in_again() -> None:
    drive = Drive()
    told = drive.tick(orders=(Quarantine(4, "ada", "loose"), Quarantine(5, "", "nobody's word")))
    assert [(body.kind, body.ident, body.by, body.reason) for body in told] == [
        (QuarantineEventKind.ENTERED, 4, "ada", "kept out by ada: loose")
    ]
    assert drive.tick(orders=(Quarantine(4, "ben", "again"),)) == []
    for window in range(9):  # far more clean ones than let another device in
        drive.tick(faults=QuarantineEvidence(window, measured=frozenset({(Subject.DEVICE, 4)})))
    drive.promoted()
    assert drive.state.kept_devices == {4}
    drive.tick(orders=(Release(Subject.DEVICE, 4, "ben", "mended"),))
    assert drive.state.kept_devices == frozenset()


def test_a_persons_word_outlasts_the_clean_windows_of_a_device_that_is_out_already() -> None:
    drive = Drive()
    device = (Subject.DEVICE, 4)
    drive.tick(faults=QuarantineEvidence(0, (Fault(*device, "its updates are poisoned"),)))
    drive.tick(orders=(Quarantine(4, "ada", "loose"),))
    for window in range(1, 9):
        drive.tick(faults=QuarantineEvidence(window, measured=frozenset({device})))
    assert drive.state.kept_devices == {4}


@pytest.mark.parametrize("out", [False, True])
def test_of_two_orders_about_a_device_in_one_tick_the_later_one_counts(out: bool) -> None:
    drive = Drive()
    if out:
        drive.watch(outliers=(4,))
    keep, free = Quarantine(4, "ada", "loose"), Release(Subject.DEVICE, 4, "ada", "not this one")
    drive.tick(orders=(keep, free))
    assert drive.state.kept_devices == frozenset()
    drive.tick(orders=(free, keep))
    assert drive.state.kept_devices == {4}


def test_a_quarantined_version_comes_back_by_a_person_and_passes_every_gate_again() -> None:
    drive = Drive()
    version = drive.retrained()
    drive.to(Phase.SHADOW)
    drive.tick(seen=drive.seen(gate=FAIL))
    drive.to(Phase.ROLLED_BACK)
    refused = drive.tick(orders=(Propose(version, "ada"),))
    assert [body.answer for body in refused if isinstance(body, Admitted)] == [Admission.REFUSE]
    assert drive.state.waiting == ()
    drive.tick(orders=(Release(Subject.VERSION, version, "ada", "the gate was wrong"),))
    assert kinds(drive.tick(orders=(Propose(version, "ada"),))) == ["Proposed", "created"]
    drive.to(Phase.CHAMPION)
    assert drive.state.rollout is not None
    assert drive.state.rollout.passed == drive.state.rollout.plan.gates
    assert len(outcomes(drive)) == 1  # the retrain had ended before


def test_a_version_comes_back_by_clean_windows_where_the_policy_says_so() -> None:
    drive = Drive(policy_with(quarantine=QuarantineRules(version_clean_windows=1)))
    drive.tick(orders=(Withdraw(5, "ada", "leaks"),))
    assert drive.state.quarantined == {5}
    drive.tick(faults=QuarantineEvidence(3, measured=frozenset({(Subject.VERSION, 5)})))
    assert drive.state.quarantined == frozenset()


def test_windows_of_another_version_are_passed_over() -> None:
    drive = Drive()
    assert drive.tick(views=(view_of(5, 1, psi=0.9),), baseline=baseline_of(5)) == []
    assert drive.tick(views=(view_of(1, 1, psi=0.9),)) == []  # no baseline yet


def test_a_calm_signal_rearms_its_trigger_while_another_is_deferred() -> None:
    """A decision that is deferred for the same reason as before may still have armed a trigger again."""
    rules = replace(POLICY.retraining, mode=Mode.METRIC, cool_down_s=500 * 3600.0)
    drive = Drive(policy_with(retraining=rules))
    drive.promoted()
    assert "drift" not in drive.state.trigger.disarmed
    drive.state = replace(drive.state, trigger=replace(drive.state.trigger, disarmed=("drift",)))
    drive.tick(signals=replace(DRIFT, kpi_breached=True))
    bodies = drive.tick(signals=replace(CALM, kpi_breached=True))
    assert [body.rearmed for body in bodies] == [("drift",)]


def test_drift_from_a_new_champion_is_a_new_cause_though_it_never_was_calm_in_between() -> None:
    rules = replace(POLICY.retraining, mode=Mode.METRIC)
    drive = Drive(policy_with(retraining=rules))
    drive.retrained()  # by drift
    assert drive.state.trigger.disarmed == ("drift",)
    drive.to(Phase.CHAMPION)
    assert drive.state.trigger.disarmed == ()
    unsettled = replace(
        DRIFT, psi_max=0.15, drift_confirmed=False
    )  # neither beyond the upper level nor below the lower one
    assert "retrain" not in [getattr(body, "action", None) for body in drive.tick(5.0, signals=unsettled)]
    decisions = [
        body for body in drive.tick(5.0, signals=DRIFT) if getattr(body, "action", None) == "retrain"
    ]
    assert [(one.number, one.fired) for one in decisions] == [(2, ("drift",))]


def test_a_refresh_on_the_devices_is_done_at_once() -> None:
    refresh = (StrategyRule("here", Strategy.PERSONAL_ONLY),)
    drive = Drive(policy_with(retraining=replace(POLICY.retraining, rules=refresh)))
    bodies = drive.tick(signals=DRIFT)
    assert kinds(bodies) == ["Decision", "Outcome"]
    assert drive.state.training is None
    assert cycle.refresh_due(drive.state) == bodies[0].number == 1


def test_a_refresh_is_due_until_the_next_one_and_not_while_training_is_stopped() -> None:
    refresh = (StrategyRule("here", Strategy.PERSONAL_ONLY),)
    drive = Drive(policy_with(retraining=replace(POLICY.retraining, rules=refresh)))
    assert cycle.refresh_due(drive.state) == 0
    drive.tick(signals=DRIFT)
    drive.tick(orders=(stop(Switch.TRAINING),))
    assert cycle.refresh_due(drive.state) == 0
    drive.tick(orders=(start(Switch.TRAINING),))
    assert cycle.refresh_due(drive.state) == 1
    assert cycle.replay(drive.policy, drive.log).refresh == 1


def test_devices_that_learn_online_are_not_told_to_refresh() -> None:
    online = (StrategyRule("here", Strategy.ONLINE),)
    drive = Drive(policy_with(retraining=replace(POLICY.retraining, rules=online)))
    assert kinds(drive.tick(signals=DRIFT)) == ["Decision", "Outcome"]
    assert cycle.refresh_due(drive.state) == 0


def test_a_campaign_that_makes_nothing_ends_its_retrain_and_a_late_word_counts_for_nothing() -> None:
    drive = Drive()
    drive.tick(signals=DRIFT)
    assert drive.tick(trained=Trained(7, made=True)) == []
    bodies = drive.tick(trained=Trained(2, made=False, reason="no device answered"))
    assert bodies == [Trained(2, made=False, reason="no device answered"), *outcomes(drive)]
    assert drive.tick(trained=Trained(2, made=True)) == []


def test_a_campaign_that_takes_too_long_is_given_up_and_tried_again_like_any_that_failed() -> None:
    drive = Drive()
    drive.tick(signals=DRIFT)
    begun_at = drive.now
    assert drive.tick(2.0, under_way=UnderWay(2, begun_at, 2 * HOUR_S)) == []  # to the second
    assert drive.tick(under_way=UnderWay(1, begun_at, HOUR_S)) == []  # another campaign's
    bodies = drive.tick(under_way=UnderWay(2, begun_at, 2 * HOUR_S))
    assert bodies == [Trained(2, made=False, reason="it took longer than 7200 s"), *outcomes(drive)]
    assert outcomes(drive)[-1].ending is Ending.FAILED
    assert drive.state.training is None
    again = drive.tick(POLICY.retraining.retry_s / HOUR_S + 0.1, signals=DRIFT)
    assert [body.action for body in again] == [Action.RETRAIN]
    other = Drive()
    other.tick(signals=DRIFT)
    at_last = other.tick(5.0, trained=Trained(2, made=True), under_way=UnderWay(2, 0.0, HOUR_S))
    assert kinds(at_last) == ["Trained", "created"]  # what it made by then counts


def test_a_candidate_without_validation_goes_nowhere() -> None:
    drive = Drive()
    drive.retrained()
    for _ in range(10):
        drive.tick(seen=drive.seen(validation=Verdict.INCONCLUSIVE))
    assert drive.state.rollout is not None
    assert drive.state.rollout.phase is Phase.PENDING
    drive.tick(seen=drive.seen(validation=Verdict.FAIL))
    assert drive.state.quarantined == {2}


def test_a_person_who_wants_a_retrain_gets_one_where_signals_are_known():
    from fedretrain.coordinator.cycle import Retrain
    from fedretrain.coordinator.policy import Policy
    from fedretrain.retraining.signals import Signals

    policy = Policy()
    state = cycle.begin(cycle.CycleEvent(0.0, cycle.Begun(1)))
    order = Retrain("anna", "the season changes")
    calm = cycle.tick(policy, state, cycle.Evidence(signals=Signals()), 1.0)
    asked = cycle.tick(policy, state, cycle.Evidence(signals=Signals(), orders=(order,)), 1.0)
    nobody = cycle.tick(policy, state, cycle.Evidence(signals=Signals(), orders=(Retrain(""),)), 1.0)
    assert [event.body.action for event in asked] == ["retrain"]
    assert calm == nobody == ()
