"""Annotations on their way: each counts once, corrections are told anew, and the error of heuristics is that of a count by hand."""

from __future__ import annotations

import pytest

from fedretrain.monitoring.intervals import wilson
from fedretrain.server import annotation_store, fleet
from fedretrain.server.annotation_store import AT_ONCE, Annotation, Annotations
from fedretrain.server.desk import Desk
from fedretrain.server.fleet import Traits
from fedretrain.server.labelling import stream
from fedretrain.wire.v1 import fleet_pb2 as pb
from tests.server_cases import lines


@pytest.fixture
def devices(engine):
    with engine.begin() as connection:
        return [fleet.enrol(connection, "p", name, name, Traits(), 1.0) for name in ("a", "b")]


def _keep(engine, *given, at=2.0):
    with engine.begin() as connection:
        return annotation_store.keep(connection, "p", given, at)


def _outcome(number, known=True, **agreed):
    heuristics = [pb.HeuristicOutcome(source=name, agreed=value) for name, value in agreed.items()]
    return pb.AnnotationOutcome(number=number, known=known, heuristics=heuristics)


def _told(found, device, *outcomes):
    reply = found.exchange(device, pb.AnnotateRequest(outcomes=outcomes))
    return [(one.number, one.of, one.label) for one in reply.annotations]


def _summary(engine):
    with engine.connect() as connection:
        return annotation_store.summary(connection, "p")


def test_an_annotation_counts_once_and_a_correction_is_told_anew(engine, devices):
    first = _keep(engine, Annotation("a", "p1", 1), Annotation("b", "p1", 2), Annotation("ghost", "p1", 0))
    assert first == {"new": 2, "corrected": 0, "repeated": 0, "of_no_device": 1}
    found = Annotations(engine)
    assert [found.waits(one) for one in devices] == [True, True]
    assert _told(found, devices[0]) == [(1, "p1", 1)]
    assert _told(found, devices[0], _outcome(1, rule=False)) == []
    found.poll()
    assert [found.waits(one) for one in devices] == [False, True]
    assert _keep(engine, Annotation("a", "p1", 1)) == {
        "new": 0,
        "corrected": 0,
        "repeated": 1,
        "of_no_device": 0,
    }
    assert _told(found, devices[0]) == []
    assert _keep(engine, Annotation("a", "p1", 2))["corrected"] == 1
    assert _told(found, devices[0], _outcome(1, rule=False)) == [
        (2, "p1", 2)
    ]  # an old answer settles nothing
    assert _told(found, devices[0], _outcome(2, rule=True)) == []
    assert _summary(engine)["heuristics"]["rule"] | {"low": 0, "high": 0} == {
        "num": 1,
        "wrong": 0,
        "error_fraction": 0.0,
        "low": 0,
        "high": 0,
    }


def test_an_answer_that_comes_twice_counts_once_and_nobody_answers_for_another(engine, devices):
    _keep(engine, Annotation("a", "p1", 1), Annotation("b", "p1", 1))
    found = Annotations(engine)
    _told(found, devices[0], _outcome(1, rule=True))
    _told(found, devices[0], _outcome(1, rule=False), _outcome(1, rule=False))
    said = _summary(engine)
    assert (said["annotations"], said["waiting"], said["found"]) == (2, 1, 1)
    assert said["heuristics"]["rule"]["wrong"] == 0


def test_the_error_of_each_heuristic_is_the_count_of_what_was_found(engine, devices):
    _keep(engine, *(Annotation("a", f"p{i}", 0) for i in range(10)))
    found = Annotations(engine)
    outcomes = [_outcome(i + 1, rule=i >= 3, other=True) for i in range(8)] + [
        _outcome(9),
        _outcome(10, known=False),
    ]
    _told(found, devices[0], *outcomes)
    said = _summary(engine)
    assert (said["found"], said["not_found"], said["waiting"]) == (9, 1, 0)
    rule, other = said["heuristics"]["rule"], said["heuristics"]["other"]
    assert (rule["num"], rule["wrong"], rule["error_fraction"]) == (8, 3, 3 / 8)
    assert (other["num"], other["wrong"]) == (8, 0)
    interval = wilson([3], [8])
    assert (rule["low"], rule["high"]) == (interval.low[0], interval.high[0])


def test_many_are_told_some_at_a_time(engine, devices):
    _keep(engine, *(Annotation("a", f"p{i}", 0) for i in range(AT_ONCE + 3)))
    found = Annotations(engine)
    told = _told(found, devices[0])
    assert len(told) == AT_ONCE
    rest = _told(found, devices[0], *(_outcome(number) for number, _, _ in told))
    assert len(rest) == 3


def test_a_file_is_brought_and_its_bringer_written_down(office):
    office.on("models", "import", "--rounds", "1", "--outputs", "ok,worn,broken")
    office.begin()
    office.enrol("pump-1")
    file = office.folder / "later.csv"
    file.write_text("device,prediction,label\npump-1,p1,worn\npump-9,p1,worn\n")
    words = ("labels", "import", file, "--reason", "inspection")
    said = office.on(*words, "--by", "anna", "--json")
    assert said.json == {"new": 1, "corrected": 0, "repeated": 0, "of_no_device": 1}
    assert office.on(*words, "--by", "anna", "--json").json["repeated"] == 1
    desk = Desk(office.config, "")
    entries = [entry.record for entry in desk.log.read(stream("pumps"))]
    assert [(one["body"]["by"], one["body"]["reason"], one["found"]["new"]) for one in entries] == [
        ("anna", "inspection", 1),
        ("anna", "inspection", 0),
    ]
    assert office.on("labels", "report", "--json").json["waiting"] == 1
    assert "waiting      1" in office.on("labels", "report").out
    file.write_text("device,prediction,label\npump-1,p2,rusty\n")
    bad = office.on(*words, "--by", "anna")
    (line,) = lines(bad.err)
    assert (bad.status, "'rusty' is no label" in line, "later.csv, line 2" in line) == (2, True, True)
    assert office.on(*words, "--by", " ").status == 2


def test_labels_need_a_champion_and_the_right(office):
    file = office.folder / "later.csv"
    file.write_text("device,prediction,label\npump-1,p1,0\n")
    assert "no champion yet" in office.on("labels", "import", file, "--by", "anna").err
    role = '\n[roles.release]\nmay = ["operate"]\npeople = ["anna"]\n'
    office.config.write_text(office.config.read_text() + role)
    assert "lacks the right operate" in office.on("labels", "import", file, "--by", "eve").err
