"""The gateway's picture of the devices follows the table, whatever its clock does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import event

from fedretrain.artifacts.identity import DeviceIdentity
from fedretrain.server import fleet
from fedretrain.server.commit import GroupCommit
from fedretrain.server.fleet import Standing, Traits
from fedretrain.server.peers import Peers

SHOWN = DeviceIdentity("p", "a", "certificate", "1", 0.0, 1e12)


@pytest.fixture
def writer(engine):
    made = GroupCommit(engine)
    yield made
    made.close()


def test_a_key_that_is_revoked_after_the_clock_was_set_back_is_refused(engine, writer):
    now = 5000.0
    with engine.begin() as connection:
        fleet.enrol(connection, "p", "a", "1", Traits(), now)
    peers = Peers(engine, writer, lambda: now)
    assert peers.find(SHOWN) is not None
    now = 1000.0
    with engine.begin() as connection:
        fleet.set_standing(connection, "p", "a", Standing.REVOKED, now)
    peers.poll()
    assert peers.find(SHOWN) is None


def test_a_certificate_counts_by_its_name_and_its_key(engine, writer):
    with engine.begin() as connection:
        fleet.enrol(connection, "p", "a", "1", Traits(), 1.0)
        fleet.enrol(connection, "p", "b", "2", Traits(), 1.0)
    peers = Peers(engine, writer, lambda: 1.0)
    assert peers.at_hand(SHOWN).device == "a"
    assert peers.at_hand(replace(SHOWN, fingerprint="the next one")).device == "a"
    for other in ({"device": "b"}, {"key_fingerprint": "2"}, {"population": "q"}):
        assert peers.find(replace(SHOWN, **other)) is None


def test_who_enrolled_elsewhere_just_now_is_looked_for(engine, writer):
    with engine.begin() as connection:
        fleet.enrol(connection, "p", "a", "1", Traits(), 1.0)
    peers = Peers(engine, writer, lambda: 1.0)
    with engine.begin() as connection:
        fleet.enrol(connection, "p", "a", "2", Traits(), 1.0)
        fleet.enrol(connection, "p", "c", "3", Traits(), 1.0)
    assert peers.find(replace(SHOWN, key_fingerprint="2")).number == 0
    assert peers.find(replace(SHOWN, device="c", key_fingerprint="3")).number == 1


def _rows_read(engine, peers):
    """How many rows of the table a look at it reads, beside the one that tells whether anything has changed."""
    told = []
    listen = lambda *said: told.append(said[2])  # noqa: E731 - to be taken off again
    event.listen(engine, "before_cursor_execute", listen)
    peers.poll()
    event.remove(engine, "before_cursor_execute", listen)
    return sum("devices.fingerprint" in statement for statement in told)


def test_rows_are_read_once_after_they_changed(engine, writer):
    now = 100.0
    with engine.begin() as connection:
        for name in "abc":
            fleet.enrol(connection, "p", name, name, Traits(), now)
    peers = Peers(engine, writer, lambda: now)
    for step in range(200):
        now = 100.25 + 0.25 * step
        assert not _rows_read(engine, peers)
    with engine.begin() as connection:
        fleet.assign(connection, "p", [("b", b"told", 1)], now - 4.0)  # by a process whose clock is late
    assert _rows_read(engine, peers)
    assert peers.find(DeviceIdentity("p", "b", "certificate", "b", 0.0, 1e12)).assignment == b"told"
    assert not _rows_read(engine, peers)


@pytest.mark.parametrize("later_s", [0.0, 1e-6, 3.0, 500.0])
def test_each_kind_of_change_is_seen(engine, writer, later_s):
    now = 100.0
    with engine.begin() as connection:
        for name in "ab":
            fleet.enrol(connection, "p", name, name, Traits(), now)
    peers = Peers(engine, writer, lambda: now)
    b = DeviceIdentity("p", "b", "certificate", "b", 0.0, 1e12)
    changes = [
        lambda connection: fleet.assign(connection, "p", [("b", b"first", 1)], now),
        lambda connection: fleet.assign(connection, "p", [("b", b"second", 2)], now),
        lambda connection: fleet.keep_traits(connection, "p", "b", Traits("pump"), now + 1e-6),
        lambda connection: fleet.set_standing(connection, "p", "b", Standing.REVOKED, now),
    ]
    seen = [
        lambda: peers.find(b).assignment == b"first",
        lambda: peers.find(b).assignment == b"second",
        lambda: peers.find(b).traits == Traits("pump"),
        lambda: peers.find(b) is None,
    ]
    for change, is_seen in zip(changes, seen, strict=True):
        now += later_s
        peers.poll()
        with engine.begin() as connection:
            change(connection)
        assert not is_seen()
        peers.poll()
        assert is_seen()
