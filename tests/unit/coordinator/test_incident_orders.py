"""A version that failed: once more through every gate, or given up for good."""

from __future__ import annotations

import pytest

from fedretrain.coordinator.cycle import (
    CycleEvent,
    Discard,
    Discarded,
    Propose,
    Proposed,
    Refused,
    Resubmit,
    apply,
)
from fedretrain.core.errors import DataError
from fedretrain.rollout.causes import Change, Phase
from fedretrain.rollout.quarantine import QuarantineEvent, QuarantineEventKind, Release, Subject
from tests.cycle_cases import Drive
from tests.rollout_cases import FAIL


def _failed() -> tuple[Drive, int]:
    """A loop whose candidate a gate has caught."""
    drive = Drive()
    version = drive.retrained()
    drive.to(Phase.CANARY)
    drive.to(Phase.ROLLED_BACK, gate=FAIL)
    assert version in drive.state.quarantined
    return drive, version


def test_a_failed_version_tries_again_through_every_gate_and_asks_a_person():
    drive, version = _failed()
    bodies = drive.tick(orders=(Resubmit(version, "cyd", "the sensor was broken"),))
    assert Proposed(version, "cyd", "the sensor was broken", again=True) in bodies
    assert drive.state.quarantined == frozenset()
    drive.to(Phase.APPROVAL)  # although the policy waives every class that it may
    plan = drive.state.rollout.plan
    assert (plan.candidate, plan.change, plan.proposed_by) == (version, Change.RESUBMITTED, "cyd")
    assert drive.state.rollout.passed == plan.gates
    assert drive.replayed() == drive.state


def test_a_version_that_is_given_up_never_comes_back():
    drive, version = _failed()
    assert Discarded(version, "ada", "wrong units") in drive.tick(
        orders=(Discard(version, "ada", "wrong units"),)
    )
    assert drive.state.discarded == {version}
    orders = (
        Resubmit(version, "cyd", "again"),
        Propose(version, "cyd"),
        Release(Subject.VERSION, version, "cyd"),
        Discard(version, "cyd", "again"),
    )
    bodies = drive.tick(orders=orders)
    assert [(one.order, one.reason) for one in bodies if isinstance(one, Refused)] == [
        (name, f"version {version} was discarded") for name in ("resubmit", "propose", "release", "discard")
    ]
    assert version in drive.state.quarantined
    assert drive.state.waiting == ()
    assert drive.replayed() == drive.state
    let_in = QuarantineEvent(QuarantineEventKind.RELEASED, Subject.VERSION, version, drive.now, by="cyd")
    for body in (let_in, Proposed(version, "cyd"), Discarded(version, "cyd")):
        with pytest.raises(DataError):
            apply(drive.policy, drive.state, CycleEvent(drive.now, body))


def test_what_did_not_fail_is_neither_tried_again_nor_given_up():
    drive = Drive()
    version = drive.retrained()
    drive.to(Phase.SHADOW)
    bodies = drive.tick(
        orders=(Resubmit(version, "ada", "x"), Discard(1, "ada", "x"), Discard(0, "ada", "x"))
    )
    assert [one.reason for one in bodies if isinstance(one, Refused)] == [
        f"version {version} has a rollout that is on",
        "version 1 is the champion",
        "version 0 is the rules baseline",
    ]


def test_nobody_resubmits_without_a_name():
    drive, version = _failed()
    assert drive.tick(orders=(Resubmit(version, ""), Discard(version, ""))) == []
