"""Which examples a version saw: shown on the device, committed to outside, forgotten with the device."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.core.errors import DataError
from fedretrain.edge import examples, lineage, personal
from fedretrain.edge.examples import Examples, Label, Origin, Prediction, Stream
from fedretrain.edge.lineage import Lineage, commitment, erase

STREAM = Stream("left", "vibration")
IDS = st.lists(st.text(max_size=5), max_size=6)


@pytest.fixture
def connection(tmp_path):
    opened = sqlite3.connect(tmp_path / "agent.db")
    opened.execute("pragma journal_mode = wal")
    examples.tables(opened)
    lineage.tables(opened)
    yield opened
    opened.close()


@given(IDS, IDS)
def test_a_commitment_is_to_the_set_of_ids_alone(one, other):
    salt = bytes(32)
    assert (commitment(salt, one) == commitment(salt, other)) == (set(one) == set(other))


def test_two_commitments_to_the_same_examples_do_not_look_alike(connection):
    kept = Lineage(connection, STREAM)
    first, second = kept.used("round 1", ["b", "a"], 1.0), kept.used("round 2", ["a", "b"], 2.0)
    assert first != second
    assert len(first) == 64
    assert kept.verify(first)
    assert kept.verify(second)


def test_the_device_shows_what_a_version_saw(connection):
    kept, other = Lineage(connection, STREAM), Lineage(connection, Stream("right", "vibration"))
    first = kept.used("c1", ["p2", "p1", "p1"], 1.0)
    kept.used("c2", ["p3"], 2.0)
    other.used("c1", ["q1"], 1.0)
    assert kept.of("sha256:v") == ()
    kept.came_of("c1", "sha256:v")
    (use,) = kept.of("sha256:v")
    assert (use.commitment, use.campaign, use.examples, use.at) == (first, "c1", ("p1", "p2"), 1.0)
    assert other.of("sha256:v") == ()
    with pytest.raises(DataError, match="'c9'"):
        kept.came_of("c9", "sha256:v")


def test_only_what_is_kept_here_opens_a_commitment(connection):
    kept = Lineage(connection, STREAM)
    told = kept.used("c1", ["p1"], 1.0)
    assert not kept.verify("0" * 64)
    assert not Lineage(connection, Stream("right", "vibration")).verify(told)
    connection.execute('update lineage set examples = \'["p1","p2"]\'')
    assert not kept.verify(told), "a list that was changed later"


def test_erasure_takes_everything_of_one_stream_from_every_file(connection, tmp_path):
    marker, stays = b"secret of left...secret of left.", b"secret of right..secret of right"
    origin = Origin("s", 0, "1", "p")
    for stream, content in ((STREAM, marker), (Stream("right", "vibration"), stays)):
        inputs = np.frombuffer(content, dtype="<f4").copy()
        buffer = Examples(connection, stream)
        buffer.add([Prediction("p1", 1.0, inputs, "v", 0, 1.0, 0.0, 0.1, origin)], now=1.0)
        buffer.label(Label("p1", 1, "user", 2.0))
        personal.save(tmp_path, stream, personal.Personal({"head.bias": inputs}, "v", 1.0))
        told = Lineage(connection, stream).used("c1", [content.decode()], 2.0)
    told = Lineage(connection, STREAM).used("c2", [marker.decode()], 2.0)

    def holding(content):
        return [file for file in tmp_path.iterdir() if content in file.read_bytes()]

    assert len(holding(marker)) >= 2  # the personal file, and the database or its log
    erase(connection, STREAM, tmp_path)
    assert holding(marker) == []
    assert len(holding(stays)) == 2
    assert not Lineage(connection, STREAM).verify(told)
    assert personal.load(tmp_path, STREAM) is None
    assert connection.execute("select count(*) from labels").fetchone() == (1,)
    erase(connection, STREAM, tmp_path)


def test_what_any_training_here_was_given_is_seen(connection):
    kept, other = Lineage(connection, STREAM), Lineage(connection, Stream("right", "vibration"))
    assert kept.seen() == frozenset()
    kept.used("c1", ["p2", "p1"], 1.0)
    kept.used("c2", ["p3", "p1"], 2.0)
    other.used("c1", ["q1"], 1.0)
    assert kept.seen() == {"p1", "p2", "p3"}
