"""The log of the closed loop: what does not follow is refused, and a file replays to the same state."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from fedretrain.coordinator import cycle
from fedretrain.coordinator.cycle import (
    Admitted,
    CycleEvent,
    Proposed,
    ServedAgain,
    Trained,
    Withdraw,
    Withdrawn,
)
from fedretrain.core.errors import DataError, FedretrainError, UserError
from fedretrain.monitoring.alerts import (
    Drifted,
    KpiBreached,
    KpiLook,
    LabelPaceChanged,
    LabelPaceRestored,
    Told,
    WindowJudged,
)
from fedretrain.monitoring.kpi import KpiTest, SprtDecision
from fedretrain.retraining.decision import Action, Decision, Ending, Outcome
from fedretrain.rollout.causes import EventKind, Phase
from fedretrain.rollout.quarantine import (
    QuarantineEvent,
    QuarantineEventKind,
    Subject,
)
from fedretrain.rollout.reconcile import Admission
from fedretrain.rollout.safety import (
    Reading,
    SafetyEvent,
    SafetyEventKind,
    Switch,
)
from tests.cycle_cases import (
    LEAVE,
    POLICY,
    Drive,
    stop,
)

LOW = (Reading("hits", 0.01, 50),)
FINE = (Reading("hits", 0.8, 50),)


ILLEGAL = [
    cycle.Begun(1),
    Trained(2, made=True),
    Proposed(9, ""),
    Proposed(0, "ada"),
    Admitted(9, Admission.QUEUE, "first"),
    Withdrawn(1, 0),
    ServedAgain(1, "ada"),
    Outcome(1, Ending.DONE),
    SafetyEvent(SafetyEventKind.LEFT, 5.0),
    QuarantineEvent(QuarantineEventKind.RELEASED, Subject.DEVICE, 4, 5.0, by="ada"),
    Drifted(5.0, 8, 3600.0, 1, ("x",), (0.5,), (0.01,)),
    Decision(Action.RETRAIN, "twice", number=3),
]


@pytest.mark.parametrize("body", ILLEGAL, ids=lambda body: type(body).__name__)
def test_what_does_not_follow_is_refused_and_changes_nothing(body: cycle.Body) -> None:
    drive = Drive()
    before = drive.state
    with pytest.raises(FedretrainError):
        cycle.apply(POLICY, drive.state, CycleEvent(10.0, body))
    assert drive.state == before == cycle.begin(drive.log[0])


def test_nothing_goes_up_and_no_champion_changes_by_a_forged_event() -> None:
    drive = Drive()
    drive.retrained()
    drive.to(Phase.CHAMPION)
    promotion = drive.log[-2] if isinstance(drive.log[-1].body, Outcome) else drive.log[-1]
    assert getattr(promotion.body, "kind", None) is EventKind.PROMOTED
    before_promotion = drive.log.index(promotion)
    state = cycle.replay(POLICY, drive.log[:before_promotion])
    assert cycle.apply(POLICY, state, promotion).champion == 2
    at = promotion.at
    for hindrance in (
        SafetyEvent(SafetyEventKind.ENTERED, at),
        SafetyEvent(SafetyEventKind.STOPPED, at, switch=Switch.INSTALLS, by="ada"),
        SafetyEvent(SafetyEventKind.STOPPED, at, switch=Switch.ROLLOUTS, by="ada"),
        QuarantineEvent(QuarantineEventKind.ENTERED, Subject.VERSION, 2, at),
    ):
        hindered = cycle.apply(POLICY, state, CycleEvent(at, hindrance))
        with pytest.raises(DataError, match="promoted"):
            cycle.apply(POLICY, hindered, promotion)
    with pytest.raises(DataError, match="before the last one"):
        cycle.apply(POLICY, state, replace(promotion, at=at - 1e6))
    with pytest.raises(DataError, match="without a rollout"):
        cycle.apply(POLICY, cycle.begin(drive.log[0]), promotion)


def test_the_log_replays_from_a_file() -> None:
    drive = Drive()
    drive.watch(psi=0.9, outliers=(7,))
    drive.promoted()
    drive.tick(readings=LOW)
    drive.tick(readings=FINE, orders=(LEAVE, stop(Switch.TRAINING), Withdraw(1, "ada")))
    assert drive.replayed() == drive.state
    assert drive.state.num_events == len(drive.log)


def test_a_log_must_be_whole_and_of_its_policy() -> None:
    drive = Drive()
    drive.retrained()
    for wrong in ([], drive.log[1:], [*drive.log[:2], *drive.log[3:]], [drive.log[0], drive.log[0]]):
        with pytest.raises(FedretrainError):
            cycle.replay(POLICY, wrong)
    with pytest.raises(DataError, match="under the policy"):
        cycle.replay(replace(POLICY, name="other"), drive.log)


def test_sequential_tests_and_the_pace_of_labels_come_back_from_a_file_as_they_were() -> None:
    looks = (
        KpiLook("hits", 3, SprtDecision.UNDECIDED, -0.25, 3, (7, 2, 5)),
        KpiLook("misses", 1, SprtDecision.REJECT, 7.5, 12),
    )
    bodies = (
        WindowJudged(5.0, 1, 86_400.0, True, kpis=(("hits", Told.UNKNOWN),), looks=looks, pace=Told.BAD),
        KpiBreached(5.0, 1, "misses", 0.6, 0.4, 0.8, 0.5, 1, KpiTest.SPRT, 12),
        LabelPaceChanged(5.0, 1, -0.4, 1e-6, 12, 1),
        LabelPaceRestored(5.0, 1, 0.02),
    )
    drive = Drive()
    for body in bodies:
        line = json.dumps(CycleEvent(5.0, body).to_record(), allow_nan=False)
        assert cycle.from_record(json.loads(line)).body == body
        drive.log.append(CycleEvent(5.0, body))
        drive.state = cycle.apply(POLICY, drive.state, drive.log[-1])
    monitor = drive.replayed().monitor
    assert monitor == drive.state.monitor
    assert monitor.epochs["hits"].sprt.entered == {2, 5, 7}
    assert (monitor.epochs["misses"].num_windows, monitor.breached) == (0, {"misses"})
    assert not monitor.pace_changed


def test_records_keep_what_is_no_number_and_what_is_infinite() -> None:
    event = CycleEvent(
        np.float64(3.0),
        Drifted(np.float64(3.0), np.int64(1), math.inf, 2, ("a", "b"), (math.nan, 0.5), (-math.inf, 0.1)),
    )
    line = json.dumps(event.to_record(), allow_nan=False)
    back = cycle.from_record(json.loads(line)).body
    assert isinstance(back, Drifted)
    assert math.isnan(back.psi[0])
    assert (back.window_s, back.p[0], back.psi[1], back.version) == (math.inf, -math.inf, 0.5, 1)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"at": 1.0, "kind": "nothing", "body": {}},
        {"at": 1.0, "kind": ["drifted"], "body": {}},
        {"at": None, "kind": "trained", "body": {"version": 1, "made": True}},
        {"at": float("nan"), "kind": "trained", "body": {"version": 1, "made": True}},
        {"at": 1.0, "kind": "trained", "body": [1]},
        {"at": 1.0, "kind": "trained", "body": {"version": 1, "made": True}, "more": 1},
        {"at": 1.0, "kind": "trained", "body": {"version": 1}},
        {"at": 1.0, "kind": "trained", "body": {"version": "1", "made": True}},
        {"at": 1.0, "kind": "trained", "body": {"version": 1, "made": True, "mad": 1}},
        {"at": 1.0, "kind": "trained", "body": {"version": 1, "made": True}, "nan": [["weight", 0]]},
        {"at": 1.0, "kind": "trained", "body": {"version": 1, "made": True}, "nan": 7},
    ],
)
def test_a_record_that_is_no_event_is_refused_by_name(record: dict[str, object]) -> None:
    with pytest.raises(UserError):
        cycle.from_record(record)
