"""Whatever brokers bring, in whatever order and however often: counted once, or refused by name; nothing is raised."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

from fedretrain.server import fleet
from fedretrain.server.database import open_database
from fedretrain.server.fleet import Traits
from fedretrain.server.sources import keeping, tallies
from fedretrain.server.sources.config import Kafka, Mqtt
from fedretrain.server.sources.keeping import Batch, Kind, Message, Position
from fedretrain.server.tables import metadata, telemetry
from fedretrain.server.tables import sources as source_table
from tests.source_cases import NOW, SLOT_S, binner, counts_of, expected, message, watch

MQTT = Mqtt("plant", "p", samples="s/{device}", records="r/{device}", plain=True)
KAFKA = Kafka("lake", "p", samples="s", records="r", plain=True)
HOW = binner()
quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    made = open_database(f"sqlite:///{tmp_path_factory.mktemp('sources')}/server.db")
    yield made
    made.dispose()


def fresh(engine):
    """An empty database with one device of each kind."""
    with engine.begin() as connection:
        for table in metadata.sorted_tables:
            connection.execute(delete(table))
        fleet.enrol(connection, "p", "agent", "1", Traits(), 1.0)
    watch(engine, "a")


def told(engine, name):
    with engine.connect() as connection:
        said = json.loads(connection.scalar(select(source_table.c.counts).where(source_table.c.name == name)))
    return said.get("counted", 0), said.get("repeated", 0), sum(said["refused"].values())


@quick
@given(
    st.lists(
        st.tuples(
            st.sampled_from(Kind),
            st.sampled_from(["a", "agent", "ghost", "", "../x"]) | st.text(max_size=4),
            st.binary(max_size=60) | st.sampled_from([message(0), message(None), b"{}", b'{"rows": 1}']),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_nothing_that_is_brought_raises_and_each_message_has_one_fate(engine, brought):
    fresh(engine)
    messages = [Message(kind, device, payload) for kind, device, payload in brought]
    with engine.begin() as connection:
        keeping.keep(connection, Batch(MQTT, messages, HOW, NOW))
    assert sum(told(engine, "plant")) == len(messages)


@quick
@given(st.lists(st.integers(0, 12), min_size=1, max_size=30), st.integers(1, 7))
def test_numbered_messages_count_once_in_any_order(engine, sequences, size):
    fresh(engine)
    for first in range(0, len(sequences), size):
        messages = [Message(Kind.SAMPLES, "a", message(n)) for n in sequences[first : first + size]]
        with engine.begin() as connection:
            keeping.keep(connection, Batch(MQTT, messages, HOW, NOW))
            tallies.flush(connection, "p", SLOT_S, NOW)
    with engine.connect() as connection:
        found = list(connection.scalars(select(telemetry.c.payload)))
    np.testing.assert_array_equal(counts_of(found, HOW), expected(HOW, set(sequences)))
    assert told(engine, "plant")[0] == len(set(sequences))


@quick
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), min_size=1, max_size=12))
def test_offsets_that_are_read_again_count_once(engine, reads):
    """Each read begins at or before where the database stands, as one does after a crash."""
    fresh(engine)
    end = 0
    for first, size in reads:
        begin = min(first, end)
        offsets = range(begin, begin + size)
        messages = [Message(Kind.SAMPLES, "a", message(None, 1), Position("s", 0, n)) for n in offsets]
        with engine.begin() as connection:
            keeping.keep(connection, Batch(KAFKA, messages, HOW, NOW))
        end = max(end, begin + size)
    assert told(engine, "lake")[0] == end
