from __future__ import annotations

import json

import pytest

from fedretrain.core.errors import DataError
from fedretrain.wire.inbox import MAX_BOOTS, Inbox, receive
from fedretrain.wire.sequence import (
    MAX_NUMBER,
    MAX_SPANS,
    Arrival,
    Gap,
    Key,
    Priority,
    Received,
    accept,
    drop,
)

FRESH, REPEATED, REFUSED, STALE = Arrival


def key(boot=1, sequence=0, priority=Priority.KPIS):
    return Key("a" * 32, boot, priority, sequence)


def test_late_is_told_from_lost():
    state = Received()
    for sequence in (0, 1, 5, 9):
        state, _ = accept(state, sequence)
    assert state.late == ((2, 4), (6, 8))
    state, arrival, lost = drop(state, 0, 6)
    assert (arrival, lost) == (FRESH, ((2, 4), (6, 6)))
    assert state.late == ((7, 8),)
    assert (state.num_received, state.num_dropped) == (4, 4)
    assert accept(state, 3) == (state, REPEATED)
    assert drop(state, 2, 6) == (state, REPEATED, ())


@pytest.mark.parametrize("sequence", [-1, MAX_NUMBER + 1])
def test_impossible_numbers_are_refused(sequence):
    state = Received()
    assert accept(state, sequence) == (state, REFUSED)
    assert drop(state, sequence, sequence) == (state, REFUSED, ())
    assert drop(state, 3, 2) == (state, REFUSED, ())


def test_a_device_that_sends_odd_numbers_only_is_refused_at_the_bound():
    state, arrivals = Received(), []
    for sequence in range(1, 10_000, 2):
        state, arrival = accept(state, sequence)
        arrivals.append(arrival)
    assert arrivals == [FRESH] * MAX_SPANS + [REFUSED] * (5_000 - MAX_SPANS)
    assert drop(state, 10**6, 10**6) == (state, REFUSED, ())
    assert len(json.dumps(state.to_dict())) < 20 * MAX_SPANS
    state, arrival = accept(state, 0)
    assert arrival is FRESH
    state, arrival, _ = drop(state, 0, MAX_NUMBER)
    assert (arrival, state.settled) == (FRESH, ((0, MAX_NUMBER),))
    assert Received.from_dict(json.loads(json.dumps(state.to_dict()))) == state


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"settled": [[0, 1]], "num_received": 1, "num_dropped": 0},
        {"settled": [[0, 0], [1, 1]], "num_received": 2, "num_dropped": 0},
        {"settled": [[3, 2]], "num_received": 0, "num_dropped": 0},
        {"settled": [[0, True]], "num_received": 2, "num_dropped": 0},
        {"settled": [[0, 0.5]], "num_received": 1, "num_dropped": 0},
        {
            "settled": [[2 * n, 2 * n] for n in range(MAX_SPANS + 1)],
            "num_received": MAX_SPANS + 1,
            "num_dropped": 0,
        },
    ],
)
def test_a_state_that_contradicts_itself_is_refused(record):
    with pytest.raises(DataError, match="not a receiver's state"):
        Received.from_dict(record)


def test_streams_are_apart():
    keys = [key(1), key(2), key(1, priority=Priority.LABELS), key(1), key(1, 1)]
    inbox, receipt = receive(Inbox(), 1, keys)
    assert receipt.records == (FRESH, FRESH, FRESH, REPEATED, FRESH)
    assert set(inbox.streams) == {(1, Priority.KPIS), (2, Priority.KPIS), (1, Priority.LABELS)}
    assert Inbox.from_dict(json.loads(json.dumps(inbox.to_dict()))) == inbox


def test_starts_that_are_done_with_are_forgotten_and_what_was_late_is_counted():
    inbox, _ = receive(Inbox(), 1, [key(1, 0), key(1, 3), key(2, 1)])
    inbox, receipt = receive(inbox, 2, [key(1, 1), key(2, 0)], [Gap("a" * 32, 1, Priority.KPIS, 1, 1)])
    assert (receipt.records, receipt.gaps, receipt.lost) == ((STALE, FRESH), (STALE,), ((),))
    assert (inbox.oldest_boot, inbox.num_late_forgotten) == (2, 2)
    assert set(inbox.streams) == {(2, Priority.KPIS)}
    late, receipt = receive(inbox, 1, [key(2, 5)])
    assert late.oldest_boot == 2, "a message that was overtaken"
    assert receipt.records == (FRESH,)


def test_more_starts_than_a_device_keeps_are_refused():
    inbox, receipt = receive(Inbox(), 0, [key(boot) for boot in range(MAX_BOOTS + 5)])
    assert receipt.records == (FRESH,) * MAX_BOOTS + (REFUSED,) * 5
    assert len(inbox.streams) == MAX_BOOTS
    refused = (key(0, -1), key(-1), key(MAX_NUMBER + 1))
    assert receive(inbox, 0, refused)[1].records == (REFUSED,) * 3
    assert receive(inbox, 0, [key(5, 1, Priority.LABELS)])[1].records == (FRESH,)
    inbox, receipt = receive(inbox, 10, [key(MAX_BOOTS + 1)])
    assert receipt.records == (FRESH,)
    assert receive(inbox, MAX_NUMBER + 1, [])[0].oldest_boot == 10


def test_an_inbox_that_is_none_is_refused():
    for record in ({}, {"oldest_boot": 1, "streams": [[1, 9, {}]], "num_late_forgotten": 0}):
        with pytest.raises(DataError, match="not a receiver's state"):
            Inbox.from_dict(record)
