"""PostgreSQL is killed in the middle of appends, again and again: nothing lost, nothing twice."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter

import pytest
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from fedretrain.server import fleet, intake
from fedretrain.server.commit import GroupCommit
from fedretrain.server.database import open_database
from fedretrain.server.event_log import ConflictError, EventLog
from fedretrain.server.fleet import Traits
from fedretrain.server.tables import telemetry
from fedretrain.wire.v1 import fleet_pb2 as pb
from tests import postgres_cases

pytestmark = pytest.mark.faults
KILLS = 3


@pytest.fixture
def cluster():
    why = postgres_cases.missing()
    if why:
        pytest.skip(why)
    made = postgres_cases.Cluster(durable=True)
    yield made
    made.close()


def kill_and_start(cluster, done):
    """Kill it some times while others work, then let them finish."""
    for seed in range(KILLS):
        time.sleep(random.Random(seed).uniform(0.3, 0.8))
        cluster.kill()
        time.sleep(0.2)
        cluster.start()
    time.sleep(0.3)
    done.set()


def test_every_append_that_was_answered_is_there_once(cluster):
    engine = open_database(cluster.url("postgres"))
    log, done = EventLog(engine), threading.Event()
    answered: list[int] = []
    failures: Counter[str] = Counter()

    def write():
        """A writer that does not know what became of an append reads how far the stream is, and goes on from there."""
        number = 0
        while not done.is_set() or not failures:
            try:
                log.append("a", [{"n": number}], at=0.0, after=number)
                answered.append(number)
                number += 1
            except ConflictError:
                number = log.head("a").counter
            except SQLAlchemyError as error:
                failures[type(error).__name__] += 1
                time.sleep(0.05)

    writer = threading.Thread(target=write)
    writer.start()
    kill_and_start(cluster, done)
    writer.join(timeout=60)
    found = [entry.record["n"] for entry in log.read("a")]  # which checks the chain, too
    engine.dispose()
    assert found == list(range(len(found)))
    assert set(answered) <= set(found)
    assert failures
    assert len(answered) > KILLS


def test_every_record_of_a_device_counts_once(cluster):
    """A device sends a batch until it is acknowledged; a group may be lost, kept, or kept without an answer."""
    engine = open_database(cluster.url("postgres"))
    with engine.begin() as connection:
        device = fleet.enrol(connection, "p", "a", "1", Traits(), 1.0)
    writer, done = GroupCommit(engine), threading.Event()
    failures: Counter[str] = Counter()
    sent = 0

    def send():
        nonlocal sent
        while not done.is_set() or not failures:
            records = [
                pb.Record(boot=1, priority=0, sequence=sent + n, at=5.0, payload=b"%d" % (sent + n))
                for n in range(5)
            ]
            batch = pb.TelemetryBatch(installation="0" * 32, boot=1, records=records)
            change = writer.submit(
                lambda connection, batch=batch: intake.keep(connection, device, batch, 9.0)
            )
            try:
                change.result(timeout=60)
                sent += 5
            except SQLAlchemyError as error:
                failures[type(error).__name__] += 1
                time.sleep(0.05)

    sender = threading.Thread(target=send)
    sender.start()
    kill_and_start(cluster, done)
    sender.join(timeout=60)
    writer.close()
    with engine.connect() as connection:
        found = [int(payload) for payload in connection.scalars(select(telemetry.c.payload))]
    engine.dispose()
    assert Counter(found) == Counter(range(sent))
    assert failures
    assert sent > 5 * KILLS
