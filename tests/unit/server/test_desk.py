"""An operator's desk on a small real folder: what it reads, and the versions and devices that it brings in."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from sqlalchemy import insert, select

from fedretrain.artifacts.decision import Decision as Rule
from fedretrain.artifacts.delta import release
from fedretrain.artifacts.enrolment import hash_token
from fedretrain.artifacts.package import Contents, write_package
from fedretrain.artifacts.question import Question
from fedretrain.artifacts.weights import encode_params
from fedretrain.coordinator.cycle import Candidate, CycleEvent
from fedretrain.coordinator.cycle_evidence import Propose
from fedretrain.retraining.config import Strategy, Where
from fedretrain.retraining.decision import Action, Decision
from fedretrain.server import memory, refreshes, troubles, validations
from fedretrain.server.tables import received, telemetry, tokens
from fedretrain.server.validations import Asked, Judged
from fedretrain.training.keep import Verdict
from fedretrain.validation.rows import Layout
from fedretrain.wire.control import Refreshed
from tests.server_cases import Office, lines, write_office


def test_weights_are_proposed_under_the_next_number(furnished):
    furnished.begin()
    base = furnished.desk().models.package(1).weights
    file = furnished.folder / "new.safetensors"
    file.write_bytes(encode_params({name: leaf + 0.5 for name, leaf in base.items()}))
    words = ("models", "propose", "--weights", file, "--reason", "laboratory")
    assert furnished.on(*words, "--by", "anna", "--json").json == {"version": 2}
    assert furnished.ordered() == [Propose(2, "anna", "laboratory")]
    package = furnished.desk().models.package(2)
    for name, leaf in base.items():
        np.testing.assert_allclose(package.weights[name], leaf + 0.5, atol=0.01)
    listed = furnished.on("models", "list", "--json").json
    assert [(one["version"], one["role"], one["origin"]) for one in listed] == [
        (1, "champion", "trained on the pool"),
        (2, "", "proposed by anna"),
    ]


def test_a_proposal_that_is_refused_leaves_no_version(furnished):
    file = furnished.folder / "new.safetensors"
    file.write_bytes(encode_params(furnished.desk().models.package(1).weights))
    words = ("models", "propose", "--weights", file)
    said = furnished.on(*words, "--by", "anna")
    assert (said.status, "no champion yet" in said.err) == (2, True)
    furnished.begin()
    said = furnished.on(*words, "--by", " ")
    assert (said.status, "--by" in said.err) == (2, True)
    file.write_bytes(b"rubbish")
    said = furnished.on(*words, "--by", "anna")
    assert (said.status, "not weights" in said.err) == (2, True)
    assert list(furnished.desk().models.versions.by_number) == [1]
    assert furnished.ordered() == []


def test_a_first_champion_is_made_once(furnished):
    (one,) = furnished.on("models", "list", "--json").json
    assert (one["version"], one["role"], one["origin"]) == (1, "", "trained on the pool")
    assert one["package"] == furnished.package()
    assert furnished.desk().models.package(1).manifest.outputs == ("a", "b", "c")
    again = furnished.on("models", "import")
    assert (again.status, "there is a version already" in again.err) == (2, True)


def test_a_first_champion_is_brought_as_weights(furnished, tmp_path_factory, capsys):
    weights = furnished.desk().models.package(1).weights
    other = tmp_path_factory.mktemp("other")
    write_office(other)
    office = Office(other, capsys)
    file = other / "first.safetensors"
    file.write_bytes(encode_params(weights))
    assert office.on("models", "import", "--weights", file).status == 0
    package = office.desk().models.package(1)
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
    furnished.enrol("pump-1", seen_at=1.0, heartbeat={"serves": furnished.package()})
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


def test_a_candidate_that_decides_otherwise_is_told_from_one_that_does_not(furnished):
    desk = furnished.desk()
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
    report = furnished.desk().models.stores.campaigns.put(
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
