"""An operator's desk on a small real folder: what it reads, what it orders, and what it finds wrong."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing

import numpy as np
import pytest
from sqlalchemy import insert, select, update

from fedretrain.artifacts.decision import Decision as Rule
from fedretrain.artifacts.delta import release
from fedretrain.artifacts.enrolment import hash_token
from fedretrain.artifacts.package import Contents, write_package
from fedretrain.artifacts.question import Question
from fedretrain.artifacts.trust.words import TargetInfo
from fedretrain.artifacts.weights import encode_params
from fedretrain.coordinator.cycle import Candidate, CycleEvent
from fedretrain.coordinator.cycle_evidence import Propose, Retrain, Withdraw
from fedretrain.retraining.config import Strategy, Where
from fedretrain.retraining.decision import Action, Decision
from fedretrain.rollout.evidence import Answer, Approval, Command, Operator
from fedretrain.rollout.quarantine import QuarantineEvent, QuarantineEventKind, Subject
from fedretrain.rollout.safety import SafetyCommand, SafetyOrder, Switch
from fedretrain.server import fleet, memory, orders, refreshes, troubles, validations, versions
from fedretrain.server.account import account
from fedretrain.server.desk import Desk
from fedretrain.server.tables import events, received, telemetry, tokens
from fedretrain.server.validations import Asked, Judged
from fedretrain.training.keep import Verdict
from fedretrain.validation.rows import Layout
from fedretrain.wire.control import Refreshed
from tests.server_cases import Office, lines, write_office


@pytest.fixture
def furnished(office):
    """The folder with a first champion, made on its pool."""
    said = office.on("models", "import", "--rounds", "1", "--outputs", "a,b,c")
    assert said.status == 0, said.err
    return office


def _desk(office):
    return Desk(office.config, "")


def _package(office):
    ((_, found),) = _desk(office).models.versions.by_number.items()
    return found.package


def _edit(office, stream, text):
    """Change the first record of a stream by hand, as somebody with the database could."""
    log = office.log()
    with log.engine.begin() as connection:
        where = (events.c.stream == stream) & (events.c.number == 1)
        assert connection.execute(update(events).where(where).values(record=text)).rowcount == 1
    log.engine.dispose()


def _wrong(office):
    said = office.on("verify", "--json")
    (line,) = lines(said.err)
    assert said.status == 1
    wrong = said.json["wrong"]
    assert wrong[0] in line
    return wrong


def test_what_is_sound_is_verified(furnished):
    said = furnished.on("verify", "--json")
    assert (said.status, said.err) == (0, "")
    assert said.json["checked"] == {
        "population/pumps/versions": "1 records",
        "packages": "1 packages",
        "signed list": "0 packages",
        "states": "0 files",
        "signatures": "0 good, 0 refused when they came",
    }
    assert said.json["wrong"] == []


def test_a_damaged_file_of_a_package_is_named(furnished):
    manifest = _desk(furnished).models.package(1).manifest
    digest = manifest.weights.digest
    file = furnished.folder / "state" / "packages" / digest
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    wrong = _wrong(furnished)
    assert wrong[0] == f"the file {digest} is damaged"
    assert len(wrong) == 2
    assert wrong[1].startswith("version 1: ")
    assert digest in wrong[1]
    assert f"WRONG {wrong[1]}" in furnished.on("verify").out


def test_a_missing_file_of_a_package_is_named(furnished):
    digest = _desk(furnished).models.package(1).manifest.pipeline.digest
    (furnished.folder / "state" / "packages" / digest).unlink()
    (one,) = _wrong(furnished)
    assert one == f"version 1: there is no content {digest}"


def test_a_damaged_page_of_the_database_is_named_and_files_are_checked_all_the_same(furnished):
    digest = _desk(furnished).models.package(1).manifest.weights.digest
    (furnished.folder / "state" / "packages" / digest).write_bytes(b"damaged")
    path = furnished.folder / "state" / "fedretrain.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    content[-4096:] = bytes(4096)
    path.write_bytes(content)
    wrong = _wrong(furnished)
    assert wrong[0].startswith("the database is damaged: ")
    assert wrong[1] == f"the file {digest} is damaged"


def test_an_edited_order_is_named_and_the_rest_is_checked(furnished):
    furnished.on("retrain", "--by", "anna")
    _edit(furnished, orders.stream("pumps"), '{"body":{"by":"eve","reason":""},"kind":"retrain"}')
    (one,) = _wrong(furnished)
    assert one.startswith("population/pumps/orders: record 1")
    assert "signed list: 0 packages" in furnished.on("verify").out


def test_an_edited_version_is_named_beside_what_else_is_wrong(furnished):
    digest = _desk(furnished).models.package(1).manifest.weights.digest
    (furnished.folder / "state" / "packages" / digest).write_bytes(b"rubbish")
    _edit(furnished, versions.stream("pumps"), json.dumps(versions.record(1, "a" * 64, "b" * 64, "eve")))
    first, second = _wrong(furnished)
    assert first.startswith("population/pumps/versions: record 1")
    assert second == f"the file {digest} is damaged"


def test_a_ledger_that_a_device_has_seen_more_of_is_named_until_the_device_is_kept_out(furnished):
    furnished.begin()
    furnished.enrol("liar", 1.0, {"ledger": [2, "f" * 64]})
    (one,) = _wrong(furnished)
    assert "has 0 events, liar saw 2 in a signed list: an old copy" in one
    assert "restore the newest copy" in one
    out = QuarantineEvent(QuarantineEventKind.ENTERED, Subject.DEVICE, 0, 2.0, "it lies", by="anna")
    log = furnished.log()
    log.append(memory.stream("pumps"), [CycleEvent(2.0, out).to_record()], at=2.0)
    log.engine.dispose()
    said = furnished.on("verify", "--json")
    assert said.json["wrong"] == []


def test_where_nobody_knows_who_is_kept_out_every_device_s_word_counts(furnished):
    furnished.begin()
    furnished.enrol("a", 1.0, {"ledger": [2, "f" * 64]})
    _edit(furnished, memory.stream("pumps"), "{}")
    first, second = _wrong(furnished)
    assert first.startswith(f"{memory.stream('pumps')}: record 1")
    assert "a saw 2 in a signed list" in second


def test_a_version_whose_package_is_another_one_is_named(furnished):
    log = furnished.log()
    told = _desk(furnished).models.versions.by_number[1]
    log.append(
        versions.stream("pumps"), [versions.record(2, told.weights, told.weights, "by hand")], at=time.time()
    )
    log.engine.dispose()
    (one,) = _wrong(furnished)
    assert one.startswith("version 2: ")


def test_a_signed_list_that_offers_a_stranger_is_named(furnished):
    desk = _desk(furnished)
    stranger = TargetInfo("e" * 64, 100, "pumps", 9)
    desk._keys.trust.publish([stranger], time.time())
    (one,) = _wrong(furnished)
    assert one == f"the signed list offers {'e' * 64}, which no version is"


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


def _orders(office):
    log = office.log()
    found = [orders.read(entry.record) for entry in log.read(orders.stream("pumps"))]
    log.engine.dispose()
    return found


@pytest.mark.parametrize(("words", "said"), ORDERS, ids=[" ".join(words[:3]) for words, _ in ORDERS])
def test_an_order_lands_in_the_log_with_who_gave_it(office, words, said):
    if words[0] == "rollout":
        office.ask("ben")
    answer = office.on(*words, "--by", "anna", "--json")
    assert (answer.status, answer.err) == (0, "")
    assert isinstance(answer.json, dict)
    assert _orders(office) == [said]


@pytest.mark.parametrize("words", [words for words, _ in ORDERS], ids=lambda words: " ".join(words[:3]))
def test_an_order_without_a_name_is_refused_by_the_command_line(office, words):
    with pytest.raises(SystemExit) as ended:
        office.on(*words)
    assert ended.value.code == 2
    assert _orders(office) == []


def test_the_rules_baseline_cannot_be_withdrawn(furnished):
    said = furnished.on("models", "withdraw", "0", "--by", "anna")
    assert said.status == 2
    assert "rules baseline" in said.err
    assert _orders(furnished) == []
    assert furnished.on("models", "withdraw", "1", "--by", "anna", "--reason", "wrong units").status == 0
    assert _orders(furnished) == [Withdraw(1, "anna", "wrong units")]


def test_weights_are_proposed_under_the_next_number(furnished):
    furnished.begin()
    base = _desk(furnished).models.package(1).weights
    file = furnished.folder / "new.safetensors"
    file.write_bytes(encode_params({name: leaf + 0.5 for name, leaf in base.items()}))
    words = ("models", "propose", "--weights", file, "--reason", "laboratory")
    assert furnished.on(*words, "--by", "anna", "--json").json == {"version": 2}
    assert _orders(furnished) == [Propose(2, "anna", "laboratory")]
    package = _desk(furnished).models.package(2)
    for name, leaf in base.items():
        np.testing.assert_allclose(package.weights[name], leaf + 0.5, atol=0.01)
    listed = furnished.on("models", "list", "--json").json
    assert [(one["version"], one["role"], one["origin"]) for one in listed] == [
        (1, "champion", "trained on the pool"),
        (2, "", "proposed by anna"),
    ]


def test_a_proposal_that_is_refused_leaves_no_version(furnished):
    file = furnished.folder / "new.safetensors"
    file.write_bytes(encode_params(_desk(furnished).models.package(1).weights))
    words = ("models", "propose", "--weights", file)
    said = furnished.on(*words, "--by", "anna")
    assert (said.status, "no champion yet" in said.err) == (2, True)
    furnished.begin()
    said = furnished.on(*words, "--by", " ")
    assert (said.status, "--by" in said.err) == (2, True)
    file.write_bytes(b"rubbish")
    said = furnished.on(*words, "--by", "anna")
    assert (said.status, "not weights" in said.err) == (2, True)
    assert list(_desk(furnished).models.versions.by_number) == [1]
    assert _orders(furnished) == []


def test_a_first_champion_is_made_once(furnished):
    (one,) = furnished.on("models", "list", "--json").json
    assert (one["version"], one["role"], one["origin"]) == (1, "", "trained on the pool")
    assert one["package"] == _package(furnished)
    assert _desk(furnished).models.package(1).manifest.outputs == ("a", "b", "c")
    again = furnished.on("models", "import")
    assert (again.status, "there is a version already" in again.err) == (2, True)


def test_a_first_champion_is_brought_as_weights(furnished, tmp_path_factory, capsys):
    weights = _desk(furnished).models.package(1).weights
    other = tmp_path_factory.mktemp("other")
    write_office(other)
    office = Office(other, capsys)
    file = other / "first.safetensors"
    file.write_bytes(encode_params(weights))
    assert office.on("models", "import", "--weights", file).status == 0
    package = _desk(office).models.package(1)
    assert package.manifest.outputs == ("output 0", "output 1", "output 2")
    for name, leaf in weights.items():
        np.testing.assert_array_equal(package.weights[name], leaf)


@pytest.mark.parametrize("key", ["training", "features", "pool"])
def test_what_a_first_champion_needs_is_named(office, key):
    text = office.config.read_text()
    office.config.write_text("\n".join(line for line in text.splitlines() if not line.startswith(key)))
    said = office.on("models", "import")
    assert (said.status, f"[populations.pumps.{key}]" in said.err) == (2, True)


def test_status_without_a_model_and_with_one(office):
    empty = office.on("status", "--json").json
    assert (empty["devices"], empty["state"]) == (0, "no model yet: fedretrain models import")
    office.on("models", "import", "--rounds", "1")
    assert office.on("status", "--json").json["state"] == "version 1 waits for the coordinator's next turn"
    office.begin()
    office.enrol("loud", seen_at=time.time())
    office.enrol("silent")
    found = office.on("status", "--json").json
    assert (found["devices"], found["online"]) == (2, 1)
    assert (found["champion"], found["serves"], found["safe_mode"]) == (1, 1, False)
    assert "state" not in found
    assert found == office.on("rollout", "status", "--json").json
    assert "champion         1" in office.on("status").out
    assert "trouble" not in office.on("status").out
    log = office.log()
    log.append(troubles.stream("pumps"), [{"what": "the disk is full"}], at=2.0)
    log.engine.dispose()
    assert "trouble          the disk is full" in office.on("status").out


def test_a_refresh_is_in_the_status_and_in_the_log(furnished):
    furnished.begin(at=86_400.0)
    decision = Decision(
        Action.RETRAIN, "it drifts", strategy=Strategy.PERSONAL_ONLY, where=Where.DEVICE, number=1
    )
    records = [CycleEvent(86_401.0, decision).to_record()]
    log = furnished.log()
    log.append(memory.stream("pumps"), records, at=86_401.0)
    said = [Refreshed(0, 1, "", Verdict.KEPT), Refreshed(1, 1, "", Verdict.FELL)]
    known = refreshes.ordered({}, 1, 86_401.0)
    log.append(memory.stream("pumps"), refreshes.notes(known, said, 86_402.0), at=86_402.0)
    log.engine.dispose()
    found = furnished.on("status", "--json").json["refresh"]
    assert found == {
        "number": 1,
        "ordered_at": 86_401.0,
        "kept": 1,
        "refused": 1,
        "too_few_labels": 0,
        "not_possible": 0,
    }
    assert "refresh 1: 1 kept, 1 refused" in furnished.on("log").out


def test_devices_are_listed_revoked_and_retired(furnished):
    furnished.enrol("pump-1", seen_at=1.0, heartbeat={"serves": _package(furnished)})
    furnished.enrol("pump-2", seen_at=1.0, heartbeat={"serves": ""})
    furnished.enrol("pump-3")
    assert furnished.on("devices", "revoke", "pump-2", "--by", "anna", "--reason", "x").status == 0
    assert furnished.on("devices", "retire", "pump-3", "--by", "anna", "--reason", "x").status == 0
    found = furnished.on("devices", "list", "--json").json
    assert [(one["device"], one["number"], one["standing"], one["serves"]) for one in found] == [
        ("pump-1", 0, "active", 1),
        ("pump-2", 1, "revoked", None),
        ("pump-3", 2, "retired", None),
    ]
    assert found[2]["seen"] == "never"
    said = furnished.on("devices", "list").out.splitlines()
    assert [line.split()[:3] for line in said] == [
        ["pump-1", "active", "1"],
        ["pump-2", "revoked", "rules"],
        ["pump-3", "retired", "rules"],
    ]


def test_tokens_are_made_for_each_name_and_kept_as_hashes(office):
    (office.folder / "names.txt").write_text("b\nc\n")
    found = office.on("enrol", "a", "--batch", office.folder / "names.txt", "--hours", "2", "--json").json
    assert sorted(found) == ["a", "b", "c"]
    assert len(set(found.values())) == 3
    log = office.log()
    with log.engine.connect() as connection:
        kept = connection.execute(select(tokens)).all()
    log.engine.dispose()
    assert {(row.device, row.hash) for row in kept} == {
        (name, hash_token(secret)) for name, secret in found.items()
    }
    assert all(abs(row.expires_at - time.time() - 7200.0) < 600.0 for row in kept)


@pytest.mark.parametrize("hours", ["8760.1", "1e300", "inf"])
def test_a_token_counts_for_a_year_at_most(office, hours):
    said = office.on("enrol", "a", "--hours", hours)
    assert (said.status, "[--hours]" in said.err) == (2, True)
    assert office.on("enrol", "a", "--hours", "8760").status == 0


def test_the_log_tells_what_happened_and_no_notes(furnished):
    furnished.begin(at=86_400.0)
    log = furnished.log()
    log.append(memory.stream("pumps"), [{"kind": memory.ORDERS, "through": 3}], at=86_401.0)
    log.engine.dispose()
    (one,) = furnished.on("log", "--json").json
    assert (one["number"], one["at"], one["record"]["kind"]) == (1, 86_400.0, "begun")
    assert furnished.on("log").out.startswith("1970-01-02 00:00:00 ")
    assert furnished.on("log", "--after", "1", "--json").json == []
    for late in ("1", "9" * 30):
        assert furnished.on("log", "--after", late).out.strip() == "nothing has happened"


def test_a_damaged_state_of_the_loop_is_named(furnished):
    digest = _desk(furnished).models.stores.campaigns.put(b"in which order devices are exposed")
    (furnished.folder / "state" / "campaigns" / digest).write_bytes(b"damaged")
    assert _wrong(furnished) == [f"the file {digest} is damaged"]


@pytest.mark.parametrize(("word", "answer"), [("approve", Answer.GRANTED), ("refuse", Answer.REFUSED)])
def test_who_answers_a_rollout_and_why_goes_into_the_audit_log(office, word, answer):
    office.ask("anna")
    said = office.on("rollout", word, "--by", "anna", "--reason", "a quiet weekend", "--json")
    assert (said.status, said.err) == (0, "")
    assert _orders(office) == [Approval(answer, "anna", 0.0, "a quiet weekend")]


def test_an_answer_that_nobody_asked_for_is_refused(furnished):
    said = furnished.on("rollout", "approve", "--by", "anna")
    assert (said.status, "no rollout that asks" in said.err) == (2, True)
    assert _orders(furnished) == []


@pytest.mark.parametrize(
    "words", [words for words, said in ORDERS if isinstance(said, Operator)], ids=" ".join
)
def test_an_order_to_a_rollout_that_is_not_on_is_refused(furnished, words):
    for begun in (False, True):
        if begun:
            furnished.begin()
        said = furnished.on(*words, "--by", "anna")
        assert (said.status, "there is no rollout that is on [rollout] - see" in said.err) == (2, True)
    assert _orders(furnished) == []


def test_who_proposed_a_safety_critical_model_is_not_one_of_the_two_who_agree(office):
    office.ask("anna", safety_critical=True)
    said = office.on("rollout", "approve", "--by", "anna")
    (line,) = lines(said.err)
    assert (said.status, "anna proposed version 2, and the model is safety-critical" in line) == (2, True)
    assert _orders(office) == []
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
    assert _orders(office) == []
    assert office.on(*words, "--by", able).status == 0


def test_a_candidate_that_decides_otherwise_is_told_from_one_that_does_not(furnished):
    desk = _desk(furnished)
    base = desk.models.package(1)
    made = {}
    for version, decision in ((2, base.manifest.decision), (3, Rule((2.0, 1.0, 1.0)))):
        contents = Contents(
            release(None, base.weights), base.graph, base.pipeline, base.sanity, base.baseline
        )
        about = {
            "population": "pumps",
            "created_at": 1.0,
            "outputs": base.manifest.outputs,
            "decision": decision,
        }
        desk.models.add(
            version, write_package(desk.models.stores.packages, contents, version=version, **about), ""
        )
        made[version] = Candidate(version)
    assert desk.models.deciding_otherwise(1, made.values()) == {3}
    assert desk.models.deciding_otherwise(0, [made[2]]) == {2}  # the rules decide otherwise than any model


def test_what_a_retired_device_sent_is_deleted(furnished):
    for name in ("pump-1", "pump-2"):
        furnished.enrol(name)
    log = furnished.log()
    with log.engine.begin() as connection:
        for number, name in enumerate(("pump-1", "pump-2", "pump-1", "pump-2")):
            row = {
                "population": "pumps",
                "device": name,
                "at": float(number),
                "received_at": 1.0,
                "payload": b"x",
            }
            connection.execute(insert(telemetry).values(**row))
            place = {"population": "pumps", "device": name, "source": f"s{number}", "state": "{}"}
            connection.execute(insert(received).values(**place))
    assert furnished.on("devices", "revoke", "pump-2", "--by", "anna", "--reason", "x").status == 0
    assert furnished.on("devices", "retire", "pump-1", "--by", "anna", "--reason", "x").status == 0
    with log.engine.connect() as connection:
        assert [row.device for row in connection.execute(select(telemetry))] == ["pump-2", "pump-2"]
        assert {row.device for row in connection.execute(select(received))} == {"pump-2"}
    log.engine.dispose()


def test_a_validation_is_in_the_list_and_the_evaluation_that_is_on_in_the_status(furnished):
    furnished.begin()
    question = Question(
        "pumps/2/1", "pumps", "a" * 64, "b" * 64, Layout(3), 0.0, 9.0, ("x",), 1.0, 10, 9.0, 1.0, 99.0
    )
    log, stream = furnished.log(), validations.stream("pumps")
    report = _desk(furnished).models.stores.campaigns.put(
        json.dumps({"report": {"verdict": "FAIL"}, "text": "Candidate 1: FAIL"}).encode()
    )
    judged = Judged(1, 0, "FAIL", "pool", "c" * 64, report)
    answer = validations.Answer("pumps/2/1", 3, 1, failure="no_data")
    for at, record in enumerate((judged, Asked(2, 1, question, (3, 4)), answer), 1):
        log.append(stream, [record.to_record()], at=float(at))
    log.engine.dispose()
    (one,) = furnished.on("models", "list", "--json").json
    assert (one["version"], one["validation"]) == (1, "FAIL")
    assert furnished.on("models", "report", 1, "--json").json == {"verdict": "FAIL"}
    assert furnished.on("models", "report", 1).out == "Candidate 1: FAIL\n"
    said = furnished.on("models", "report", 9)
    assert (said.status, len(list(lines(said.err)))) == (2, 1)
    evaluation = furnished.on("status", "--json").json["evaluation"]
    assert evaluation == "version 2: 0 of 2 devices have counted, failures: 1 no_data"


def test_who_judged_a_device_and_why_stands_in_the_log(furnished):
    furnished.enrol("pump-1")
    words = ("devices", "revoke", "pump-1", "--reason", "it was stolen")
    assert furnished.on(*words, "--by", "anna").status == 0
    desk = _desk(furnished)
    (entry,) = desk.log.read(fleet.stream("pumps"))
    body = {"device": "pump-1", "standing": "revoked", "by": "anna", "reason": "it was stolen"}
    assert entry.record == {"kind": "device", "body": body, "account": account()}
    furnished.config.write_text(furnished.config.read_text() + ROLES)
    said = furnished.on(*words, "--by", "carl")
    assert (said.status, "lacks the right operate" in said.err) == (2, True)


def test_a_name_is_the_same_with_blanks_around_it(furnished):
    furnished.on("retrain", "--by", " anna ")
    assert _orders(furnished) == [Retrain("anna")]


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
