"""Assignments: one form in bytes, and every refusal by its name."""

import dataclasses
import json
import math

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.artifacts import assignment as module
from fedretrain.artifacts.assignment import (
    MAX_WITHDRAWN,
    Assignment,
    AssignmentError,
    CampaignInvite,
    sign,
    verify,
)
from fedretrain.artifacts.envelope import MAX_ENVELOPE_BYTES, Refusal
from fedretrain.core.errors import DataError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
PUBLIC = KEY.public_key().public_bytes_raw()
OTHER_PUBLIC = OTHER_KEY.public_key().public_bytes_raw()
A, B, C = "a" * 64, "b" * 64, "c" * 64
INVITE = CampaignInvite("c-7", C, "link.example:9092", 100.0, 9_000.0, 20, 600.0)
PLAIN = Assignment("pumps", "pump-17", A, B, 5, 100.0, 1_000.0, (C,), False, INVITE)
MINE = {"device": "pump-17", "population": "pumps", "now": 500.0}


def changed(**fields):
    return dataclasses.replace(PLAIN, **fields)


def raw(payload, key=KEY):
    """An envelope around bytes that `sign` would never write."""
    return module._MAGIC + key.sign(module._MAGIC + payload) + payload


def edited(**fields):
    """PLAIN's JSON with other values, written in the one form and rightly signed."""
    return raw(module._canonical({**json.loads(PLAIN.to_bytes()), **fields}))


def flipped(envelope, index):
    return envelope[:index] + bytes([envelope[index] ^ 1]) + envelope[index + 1 :]


def refusal_of(envelope, keys=(PUBLIC,), **how):
    with pytest.raises(AssignmentError) as caught:
        verify(envelope, keys, **{**MINE, **how})
    assert str(caught.value.refusal) in str(caught.value)
    return caught.value.refusal


@pytest.mark.parametrize(
    "assignment",
    [
        PLAIN,
        changed(serve="", shadow="", withdrawn=(), invite=None),
        changed(safe_mode=True),
        changed(issued_at=0),
    ],
)
def test_a_signed_assignment_is_read_back_whole(assignment):
    assert verify(sign(assignment, KEY), [PUBLIC], **MINE) == assignment
    assert sign(assignment, KEY) == sign(assignment, KEY)


def test_any_of_the_known_keys_may_have_signed():
    assert verify(sign(PLAIN, OTHER_KEY), [PUBLIC, OTHER_PUBLIC], **MINE) == PLAIN


