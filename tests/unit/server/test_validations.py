"""The fold of a population's validations: a record that cannot follow is refused, and nothing else is remembered."""

from __future__ import annotations

import pytest

from fedretrain.artifacts.question import Question
from fedretrain.artifacts.store import ContentStore
from fedretrain.core.errors import DataError
from fedretrain.server.validations import ANSWER, Answer, Asked, Judged, Validations, fold, report_of
from fedretrain.validation.rows import Layout

QUESTION = Question(
    "p/2/1", "p", "a" * 64, "b" * 64, Layout(3, (5.0,)), 0.0, 9.0, ("x",), 1.0, 10, 9.0, 1.0, 99.0
)
ASKED = Asked(2, 1, QUESTION, (0, 1, 5))


def _after(*records):
    known = Validations()
    for number, record in enumerate(records, 1):
        known = fold(known, record, number)
    return known


def test_an_evaluation_from_question_to_verdict():
    known = _after(ASKED.to_record())
    assert (known.asked, known.evaluation, known.num_asked) == (ASKED, "p/2/1", 1)
    first, second = Answer("p/2/1", 0, 7, blob="f" * 64), Answer("p/2/1", 5, 8, failure="no_data")
    known = _after(ASKED.to_record(), first.to_record(), second.to_record())
    assert known.answers == {0: first, 5: second}
    assert known.describe() == "version 2: 1 of 3 devices have counted, failures: 1 no_data"
    judged = Judged(2, 1, "PASS", "devices", "d" * 64, "e" * 64, "p/2/1", {"rows": 12.0}, 50.0)
    known = _after(ASKED.to_record(), first.to_record(), judged.to_record())
    assert (known.asked, dict(known.answers), known.judged, known.number) == (None, {}, {2: judged}, 3)


@pytest.mark.parametrize(
    "records",
    [
        [Answer("p/2/1", 0, 7).to_record()],
        [ASKED.to_record(), Answer("p/2/2", 0, 7).to_record()],
        [ASKED.to_record(), Answer("p/2/1", 0, 7).to_record(), Answer("p/2/1", 0, 8).to_record()],
        [{"kind": "guess"}],
    ],
)
def test_what_cannot_follow_is_refused(records):
    with pytest.raises(DataError):
        _after(*records)


def test_an_answers_kind_in_the_log_never_changes():
    assert Answer("p/2/1", 0, 7).to_record()["kind"] == ANSWER == "answer"


def test_the_report_of_a_version_is_found_and_a_version_that_was_not_validated_is_named(tmp_path):
    states = ContentStore(tmp_path)
    report = states.put(b'{"report": {"verdict": "PASS"}, "text": "well"}')
    known = _after(Judged(2, 1, "PASS", "pool", "d" * 64, report).to_record())
    assert report_of(known, 2, states)["text"] == "well"
    with pytest.raises(DataError, match="version 3 was not validated"):
        report_of(known, 3, states)
