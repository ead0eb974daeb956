import json

import numpy as np
import pytest

from fedretrain.core.errors import DataError
from fedretrain.core.types import FailureKind
from fedretrain.wire.fleet_log import (
    AskedInRound,
    Failed,
    Header,
    Labelled,
    Offline,
    Online,
    Predicted,
    Refusal,
    Replied,
    Telemetered,
    write_log,
)
from sim.fleetlog.reader import read_log

HEADER = Header(3, (0, 0, 1), (0, 1, 0), ("a", "b"), ("x", "y"), 0.0, 36_000.0, 3600.0, 600.0)
EVENTS = (
    Online(0, 0.0),
    Offline(1, 0.0),
    Online(2, 0.0),
    Online(1, 3600.0),
    Offline(0, 7200.0),
    AskedInRound(0, 3600.0, 1),
    AskedInRound(1, 3600.0, 1),
    Replied(0, 3602.0, 1, 2.0, 0.5, 1.0, 0.4, 400, 400, 12),
    Failed(1, 4200.0, 1, FailureKind.DROPPED),
    Predicted(0, 3600.0, 0.0, 5),
    Labelled(0, 5000.0, 100.0, 1),
    Telemetered(2, 36_000.0, 0.0, 40, 100, (0.0, 1.0), (0.1, None), (0.0, None), (0.0, 1.0)),
)


def lines(path):
    return path.read_text().splitlines()


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "fleet.jsonl"
    write_log(found, HEADER, EVENTS)
    return found


def test_what_is_written_is_read_back(path):
    log = read_log(path)
    assert log.header == HEADER
    assert log.refused == {}
    assert log.replies.latency_s.tolist() == [2.0]
    assert log.failures.reason.tolist() == ["dropped"]
    assert log.arrivals.predicted_at.tolist() == [100.0]
    assert np.isnan(log.telemetry.shift[0, 1])
    assert log.telemetry.shift[0, 0] == 0.1


def test_events_are_written_in_order_of_time_and_the_digest_is_the_files(tmp_path):
    path = tmp_path / "deep" / "fleet.jsonl"
    digest = write_log(path, HEADER, EVENTS[::-1])
    at = [json.loads(line)["at"] for line in lines(path)[1:]]
    assert at == sorted(at)
    assert digest == read_log(path).digest
    assert [one.name for one in path.parent.iterdir()] == ["fleet.jsonl"]


def test_connections_are_held_until_they_change(path):
    log = read_log(path)
    assert log.online().sum(axis=1).tolist() == [2, 9, 10]
    late = log.window(18_000.0, 36_000.0)
    # The state at the window's beginning is known from before it.
    assert late.online().all(axis=1).tolist() == [False, True, True]
    assert late.online().shape == (3, 5)


def test_a_window_knows_nothing_of_what_came_later(path):
    early = read_log(path).window(0.0, 4000.0)
    assert len(early.asked) == 2
    assert len(early.replies) == 1
    assert len(early.failures) == 0, "the coordinator learns of a drop-out at the deadline"
    assert len(early.arrivals) == 0
    assert len(early.predictions) == 1


def test_some_devices_are_numbered_anew(path):
    log = read_log(path).of_devices(np.array([False, True, True]))
    assert log.header.device_type == (1, 0)
    assert log.failures.device.tolist() == [0]
    assert log.telemetry.device.tolist() == [1]
    assert len(log.replies) == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"kind": "online", "device": 0', "not a JSON object"),
        ("[1, 2]", "not a JSON object"),
        ('{"kind": "onlien", "device": 0, "at": 1.0}', "there is no event 'onlien'"),
        ('{"kind": "online", "device": 0}', "the field 'at' is missing"),
        ('{"kind": "online", "device": "0", "at": 1.0}', "a value of type int was expected"),
        ('{"kind": "online", "device": 0, "at": 1.0, "truth": 1}', "there is no key 'truth'"),
        (
            '{"kind": "failed", "device": 0, "at": 1.0, "round": 0, "reason": "bored"}',
            "'bored' is not one of",
        ),
    ],
)
def test_a_line_that_is_not_of_the_format_is_one_line_of_error(path, line, said):
    broken = lines(path)
    broken.insert(3, line)
    path.write_text("\n".join(broken))
    with pytest.raises(DataError) as caught:
        read_log(path)
    text = str(caught.value)
    assert said in text
    assert f"{path}:4" in text
    assert " - " in text, "it says how to mend it"
    assert "\n" not in text


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("", "the log is empty"),
        ('{"kind": "online", "device": 0, "at": 1.0}', "not the header"),
        ('{"kind": "header", "format": "fedretrain.fleetlog", "version": 99}', "version 99"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path, first, said):
    path = tmp_path / "fleet.jsonl"
    path.write_text(first)
    with pytest.raises(DataError, match=said):
        read_log(path)


def test_a_log_that_is_not_there_says_so(tmp_path):
    with pytest.raises(DataError, match="the log cannot be read"):
        read_log(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (Online(3, 10.0), Refusal.UNKNOWN_DEVICE),
        (Online(0, 99_000.0), Refusal.OUTSIDE_LOG),
        (Online(0, 0.0), Refusal.DUPLICATE),
        (Predicted(0, 7200.0, 3600.0, -5), Refusal.NEGATIVE),
        (Replied(0, 3602.0, 1, 3.0, 0.5, 1.0, 0.4, 400, 400, 12), Refusal.DUPLICATE),
        (Replied(2, 3602.0, 1, 2.0, 0.5, 1.0, 0.4, 400, 400, 12), Refusal.NEVER_ASKED),
        (Failed(2, 3602.0, 7, FailureKind.DROPPED), Refusal.NEVER_ASKED),
        (Labelled(0, 100.0, 5000.0, 1), Refusal.LABEL_BEFORE_PREDICTION),
        (Labelled(0, 20_000.0, 18_000.0, 1), Refusal.LABEL_WITHOUT_PREDICTION),
        (Labelled(1, 20_000.0, 100.0, 1), Refusal.LABEL_WITHOUT_PREDICTION),
        (Labelled(0, 5000.0, 101.0, 2), Refusal.UNKNOWN_CLASS),
        (Labelled(0, 5000.0, 101.0, 1, 2), Refusal.UNKNOWN_CLASS),
        (Predicted(0, 7200.0, 3600.0, 5, (4, 2)), Refusal.WRONG_CLASSES),
        (Predicted(0, 7200.0, 3600.0, 5, (5,)), Refusal.WRONG_CLASSES),
        (Telemetered(0, 100.0, 0.0, 4, 9, (0.0,), (0.0,), (0.0,), (0.0,)), Refusal.WRONG_CHANNELS),
    ],
)
def test_what_cannot_be_true_is_refused_by_name_counted_and_without_effect(path, event, reason):
    whole = read_log(path)
    write_log(path, HEADER, [*EVENTS, event])
    log = read_log(path)
    assert log.refused == {reason: 1}
    for table in ("connections", "asked", "replies", "failures", "predictions", "arrivals", "telemetry"):
        assert len(getattr(log, table)) == len(getattr(whole, table))


def test_a_number_that_is_not_finite_is_refused(path):
    path.write_text(path.read_text() + '{"kind": "online", "device": 0, "at": Infinity}\n')
    assert read_log(path).refused == {Refusal.NOT_FINITE: 1}
