"""Telemetry over a real broker of Kafka's protocol, a child process of the tests."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.server.sources import keeping
from tests.reader_cases import (
    HOW,
    Kept,
    Reader,
    kafka_source,
    mqtt_source,
    produce,
    run,
    until,
)
from tests.source_cases import expected, message


def test_kafka_messages_count_once_and_offsets_are_ours(tansu, database_url):
    reader = Reader(database_url, kafka_source(tansu))

    async def work():
        await produce(tansu, message(None), b"nonsense", message(None))
        async with reader:
            await until(lambda: reader.said("counted") == 2)
        await produce(tansu, message(None))
        await produce(tansu, message(5), message(5), device=b"b")  # a producer that sent twice
        async with reader:
            await until(lambda: reader.said("counted") == 4 and reader.said("repeated") == 1)

    run(work, kept := Kept(reader))
    assert kept.said == {"counted": 4, "repeated": 1, "refused": {"message": 1}}
    np.testing.assert_array_equal(kept.counts, expected(HOW, [0, 0, 0, 5]))
    assert kept.reasons == ["message: not JSON"]


def test_kafka_is_read_again_where_a_commit_failed(tansu, database_url, monkeypatch, quick):
    reader = Reader(database_url, kafka_source(tansu))
    real, failed = keeping.set_offset, []

    def broken(*arguments):
        if len(failed) < 2:
            failed.append(True)
            raise OSError("the disk is full")
        real(*arguments)

    monkeypatch.setattr(keeping, "set_offset", broken)

    async def work():
        await produce(tansu, *(message(None) for _ in range(6)))
        async with reader:
            await until(lambda: reader.said("counted") == 6)

    run(work, kept := Kept(reader))
    assert kept.said == {"counted": 6, "refused": {}}
    assert kept.standing == ("connected", 2)
    np.testing.assert_array_equal(kept.counts, expected(HOW, [0] * 6))


def test_another_coordinator_reads_on_from_where_the_database_stands(tansu, database_url, quick):
    """The first one still reads when its lease is gone: what it has read counts once, with the second."""
    first, second = (Reader(database_url, kafka_source(tansu), holder=name) for name in ("one", "two"))
    second.log.acquire("coordinator", "one", now=0.0, ttl_s=1.0)

    async def work():
        await produce(tansu, message(None))
        async with first:
            await until(lambda: first.said("counted") == 1)
            usurped = second.log.acquire("coordinator", "two", now=2e9, ttl_s=1e12)
            assert usurped is not None
            await produce(tansu, message(None), message(None))
            await until(lambda: all(task.done() for task in first._made._tasks[:1]))
            assert first.said("counted") == 1
            async with second:
                await until(lambda: second.said("counted") == 3)

    run(work, first, kept := Kept(second))
    assert kept.said == {"counted": 3, "refused": {}}


@pytest.mark.faults
def test_a_kafka_cluster_that_is_killed_loses_and_repeats_nothing_of_ours(tansu, database_url, quick):
    """This one forgets all when it is killed: its topics begin anew, which is told, and what is numbered counts once."""
    reader = Reader(database_url, kafka_source(tansu))

    async def work():
        async with reader:
            await produce(tansu, *(message(n) for n in range(8)))
            await until(lambda: reader.said("counted") == 8)
            tansu.kill()
            await until(lambda: reader.row().standing == "away")
            tansu.start()
            await produce(tansu, message(7), message(8))
            await until(lambda: reader.said("counted") == 9 and reader.row().standing == "connected")
            await until(lambda: reader.said("repeated") == 1)

    run(work, kept := Kept(reader))
    assert kept.said["anew"] == 1
    assert kept.standing[1] >= 1
    np.testing.assert_array_equal(kept.counts, expected(HOW, range(9)))


@pytest.mark.faults
def test_a_broker_that_is_away_keeps_no_other_waiting(mosquitto, tansu, database_url, quick):
    reader = Reader(database_url, mqtt_source(mosquitto), kafka_source(tansu))

    async def work():
        mosquitto.kill()
        async with reader:
            await produce(tansu, message(None))
            await until(lambda: reader.said("counted", 1) == 1)
            await until(lambda: reader.row(0) is not None and reader.row(0).num_broken >= 2)
            assert reader.row(0).standing == "away"
            assert reader.row(1).num_broken == 0

    run(work, reader)
