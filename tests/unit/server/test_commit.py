"""Group commit: what is promised is on the disk, and a change that fails fails alone."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import func, select

from fedretrain.server.commit import MAX_ROWS, GroupCommit
from fedretrain.server.event_log import append
from fedretrain.server.tables import events


def _append(stream):
    return lambda connection: append(connection, stream, [{}], at=0.0).counter


def _count(engine):
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(events))


def test_results_come_back_in_order(engine):
    writer = GroupCommit(engine)
    futures = [writer.submit(_append("a")) for _ in range(50)]
    assert [future.result(timeout=30) for future in futures] == list(range(1, 51))
    writer.close()
    assert _count(engine) == 50


def test_a_change_that_fails_is_undone_alone(engine):
    def broken(connection):
        append(connection, "a", [{}, {}], at=0.0)
        raise ValueError("no")

    writer = GroupCommit(engine)
    # Held together in one group by a change that waits until all were handed in.
    ready = threading.Event()
    first = writer.submit(lambda _connection: ready.wait(timeout=30))
    good, bad, more = writer.submit(_append("a")), writer.submit(broken), writer.submit(_append("a"))
    ready.set()
    assert first.result(timeout=30)
    assert (good.result(timeout=30), more.result(timeout=30)) == (1, 2)
    with pytest.raises(ValueError, match="no"):
        bad.result(timeout=30)
    writer.close()
    assert _count(engine) == 2


def test_changes_of_one_kind_are_made_together_at_the_place_of_the_first(engine):
    made = []

    def kind(_connection, items):
        made.append(list(items))
        return [10 * item for item in items]

    def other(_connection, items):
        made.append([*items, "other"])
        return items

    writer, ready = GroupCommit(engine), threading.Event()
    first = writer.submit(lambda _connection: ready.wait(timeout=30))
    futures = [
        writer.submit_one_of(kind, 1),
        writer.submit(lambda _connection: made.append("alone")),
        writer.submit_one_of(other, 2),
        writer.submit_one_of(kind, 3),
    ]
    gone = writer.submit_one_of(kind, 4)
    assert gone.cancel()
    ready.set()
    assert first.result(timeout=30)
    assert [future.result(timeout=30) for future in futures] == [10, None, 2, 30]
    assert made == [[1, 3], "alone", [2, "other"]]
    writer.close()


def test_long_backlogs_are_spread_over_transactions(engine):
    made = []

    def kind(_connection, items):
        made.append(list(items))
        return items

    writer, ready = GroupCommit(engine), threading.Event()
    first = writer.submit(lambda _connection: ready.wait(timeout=30))
    futures = [writer.submit_one_of(kind, number, num_rows=MAX_ROWS // 2) for number in range(5)]
    ready.set()
    assert first.result(timeout=30)
    assert [future.result(timeout=30) for future in futures] == list(range(5))
    writer.close()
    assert [number for group in made for number in group] == list(range(5))
    assert max(len(group) for group in made) == 2


def test_whose_fault_it_was_is_found_out_by_making_each_alone(engine):
    def kind(connection, items):
        counters = [append(connection, "a", [{}], at=0.0).counter for _ in items]
        if "bad" in items:
            raise ValueError("no")
        return counters

    writer, ready = GroupCommit(engine), threading.Event()
    first = writer.submit(lambda _connection: ready.wait(timeout=30))
    good, bad, more = (writer.submit_one_of(kind, word) for word in ("good", "bad", "good"))
    ready.set()
    assert first.result(timeout=30)
    assert (good.result(timeout=30), more.result(timeout=30)) == (1, 2)
    with pytest.raises(ValueError, match="no"):
        bad.result(timeout=30)
    writer.close()
    assert _count(engine) == 2


def test_closing_commits_what_waits(engine):
    writer = GroupCommit(engine)
    futures = [writer.submit(_append("a")) for _ in range(20)]
    writer.close()
    writer.close()
    assert all(future.done() for future in futures)
    assert _count(engine) == 20


def test_who_hangs_up_while_waiting_stops_nobody_else(engine):
    writer = GroupCommit(engine)
    ready = threading.Event()
    first = writer.submit(lambda _connection: ready.wait(timeout=30))
    gone, good = writer.submit(_append("a")), writer.submit(_append("b"))
    assert gone.cancel()
    ready.set()
    assert first.result(timeout=30)
    assert good.result(timeout=30) == 1
    assert writer.submit(_append("b")).result(timeout=30) == 2
    writer.close()
    assert _count(engine) == 2


def test_what_is_being_written_cannot_be_cancelled(engine):
    writer = GroupCommit(engine)
    begun, ready = threading.Event(), threading.Event()

    def slow(connection):
        begun.set()
        ready.wait(timeout=30)
        return _append("a")(connection)

    first = writer.submit(slow)
    assert begun.wait(timeout=30)
    assert not first.cancel()
    ready.set()
    assert first.result(timeout=30) == 1
    writer.close()


def test_a_database_that_cannot_begin_fails_everybody_who_waits(engine, monkeypatch):
    writer = GroupCommit(engine)

    def full():
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "begin", full)
        with pytest.raises(OSError, match="the disk is full"):
            writer.submit(_append("a")).result(timeout=30)
    assert writer.submit(_append("a")).result(timeout=30) == 1
    writer.close()
