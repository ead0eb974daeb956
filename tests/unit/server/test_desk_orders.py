"""An operator's orders on a small real folder: what lands in the log, from whom, and what is refused."""

from __future__ import annotations

import pytest

from fedretrain.coordinator.cycle_evidence import Retrain, Withdraw
from fedretrain.rollout.evidence import Answer, Approval, Command, Operator
from fedretrain.rollout.safety import SafetyCommand, SafetyOrder, Switch
from fedretrain.server import fleet
from fedretrain.server.account import account
from tests.server_cases import lines

ORDERS = [
    (("rollout", "pause", "--reason", "lunch"), Operator(Command.PAUSE, "anna", "lunch")),
    (("rollout", "resume"), Operator(Command.RESUME, "anna")),
    (("rollout", "rollback"), Operator(Command.ROLL_BACK, "anna")),
    (("rollout", "abort"), Operator(Command.ROLL_BACK, "anna")),
    (("rollout", "de-escalate"), Operator(Command.DE_ESCALATE, "anna")),
    (("rollout", "freeze"), Operator(Command.FREEZE, "anna")),
    (("rollout", "unfreeze"), Operator(Command.UNFREEZE, "anna")),
    (("safe-mode", "on"), SafetyOrder(SafetyCommand.ENTER, "anna")),
    (("safe-mode", "off"), SafetyOrder(SafetyCommand.LEAVE, "anna")),
    (("kill-switch", "stop", "installs"), SafetyOrder(SafetyCommand.STOP, "anna", Switch.INSTALLS)),
    (("kill-switch", "start", "training"), SafetyOrder(SafetyCommand.START, "anna", Switch.TRAINING)),
    (("retrain", "--reason", "new season"), Retrain("anna", "new season")),
]


@pytest.mark.parametrize(("words", "said"), ORDERS, ids=[" ".join(words[:3]) for words, _ in ORDERS])
def test_an_order_lands_in_the_log_with_who_gave_it(office, words, said):
    if words[0] == "rollout":
        office.ask("ben")
    answer = office.on(*words, "--by", "anna", "--json")
    assert (answer.status, answer.err) == (0, "")
    assert isinstance(answer.json, dict)
    assert office.ordered() == [said]


@pytest.mark.parametrize("words", [words for words, _ in ORDERS], ids=lambda words: " ".join(words[:3]))
def test_an_order_without_a_name_is_refused_by_the_command_line(office, words):
    with pytest.raises(SystemExit) as ended:
        office.on(*words)
    assert ended.value.code == 2
    assert office.ordered() == []


def test_the_rules_baseline_cannot_be_withdrawn(furnished):
    said = furnished.on("models", "withdraw", "0", "--by", "anna")
    assert said.status == 2
    assert "rules baseline" in said.err
    assert furnished.ordered() == []
    assert furnished.on("models", "withdraw", "1", "--by", "anna", "--reason", "wrong units").status == 0
    assert furnished.ordered() == [Withdraw(1, "anna", "wrong units")]


@pytest.mark.parametrize(("word", "answer"), [("approve", Answer.GRANTED), ("refuse", Answer.REFUSED)])
def test_who_answers_a_rollout_and_why_goes_into_the_audit_log(office, word, answer):
    office.ask("anna")
    said = office.on("rollout", word, "--by", "anna", "--reason", "a quiet weekend", "--json")
    assert (said.status, said.err) == (0, "")
    assert office.ordered() == [Approval(answer, "anna", 0.0, "a quiet weekend")]


def test_an_answer_that_nobody_asked_for_is_refused(furnished):
    said = furnished.on("rollout", "approve", "--by", "anna")
    assert (said.status, "no rollout that asks" in said.err) == (2, True)
    assert furnished.ordered() == []


