"""The known faults of rollout controllers, each by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedretrain.rollout.assignment import assign, confirm, exposure, unassigned
from fedretrain.rollout.causes import Cause, Phase
from fedretrain.rollout.effects import EffectKind
from fedretrain.rollout.evidence import Command, Coverage, Exposure, RolloutEvidence
from fedretrain.rollout.exposure import ranks
from fedretrain.rollout.reconcile import tick
from fedretrain.rollout.verdict import GateReport, Reason, Verdict, combine
from tests.rollout_cases import COVERED, DAY_S, FAIL, PASS, POLICY, UNSURE, Drive, gate_of, said


def test_zero_measurements_are_not_success() -> None:
    """No evidence, an empty report, or checks without data: never a step up, and never blame."""
    for gate in (
        None,
        GateReport(Verdict.INCONCLUSIVE),
        combine(()),
        gate_of(Verdict.INCONCLUSIVE, Reason.NO_DATA),
    ):
        drive = Drive().to(Phase.CANARY)
        drive.tick(0.0, gate=gate)
        drive.tick(12.0, gate=gate)
        assert (drive.state.phase, drive.state.step) == (Phase.CANARY, 1)
        drive.tick(12.1, gate=gate)
        assert drive.state.cause is Cause.INCONCLUSIVE
        assert not drive.payloads(EffectKind.QUARANTINE)


def test_no_evidence_at_all_never_moves_up() -> None:
    drive = Drive()
    for phase in (Phase.PENDING, Phase.SHADOW, Phase.CANARY, Phase.RAMP):
        drive.to(phase)
        silent = tick(POLICY, drive.state, RolloutEvidence(), drive.now + 2 * 3600)
        assert silent.state.phase is phase
        assert silent.state.passed == drive.state.passed
        assert silent.state.exposure_fraction == drive.state.exposure_fraction


def test_one_transient_error_on_little_traffic_does_not_abort() -> None:
    """One device of two refuses: half of the answers, and nothing to conclude from."""
    drive = Drive().to(Phase.CANARY)
    one = Exposure(2, 1, 0, 0, 1, counter=drive.state.counter)
    assert drive.tick(0.5, exposure=one, gate=gate_of(Verdict.INCONCLUSIVE, Reason.TOO_FEW_EVENTS)) == []
    assert drive.state.phase is Phase.CANARY
    four = Exposure(40, 36, 0, 0, 4, counter=drive.state.counter)
    assert drive.tick(0.1, exposure=four, gate=None) == ["installed"]


def test_many_devices_that_refuse_the_candidate_do_abort() -> None:
    drive = Drive().to(Phase.CANARY)
    many = Exposure(40, 30, 0, 0, 10, counter=drive.state.counter)
    assert drive.tick(0.5, exposure=many, gate=None) == ["rollback_started"]
    assert drive.state.cause is Cause.INSTALL_FAILED
    assert drive.payloads(EffectKind.QUARANTINE)


def test_success_is_not_recorded_before_the_devices_run_the_new_version() -> None:
    """A PASS from before the devices confirmed counts for nothing, and the step's clock starts with their word."""
    drive = Drive().to(Phase.CANARY)
    waiting = Exposure(100, 10, 0, 90, counter=drive.state.counter)
    assert "gate_passed" not in drive.tick(10.0, exposure=waiting)
    assert drive.tick(0.0) == ["installed"]
    assert drive.tick(0.9) == []
    assert drive.tick(0.1) == ["gate_passed", "ramp_started"]


def test_the_word_of_an_older_order_is_not_a_confirmation() -> None:
    drive = Drive().to(Phase.RAMP)
    old = Exposure(100, 100, counter=drive.state.counter - 1)
    assert drive.tick(0.5, exposure=old) == []
    assert drive.tick(0.1, exposure=Exposure(100, 100)) == []


def test_a_gate_of_another_step_or_attempt_is_no_evidence() -> None:
    drive = Drive().to(Phase.CANARY)
    drive.tick(0.0)
    assert drive.tick(1.0, gate_for=(0, 0)) == ["held"]
    assert drive.tick(1.0, gate=FAIL, gate_for=(1, 1)) == []
    assert drive.tick(1.0, gate_for=(1, 0)) == ["gate_passed", "ramp_started"]


