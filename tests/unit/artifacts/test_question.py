"""Questions of federated evaluations: one form in bytes, a public coin, and every refusal by its name."""

from __future__ import annotations

import dataclasses
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.artifacts import question as module
from fedretrain.artifacts.assignment import Assignment
from fedretrain.artifacts.assignment import sign as sign_assignment
from fedretrain.artifacts.envelope import MAX_ENVELOPE_BYTES, Refusal
from fedretrain.artifacts.question import Question, QuestionError, sign, verify
from fedretrain.core.errors import DataError
from fedretrain.validation.config import CriticalSegment
from fedretrain.validation.rows import Layout

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))).public_key().public_bytes_raw()
A, B = "a" * 64, "b" * 64
LAYOUT = Layout(3, (20.0, 40.0), 10.0, 5, (CriticalSegment("night", 21.0, 30.0, labels=(1,), groups=(0,)),))
PLAIN = Question("pumps/3/1", "pumps", A, B, LAYOUT, 0.0, 60.0, ("fan", "pump"), 0.5, 100, 60.0, 30.0, 960.0)
MINE = {"population": "pumps", "now": 500.0}


def raw(payload, key=KEY):
    return module._MAGIC + key.sign(module._MAGIC + payload) + payload


def test_a_question_is_read_as_it_was_signed():
    assert verify(sign(PLAIN, KEY), [OTHER, PUBLIC], **MINE) == PLAIN
    rules = dataclasses.replace(PLAIN, champion="", layout=Layout(0, late_after_s=None))
    assert verify(sign(rules, KEY), [PUBLIC], **MINE) == rules
    assert sign(PLAIN, KEY) == sign(PLAIN, KEY)


def _refused(envelope, **more):
    with pytest.raises(QuestionError) as caught:
        verify(envelope, [PUBLIC], **{**MINE, **more})
    assert caught.value.where == f"evaluation: {caught.value.refusal}"
    return caught.value.refusal


def test_every_refusal_has_its_name():
    envelope = sign(PLAIN, KEY)
    assert _refused(envelope, population="fans") is Refusal.OTHER_POPULATION
    assert _refused(envelope, now=960.0) is Refusal.EXPIRED
    assert _refused(envelope[:-1] + b"!") is Refusal.BAD_SIGNATURE
    assert _refused(b"") is Refusal.MALFORMED
    assert _refused(bytes(MAX_ENVELOPE_BYTES + 1)) is Refusal.OVERSIZE
    told = Assignment("pumps", "pump-1", A, "", 1, 0.0, 900.0)
    assert _refused(sign_assignment(told, KEY)) is Refusal.MALFORMED  # signed for something else


@pytest.mark.parametrize(
    "payload",
    [
        b"[]",
        b"{",
        b"\xff",
        b'{"evaluation":1}',
        PLAIN.to_bytes() + b" ",
        PLAIN.to_bytes().replace(b'"share":0.5', b'"share":0'),
        PLAIN.to_bytes().replace(b'"share":0.5', b'"share":NaN'),
        PLAIN.to_bytes().replace(b'"share":0.5', b'"share":0.5,"more":1'),
        PLAIN.to_bytes().replace(b"40.0", b"10.0"),
        b"[" * 5000,
    ],
)
def test_what_is_not_a_question_in_its_one_form_is_malformed_whoever_signed_it(payload):
    assert _refused(raw(payload)) is Refusal.MALFORMED


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("evaluation", ""),
        ("evaluation", "../x"),
        ("population", "a b"),
        ("candidate", "a"),
        ("champion", A),
        ("from_at", 30.0),
        ("from_at", float("inf")),
        ("until_at", 40.0),
        ("share", 0.0),
        ("share", 1.1),
        ("max_rows", 0),
        ("max_rows", 10**9),
        ("spread_s", 900.0),
        ("ends_at", 60.0),
        ("types", ("fan", "fan")),
        ("layout", Layout(300, (20.0, 40.0))),
    ],
)
def test_what_cannot_be_asked_is_named(key, value):
    with pytest.raises(DataError) as caught:
        dataclasses.replace(PLAIN, **{key: value})
    assert caught.value.where in {key, "layout.cuts_at", "spread_s"}


def test_a_question_that_no_device_would_accept_is_not_signed():
    segments = tuple(CriticalSegment(f"a rather long name of a segment {i}" * 9) for i in range(100))
    long = dataclasses.replace(PLAIN, layout=Layout(3, (20.0,), segments=segments))
    with pytest.raises(DataError, match="a question of"):
        sign(long, KEY)


def test_the_coin_asks_about_the_share_anew_for_each_evaluation_and_spreads_their_beginnings():
    names = [f"pump-{i}" for i in range(2000)]
    asked = {name for name in names if PLAIN.asks(name)}
    assert 900 < len(asked) < 1100  # 1,000 and 4.5 standard deviations
    other = dataclasses.replace(PLAIN, evaluation="pumps/3/2")
    again = {name for name in names if other.asks(name)}
    assert 380 < len(asked & again) < 620
    begins = [PLAIN.begins_at(name) for name in asked]  # another coin than the one that asked them
    assert 60.0 <= min(begins) < 62.0
    assert 88.0 < max(begins) < 90.0
    assert all(dataclasses.replace(PLAIN, share=1.0).asks(name) for name in names)


def test_a_type_that_the_question_does_not_know_is_in_no_group():
    assert [PLAIN.group_of(one) for one in ("fan", "pump", "valve")] == [0, 1, -1]
    assert json.loads(PLAIN.to_bytes())["types"] == ["fan", "pump"]


@given(st.binary(max_size=300))
def test_whatever_is_signed_is_a_question_or_malformed(payload):
    assert _refused(raw(payload)) is Refusal.MALFORMED
    assert _refused(payload) in {Refusal.MALFORMED, Refusal.BAD_SIGNATURE}
