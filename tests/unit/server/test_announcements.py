"""What a population's devices are told: by every gateway, replaced, taken back, and only by the leader."""

from __future__ import annotations

import pytest

from fedretrain.server import announcements
from fedretrain.server.announcements import Announcement
from fedretrain.server.commit import GroupCommit
from fedretrain.server.event_log import EventLog, FencedError
from fedretrain.server.peers import Peers


def test_what_is_announced_reaches_the_gateways_until_something_else_is(engine):
    log = EventLog(engine)
    fence = log.acquire("coordinator", "me", now=0.0, ttl_s=1.0)
    writer = GroupCommit(engine)
    try:
        peers = Peers(engine, writer, lambda: 0.0)
        assert peers.announcement("p") == Announcement(b"", hasten=False)
        for told in (
            Announcement(b"first"),
            Announcement(b"second", hasten=True),
            Announcement(notice=b"third"),
            Announcement(),
        ):
            announcements.tell(engine, fence, "p", told)
            announcements.tell(engine, fence, "q", Announcement(b"other"))
            peers.poll()
            assert (peers.announcement("p"), peers.announcement("q")) == (told, Announcement(b"other"))
    finally:
        writer.close()


def test_who_lost_the_lease_announces_nothing(engine):
    log = EventLog(engine)
    old = log.acquire("coordinator", "me", now=0.0, ttl_s=1.0)
    log.acquire("coordinator", "another", now=5.0, ttl_s=1.0)
    with pytest.raises(FencedError):
        announcements.tell(engine, old, "p", Announcement(b"first"))
    with engine.connect() as connection:
        assert announcements.told(connection) == {}
