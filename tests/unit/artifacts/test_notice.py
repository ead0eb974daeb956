"""Notices to a whole population: one form in bytes, every refusal by its name, and nothing that makes a device less safe."""

from __future__ import annotations

import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.artifacts import notice as module
from fedretrain.artifacts.assignment import MAX_WITHDRAWN, Assignment
from fedretrain.artifacts.assignment import sign as sign_assignment
from fedretrain.artifacts.envelope import MAX_ENVELOPE_BYTES, Refusal
from fedretrain.artifacts.notice import Notice, NoticeError, sign, verify
from fedretrain.core.errors import DataError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))).public_key().public_bytes_raw()
A, B, C = "a" * 64, "b" * 64, "c" * 64
PLAIN = Notice("pumps", (A, B), C, safe_mode=False, issued_at=60.0, ends_at=960.0)
MINE = {"population": "pumps", "now": 500.0}


def raw(payload):
    return module._MAGIC + KEY.sign(module._MAGIC + payload) + payload


def _refused(envelope, **more):
    with pytest.raises(NoticeError) as caught:
        verify(envelope, [PUBLIC], **{**MINE, **more})
    assert caught.value.where == f"notice: {caught.value.refusal}"
    return caught.value.refusal


def test_a_notice_is_read_as_it_was_signed():
    assert verify(sign(PLAIN, KEY), [OTHER, PUBLIC], **MINE) == PLAIN
    safe = dataclasses.replace(PLAIN, withdrawn=(), serve="", safe_mode=True)
    assert verify(sign(safe, KEY), [PUBLIC], **MINE) == safe
    assert sign(PLAIN, KEY) == sign(PLAIN, KEY)


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
        b'{"population":"pumps"}',
        PLAIN.to_bytes() + b" ",
        PLAIN.to_bytes().replace(b"960.0", b"NaN"),
        PLAIN.to_bytes().replace(b"960.0", b"960"),
        PLAIN.to_bytes().replace(b'"safe_mode":false', b'"safe_mode":false,"more":1'),
        PLAIN.to_bytes().replace(b'"safe_mode":false', b'"safe_mode":"yes"'),
        PLAIN.to_bytes().replace(b"b" * 64, b"a" * 64),
        b"[" * 5000,
    ],
)
def test_what_is_not_a_notice_in_its_one_form_is_malformed_whoever_signed_it(payload):
    assert _refused(raw(payload)) is Refusal.MALFORMED


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("population", "a b"),
        ("withdrawn", ()),  # it would say nothing
        ("withdrawn", (B, A)),
        ("withdrawn", ("a",)),
        ("withdrawn", tuple(f"{number:064x}" for number in range(MAX_WITHDRAWN + 1))),
        ("serve", "c"),
        ("serve", A),
        ("issued_at", -1.0),
        ("issued_at", float("nan")),
        ("ends_at", 60.0),
        ("ends_at", float("inf")),
    ],
)
def test_what_cannot_stand_in_a_notice_is_named(key, value):
    with pytest.raises(DataError) as caught:
        dataclasses.replace(PLAIN, **{key: value})
    assert caught.value.where in {key, "ends_at"}


def test_the_longest_notice_is_one_that_devices_accept():
    most = tuple(f"{number:064x}" for number in range(MAX_WITHDRAWN))
    longest = dataclasses.replace(PLAIN, withdrawn=most)
    assert verify(sign(longest, KEY), [PUBLIC], **MINE) == longest


@given(st.binary(max_size=300))
def test_whatever_is_signed_is_a_notice_or_malformed(payload):
    assert _refused(raw(payload)) is Refusal.MALFORMED
    assert _refused(payload) in {Refusal.MALFORMED, Refusal.BAD_SIGNATURE}
