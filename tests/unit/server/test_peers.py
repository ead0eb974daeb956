"""The gateway's picture of the devices follows the table, whatever its clock does."""

from __future__ import annotations

import pytest

from fedretrain.server import fleet
from fedretrain.server.commit import GroupCommit
from fedretrain.server.fleet import Standing, Traits
from fedretrain.server.peers import Peers


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
    assert peers.find("1") is not None
    now = 1000.0
    with engine.begin() as connection:
        fleet.set_standing(connection, "p", "a", Standing.REVOKED, now)
    peers.poll()
    assert peers.find("1") is None
