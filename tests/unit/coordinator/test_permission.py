"""Who may order what: roles, four eyes, and refusals that stand in the log."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedretrain.coordinator import cycle
from fedretrain.coordinator.cycle import Propose, Quarantine, Refused, Retrain, ServeAgain, Withdraw
from fedretrain.coordinator.permission import refusal, unasked, unsteered
from fedretrain.coordinator.roles import Right, Role, Roles
from fedretrain.core.build import build
from fedretrain.core.errors import ConfigError
from fedretrain.rollout.causes import ApprovalPoint, Phase
from fedretrain.rollout.config import ApprovalRules
from fedretrain.rollout.evidence import Command, Operator
from fedretrain.rollout.quarantine import Release, Subject
from fedretrain.rollout.safety import Switch
from tests.cycle_cases import LEAVE, POLICY, Drive, policy_with, start, stop
from tests.rollout_cases import yes

ROLES = Roles(
    {
        "release": Role((Right.APPROVE_CHAMPION, Right.OPERATE), ("ada", "bob")),
        "safety": Role((Right.APPROVE_CRITICAL, Right.RESTORE), ("cyd", "dan")),
    }
)


def _asking(**rules) -> Drive:
    """A loop whose rollout of a proposed version asks before its promotion."""
    policy = policy_with(rollout=replace(POLICY.rollout, approvals=ApprovalRules(**rules)))
    drive = Drive(policy)
    drive.tick(orders=(Propose(2, "ada"),))
    return drive.to(Phase.APPROVAL)


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (Retrain("eve"), Right.OPERATE),
        (Propose(4, "eve"), Right.OPERATE),
        (Withdraw(4, "eve"), Right.OPERATE),
        (Quarantine(3, "eve"), Right.OPERATE),
        (Operator(Command.ROLL_BACK, "eve"), Right.OPERATE),
        (stop(Switch.TRAINING, "eve"), Right.OPERATE),
        (start(Switch.TRAINING, "eve"), Right.RESTORE),
        (replace(LEAVE, by="eve"), Right.RESTORE),
        (ServeAgain("eve"), Right.RESTORE),
        (Release(Subject.DEVICE, 3, "eve"), Right.RESTORE),
    ],
)
def test_each_order_needs_its_right(said, right):
    refused = refusal(ROLES, None, said, 0.0)
    assert refused == f"eve lacks the right {right}, which {' and '.join(ROLES.holders(right))} have"
    assert refusal(ROLES, None, replace(said, by=ROLES.holders(right)[0]), 0.0) == ""
    assert refusal(Roles(), None, said, 0.0) == ""  # without roles a name is enough


def test_an_approval_needs_the_right_of_what_is_asked():
    drive = _asking()
    assert refusal(ROLES, drive.state, yes("bob", drive.now), drive.now) == ""
    assert "approve_champion" in refusal(ROLES, drive.state, yes("cyd", drive.now), drive.now)
    early = _asking(before=(ApprovalPoint.CANARY,))
    assert "approve_canary, which nobody has" in refusal(ROLES, early.state, yes("bob", 0.0), early.now)


def test_four_eyes_need_their_own_right_and_two_others():
    drive = _asking(safety_critical=True)
    assert "approve_critical" in refusal(ROLES, drive.state, yes("bob", drive.now), drive.now)
    everybody = Roles()
    assert "ada proposed version 2" in refusal(everybody, drive.state, yes("ada", drive.now), drive.now)
    drive.tick(0.0, seen=drive.seen(approval=yes("cyd", drive.now)))
    again = refusal(ROLES, drive.state, yes("cyd", drive.now), drive.now)
    assert again == "cyd has agreed already; 2 different people must"
    drive.tick(1.0, seen=drive.seen(approval=yes("dan", drive.now)))
    assert drive.state.champion == 2


def test_a_role_may_say_from_which_accounts_its_people_act():
    bound = Roles(
        {
            "day": Role((Right.OPERATE,), ("ada", "bob"), accounts=("operators", "ada")),
            "night": Role((Right.RESTORE,), ("ada",)),
        }
    )
    order, freed = stop(Switch.TRAINING, "ada"), start(Switch.TRAINING, "ada")
    assert refusal(bound, None, order, 0.0, "operators") == ""
    refused = refusal(bound, None, order, 0.0, "eve")
    assert refused == "ada has the right operate from the account ada, operators alone, and this is eve"
    assert refusal(bound, None, order, 0.0) == ""  # the loop, which knows of no account
    assert refusal(bound, None, freed, 0.0, "eve") == ""
    assert refusal(bound, None, stop(Switch.TRAINING, "cyd"), 0.0, "ada").startswith("cyd lacks the right")
    assert refusal(Roles(), None, order, 0.0, "eve") == ""
    drive = _asking()
    asks = Roles({"release": Role((Right.APPROVE_CHAMPION,), ("bob",), accounts=("bob",))})
    assert "and this is eve" in refusal(asks, drive.state, yes("bob", drive.now), drive.now, "eve")


def test_what_is_nobodys_word_is_written_down_and_changes_nothing():
    drive = _asking()
    before = drive.state
    forged = Refused("approval", "bob", "what bob orders must be signed", 7)
    assert drive.tick(0.0, refused=(forged,)) == [forged]
    assert replace(drive.state, num_events=before.num_events) == before
    assert cycle.from_record(drive.log[-1].to_record()).body == forged


def test_the_loop_follows_no_order_that_may_not_be_given_and_writes_that_down():
    drive = _asking()
    seen = drive.seen(approval=yes("eve", drive.now), operator=Operator(Command.PAUSE, "eve"))
    bodies = drive.tick(0.0, seen=seen, orders=(stop(Switch.TRAINING, "eve"), Retrain("bob")), roles=ROLES)
    assert [(one.order, one.by) for one in bodies if isinstance(one, Refused)] == [
        ("safetyorder", "eve"),
        ("approval", "eve"),
        ("operator", "eve"),
    ]
    assert (drive.state.safety.stopped, drive.state.rollout.paused_by) == (frozenset(), "")
    assert drive.state.rollout.phase is Phase.APPROVAL
    assert drive.replayed() == drive.state
    drive.tick(0.0, seen=drive.seen(approval=yes("bob", drive.now)), roles=ROLES)
    assert drive.state.champion == 2


def test_an_answer_without_a_question_is_named():
    assert unasked(None) == "there is no rollout that asks for anything"
    drive = _asking()
    assert unasked(drive.state) == ""
    early = Drive(drive.policy)
    early.tick(orders=(Propose(2, "ada"),))
    early.to(Phase.SHADOW)
    assert unasked(early.state) == "the rollout of version 2 is in shadow and asks for nothing"


def test_an_order_without_a_rollout_to_steer_is_named():
    drive = _asking()
    assert {unsteered(drive.state, command) for command in Command} == {""}
    for state in (None, Drive(drive.policy).state):
        assert unsteered(state, Command.ROLL_BACK) == "there is no rollout that is on"
    drive.tick(0.0, seen=drive.seen(approval=yes("cyd", drive.now)))
    assert drive.state.rollout.phase is Phase.CHAMPION
    assert unsteered(drive.state, Command.PAUSE) == "the rollout of version 2 is over, it is the champion"
    assert unsteered(drive.state, Command.ROLL_BACK) == ""  # a champion still goes back by a person
    drive.tick(0.0, seen=drive.seen(operator=Operator(Command.ROLL_BACK, "ada")))
    drive.to(Phase.ROLLED_BACK)
    assert unsteered(drive.state, Command.ROLL_BACK) == "there is no rollout that is on"


def test_a_role_may_count_for_some_populations_alone():
    roles = Roles({"pumps": Role((Right.OPERATE,), ("ada",), ("pumps",))})
    assert roles.of("pumps").lacks("ada", Right.OPERATE) == ""
    assert roles.of("fans").lacks("ada", Right.OPERATE) != ""  # roles for others do not open it to everybody


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"may": ["approve"], "people": ["ada"]}, "may"),
        ({"may": [], "people": ["ada"]}, "may"),
        ({"may": ["operate"], "people": []}, "people"),
        ({"may": ["operate"], "people": [" ada"]}, "people"),
    ],
)
def test_impossible_roles_name_their_key(values, key):
    with pytest.raises(ConfigError) as caught:
        build(Role, values)
    assert key in caught.value.where