def test_offline_devices_do_not_block() -> None:
    """Half of the exposed devices are offline: the step counts those that can be reached, and goes on."""
    drive = Drive().to(Phase.CANARY)
    half = Exposure(100, 47, 0, 53, 0, 50, counter=drive.state.counter)
    assert (half.reachable_fraction, half.confirmed_fraction) == (0.5, 0.94)
    assert drive.tick(0.5, exposure=half) == ["installed"]
    assert drive.tick(1.0, exposure=half) == ["gate_passed", "ramp_started"]


def test_offline_devices_do_not_dilute() -> None:
    """Of the devices that can be reached too few confirm: offline ones do not make that better or worse."""
    drive = Drive().to(Phase.CANARY)
    for offline in (0, 50):
        few = Exposure(50 + offline, 30, 0, 20 + offline, 0, offline, counter=drive.state.counter)
        assert few.confirmed_fraction == 0.6
        assert drive.tick(0.1, exposure=few) == []
    bad = Exposure(1000, 30, 0, 960, 10, 960, counter=drive.state.counter)
    assert drive.tick(0.1, exposure=bad) == ["rollback_started"]


def test_a_step_that_reaches_almost_nobody_holds_and_then_goes_back_without_blame() -> None:
    drive = Drive().to(Phase.CANARY)
    nobody = Exposure(100, 20, 0, 80, 0, 80, counter=drive.state.counter)
    assert drive.tick(0.5, exposure=nobody) == []
    assert drive.tick(1.0, exposure=nobody) == ["held"]
    assert drive.state.held is Cause.NOT_INSTALLED
    assert drive.tick(47.0, exposure=nobody) == ["rollback_started"]
    assert not drive.payloads(EffectKind.QUARANTINE)


@pytest.mark.parametrize("phase", [Phase.SHADOW, Phase.CANARY, Phase.RAMP])
def test_gates_are_evaluated_while_paused(phase: Phase) -> None:
    drive = Drive().to(phase)
    assert drive.tick(0.0, gate=UNSURE, operator=said(Command.PAUSE))[0] == "paused"
    assert drive.state.paused_by == "ada"
    drive.tick(1.0, gate=FAIL)
    assert drive.state.cause is Cause.KPI_REGRESSION


def test_a_pause_stops_the_way_up_and_keeps_the_pass() -> None:
    drive = Drive().to(Phase.CANARY)
    drive.tick(0.0)
    assert drive.tick(0.5, operator=said(Command.PAUSE)) == ["paused"]
    assert drive.tick(1.0) == ["gate_passed"]
    assert drive.tick(100.0) == []
    assert drive.tick(0.0, operator=said(Command.RESUME, by="")) == []
    assert drive.tick(0.0, operator=said(Command.RESUME)) == ["resumed", "ramp_started"]


def test_a_missed_or_repeated_tick_changes_nothing_but_the_time() -> None:
    drive = Drive().to(Phase.RAMP)
    drive.tick(0.0)
    before = drive.state
    for _ in range(5):
        assert drive.tick(0.0) == []
    assert drive.state == before


def test_an_offline_device_that_installed_unheard_is_still_asked_to_go_back() -> None:
    """Silent through the whole canary: a target of the order back all the same, until that expires."""
    fleet = unassigned(ranks(np.arange(1000), np.zeros(1000, int), 5), 3)
    digests = {3: "three", 7: "seven"}
    drive = Drive().to(Phase.CANARY)
    order = drive.log[-1].order
    assert order is not None
    fleet = assign(fleet, order, drive.now)
    exposed = np.flatnonzero(fleet.target_D)
    fleet, _ = confirm(fleet, exposed[:-1], order.counter, "seven", digests, drive.now)
    drive.tick(0.0, gate=FAIL)
    back = drive.log[-1].order
    assert back is not None
    fleet = assign(fleet, back, drive.now)
    fleet, _ = confirm(fleet, exposed[:-1], back.counter, "three", digests, drive.now)
    seen = exposure(fleet, drive.now)
    assert (seen.num_targets, seen.num_pending) == (len(exposed), 1)
    assert drive.tick(1.0, exposure=seen) == []
    assert drive.tick(71.0, exposure=exposure(fleet, drive.now + 3 * DAY_S)) == ["rolled_back"]


def test_shadow_without_named_hours_is_not_covered() -> None:
    drive = Drive().to(Phase.SHADOW)
    for coverage in (Coverage(), replace(COVERED, hours_of_day=frozenset())):
        assert "gate_passed" not in drive.tick(25.0, coverage=coverage, gate=PASS)
