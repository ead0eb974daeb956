"""Whose word an order is: every way in which it can be somebody else's, and what a configuration of keys must not be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedretrain.core.clock import DAY_S, HOUR_S
from fedretrain.core.errors import ConfigError
from fedretrain.server.people import OPEN, Notary, OrderRules, Person, check_people, fleet_of
from tests.signing_cases import FLEET, KEYS, NOTARY, OTHER_FLEET, PEOPLE, order, public_half

NOW = 1_700_000_000.0
GOOD = order(at=NOW)
STRICT = replace(NOTARY, rules=OrderRules(require_keys=True))


def edited(**fields):
    return {**GOOD, "body": {**GOOD["body"], **fields}}


def resigned(**fields):
    return {**GOOD, "signed": {**GOOD["signed"], **fields}}


ATTACKS = {
    "forged --by": (order(key="", at=NOW), "what anna orders must be signed"),
    "forged --by, signed with one's own key": (order(key="eve", at=NOW), "a key that is not anna's"),
    "another person's signature": (order(key="ben", at=NOW), "a key that is not anna's"),
    "somebody else's name over anna's signature": (edited(by="ben"), "a key that is not ben's"),
    "a key that was given up": (order(key="old", at=NOW), "anna has another key now"),
    "another fleet's order": (order(fleet=OTHER_FLEET, at=NOW), "for another fleet (f2f2"),
    "another fleet's order, renamed": (
        {
            **order(fleet=OTHER_FLEET, at=NOW),
            "signed": {**order(fleet=OTHER_FLEET, at=NOW)["signed"], "fleet": FLEET},
        },
        "not what anna signed",
    ),
    "another population's order": (order(population="q", at=NOW), "not what anna signed"),
    "edited: what": (edited(command="leave"), "not what anna signed"),
    "edited: why": (edited(reason="a joke"), "not what anna signed"),
    "edited: another kind": ({**GOOD, "kind": "retrain"}, "not what anna signed"),
    "edited: from another account": ({**GOOD, "account": "nobody's"}, "not what anna signed"),
    "replayed under another nonce": (resigned(nonce="0" * 32), "not what anna signed"),
    "expired": (order(at=NOW - DAY_S - HOUR_S), "signed 25.0 h ago, and counts for 24 h"),
    "expired, and dated anew": (
        {**order(at=NOW - DAY_S - 1), "signed": {**order(at=NOW - DAY_S - 1)["signed"], "at": NOW}},
        "not what anna signed",
    ),
    "signed for later": (order(at=NOW + DAY_S + HOUR_S), "signed 25.0 h ahead"),
    "a signature that is none": (resigned(value="x"), "cannot be read: signed.value"),
    "a signature of something else's shape": ({**GOOD, "signed": [1]}, "cannot be read: signed"),
    "a signature that was cut off": ({k: v for k, v in GOOD.items() if k != "signed"}, "must be signed"),
    "a name with blanks around it": (order(by="anna ", key="", at=NOW), "'anna ' is no name"),
}


def test_what_somebody_signed_is_their_word():
    assert NOTARY.refusal(GOOD, NOW) == ""
    assert NOTARY.refusal(order(at=NOW), NOW + DAY_S) == ""
    assert NOTARY.damage(GOOD) == ""


@pytest.mark.parametrize(("record", "why"), ATTACKS.values(), ids=ATTACKS)
def test_what_is_not_their_word_is_refused_with_the_reason(record, why):
    assert why in NOTARY.refusal(record, NOW)


def test_an_order_that_was_taken_counts_no_second_time():
    assert NOTARY.refusal(GOOD, NOW, {GOOD["signed"]["nonce"]}) == "it was given before"
    assert NOTARY.refusal(order(at=NOW), NOW, {GOOD["signed"]["nonce"]}) == ""


def test_who_has_no_key_is_believed_unless_everybody_must_have_one():
    unsigned = order(by="dora", key="", at=NOW)
    assert NOTARY.refusal(unsigned, NOW) == ""
    assert "has no key of dora" in STRICT.refusal(unsigned, NOW)
    for notary in (NOTARY, STRICT, OPEN):
        assert "has no key of dora" in notary.refusal(order(by="dora", key="eve", at=NOW), NOW)
    assert STRICT.refusal(GOOD, NOW) == ""


def test_who_gave_their_key_up_orders_nothing_any_more():
    left = Notary("p", FLEET, {"anna": Person("", (public_half(KEYS["anna"]),))})
    assert left.refusal(order(key="", at=NOW), NOW) == "anna has no key any more"
    assert left.refusal(GOOD, NOW) == "anna has another key now"
    assert left.damage(GOOD) == ""  # what was signed then stays so


def test_nothing_signed_counts_where_the_fleet_has_no_authority():
    nowhere = replace(NOTARY, fleet="")
    assert "another fleet" in nowhere.refusal(GOOD, NOW)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (order(key="eve", at=NOW), "says of no key"),
        (edited(reason="a joke"), "not what anna signed"),
        (order(fleet=OTHER_FLEET, at=NOW), "another fleet"),
        (resigned(value="x"), "cannot be read"),
    ],
)
def test_an_old_record_that_does_not_hold_is_named(record, why):
    assert why in NOTARY.damage(record)


def test_an_old_record_stays_good_when_its_key_was_replaced():
    assert NOTARY.damage(order(key="old", at=1.0)) == ""
    assert NOTARY.damage(order(by="dora", key="", at=1.0)) == ""


@pytest.mark.parametrize(
    ("people", "ordering", "named"),
    [
        ({"anna": PEOPLE["anna"], "twin": PEOPLE["anna"]}, (), "twin and anna have one key"),
        (
            {"anna": PEOPLE["anna"], "twin": Person(public_half(KEYS["old"]))},
            (),
            "twin and anna have one key",
        ),
        ({" anna": PEOPLE["anna"]}, (), "' anna' is no name"),
        (PEOPLE, ("anna", "carl"), "no key of carl"),
        ({}, (), "no key of anybody"),
        ({**PEOPLE, "dora": Person()}, (), "no key of dora"),
    ],
)
def test_keys_that_tell_nobody_apart_or_are_missing_are_refused(people, ordering, named):
    with pytest.raises(ConfigError, match=named):
        check_people(people, OrderRules(require_keys=True), ordering)


def test_whoever_left_may_keep_their_old_key_where_all_must_sign():
    left = {**PEOPLE, "carl": Person("", (public_half(KEYS["eve"]),))}
    check_people(left, OrderRules(require_keys=True), ("anna", "ben", "carl"))


@pytest.mark.parametrize("given", [{"key": "ed25519"}, {"key": "A" * 64}, {"former": ["x"]}])
def test_what_is_no_public_key_is_refused_by_name(given):
    with pytest.raises(ConfigError, match=next(iter(given))):
        Person(**given)


def test_an_order_counts_for_some_time():
    with pytest.raises(ConfigError, match=r"orders\.valid_s"):
        OrderRules(valid_s=0.0)


def test_a_fleet_is_known_by_its_authority(tmp_path):
    from fedretrain.artifacts.identity import FleetAuthority, fingerprint

    assert fleet_of(tmp_path) == ""
    authority = FleetAuthority(tmp_path / "authority", now=NOW)
    assert fleet_of(tmp_path) == fingerprint(authority.certificate)