ENVELOPE = sign(PLAIN, KEY)
ATTACKS = {
    "unknown_key": (sign(PLAIN, OTHER_KEY), {}, Refusal.BAD_SIGNATURE),
    "flipped_in_the_signature": (flipped(ENVELOPE, len(module._MAGIC) + 3), {}, Refusal.BAD_SIGNATURE),
    "flipped_in_the_content": (flipped(ENVELOPE, -1), {}, Refusal.BAD_SIGNATURE),
    "signed_without_the_formats_name": (
        module._MAGIC + KEY.sign(PLAIN.to_bytes()) + PLAIN.to_bytes(),
        {},
        Refusal.BAD_SIGNATURE,
    ),
    "cut": (ENVELOPE[:-1], {}, Refusal.BAD_SIGNATURE),
    "longer_by_a_byte": (ENVELOPE + b" ", {}, Refusal.BAD_SIGNATURE),
    "no_key_known": (ENVELOPE, {"keys": ()}, Refusal.BAD_SIGNATURE),
    "empty": (b"", {}, Refusal.MALFORMED),
    "no_content": (ENVELOPE[: len(module._MAGIC) + 64], {}, Refusal.MALFORMED),
    "another_format": (b"fedretrain assignment 2\n" + ENVELOPE[24:], {}, Refusal.MALFORMED),
    "too_long": (module._MAGIC + bytes(MAX_ENVELOPE_BYTES), {}, Refusal.OVERSIZE),
    "other_device": (ENVELOPE, {"device": "pump-18"}, Refusal.OTHER_DEVICE),
    "other_population": (ENVELOPE, {"population": "fans"}, Refusal.OTHER_POPULATION),
    "older": (ENVELOPE, {"last_counter": 6}, Refusal.OLD_COUNTER),
    "older_though_once_the_last": (
        ENVELOPE,
        {"last_counter": 6, "last_digest": PLAIN.digest},
        Refusal.OLD_COUNTER,
    ),
    "same_counter_other_content": (
        ENVELOPE,
        {"last_counter": 5, "last_digest": changed(serve="").digest},
        Refusal.SAME_COUNTER,
    ),
    "same_counter_nothing_remembered": (ENVELOPE, {"last_counter": 5}, Refusal.SAME_COUNTER),
    "expired_at_the_second": (ENVELOPE, {"now": 1_000.0}, Refusal.EXPIRED),
    "expired_though_the_same": (
        ENVELOPE,
        {"now": 2_000.0, "last_counter": 5, "last_digest": PLAIN.digest},
        Refusal.EXPIRED,
    ),
    "signed_list": (raw(b"[]"), {}, Refusal.MALFORMED),
    "signed_number": (raw(b"1"), {}, Refusal.MALFORMED),
    "signed_text_that_is_no_json": (raw(b"serve everything"), {}, Refusal.MALFORMED),
    "signed_not_ascii": (raw("ä".encode()), {}, Refusal.MALFORMED),
    "signed_nest": (raw(b"[" * 30_000), {}, Refusal.MALFORMED),
    "signed_with_spaces": (raw(PLAIN.to_bytes().replace(b",", b", ")), {}, Refusal.MALFORMED),
    "signed_twice_the_same_key": (raw(PLAIN.to_bytes()[:-1] + b',"serve":""}'), {}, Refusal.MALFORMED),
    "signed_unknown_field": (edited(run="anything"), {}, Refusal.MALFORMED),
    "signed_path_as_digest": (edited(serve="../" + "a" * 61), {}, Refusal.MALFORMED),
    "signed_upper_case_digest": (edited(serve="A" * 64), {}, Refusal.MALFORMED),
    "signed_counter_zero": (edited(counter=0), {}, Refusal.MALFORMED),
    "signed_counter_true": (edited(counter=True), {}, Refusal.MALFORMED),
    "signed_counter_float": (edited(counter=6.0), {}, Refusal.MALFORMED),
    "signed_counter_huge": (edited(counter=2**63), {}, Refusal.MALFORMED),
    "signed_counter_of_many_digits": (
        raw(PLAIN.to_bytes().replace(b'"counter":5', b'"counter":' + b"9" * 5_000)),
        {},
        Refusal.MALFORMED,
    ),
    "signed_instant_beyond_any_float": (
        raw(PLAIN.to_bytes().replace(b"1000.0", b"9" * 400)),
        {},
        Refusal.MALFORMED,
    ),
    "signed_nan": (raw(PLAIN.to_bytes().replace(b"1000.0", b"NaN")), {}, Refusal.MALFORMED),
    "signed_whole_number_as_instant": (edited(issued_at=100), {}, Refusal.MALFORMED),
    "signed_safe_mode_word": (edited(safe_mode="no"), {}, Refusal.MALFORMED),
    "signed_safe_mode_number": (edited(safe_mode=0), {}, Refusal.MALFORMED),
    "signed_withdrawn_text": (edited(withdrawn="abc"), {}, Refusal.MALFORMED),
    "signed_withdrawn_null": (edited(withdrawn=None), {}, Refusal.MALFORMED),
    "signed_withdrawn_served": (edited(withdrawn=[A]), {}, Refusal.MALFORMED),
    "signed_invite_list": (edited(invite=[]), {}, Refusal.MALFORMED),
    "signed_invite_of_another_shape": (edited(invite={"campaign": "c"}), {}, Refusal.MALFORMED),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_envelope_that_may_not_be_followed_is_refused_by_name(name):
    envelope, how, refusal = ATTACKS[name]
    assert refusal_of(envelope, **how) is refusal


def test_every_refusal_is_reached():
    assert {refusal for _, _, refusal in ATTACKS.values()} == set(Refusal)


def test_the_same_assignment_again_is_accepted_also_under_a_rotated_key():
    last = {"last_counter": PLAIN.counter, "last_digest": PLAIN.digest}
    assert verify(ENVELOPE, [PUBLIC], **MINE, **last) == PLAIN
    assert verify(sign(PLAIN, OTHER_KEY), [OTHER_PUBLIC], **MINE, **last) == PLAIN


@pytest.mark.parametrize(
    "fields",
    [
        {"population": ""},
        {"device": "../pump"},
        {"device": "-pump"},
        {"device": "p" * 65},
        {"device": "pump\n"},
        {"device": None},
        {"serve": "a"},
        {"shadow": None},
        {"counter": 0},
        {"counter": True},
        {"issued_at": -1.0},
        {"issued_at": math.nan},
        {"expires_at": 100.0},
        {"expires_at": math.inf},
        {"withdrawn": [C]},
        {"withdrawn": (C, "d" * 64, C)},
        {"withdrawn": ("d" * 64, C)},
        {"withdrawn": (C, C)},
        {"withdrawn": (A,)},
        {"withdrawn": (B,)},
        {"withdrawn": tuple(f"{n:064x}" for n in range(MAX_WITHDRAWN + 1))},
        {"safe_mode": 1},
        {"invite": {}},
    ],
)
def test_an_impossible_assignment_cannot_be_made(fields):
    with pytest.raises(DataError):
        changed(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"campaign": ""},
        {"bundle": ""},
        {"server": "link"},
        {"server": "link:0"},
        {"server": "link:65536"},
        {"server": "a b:1"},
        {"begins_at": -1.0},
        {"ends_at": 100.0},
        {"num_rounds": 0},
        {"round_s": 0.0},
    ],
)
def test_an_impossible_invite_cannot_be_made(fields):
    with pytest.raises(DataError):
        dataclasses.replace(INVITE, **fields)


