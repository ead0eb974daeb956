"""A signature under an order: what it covers, in one form of bytes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.artifacts.signed_order import Signature, holds, is_public_key, public_half, sign
from fedretrain.core.errors import ConfigError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
FLEET, NONCE = "f1" * 32, "0d" * 16
BODY = {"answer": "granted", "by": "anna", "at": 0.0, "reason": "shadow looks good"}
RECORD = {"kind": "approval", "body": BODY, "account": "ops"}
SIGNED = sign(KEY, RECORD, population="pumps", fleet=FLEET, at=1_700_000_000.25, nonce=NONCE)

texts = st.text(max_size=20)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
bodies = st.dictionaries(texts, values, max_size=5)


def test_what_is_signed_is_the_formats_name_and_canonical_json():
    content = (
        b"fedretrain order 1\n"
        b'{"account":"ops","at":1700000000.25,"body":{"answer":"granted","at":0.0,"by":"anna","reason":"shadow looks good"},'
        b'"fleet":"' + FLEET.encode() + b'","key":"' + public_half(KEY).encode() + b'","kind":"approval",'
        b'"nonce":"' + NONCE.encode() + b'","population":"pumps"}'
    )
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(SIGNED.key))
    public.verify(bytes.fromhex(SIGNED.value), content)
    assert holds(RECORD, "pumps", SIGNED)


@given(body=bodies, kind=texts, account=texts, at=st.floats(0, 1e12))
def test_what_was_signed_holds_after_it_lay_in_the_database(body, kind, account, at):
    record = {"kind": kind, "body": body, "account": account}
    signed = sign(KEY, record, population="p", fleet=FLEET, at=at, nonce=NONCE)
    assert holds(json.loads(json.dumps(record)), "p", signed)


@given(body=bodies, other=bodies)
def test_no_other_body_holds(body, other):
    record = {**RECORD, "body": body}
    signed = sign(KEY, record, population="p", fleet=FLEET, at=1.0, nonce=NONCE)
    same = json.dumps(body, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert holds({**record, "body": other}, "p", signed) == same


@given(key=st.sampled_from(sorted(BODY)), value=values)
def test_no_field_of_the_body_can_be_another(key, value):
    same = json.dumps(value) == json.dumps(BODY[key])
    assert holds({**RECORD, "body": {**BODY, key: value}}, "pumps", SIGNED) == same


@given(name=st.sampled_from(["kind", "account"]), value=values)
def test_neither_kind_nor_account_can_be_another(name, value):
    assert holds({**RECORD, name: value}, "pumps", SIGNED) == (value == RECORD[name])


@given(population=texts)
def test_no_other_population_is_meant(population):
    assert holds(RECORD, population, SIGNED) == (population == "pumps")


@given(place=st.integers(0, 511), name=st.sampled_from(["fleet", "nonce", "key", "value"]))
def test_no_bit_of_the_signature_can_be_another(place, name):
    raw = bytearray.fromhex(getattr(SIGNED, name))
    raw[place // 8 % len(raw)] ^= 1 << place % 8
    assert not holds(RECORD, "pumps", replace(SIGNED, **{name: raw.hex()}))


@given(at=st.floats(allow_nan=False, allow_infinity=False))
def test_no_other_instant_is_meant(at):
    assert holds(RECORD, "pumps", replace(SIGNED, at=at)) == (at == SIGNED.at)


def test_another_persons_key_signs_nothing_in_this_ones_place():
    thief = Ed25519PrivateKey.from_private_bytes(bytes(32))
    forged = sign(thief, RECORD, population="pumps", fleet=FLEET, at=SIGNED.at, nonce=NONCE)
    assert not holds(RECORD, "pumps", replace(forged, key=SIGNED.key))


def test_numbers_that_are_none_are_no_error():
    assert not holds({**RECORD, "body": {"x": float("nan")}}, "pumps", SIGNED)


@pytest.mark.parametrize(
    ("name", "value"),
    [("fleet", ""), ("nonce", "0D" * 16), ("key", "ff"), ("value", "zz" * 64), ("at", float("inf"))],
)
def test_what_cannot_be_a_signature_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"signed.{name}"):
        replace(SIGNED, **{name: value})


def test_a_public_key_is_64_small_hexadecimal_digits():
    assert is_public_key(public_half(KEY))
    assert not any(map(is_public_key, ("", "A" * 64, public_half(KEY) + "\n", "0" * 63)))


def test_a_signature_is_plain_data():
    assert Signature(**vars(SIGNED)) == SIGNED
