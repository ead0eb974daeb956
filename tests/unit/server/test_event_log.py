"""The event log: chains, fences and leases, on each kind of database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import delete, func, inspect, select, text, update

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.server.database import open_database, reading
from fedretrain.server.event_log import ConflictError, EventLog, FencedError, append
from fedretrain.server.tables import events, metadata

if TYPE_CHECKING:
    from sqlalchemy import Engine


@pytest.fixture
def log(engine: Engine) -> EventLog:
    return EventLog(engine)


def test_what_was_appended_is_read_in_order(log: EventLog) -> None:
    log.append("a", [{"n": 1}, {"n": 2}], at=1.0)
    head = log.append("a", [{"n": 3}], at=2.0)
    assert [entry.record["n"] for entry in log.read("a")] == [1, 2, 3]
    assert [entry.number for entry in log.read("a", after=1)] == [2, 3]
    assert log.head("a") == head
    assert head.counter == 3


def test_streams_are_apart(log: EventLog) -> None:
    log.append("a", [{}], at=0.0)
    log.append("b", [{}, {}], at=0.0)
    assert (log.head("a").counter, log.head("b").counter, log.head("c").counter) == (1, 2, 0)
    assert log.streams() == ("a", "b")
    assert [log.num_records(some) for some in ("ab", "b", "c", "")] == [3, 2, 0, 0]


def test_a_reopened_log_goes_on(database_url: str) -> None:
    first = EventLog(open_database(database_url))
    first.append("a", [{"n": 1}], at=0.5)
    first.engine.dispose()
    again = EventLog(open_database(database_url))
    again.append("a", [{"n": 2}], at=1.0, after=1)
    assert [(entry.at, entry.record["n"]) for entry in again.read("a")] == [(0.5, 1), (1.0, 2)]


def test_an_append_after_an_old_head_writes_nothing(log: EventLog) -> None:
    log.append("a", [{}], at=0.0)
    with pytest.raises(ConflictError, match="has 1 records, not 0"):
        log.append("a", [{}], at=0.0, after=0)
    assert log.head("a").counter == 1


@pytest.mark.parametrize("change", ["record", "at", "gone"])
def test_a_changed_record_is_found(log: EventLog, change: str) -> None:
    log.append("a", [{"n": 1}, {"n": 2}, {"n": 3}], at=1.0)
    second = (events.c.stream == "a") & (events.c.number == 2)
    with log.engine.begin() as connection:
        if change == "gone":
            connection.execute(delete(events).where(second))
        else:
            connection.execute(
                update(events).where(second).values({change: '{"n":9}' if change == "record" else 7.0})
            )
    with pytest.raises(DataError, match="record 2 of the event log"):
        list(log.read("a"))


def test_what_is_no_json_number_is_refused_whole(log: EventLog) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        log.append("a", [{"n": 1}, {"n": float("nan")}], at=0.0)
    assert log.head("a").counter == 0


def test_a_lease_has_one_holder(log: EventLog) -> None:
    mine = log.acquire("leader", "one", now=0.0, ttl_s=10.0)
    assert mine is not None
    assert log.acquire("leader", "two", now=5.0, ttl_s=10.0) is None
    assert log.acquire("leader", "one", now=9.0, ttl_s=10.0) == mine
    assert log.acquire("leader", "two", now=18.0, ttl_s=10.0) is None


def test_who_lost_the_lease_appends_nothing(log: EventLog) -> None:
    old = log.acquire("leader", "one", now=0.0, ttl_s=10.0)
    new = log.acquire("leader", "two", now=10.0, ttl_s=10.0)
    assert old is not None
    assert new is not None
    assert new.token > old.token
    with pytest.raises(FencedError):
        log.append("a", [{}], at=0.0, fence=old)
    log.append("a", [{}], at=0.0, fence=new)
    assert log.head("a").counter == 1


def test_a_holder_whose_lease_ran_out_comes_back_with_another_token(log: EventLog) -> None:
    first = log.acquire("leader", "one", now=0.0, ttl_s=10.0)
    again = log.acquire("leader", "one", now=11.0, ttl_s=10.0)
    assert first is not None
    assert again is not None
    assert again.token == first.token + 1


def test_a_lease_of_a_clock_that_was_far_ahead_keeps_nobody_waiting(log: EventLog) -> None:
    old = log.acquire("leader", "one", now=1e9, ttl_s=10.0)
    assert (
        log.acquire("leader", "two", now=1e9 - 50.0, ttl_s=10.0) is None
    )  # two machines' clocks may be so far apart
    new = log.acquire("leader", "two", now=0.0, ttl_s=10.0)
    assert old is not None
    assert new is not None
    with pytest.raises(FencedError):
        log.append("a", [{}], at=0.0, fence=old)


def test_a_lease_given_back_is_free(log: EventLog) -> None:
    mine = log.acquire("leader", "one", now=0.0, ttl_s=10.0)
    assert mine is not None
    log.release(mine)
    assert log.acquire("leader", "two", now=1.0, ttl_s=10.0) is not None
    with pytest.raises(FencedError):
        log.append("a", [{}], at=0.0, fence=mine)


def test_migrations_make_the_tables_of_this_release(engine: Engine) -> None:
    made = _tables(engine)
    assert made.pop("alembic_version")
    with engine.begin() as connection:
        for name in (*made, "alembic_version"):
            connection.execute(text(f"DROP TABLE {name}"))
    metadata.create_all(engine)
    assert made == _tables(engine)


def _tables(engine: Engine) -> dict[str, list[object]]:
    """What is there, by table: columns, keys and indexes, without their names."""
    found = inspect(engine)
    return {
        name: [
            [
                (c["name"], str(c["type"]), c["nullable"], c.get("autoincrement"))
                for c in found.get_columns(name)
            ],
            found.get_pk_constraint(name)["constrained_columns"],
            sorted(unique["column_names"] for unique in found.get_unique_constraints(name)),
            sorted((index["column_names"], index["unique"]) for index in found.get_indexes(name)),
        ]
        for name in found.get_table_names()
    }


@pytest.mark.parametrize("url", ["nonsense", "mysql://a/b", "postgresql+asyncpg://a/b"])
def test_another_database_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="database"):
        open_database(url)


def test_a_database_that_cannot_be_opened_is_named() -> None:
    with pytest.raises(DataError, match="cannot be opened"):
        open_database("sqlite:////nowhere/at/all/log.db")


def test_who_reads_neither_waits_for_a_writer_nor_keeps_one(engine: Engine) -> None:
    log = EventLog(engine)
    log.append("a", [{}], at=0.0)
    with engine.begin() as writing:
        append(writing, "a", [{}], at=1.0)
        assert log.head("a").counter == 1  # at once, though somebody writes
    with reading(engine) as looking:
        seen = select(func.count()).select_from(events)
        assert looking.scalar(seen) == 2
        log.append("a", [{}], at=2.0)  # at once, though somebody looks
        assert looking.scalar(seen) == 2  # one state of the database
    assert log.head("a").counter == 3
