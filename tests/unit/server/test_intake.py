"""Batches of many devices, kept together, are kept as each alone in its order."""

from __future__ import annotations

import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, select
from sqlalchemy.exc import IntegrityError

from fedretrain.server import fleet, intake
from fedretrain.server.commit import GroupCommit
from fedretrain.server.fleet import Traits
from fedretrain.server.intake import Arrived
from fedretrain.server.tables import received, telemetry
from fedretrain.wire.v1 import fleet_pb2 as pb

_NUMBERS = st.integers(0, 8) | st.sampled_from([2**40, 2**62])
_RECORDS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), _NUMBERS), max_size=6)
_GAPS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), _NUMBERS, _NUMBERS), max_size=2)
_BATCHES = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 3), _RECORDS, _GAPS), max_size=8
)


@pytest.fixture
def devices(engine):
    with engine.begin() as connection:
        return [fleet.enrol(connection, "p", name, name, Traits(), 1.0) for name in "abc"]


def _batch(number, installation, oldest, records, gaps):
    return pb.TelemetryBatch(
        installation=f"{installation:032x}",
        boot=3,
        oldest_boot=oldest,
        batch=number,
        records=[
            pb.Record(boot=boot, priority=priority, sequence=sequence, at=5.0, payload=f"{number}".encode())
            for boot, priority, sequence in records
        ],
        gaps=[pb.Gap(boot=boot, priority=priority, first=a, last=b) for boot, priority, a, b in gaps],
    )


def _kept(connection):
    """Everything that the two tables hold, in the order of its numbers."""
    c = telemetry.c
    columns = (c.population, c.device, c.at, c.received_at, c.payload)
    records = connection.execute(select(*columns).order_by(c.number)).all()
    return records, sorted(connection.execute(select(received)).all())


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_BATCHES)
def test_together_is_each_in_its_order(engine, devices, said):
    arrived = [
        Arrived(devices[device], _batch(number, installation, oldest, records, gaps), 9.0 + number)
        for number, (device, installation, oldest, records, gaps) in enumerate(said)
    ]
    found = []
    for together in (False, True):
        with engine.begin() as connection:
            if together:
                acks = intake.keep_all(connection, arrived)
            else:
                acks = [intake.keep(connection, one.device, one.batch, one.at) for one in arrived]
            found.append((acks, *_kept(connection)))
            for table in (telemetry, received):
                connection.execute(delete(table))
    assert found[0] == found[1]


def test_a_group_takes_as_many_statements_as_one_batch(engine, devices):
    def cost(number, arrived):
        told = []
        listen = lambda *said: told.append(said[2])  # noqa: E731 - to be taken off again
        event.listen(engine, "before_cursor_execute", listen)
        with engine.begin() as connection:
            intake.keep_all(
                connection, [Arrived(one, _batch(number, 0, 0, [(3, 0, number)], []), 9.0) for one in arrived]
            )
        event.remove(engine, "before_cursor_execute", listen)
        return len(told)

    assert cost(0, devices[:1]) == cost(0, devices[1:])  # new devices
    assert cost(1, devices[:1]) == cost(1, devices)


def test_a_batch_that_cannot_be_kept_spoils_no_neighbour(engine, devices):
    """One that is kept together with others, in one transaction with what is of no kind."""
    arrived = [Arrived(one, _batch(0, 0, 0, [(3, 0, 0)], []), 9.0) for one in devices]
    begun = threading.Event()
    broken = Arrived(devices[1], arrived[1].batch, None)  # received_at may not be NULL
    writer = GroupCommit(engine)
    first = writer.submit(lambda _connection: begun.wait(timeout=30))
    waiting = [writer.submit_one_of(intake.keep_all, one) for one in (arrived[0], broken, arrived[2])]
    begun.set()
    assert first.result(timeout=30)
    assert [waiting[place].result(timeout=30).num_fresh for place in (0, 2)] == [1, 1]
    with pytest.raises(IntegrityError):
        waiting[1].result(timeout=30)
    assert writer.submit_one_of(intake.keep_all, arrived[1]).result(timeout=30).num_fresh == 1
    writer.close()
    with engine.connect() as connection:
        assert [row.device for row in _kept(connection)[0]] == ["a", "c", "b"]