@pytest.mark.parametrize("server", ["link:1", "10.0.0.1:9092", "[::1]:9092"])
def test_hosts_and_addresses_can_invite(server):
    assert dataclasses.replace(INVITE, server=server).server == server


def test_the_largest_assignment_fits():
    many = tuple(f"{n:064x}" for n in range(MAX_WITHDRAWN))
    name = "n" * 64
    invite = CampaignInvite(name, C, "h" * 253 + ":65535", 1e300 / 3, 1e300, 2**63 - 1, 1e300 / 7)
    largest = Assignment(name, name, A, B, 2**63 - 1, 1e300 / 3, 1e300, many, True, invite)
    found = verify(sign(largest, KEY), [PUBLIC], device=name, population=name, now=0.0)
    assert found == largest


digests = st.text("0123456789abcdef", min_size=64, max_size=64)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
instants = st.floats(0, 1e12)


@st.composite
def assignments(draw):
    serve, shadow = draw(st.one_of(st.just(""), digests)), draw(st.one_of(st.just(""), digests))
    withdrawn = draw(st.sets(digests, max_size=3)) - {serve, shadow}
    issued_at = draw(instants)
    invite = draw(
        st.one_of(
            st.none(),
            st.builds(
                lambda campaign, bundle, port, at: CampaignInvite(
                    campaign, bundle, f"h:{port}", at, at + 5, 3, 1.5
                ),
                names,
                digests,
                st.integers(1, 65_535),
                instants,
            ),
        )
    )
    return Assignment(
        draw(names),
        draw(names),
        serve,
        shadow,
        draw(st.integers(1, 2**63 - 1)),
        issued_at,
        issued_at + draw(st.floats(1, 1e6)),
        tuple(sorted(withdrawn)),
        draw(st.booleans()),
        invite,
    )


@given(assignments())
def test_bytes_and_assignment_are_one_to_one(assignment):
    assert Assignment.from_bytes(assignment.to_bytes()) == assignment
    assert Assignment.from_bytes(assignment.to_bytes()).digest == assignment.digest


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(sorted(json.loads(PLAIN.to_bytes()))), json_values)
def test_a_signed_field_of_any_shape_is_read_in_its_one_form_or_malformed(field, value):
    payload = json.dumps(
        {**json.loads(PLAIN.to_bytes()), field: value}, sort_keys=True, separators=(",", ":")
    )
    try:
        found = Assignment.from_bytes(payload.encode())
    except AssignmentError as error:
        refusal = error.refusal
    else:
        refusal = Refusal.MALFORMED
        assert found.to_bytes() == payload.encode()
    assert refusal is Refusal.MALFORMED


@given(st.binary(max_size=300))
def test_any_bytes_are_malformed(content):
    with pytest.raises(AssignmentError) as caught:
        Assignment.from_bytes(content)
    assert caught.value.refusal is Refusal.MALFORMED


@given(st.integers(0, len(ENVELOPE) - 1), st.integers(1, 255))
def test_no_changed_byte_goes_unseen(index, change):
    damaged = bytearray(ENVELOPE)
    damaged[index] ^= change
    assert refusal_of(bytes(damaged)) in {Refusal.BAD_SIGNATURE, Refusal.MALFORMED}
