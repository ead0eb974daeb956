"""What a file of SQLite gives for nothing and a PostgreSQL that many reach does not: each on both kinds of database."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from fedretrain.artifacts.enrolment import EnrolmentError
from fedretrain.core.errors import ConfigError
from fedretrain.server import annotation_store, enrolment, fleet, intake
from fedretrain.server.commit import GroupCommit
from fedretrain.server.database import DatabaseDamagedError, check_pages, check_url, hold, open_database
from fedretrain.server.event_log import EventLog, append
from fedretrain.server.fleet import Traits
from fedretrain.server.tables import brought_labels, events, telemetry
from fedretrain.wire.v1 import fleet_pb2 as pb

THREADS = 6


def at_once(*works):
    """Do works in threads that begin together; the result of each, or what it raised."""
    ready = threading.Barrier(len(works))

    def one(work):
        ready.wait(timeout=30)
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - looked at by the test
            return error

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(one, works))


on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def test_several_that_open_an_empty_database_at_once_make_its_tables_once(database_url):
    engines = at_once(*[lambda: open_database(database_url)] * 3)
    logs = [EventLog(engine) for engine in engines]
    assert [log.append("a", [{}], at=0.0).counter for log in logs] == [1, 2, 3]
    for engine in engines:
        engine.dispose()


def test_appends_to_wherever_a_stream_ends_do_not_fail_each_other(engine):
    log = EventLog(engine)
    heads = at_once(*[lambda: [log.append("a", [{}], at=0.0).counter for _ in range(10)]] * THREADS)
    assert sorted(number for numbers in heads for number in numbers) == list(range(1, 10 * THREADS + 1))
    assert len(list(log.read("a"))) == 10 * THREADS


def test_a_transaction_holds_a_name_until_it_ends(engine):
    held, order = threading.Event(), []

    def first():
        with engine.begin() as connection:
            hold(connection, "x")
            held.set()
            threading.Event().wait(0.2)
            order.append("first")

    def second():
        held.wait(timeout=30)
        with engine.begin() as connection:
            hold(connection, "x")
            order.append("second")

    at_once(first, second)
    assert order == ["first", "second"]


def _batch(*sequences):
    records = [pb.Record(boot=1, priority=0, sequence=number, at=5.0, payload=b"x") for number in sequences]
    return pb.TelemetryBatch(installation="0" * 32, boot=1, records=records)


def _enrolled(engine, name="a", fingerprint="1"):
    with engine.begin() as connection:
        return fleet.enrol(connection, "p", name, fingerprint, Traits(), 1.0)


def test_a_batch_that_two_gateways_hear_counts_once(engine):
    device, writers = _enrolled(engine), [GroupCommit(engine) for _ in range(2)]
    for first in range(0, 40, 4):
        batch = _batch(*range(first, first + 4))
        acks = [
            writer.submit(lambda connection, batch=batch: intake.keep(connection, device, batch, 9.0))
            for writer in writers
        ]
        assert sorted(ack.result(timeout=30).num_fresh for ack in acks) == [0, 4]
    for writer in writers:
        writer.close()
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(telemetry)) == 40


def test_records_are_numbered_in_the_order_of_their_commits(engine):
    """Or who has read up to a number would never see a lower one that was committed later."""
    slow, fast = GroupCommit(engine), GroupCommit(engine)
    one, other = _enrolled(engine, "a", "1"), _enrolled(engine, "b", "2")
    begun, go_on = threading.Event(), threading.Event()

    def dawdling(connection):
        intake.keep(connection, one, _batch(0), 9.0)
        begun.set()
        go_on.wait(timeout=30)

    first = slow.submit(dawdling)
    assert begun.wait(timeout=30)
    second: Future = fast.submit(lambda connection: intake.keep(connection, other, _batch(0), 9.0))
    threading.Event().wait(0.3)
    assert not second.done()
    go_on.set()
    first.result(timeout=30)
    second.result(timeout=30)
    slow.close()
    fast.close()
    with engine.connect() as connection:
        rows = connection.execute(select(telemetry.c.device).order_by(telemetry.c.number))
        assert [row.device for row in rows] == ["a", "b"]


def test_devices_that_enrol_at_once_have_numbers_of_their_own(engine):
    works = [lambda n=n: _enrolled(engine, f"d{n}", str(n)).number for n in range(THREADS)]
    assert sorted(at_once(*works)) == list(range(THREADS))


def test_no_two_devices_of_a_population_can_have_one_number(engine):
    _enrolled(engine, "a", "1")
    _enrolled(engine, "b", "2")
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(text("UPDATE devices SET number = 0"))


def test_a_token_that_two_keys_show_at_once_makes_one_device(engine):
    ((_, secret),) = enrolment.make_tokens(engine, "p", ["a"], now=0.0, lifetime_s=60.0)

    redeemed, go_on = threading.Event(), threading.Event()

    def redeem(key, wait):
        with engine.begin() as connection:
            token = enrolment._redeem(connection, secret, key, 1.0)
            redeemed.set()
            assert not wait or not go_on.wait(0.3)  # the other one has the time to look, too early
            return token.used_by

    def late():
        redeemed.wait(timeout=30)
        return redeem("2" * 64, wait=False)

    first, second = at_once(lambda: redeem("1" * 64, wait=True), late)
    assert first == "1" * 64
    assert isinstance(second, EnrolmentError)


def test_files_of_annotations_that_are_brought_at_once_are_numbered_one_after_the_other(engine):
    _enrolled(engine)

    def bring(first):
        given = [annotation_store.Annotation("a", f"prediction {first + n}", 1) for n in range(10)]
        with engine.begin() as connection:
            return annotation_store.keep(connection, "p", given, 1.0)["new"]

    assert at_once(*[lambda first=first: bring(first) for first in (0, 10, 20)]) == [10, 10, 10]
    with engine.connect() as connection:
        assert sorted(connection.scalars(select(brought_labels.c.number))) == list(range(1, 31))


def test_a_lease_that_several_want_at_once_has_one_holder(engine):
    log = EventLog(engine)
    wanted = [lambda n=n: log.acquire("leader", str(n), now=0.0, ttl_s=10.0) for n in range(THREADS)]
    assert sum(fence is not None for fence in at_once(*wanted)) == 1


def test_a_fence_and_what_stands_behind_it_are_one_transaction(engine):
    """Nobody takes the lease over between the check of it and the commit."""
    log = EventLog(engine)
    fence = log.acquire("leader", "one", now=0.0, ttl_s=1.0)
    taken = threading.Event()

    def usurp():
        log.acquire("leader", "two", now=5.0, ttl_s=1.0)
        taken.set()

    thread = threading.Thread(target=usurp)
    with engine.begin() as connection:
        append(connection, "a", [{}], at=0.0, fence=fence)
        thread.start()
        assert not taken.wait(0.3)
    thread.join(timeout=30)
    assert taken.is_set()
    assert log.head("a").counter == 1


def _cut(connection):
    """End this transaction's own connection from the server's side."""
    connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


@on_postgresql
def test_a_connection_that_is_lost_in_a_group_commits_nothing_of_it(engine):
    writer, ready = GroupCommit(engine), threading.Event()

    def add(connection):
        return append(connection, "a", [{}], at=0.0).counter

    first = writer.submit(lambda _connection: ready.wait(timeout=30))
    group = [writer.submit(add), writer.submit(_cut), writer.submit(add)]
    ready.set()
    first.exception(timeout=30)
    for future in group:
        assert isinstance(future.exception(timeout=30), Exception)
    assert writer.submit(add).result(timeout=30) == 1
    writer.close()
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(events)) == 1


@on_postgresql
def test_connections_that_were_lost_while_nobody_used_them_are_made_anew(engine):
    log = EventLog(engine)
    log.append("a", [{}], at=0.0)
    with pytest.raises(DBAPIError), engine.begin() as connection:
        _cut(connection)
    assert log.append("a", [{}], at=0.0).counter == 2


def test_numbers_and_texts_come_back_as_they_were(engine):
    log = EventLog(engine)
    record = {"text": "grün \u0000 \U0001f600 'quoted' %s :x", "float": 0.1 + 0.2, "large": 2**53 - 1}
    log.append("a", [record], at=1_750_000_000.123456789)
    (entry,) = log.read("a")
    assert (entry.record, entry.at) == (record, 1_750_000_000.123456789)


def test_blobs_come_back_as_they_were(engine):
    _enrolled(engine)
    envelope = bytes(range(256)) * 40
    fleet.tell(engine, None, "p", [("a", envelope, 1)], lambda: 2.0)
    with engine.connect() as connection:
        found = fleet.find(connection, "p", "a")
    assert found.assignment == envelope
    assert type(found.assignment) is bytes


@on_postgresql
def test_postgresql_keeps_what_it_commits_whatever_its_default_is(engine):
    with engine.begin() as connection:
        connection.execute(text(f"ALTER DATABASE {engine.url.database} SET synchronous_commit = off"))
        connection.execute(
            text(f"ALTER DATABASE {engine.url.database} SET default_transaction_isolation = 'serializable'")
        )
    again = open_database(engine.url.render_as_string(hide_password=False))
    with again.connect() as connection:
        assert connection.scalar(text("SHOW synchronous_commit")) == "on"
        assert connection.scalar(text("SHOW transaction_isolation")) == "read committed"
    again.dispose()


def test_a_url_names_its_driver_or_leaves_it_to_us():
    assert check_url("postgresql://u@h/n").drivername == "postgresql+psycopg"
    assert check_url("postgresql+psycopg://u@h/n").drivername == "postgresql+psycopg"


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"fedretrain\[postgres\]"):
        open_database("postgresql://u@h/n")


@pytest.fixture
def pages(tmp_path):
    """A file of many pages that may be spoilt, by its path and URL."""
    path = tmp_path / "pages.db"
    engine = open_database(f"sqlite:///{path}")
    EventLog(engine).append("a", [{"text": "x" * 3000} for _ in range(40)], at=0.0)
    engine.dispose()
    return path, f"sqlite:///{path}"


def _spoil(path, page):
    content = bytearray(path.read_bytes())
    at = (page % (len(content) // 4096)) * 4096
    content[at : at + 4096] = bytes(4096)
    path.write_bytes(content)


@pytest.mark.parametrize("page", [0, 1])
def test_a_database_whose_first_pages_are_damaged_is_not_opened_and_its_error_says_what_to_do(pages, page):
    path, url = pages
    _spoil(path, page)
    with pytest.raises(DatabaseDamagedError, match=r"the database is damaged: .*back-up") as found:
        open_database(url)
    assert str(path) in str(found.value)


def test_damage_in_the_middle_is_found_by_a_look_at_every_page_and_named_when_it_is_read(pages):
    path, url = pages
    _spoil(path, -1)
    engine = open_database(url)
    with pytest.raises(DatabaseDamagedError, match=r"the database is damaged: .* Page"):
        check_pages(engine)
    with pytest.raises(DatabaseDamagedError, match="malformed"):
        list(EventLog(engine).read("a"))
    engine.dispose()


def test_a_sound_database_is_found_sound(engine):
    EventLog(engine).append("a", [{}], at=0.0)
    check_pages(engine)
