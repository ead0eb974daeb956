"""What a population's devices are asked: told by every gateway, replaced, taken back, and only by the leader."""

from __future__ import annotations

import pytest

from fedretrain.server import questions
from fedretrain.server.commit import GroupCommit
from fedretrain.server.event_log import EventLog, FencedError
from fedretrain.server.peers import Peers


def test_a_question_reaches_the_gateways_until_another_one_or_none_is_asked(engine):
    log = EventLog(engine)
    fence = log.acquire("coordinator", "me", now=0.0, ttl_s=1.0)
    writer = GroupCommit(engine)
    try:
        peers = Peers(engine, writer, lambda: 0.0)
        assert peers.question("p") == b""
        for envelope in (b"first", b"second", b""):
            questions.tell(engine, fence, "p", envelope)
            questions.tell(engine, fence, "q", b"other")
            peers.poll()
            assert (peers.question("p"), peers.question("q")) == (envelope, b"other")
    finally:
        writer.close()


def test_who_lost_the_lease_asks_nothing(engine):
    log = EventLog(engine)
    old = log.acquire("coordinator", "me", now=0.0, ttl_s=1.0)
    log.acquire("coordinator", "another", now=5.0, ttl_s=1.0)
    with pytest.raises(FencedError):
        questions.tell(engine, old, "p", b"first")
    with engine.connect() as connection:
        assert questions.asked(connection) == {}
