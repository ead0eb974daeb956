"""The gateway's picture of the devices follows the table, whatever its clock does."""

from __future__ import annotations

from dataclasses import replace

import pytest

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