@pytest.mark.parametrize(
    "words", [words for words, said in ORDERS if isinstance(said, Operator)], ids=" ".join
)
def test_an_order_to_a_rollout_that_is_not_on_is_refused(furnished, words):
    for begun in (False, True):
        if begun:
            furnished.begin()
        said = furnished.on(*words, "--by", "anna")
        assert (said.status, "there is no rollout that is on [rollout] - see" in said.err) == (2, True)
    assert furnished.ordered() == []


def test_who_proposed_a_safety_critical_model_is_not_one_of_the_two_who_agree(office):
    office.ask("anna", safety_critical=True)
    said = office.on("rollout", "approve", "--by", "anna")
    (line,) = lines(said.err)
    assert (said.status, "anna proposed version 2, and the model is safety-critical" in line) == (2, True)
    assert office.ordered() == []
    assert office.on("rollout", "approve", "--by", "ben").status == 0


ROLES = """
[roles.release]
may = ["approve_champion", "operate"]
people = ["anna"]

[roles.safety]
may = ["restore"]
people = ["carl"]
"""


@pytest.mark.parametrize(
    ("words", "by", "right"),
    [
        (("rollout", "approve"), "carl", "approve_champion"),
        (("rollout", "refuse"), "eve", "approve_champion"),
        (("rollout", "pause"), "eve", "operate"),
        (("retrain",), "carl", "operate"),
        (("safe-mode", "on"), "eve", "operate"),
        (("safe-mode", "off"), "anna", "restore"),
        (("kill-switch", "start", "training"), "anna", "restore"),
    ],
)
def test_an_order_without_the_right_is_refused_with_who_has_it(office, words, by, right):
    office.config.write_text(office.config.read_text() + ROLES)
    office.ask("ben")
    said = office.on(*words, "--by", by)
    (line,) = lines(said.err)
    able = "carl" if right == "restore" else "anna"
    assert (said.status, f"{by} lacks the right {right}, which {able} has" in line) == (2, True)
    assert office.ordered() == []
    assert office.on(*words, "--by", able).status == 0


def test_who_judged_a_device_and_why_stands_in_the_log(furnished):
    furnished.enrol("pump-1")
    words = ("devices", "revoke", "pump-1", "--reason", "it was stolen")
    assert furnished.on(*words, "--by", "anna").status == 0
    desk = furnished.desk()
    (entry,) = desk.log.read(fleet.stream("pumps"))
    body = {"device": "pump-1", "standing": "revoked", "by": "anna", "reason": "it was stolen"}
    assert entry.record == {"kind": "device", "body": body, "account": account()}
    furnished.config.write_text(furnished.config.read_text() + ROLES)
    said = furnished.on(*words, "--by", "carl")
    assert (said.status, "lacks the right operate" in said.err) == (2, True)


def test_a_name_is_the_same_with_blanks_around_it(furnished):
    furnished.on("retrain", "--by", " anna ")
    assert furnished.ordered() == [Retrain("anna")]


def test_orders_carry_the_account_of_whoever_typed_them_and_roles_may_ask_for_it(furnished):
    ordered = furnished.on("safe-mode", "on", "--by", "anna", "--reason", "drill")
    assert ordered.status == 0
    (told,) = furnished.on("log", "--orders", "--json").json
    assert (told["by"], told["account"], told["kind"]) == ("anna", account(), "safety")
    with furnished.config.open("a") as file:
        file.write('[roles.day]\nmay = ["operate"]\npeople = ["anna"]\naccounts = ["nobody-here"]\n')
    for words in (("retrain",), ("devices", "revoke", "pump-1")):
        refused = furnished.on(*words, "--by", "anna")
        assert refused.status == 2
        assert f"from the account nobody-here alone, and this is {account()}" in refused.err
    assert len(furnished.on("log", "--orders", "--json").json) == 1


def test_the_account_is_the_processes_own_and_not_what_its_environment_says(monkeypatch):
    monkeypatch.setenv("USER", "anna")
    monkeypatch.setenv("LOGNAME", "anna")
    own = account()
    assert own != "anna"
    monkeypatch.setattr("os.getuid", lambda: 987654)
    assert account() == "987654"  # of a number without a name
