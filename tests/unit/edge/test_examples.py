"""The device's buffer: what was predicted, what was said about it, and what may be trained on."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import numpy as np
import pytest

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.edge.counts import Counter
from fedretrain.edge.example_reads import Reads
from fedretrain.edge.examples import Examples, Label, Origin, Prediction, Room, Stream, tables
from fedretrain.monitoring.bins import fit_bins
from fedretrain.training.keep import BlendConfig

ORIGIN = Origin("accelerometer-7", 2, "1.4.0", "prep-3")
STREAM = Stream("left-pump", "vibration")


@pytest.fixture
def connection(tmp_path):
    opened = sqlite3.connect(tmp_path / "agent.db")
    opened.execute("pragma journal_mode = wal")
    tables(opened)
    yield opened
    opened.close()


def prediction(number, at=None, **changed):
    values = {
        "id": f"p{number}",
        "at": float(number) if at is None else at,
        "inputs": np.full((2, 3), number, np.float32),
        "version": "sha256:a",
        "predicted": number % 2,
        "confidence": 0.9,
        "entropy": 0.2,
        "latency_s": 0.001,
        "origin": ORIGIN,
    }
    return Prediction(**{**values, **changed})


def filled(connection, num=20, stream=STREAM, room=None):
    examples = Examples(connection, stream, room)
    examples.add([prediction(n) for n in range(num)], now=float(num))
    return examples


def effective(examples, now=1000.0):
    ids, data = examples.labelled(now, "prep-3")
    return dict(zip(ids, data.y.tolist(), strict=True))


def test_inputs_come_back_as_they_were_in_the_order_of_time(connection):
    examples = Examples(connection, STREAM)
    rng = np.random.default_rng(0)
    inputs = {f"p{n}": rng.normal(size=(2, 3)).astype(np.float32) for n in range(5)}
    examples.add([prediction(n, at=10.0 - n, inputs=inputs[f"p{n}"]) for n in range(5)], now=10.0)
    for n in range(5):
        examples.label(Label(f"p{n}", n, "user", 11.0))
    ids, data = examples.labelled(12.0, "prep-3")
    assert ids == ("p4", "p3", "p2", "p1", "p0")
    assert data.y.tolist() == [4, 3, 2, 1, 0]
    assert data.y.dtype == np.int64
    assert (data.x == np.stack([inputs[i] for i in ids])).all()
    assert data.x.dtype == np.float32


def test_a_label_for_what_never_was_is_refused_by_name(connection):
    examples = filled(connection)
    with pytest.raises(DataError, match=r"no prediction or sample 'p99' \[labels of left-pump/vibration\]"):
        examples.label(Label("p99", 1, "user", 1.0))
    assert connection.execute("select count(*) from labels").fetchone() == (0,)


@pytest.mark.parametrize("source", ["guess", "heuristic", "heuristic:", ""])
def test_a_source_without_a_name_is_refused(connection, source):
    with pytest.raises(DataError, match=r"label\.source"):
        filled(connection).label(Label("p1", 1, source, 1.0))


def test_the_last_word_counts_and_all_words_are_kept(connection):
    examples = filled(connection)
    said = [Label("p1", 0, "user", 1.0), Label("p1", 1, "api", 2.0), Label("p1", 3, "user", 1.5, 0.7)]
    for label in said:
        examples.label(label)
    assert effective(examples) == {"p1": 3}
    assert examples.history("p1") == tuple(said)


def test_a_heuristic_never_overrides_a_person(connection):
    examples = filled(connection)
    examples.label(Label("p1", 0, "heuristic:timeout", 1.0))
    assert effective(examples) == {"p1": 0}
    examples.label(Label("p1", 1, "user", 2.0))
    examples.label(Label("p1", 2, "heuristic:timeout", 3.0))
    assert effective(examples) == {"p1": 1}
    examples.label(Label("p1", None, "heuristic:timeout", 4.0))
    assert effective(examples) == {"p1": 1}, "nor withdraws what a person said"
    examples.label(Label("p1", None, "user", 5.0))
    assert effective(examples) == {}, "a person's withdrawal brings no heuristic back"
    examples.label(Label("p1", 2, "api", 6.0))
    assert effective(examples) == {"p1": 2}


def test_a_label_of_a_sample_is_for_all_its_predictions(connection):
    examples = Examples(connection, STREAM)
    examples.add([prediction(n, sample="s1" if n < 2 else "s2") for n in range(3)], now=3.0)
    assert examples.label(Label("s1", 1, "api", 4.0)) == ("p0", "p1")
    assert effective(examples) == {"p0": 1, "p1": 1}


def test_streams_never_mix(connection):
    one, other = filled(connection), filled(connection, stream=Stream("right-pump", "vibration"))
    one.label(Label("p1", 1, "user", 1.0))
    assert effective(other) == {}
    one.erase()
    other.label(Label("p2", 1, "user", 1.0))
    assert effective(other) == {"p2": 1}
    with pytest.raises(DataError, match="p2"):
        one.label(Label("p2", 1, "user", 1.0))


def test_an_id_is_used_once_and_a_bad_batch_leaves_nothing(connection):
    examples = filled(connection, 2)
    for bad in (prediction(1), prediction(3, inputs=np.array([np.nan], np.float32))):
        with pytest.raises(DataError, match=bad.id):
            examples.add([prediction(2), bad], now=3.0)
    assert connection.execute("select count(*) from predictions").fetchone() == (2,)


def kept(connection):
    return {row[0] for row in connection.execute("select id from predictions")}


def test_the_buffer_is_bounded_by_rows_and_keeps_labels_before_bare_predictions(connection):
    examples = filled(connection, 10, room=Room(rows=10))
    for n in range(4):
        examples.label(Label(f"p{n}", 1, "user", 1.0))
    examples.add([prediction(n) for n in range(10, 14)], now=14.0)
    assert kept(connection) == {f"p{n}" for n in (*range(4), *range(8, 14))}
    for n in range(8, 14):
        examples.label(Label(f"p{n}", 1, "user", 1.0))
    examples.add([prediction(n) for n in range(14, 17)], now=17.0)
    assert kept(connection) == {f"p{n}" for n in (3, *range(8, 17))}, "bare ones have half of the room"


def test_the_buffer_is_bounded_by_bytes_and_by_age(connection):
    examples = Examples(connection, STREAM, Room(size_bytes=2**14, age_s=100.0))
    big = np.zeros(1000, np.float32)
    examples.add([prediction(n, inputs=big) for n in range(10)], now=10.0)
    assert kept(connection) == {"p7", "p8", "p9"}  # 4,400 bytes each
    examples.add([prediction(10, at=108.5)], now=108.5)
    assert kept(connection) == {"p9", "p10"}
    size = connection.execute("select sum(size) from predictions").fetchone()[0]
    assert size <= 2**14
    with pytest.raises(ConfigError, match=r"examples\.rows"):
        Room(rows=1)


def test_deleting_a_prediction_deletes_its_labels(connection):
    examples = filled(connection, 4, room=Room(rows=4))
    examples.label(Label("p0", 1, "user", 1.0))
    examples.add([prediction(n) for n in range(1000, 1010)], now=1e9)
    assert connection.execute("select count(*) from labels").fetchone() == (0,)


def test_the_newest_labelled_part_is_held_out(connection):
    examples = filled(connection)
    for n in range(0, 20, 2):
        examples.label(Label(f"p{n}", n % 3, "user", 100.0))
    config = BlendConfig(holdout_fraction=0.3, min_holdout=3)
    assert examples.trainable(99.0, config, "prep-3") is None, "labels that have not come yet"
    found = examples.trainable(100.0, config, "prep-3")
    assert found.fit_ids == tuple(f"p{n}" for n in range(0, 14, 2))
    assert found.fit.x[:, 0, 0].tolist() == list(range(0, 14, 2))
    assert found.held.x[:, 0, 0].tolist() == [14, 16, 18]
    assert found.held.y.tolist() == [2, 1, 0]
    assert examples.trainable(100.0, config, "prep-4") is None


def test_unsure_labels_can_be_left_out(connection):
    examples = filled(connection)
    examples.label(Label("p1", 1, "heuristic:h", 1.0, confidence=0.4))
    examples.label(Label("p2", 1, "user", 1.0))
    assert examples.labelled(2.0, "prep-3", min_confidence=0.5)[0] == ("p2",)


def test_shapes_of_one_preprocessing_may_not_differ(connection):
    examples = Examples(connection, STREAM)
    examples.add([prediction(1), prediction(2, inputs=np.zeros(4, np.float32))], now=3.0)
    examples.label(Label("p1", 1, "user", 3.0))
    examples.label(Label("p2", 1, "user", 3.0))
    with pytest.raises(DataError, match="differ in shape"):
        examples.labelled(4.0, "prep-3")


def test_erased_inputs_are_in_no_file(connection, tmp_path):
    examples = Examples(connection, STREAM)
    marker = np.frombuffer(b"a device's own secret sample....", dtype="<f4")
    examples.add([prediction(1, inputs=marker)], now=1.0)
    files = list(tmp_path.iterdir())
    assert any(marker.tobytes() in file.read_bytes() for file in files)
    examples.erase()
    assert not any(marker.tobytes() in file.read_bytes() for file in tmp_path.iterdir())


def test_erasure_says_when_a_reader_keeps_the_old_content(connection, tmp_path):
    examples = filled(connection)
    connection.execute("pragma busy_timeout = 1")
    reader = sqlite3.connect(tmp_path / "agent.db", isolation_level=None)
    reader.execute("begin")
    assert reader.execute("select count(*) from predictions").fetchone() == (20,)
    with pytest.raises(DataError, match="being read"):
        examples.erase()
    reader.close()
    examples.erase()


BINS = fit_bins(np.random.default_rng(0).normal(size=(200, 6)), [f"f{i}" for i in range(6)])
COUNTER = Counter(4, BINS, 3, 10.0, {"sha256:a": 1, "sha256:b": 2})


def test_telemetry_has_a_row_for_each_release_of_a_slot(connection):
    examples = Examples(connection, STREAM)
    examples.add([prediction(n, version="sha256:b" if n >= 15 else "sha256:a") for n in range(20)], now=20.0)
    made = COUNTER.telemetry(examples, 1, 21.0)
    assert (made.device_K.tolist(), made.slot_K.tolist(), made.version_K.tolist()) == ([4, 4], [1, 1], [1, 2])
    assert made.num_predictions.tolist() == [5, 5]
    assert made.features_KFC.sum() == 10 * 6
    assert COUNTER.telemetry(examples, 2, 21.0) is None


def test_each_label_is_counted_once_in_the_slot_of_its_prediction(connection):
    examples = filled(connection)
    for n in (3, 4, 12):
        examples.label(Label(f"p{n}", 1, "user", 500.0))
    rows, numbers = COUNTER.labels(examples, 600.0)
    assert rows.slot_K.tolist() == [0, 1]
    assert rows.num_labelled.tolist() == [2, 1]
    assert rows.confusion_KMM[0].tolist() == [[0, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert rows.delay_KD[:, 1].tolist() == [2, 1]  # between a minute and ten
    assert COUNTER.labels(examples, 600.0) is not None, "until somebody says that they are kept"
    examples.reported(numbers)
    assert COUNTER.labels(examples, 600.0) is None
    examples.label(Label("p3", 2, "user", 700.0))
    assert COUNTER.labels(examples, 800.0) is None, "a correction stays on the device"


def test_counts_of_an_unknown_release_or_class_are_refused(connection):
    examples = Examples(connection, STREAM)
    examples.add([prediction(1, version="sha256:x"), prediction(2)], now=2.0)
    with pytest.raises(DataError, match="sha256:x"):
        COUNTER.telemetry(examples, 0, 3.0)
    examples.label(Label("p2", 3, "user", 3.0))
    with pytest.raises(DataError, match="3 classes"):
        COUNTER.labels(examples, 4.0)


def held(connection, **asked):
    plain = {"known_at": 1000.0, "learnt_at": 0.0, "min_confidence": 0.0, "without": (), "most": 100}
    return Reads(connection, STREAM).held(0.0, 1000.0, "prep-3", **{**plain, **asked})


def test_held_rows_are_the_newest_labelled_ones_of_a_period_in_the_order_of_time(connection):
    examples = filled(connection)
    examples.add([prediction(30, origin=replace(ORIGIN, preprocessing="prep-4"))], now=30.0)
    filled(connection, stream=Stream("right-pump", "vibration"))
    assert held(connection) is None
    for n in (3, 9, 5, 7, 30):
        examples.label(Label(f"p{n}", n % 3, "user", 100.0 + n, confidence=0.1 * n if n < 10 else 1.0))
    found = held(connection)
    assert found.at_N.tolist() == [3.0, 5.0, 7.0, 9.0]
    assert found.label_at_N.tolist() == [103.0, 105.0, 107.0, 109.0]
    assert found.y.tolist() == [0, 2, 1, 0]
    assert found.x[:, 0, 0].tolist() == [3.0, 5.0, 7.0, 9.0]
    assert (found.x.shape, found.x.dtype) == ((4, 2, 3), np.float32)
    for asked, at in (
        ({"known_at": 106.0}, [3.0, 5.0]),
        ({"learnt_at": 105.0}, [7.0, 9.0]),
        ({"min_confidence": 0.6}, [7.0, 9.0]),
        ({"without": {"p3", "p9"}}, [5.0, 7.0]),
        ({"most": 2}, [7.0, 9.0]),
        ({"without": {"p9"}, "most": 1}, [7.0]),
    ):
        assert held(connection, **asked).at_N.tolist() == at
    assert Reads(connection, STREAM).held(
        5.0, 9.0, "prep-3", known_at=1e9, learnt_at=0.0, min_confidence=0.0, without=(), most=9
    ).at_N.tolist() == [5.0, 7.0]
