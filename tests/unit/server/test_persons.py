"""Which devices are one person's: known by the first that enrolled, and for good."""

from __future__ import annotations

import pytest

from fedretrain.core.errors import DataError, PrivacyError
from fedretrain.privacy.mechanism import Unit
from fedretrain.server import fleet
from fedretrain.server.campaign_rules import PrivacyRule
from fedretrain.server.fleet import Device, Standing, Traits
from fedretrain.server.persons import check_persons, units_of

PERSON = PrivacyRule(1.0, 0.5, unit=Unit.PERSON)


def devices(*persons, absent=(), standing=Standing.RETIRED):
    return [
        Device(
            "p",
            f"d{number}",
            number,
            "",
            standing if number in absent else Standing.ACTIVE,
            Traits(person=person),
        )
        for number, person in enumerate(persons)
    ]


def test_a_person_is_the_first_device_that_enrolled_for_them_whoever_joins():
    found = units_of(devices("anna", "ben", "anna", "carl", "ben"), PERSON)
    assert found == (0, 1, 0, 3, 1)
    assert units_of(devices("anna", "ben", "anna", "carl", "ben", "anna", "dora"), PERSON)[:5] == found
    assert units_of(devices("anna", "", "anna", ""), PERSON) == (0, 1, 0, 3)


def test_without_that_claim_devices_are_units():
    for privacy in (None, PrivacyRule(1.0, 0.5)):
        assert units_of(devices("anna", "anna"), privacy) == ()
        check_persons(devices("anna", ""), privacy)


@pytest.mark.parametrize("standing", [Standing.RETIRED, Standing.WATCHED])
def test_who_never_comes_needs_no_person(standing):
    check_persons(devices("anna", "", "ben", absent=(1,), standing=standing), PERSON)


def test_devices_without_a_person_are_named():
    with pytest.raises(PrivacyError, match="d1, d3"):
        check_persons(devices("anna", "", "ben", ""), PERSON)
    with pytest.raises(PrivacyError, match="d4 and 2 more"):
        check_persons(devices(*[""] * 7), PERSON)


@pytest.mark.parametrize(("first", "then"), [("anna", "ben"), ("anna", ""), ("", "anna")])
def test_a_device_stays_its_persons(engine, first, then):
    with engine.begin() as connection:
        fleet.enrol(connection, "p", "d0", "f", Traits(person=first), 1.0)
        fleet.enrol(connection, "p", "d0", "g", Traits(person=first, site="north"), 2.0)
    with pytest.raises(DataError, match="name the same person"), engine.begin() as connection:
        fleet.enrol(connection, "p", "d0", "h", Traits(person=then), 3.0)
    with engine.connect() as connection:
        assert fleet.find(connection, "p", "d0").traits == Traits(person=first, site="north")
