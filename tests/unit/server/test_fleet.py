"""Devices of a fleet: numbers that stay, certificates that change, standings that end."""

from __future__ import annotations

import pytest

from fedretrain.core.errors import DataError
from fedretrain.server import fleet
from fedretrain.server.database import reading
from fedretrain.server.event_log import EventLog, FencedError
from fedretrain.server.fleet import Standing, Traits

TRAITS = Traits("pump", "north", "anna", trains=True, methods=("fedper",))


def _enrol(engine, device, fingerprint, population="p", at=1.0):
    with engine.begin() as connection:
        return fleet.enrol(connection, population, device, fingerprint, TRAITS, at)


def test_numbers_count_up_in_each_population(engine):
    assert [_enrol(engine, name, name).number for name in "abc"] == [0, 1, 2]
    assert _enrol(engine, "a", "other", population="q").number == 0


def test_a_device_keeps_its_number_with_a_new_key(engine):
    _enrol(engine, "a", "1")
    _enrol(engine, "b", "2")
    again = _enrol(engine, "a", "3", at=2.0)
    assert (again.number, again.fingerprint, again.traits) == (0, "3", TRAITS)
    with engine.connect() as connection:
        assert fleet.find(connection, "p", "a") == again
        assert [device.device for device in fleet.everybody(connection, "p")] == ["a", "b"]


def test_a_revoked_device_enrols_anew_and_a_retired_one_never(engine):
    _enrol(engine, "a", "1")
    with engine.begin() as connection:
        fleet.set_standing(connection, "p", "a", Standing.REVOKED, 2.0)
    assert _enrol(engine, "a", "2").standing is Standing.ACTIVE
    with engine.begin() as connection:
        fleet.set_standing(connection, "p", "a", Standing.RETIRED, 3.0)
    with pytest.raises(DataError, match="was retired"):
        _enrol(engine, "a", "3")


def test_nobody_is_judged_by_accident(engine):
    with engine.begin() as connection, pytest.raises(DataError, match="no device"):
        fleet.set_standing(connection, "p", "a", Standing.REVOKED, 2.0)


def test_an_older_assignment_changes_nothing(engine):
    _enrol(engine, "a", "1")
    with engine.begin() as connection:
        fleet.assign(connection, "p", [("a", b"new", 7)], 5.0)
        fleet.assign(connection, "p", [("a", b"old", 6)], 6.0)
        fleet.assign(connection, "p", [("a", b"same", 7)], 6.0)
        found = fleet.find(connection, "p", "a")
    assert (found.assignment, found.counter) == (b"new", 7)


def test_what_changed_is_found_by_its_instant(engine):
    _enrol(engine, "a", "1", at=1.0)
    _enrol(engine, "b", "2", at=5.0)
    with engine.begin() as connection:
        fleet.heard(connection, [("p", "a", 9.0, {"serves": ""})])  # words are no change
        assert [device.device for device in fleet.changed_since(connection, 2.0, {})[0]] == ["b"]
        fleet.set_standing(connection, "p", "a", Standing.REVOKED, 6.0)
        assert [device.device for device in fleet.changed_since(connection, 5.5, {})[0]] == ["a"]
        assert fleet.find(connection, "p", "a").seen_at == 9.0


@pytest.mark.parametrize("standing", [Standing.REVOKED, Standing.ACTIVE])
def test_a_retired_device_stays_retired(engine, standing):
    _enrol(engine, "a", "1")
    with engine.begin() as connection:
        fleet.set_standing(connection, "p", "a", Standing.RETIRED, 2.0)
        fleet.set_standing(connection, "p", "a", Standing.RETIRED, 3.0)
        with pytest.raises(DataError, match="was retired"):
            fleet.set_standing(connection, "p", "a", standing, 4.0)
    with pytest.raises(DataError, match="was retired"):
        _enrol(engine, "a", "2")


def test_assignments_are_dated_when_they_are_written(engine):
    _enrol(engine, "a", "1", at=1.0)
    fleet.tell(engine, None, "p", [("a", b"new", 1)], lambda: 90.0)
    with engine.connect() as connection:
        assert [one.device for one in fleet.changed_since(connection, 85.0, {})[0]] == ["a"]


def test_who_lost_the_lease_tells_nobody_anything(engine):
    _enrol(engine, "a", "1")
    log = EventLog(engine)
    old = log.acquire("leader", "one", now=0.0, ttl_s=1.0)
    log.acquire("leader", "two", now=2.0, ttl_s=1.0)
    with pytest.raises(FencedError):
        fleet.tell(engine, old, "p", [("a", b"stale", 1)], lambda: 2.0)
    with engine.connect() as connection:
        assert fleet.find(connection, "p", "a").counter == 0


def test_a_change_is_read_once_and_every_change_is_seen(engine):
    with engine.begin() as connection:
        for name in "ab":
            fleet.enrol(connection, "p", name, name * 64, Traits(), 10.0)
    with reading(engine) as connection:
        found, marks = fleet.changed_since(connection, 5.0, {})
        assert [one.device for one in found] == ["a", "b"]
        assert fleet.changed_since(connection, 5.0, marks) == ([], marks)
    with engine.begin() as connection:  # in the same instant, as a coarse clock tells it
        fleet.set_standing(connection, "p", "a", Standing.REVOKED, 10.0)
        fleet.assign(connection, "p", [("b", b"new", 1)], 10.0)
    with reading(engine) as connection:
        found, _ = fleet.changed_since(connection, 5.0, marks)
    assert {(one.device, str(one.standing), one.assignment) for one in found} == {
        ("a", "revoked", None),
        ("b", "active", b"new"),
    }
