"""Four eyes for a policy file: what the coordinator takes, what it offers, and what people type."""

from __future__ import annotations

import pytest
import yaml

from fedretrain.coordinator.policy import read_policy
from fedretrain.coordinator.policy_book import Answered
from fedretrain.coordinator.roles import Right, Role, Roles
from fedretrain.core.errors import DataError
from fedretrain.rollout.evidence import Answer
from fedretrain.server import policies
from fedretrain.server.account import account
from fedretrain.server.desk import Desk
from fedretrain.server.event_log import FencedError
from fedretrain.server.people import OPEN

LOOSER = {"rollout": {"alpha": 0.2}, "gate": {"alpha": 0.2}}


class Leader:
    """The part of a coordinator that looks after the policy of a folder."""

    def __init__(self, office, roles=None):
        self.office, self.roles, self.now = office, roles or Roles(), 1.0
        self.log = office.log()
        self.fence = self.log.acquire("coordinator", "me", now=0.0, ttl_s=1e9)

    def starts(self):
        """A new process; the policy under which the population is opened."""
        self.policies = policies.Policies(self.log, {"pumps": OPEN})
        return self._open()

    def turn(self):
        """The policy, if the population was opened anew."""
        taken = self.policies.is_taken("pumps", self.roles, self.fence, self.now)
        return self._open() if taken else None

    def _open(self):
        file = str(self.office.folder / "policy.yaml")
        return self.policies.open("pumps", file, self.roles, self.fence, self.now)


@pytest.fixture
def leader(office):
    made = Leader(office)
    yield made
    made.log.engine.dispose()


def _file(office):
    return read_policy(yaml.safe_load((office.folder / "policy.yaml").read_text()))


def test_changed_thresholds_wait_for_two_people_who_type_their_names(office, leader, caplog):
    old = leader.starts()
    assert old == _file(office)
    office.write_policy(**LOOSER)
    assert leader.starts() == old
    assert "rollout.alpha: 0.05 -> 0.2" in caplog.text
    assert leader.turn() is None
    said = office.on("policy", "status")
    assert said.out.splitlines() == [
        f"in force {old.digest[:12]} small",
        f"waits    {_file(office).digest[:12]}",
        "  rollout.alpha: 0.05 -> 0.2",
        "  gate.alpha: 0.05 -> 0.2",
        "agreed   nobody, of 2 people",
    ]
    assert Desk(office.config, "").policy == old  # whatever a desk folds, it folds as the coordinator does
    leader.now = _now(leader)
    assert office.on("policy", "approve", "--by", "ada", "--reason", "fewer alarms").status == 0
    assert leader.turn() is None
    again = office.on("policy", "approve", "--by", "ada")
    assert (again.status, again.err.count("agreed already")) == (2, 1)
    assert office.on("policy", "approve", "--by", "bob").status == 0
    assert leader.turn() == _file(office)
    assert leader.turn() is None
    assert leader.starts() == _file(office)
    assert office.on("policy", "status").out == f"in force {_file(office).digest[:12]} small\n"
    kinds = [entry.record["kind"] for entry in leader.log.read(policies.stream("pumps"))]
    assert kinds == ["taken", "offered", "answered", "answered", "taken"]
    told = office.on("log", "--orders", "--json").json
    assert [(one["by"], one["account"], one["kind"]) for one in told] == [
        ("ada", account(), "answered"),
        ("bob", account(), "answered"),
    ]
    assert told[0]["said"]["reason"] == "fewer alarms"


def _now(leader):
    """Answers carry the clock's time."""
    import time

    return time.time()


def test_what_is_no_threshold_goes_through_and_a_file_that_goes_back_asks_nobody(office, leader):
    leader.starts()
    office.write_policy(retraining={"min_labels": 3})
    assert leader.starts() == _file(office)
    office.write_policy(retraining={"min_labels": 3}, **LOOSER)
    assert leader.starts() != _file(office)
    office.write_policy(retraining={"min_labels": 3})
    assert leader.starts() == _file(office)
    assert policies.recall(leader.log, "pumps", OPEN).waiting is None
    assert "no policy waits" in office.on("policy", "approve", "--by", "ada").err


def test_a_file_that_changes_after_it_was_read_is_not_agreed_to(office, leader):
    leader.starts()
    office.write_policy(**LOOSER)
    leader.starts()
    office.write_policy(rollout={"alpha": 0.3}, gate={"alpha": 0.3})
    said = office.on("policy", "approve", "--by", "ada")
    assert said.status == 2
    assert "restart the coordinator" in said.err


def test_a_refusal_takes_every_yes_back(office, leader):
    leader.starts()
    office.write_policy(**LOOSER)
    old = leader.starts()
    leader.now = _now(leader)
    for answer, by in ((Answer.GRANTED, "ada"), (Answer.REFUSED, "bob"), (Answer.GRANTED, "cyd")):
        said = Answered(_file(office).digest, by, answer)
        policies.answer(leader.log, "pumps", said, leader.now)
    assert leader.turn() is None
    assert leader.starts() == old
    assert policies.waits(policies.recall(leader.log, "pumps", OPEN), leader.roles, leader.now)["agreed"] == [
        "cyd"
    ]


def test_roles_count_for_policies_too(office):
    with office.config.open("a") as file:
        file.write('[roles.safety]\nmay = ["approve_critical"]\npeople = ["ada", "bob"]\n')
    leader = Leader(office, Roles({"safety": Role((Right.APPROVE_CRITICAL,), ("ada", "bob"))}))
    leader.starts()
    office.write_policy(**LOOSER)
    leader.starts()
    said = office.on("policy", "approve", "--by", "eve")
    assert said.status == 2
    assert "eve lacks the right approve_critical" in said.err
    leader.log.engine.dispose()


def test_who_was_replaced_takes_nothing_and_a_strange_record_is_named(office, leader):
    leader.starts()
    office.write_policy(**LOOSER)
    old = leader.fence
    leader.log.release(old)
    leader.fence = leader.log.acquire("coordinator", "another", now=2.0, ttl_s=1e9)
    with pytest.raises(FencedError):
        policies.keep(leader.log, "pumps", _file(office), Roles(), OPEN, old, 3.0)
    leader.log.append(policies.stream("pumps"), [{"kind": "of a later release"}], at=3.0)
    with pytest.raises(DataError, match="of a later release"):
        policies.recall(leader.log, "pumps", OPEN)
    assert "of a later release" in office.on("verify").err
