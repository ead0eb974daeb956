"""Where people must agree: by default before a promotion, waived by class of change, four eyes where it matters."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedretrain.rollout.causes import ApprovalPoint, Change, EventKind, Phase
from fedretrain.rollout.compose import write
from fedretrain.rollout.config import ApprovalRules
from fedretrain.rollout.fold import IllegalTransition, apply
from tests.rollout_cases import POLICY, Drive, no, yes


def test_a_promotion_asks_one_person_unless_the_class_of_change_is_waived() -> None:
    rules = ApprovalRules(waived=(Change.INCREMENTAL,))
    for change, asks in ((Change.INCREMENTAL, False), (Change.FULL, True), (Change.RESUBMITTED, True)):
        drive = Drive(replace(POLICY, approvals=rules), change=change).to(Phase.RAMP)
        kinds = [*drive.kinds(), *(kind for _ in range(4) for kind in drive.tick(1.0))]
        assert ("approval_asked" in kinds, "promoted" in kinds) == (asks, not asks)


@pytest.mark.parametrize(("critical", "otherwise"), [(True, False), (False, True)])
def test_four_eyes_are_two_people_neither_of_whom_proposed_it(critical: bool, otherwise: bool) -> None:
    rules = ApprovalRules((ApprovalPoint.CANARY,), waived=(Change.IMPORTED,), safety_critical=critical)
    drive = Drive(
        replace(POLICY, approvals=rules),
        change=Change.IMPORTED,
        proposed_by="ada",
        decides_otherwise=otherwise,
    ).to(Phase.APPROVAL)
    assert drive.state.plan.approvals == (ApprovalPoint.CANARY, ApprovalPoint.CHAMPION)
    assert drive.tick(1.0, approval=yes("ada", drive.now)) == []
    own = write(drive.state, EventKind.APPROVED, drive.now, "", by="ada", until=drive.now + 1.0)
    with pytest.raises(IllegalTransition, match="two others must agree"):
        apply(drive.state, own)
    assert drive.tick(1.0, approval=yes("bob", drive.now)) == ["approved"]
    assert drive.tick(1.0, approval=yes("bob", drive.now)) == []
    assert drive.tick(1.0, approval=yes("cyd", drive.now)) == ["approved", "canary_started"]
    assert drive.log[-3].kind is EventKind.APPROVED
    refused = Drive(replace(POLICY, approvals=rules), proposed_by="ada").to(Phase.APPROVAL)
    kinds = refused.tick(1.0, approval=no("ada", refused.now))  # a no needs no second person
    assert kinds == ["rollback_started", "rolled_back"]


def test_why_a_person_agreed_stands_in_the_event() -> None:
    drive = Drive(replace(POLICY, approvals=ApprovalRules())).to(Phase.APPROVAL)
    drive.tick(1.0, approval=replace(yes("ada", drive.now), reason="a quiet weekend"))
    assert [event.reason for event in drive.log if event.kind is EventKind.APPROVED] == [
        "approved by ada: a quiet weekend"
    ]
