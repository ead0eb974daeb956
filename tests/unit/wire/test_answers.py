"""Answers to a federated evaluation: what was counted comes back, and what does not fit the question is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.core.types import FailureKind
from fedretrain.validation.count import count_rows
from fedretrain.validation.rows import Labelled, Layout, Rows
from fedretrain.validation.statistics import SUMS
from fedretrain.wire.answers import SAID, decode_answer, encode_answer, encode_no_answer
from fedretrain.wire.control import MAX_EVALUATION, Evaluated, MalformedError, ReportShape, decode
from fedretrain.wire.v1 import fleet_pb2 as pb

LAYOUT = Layout(3, (2.0, 5.0))
ASKED = {"device": 4, "group": 1, "from_at": 0.0, "until_at": 9.0, "max_rows": 100}


def _counted(layout=LAYOUT):
    rng = np.random.default_rng(0)
    out = rng.dirichlet(np.ones(3), (2, 30)).astype(np.float32)
    rows = Labelled(
        np.full(30, 4), np.full(30, 1), rng.random(30) * 9, rng.random(30), rng.integers(0, 3, 30)
    )
    return count_rows(layout, Rows(rows, *out))


def _content(payload):
    said = decode(payload, 4, 0.0, ReportShape(1, 1, 3), lambda _: None)
    assert isinstance(said, Evaluated)
    assert (said.device, said.evaluation) == (4, "p/2/1")
    return said.content


def test_counts_come_back():
    stats = _counted()
    found = decode_answer(_content(encode_answer("p/2/1", stats)), LAYOUT, **ASKED)
    assert all(np.array_equal(getattr(found, name), getattr(stats, name)) for name in SUMS)
    assert (found.device_D.tolist(), found.group_D.tolist()) == ([4], [1])


@pytest.mark.parametrize("kind", list(FailureKind))
def test_a_device_says_of_itself_what_it_can_know(kind):
    content = _content(encode_no_answer("p/2/1", kind))
    if kind in SAID:
        assert decode_answer(content, LAYOUT, **ASKED) is kind
    else:
        with pytest.raises(MalformedError, match="failure: "):
            decode_answer(content, LAYOUT, **ASKED)


@pytest.mark.parametrize("layout", [Layout(4, (2.0, 5.0)), Layout(3, (2.0,)), Layout(3, (2.0, 5.0), None, 9)])
def test_an_answer_to_other_cells_is_malformed(layout):
    with pytest.raises(MalformedError, match="numbers, not"):
        decode_answer(_content(encode_answer("p/2/1", _counted())), layout, **ASKED)


def test_impossible_counts_name_the_field_of_the_message():
    message = pb.EvaluationAnswer.FromString(_content(encode_answer("p/2/1", _counted())))
    message.sound[0] += 31
    with pytest.raises(MalformedError, match=r"^sound: counts that no rows lead to"):
        decode_answer(message.SerializeToString(), LAYOUT, **ASKED)


@pytest.mark.parametrize("name", ["", "x" * (MAX_EVALUATION + 1)])
def test_an_answer_without_a_question_is_malformed(name):
    payload = pb.Payload(evaluation=pb.EvaluationAnswer(evaluation=name)).SerializeToString()
    with pytest.raises(MalformedError, match=r"^evaluation: "):
        decode(payload, 4, 0.0, ReportShape(1, 1, 3), lambda _: None)


@given(st.binary(max_size=200))
def test_whatever_arrives_is_an_answer_or_malformed(content):
    try:
        found = decode_answer(content, LAYOUT, **ASKED)
    except MalformedError:
        return
    assert found in SAID  # no such bytes hold counts of the right shape
