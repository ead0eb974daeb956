"""Telemetry over a real MQTT broker: mosquitto, a child process of the tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from types import SimpleNamespace

import aiomqtt
import numpy as np
import pytest
from paho.mqtt import client as mqtt_client
from sqlalchemy import select

from fedretrain.artifacts.identity import FleetAuthority
from fedretrain.server import coordinator
from fedretrain.server.config import Population, ServerConfig, Watching
from fedretrain.server.coordinator import Coordinator
from fedretrain.server.database import open_database, reading
from fedretrain.server.event_log import EventLog
from fedretrain.server.sources import keeping, tallies
from fedretrain.server.sources.config import Mqtt
from fedretrain.server.tables import sources as source_table
from fedretrain.server.tables import telemetry
from tests import broker_cases
from tests.broker_cases import Mosquitto
from tests.reader_cases import (
    HOW,
    WAIT_S,
    Deciding,
    Kept,
    Reader,
    mqtt_source,
    password_line,
    publish,
    run,
    tls_files,
    until,
)
from tests.source_cases import NOW, SLOT_S, counts_of, expected, message, watch


def test_mqtt_messages_count_once_and_nonsense_stops_nothing(mosquitto, database_url):
    reader = Reader(database_url, mqtt_source(mosquitto))

    async def work():
        async with reader:
            await until(lambda: reader.row() is not None)
            await publish(mosquitto, message(1), message(0), b"\xff nonsense", message(1), message(2))
            await publish(mosquitto, message(0), device="b")
            await publish(mosquitto, message(0), device="stranger")
            await until(lambda: reader.said("counted") == 4 and len(reader.said("refused")) == 2)

    run(work, kept := Kept(reader))
    assert kept.said == {"counted": 4, "repeated": 1, "refused": {"message": 1, "device": 1}}
    np.testing.assert_array_equal(kept.counts, expected(HOW, [0, 1, 2, 0]))
    assert kept.standing == ("connected", 0)


def test_mqtt_messages_wait_while_nobody_reads(mosquitto, database_url):
    reader = Reader(database_url, mqtt_source(mosquitto, max_pending=3))

    async def work():
        async with reader:
            await until(lambda: reader.row() is not None)
        await publish(mosquitto, *(message(n) for n in range(20)))
        async with reader:
            await until(lambda: reader.said("counted") == 20)

    run(work, kept := Kept(reader))
    np.testing.assert_array_equal(kept.counts, expected(HOW, range(20)))


def test_an_mqtt_message_is_acknowledged_when_it_is_durable(mosquitto, database_url, monkeypatch, quick):
    """The commit fails: nothing of the batch is there, and the broker sends it again."""
    reader = Reader(database_url, mqtt_source(mosquitto))
    real, failed = keeping._add_counts, []

    def broken(*arguments):
        if len(failed) < 2:
            failed.append(True)
            raise OSError("the disk is full")
        real(*arguments)

    monkeypatch.setattr(keeping, "_add_counts", broken)

    async def work():
        async with reader:
            await until(lambda: reader.row() is not None)
            await publish(mosquitto, *(message(n) for n in range(5)))
            await until(lambda: reader.said("counted") == 5)

    run(work, kept := Kept(reader))
    assert len(failed) == 2
    assert kept.said == {"counted": 5, "refused": {}}
    np.testing.assert_array_equal(kept.counts, expected(HOW, range(5)))
    assert kept.standing == ("connected", 2)


def test_an_acknowledgement_that_never_leaves_makes_nothing_count_twice(
    mosquitto, database_url, monkeypatch, quick
):
    """Killed between the commit and the acknowledgement: the broker sends again what is durable already."""
    reader, failed = Reader(database_url, mqtt_source(mosquitto)), []
    real = mqtt_client.Client.ack

    def broken(self, mid, qos):
        if self._client_id == b"fedretrain-plant" and len(failed) < 2:
            failed.append(mid)
            raise OSError("killed")
        return real(self, mid, qos)

    monkeypatch.setattr(mqtt_client.Client, "ack", broken)

    async def work():
        async with reader:
            await until(lambda: reader.row() is not None)
            await publish(mosquitto, message(0))
            await until(lambda: len(failed) == 2)
            await publish(mosquitto, message(1))
            await until(lambda: reader.said("counted") == 2)

    run(work, kept := Kept(reader))
    assert kept.said["repeated"] >= 2
    np.testing.assert_array_equal(kept.counts, expected(HOW, [0, 1]))


def test_mqtt_over_tls_with_a_user_and_an_access_list(tmp_path, database_url, quick):
    if broker_cases.mosquitto_missing():
        pytest.skip(broker_cases.mosquitto_missing())
    folder = tmp_path / "keys"
    folder.mkdir()
    authority = FleetAuthority(folder, now=time.time())
    key, certificate = tls_files(folder, authority)
    (folder / "acl").write_text("user reader\ntopic read plant/#\npattern write plant/%u/raw\n")
    (folder / "users").write_text(password_line("reader", "open") + password_line("a", "shut"))
    for path in folder.iterdir():
        path.chmod(0o600)
    broker = Mosquitto(
        tmp_path / "mosquitto",
        *("allow_anonymous false", f"password_file {folder}/users", f"acl_file {folder}/acl"),
        *(f"certfile {certificate}", f"keyfile {key}"),
    )
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    (tmp_path / "secret").write_text("open\n")
    common = {"name": "plant", "population": "p", "samples": "plant/{device}/raw"}
    address = f"localhost:{broker.port}"
    login = {"username": "reader", "password_file": str(tmp_path / "secret")}
    good = Mqtt(**common, address=address, authority=str(tmp_path / "ca.pem"), **login)
    stranger = Mqtt(
        **{**common, "name": "stranger"}, address=address, **login
    )  # trusts the system's authorities
    reader = Reader(database_url, good, stranger)

    async def work():
        async with reader:
            await until(lambda: reader.row(0) is not None and reader.row(1) is not None)
            tls = aiomqtt.TLSParameters(ca_certs=str(tmp_path / "ca.pem"))
            for topic, payload in (("plant/b/raw", message(0)), ("plant/a/raw", message(1))):
                client = aiomqtt.Client(
                    "localhost", broker.port, username="a", password="shut", tls_params=tls
                )
                with contextlib.suppress(aiomqtt.MqttError):  # the first topic is not its own
                    async with client:
                        await client.publish(topic, payload, qos=1)
            await until(lambda: reader.said("counted") == 1)
            assert reader.row(1).standing == "away"
            assert "CERTIFICATE_VERIFY_FAILED" in reader.row(1).error

    try:
        run(work, kept := Kept(reader))
    finally:
        broker.close()
    np.testing.assert_array_equal(kept.counts, expected(HOW, [1]))


def test_the_coordinator_that_decides_reads_brokers_and_the_other_one_does_not(
    mosquitto, database_url, tmp_path, monkeypatch
):
    """Of two on one database; the first one ends, and the second goes on."""
    source, engine = mqtt_source(mosquitto), open_database(database_url)
    watch(engine, "a")
    config = ServerConfig(
        str(tmp_path), {"p": Population("-", watching=Watching(slot_s=SLOT_S, tick_s=0.05))}, mqtt=(source,)
    )
    monkeypatch.setattr(coordinator, "Steward", lambda *_: Deciding())
    now = [NOW]
    both = [
        Coordinator(config, EventLog(engine), SimpleNamespace(), SimpleNamespace(), lambda: now[0])
        for _ in range(2)
    ]

    def counted():
        with reading(engine) as connection:
            said = connection.scalar(select(source_table.c.counts))
        return json.loads(said).get("counted", 0) if said else None

    async def work():
        tasks = []
        for one in both:
            tasks.append(asyncio.create_task(one._lead()))
            await until(lambda: counted() is not None)
        await publish(mosquitto, message(0))
        await until(lambda: counted() == 1)
        assert [bool(one._sources._tasks) for one in both] == [True, False]
        both[0].stop()
        await tasks[0]
        await both[0]._close()
        now[0] += coordinator.LEASE_S + 1.0
        await publish(mosquitto, message(1))
        await until(lambda: counted() == 2)
        both[1].stop()
        await tasks[1]
        await both[1]._close()

    asyncio.run(asyncio.wait_for(work(), 4 * WAIT_S))
    with engine.begin() as connection:
        tallies.flush(connection, "p", SLOT_S, NOW)
        payloads = list(connection.scalars(select(telemetry.c.payload)))
    engine.dispose()
    np.testing.assert_array_equal(counts_of(payloads, HOW), expected(HOW, [0, 1]))


@pytest.mark.faults
def test_an_mqtt_broker_that_is_killed_loses_and_repeats_nothing(mosquitto, database_url, quick):
    reader = Reader(database_url, mqtt_source(mosquitto))

    async def send(first, last):
        """A gateway that sends until the broker has acknowledged: a message may reach it twice."""
        for number in range(first, last):
            while True:
                try:
                    await publish(mosquitto, message(number), timeout=5)
                    break
                except aiomqtt.MqttError:
                    await asyncio.sleep(0.1)

    async def work():
        async with reader:
            await until(lambda: reader.row() is not None)
            sending = asyncio.create_task(send(0, 60))
            for least in (10, 30):
                await until(lambda least=least: reader.said("counted") >= least)
                mosquitto.kill()
                await asyncio.sleep(0.3)
                mosquitto.start()
            await sending
            await until(lambda: reader.said("counted") == 60 and reader.row().standing == "connected")

    run(work, kept := Kept(reader))
    assert kept.said["refused"] == {}
    assert kept.standing[0] == "connected"
    assert kept.standing[1] >= 2
    np.testing.assert_array_equal(kept.counts, expected(HOW, range(60)))
