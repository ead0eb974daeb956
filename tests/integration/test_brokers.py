"""Telemetry over real brokers: mosquitto, and a Kafka-compatible one, each a child process of the tests."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import time
from types import SimpleNamespace

import aiomqtt
import numpy as np
import pytest
from aiokafka import AIOKafkaProducer
from paho.mqtt import client as mqtt_client
from sqlalchemy import select

from fedretrain.artifacts.identity import FleetAuthority, create_key, load_key, request_certificate
from fedretrain.server import coordinator
from fedretrain.server.commit import GroupCommit
from fedretrain.server.config import Population, ServerConfig, Watching
from fedretrain.server.coordinator import Coordinator
from fedretrain.server.database import open_database, reading
from fedretrain.server.event_log import EventLog
from fedretrain.server.sources import kafka, keeping, running, tallies
from fedretrain.server.sources.config import Kafka, Mqtt
from fedretrain.server.sources.running import Sources
from fedretrain.server.tables import dead_letters, telemetry
from fedretrain.server.tables import sources as source_table
from tests import broker_cases
from tests.broker_cases import Mosquitto, Tansu
from tests.source_cases import NOW, SLOT_S, binner, counts_of, expected, message, watch

HOW = binner()
WAIT_S = 60.0


@pytest.fixture
def mosquitto(tmp_path):
    why = broker_cases.mosquitto_missing()
    if why:
        pytest.skip(why)
    made = Mosquitto(tmp_path / "mosquitto")
    yield made
    made.close()


@pytest.fixture
def tansu(tmp_path):
    why = broker_cases.tansu_missing()
    if why:
        pytest.skip(why)
    made = Tansu(tmp_path / "tansu")
    yield made
    made.close()


class Reader:
    """A coordinator's half: it reads sources into a database."""

    def __init__(self, url, *sources, holder="one"):
        self.engine = open_database(url)
        watch(self.engine, "a", "b")
        self.log, self.sources, self.holder = EventLog(self.engine), sources, holder
        self.writer = GroupCommit(self.engine)
        self._made = Sources(sources, self.engine, self.writer, {"p": SLOT_S}, lambda: NOW)

    async def __aenter__(self):
        fence = self.log.acquire("coordinator", self.holder, now=0.0, ttl_s=1e9)
        await self._made.follow(fence, {"p": HOW})
        return self

    async def __aexit__(self, *_):
        await self._made.close()

    def close(self):
        self.writer.close()
        self.engine.dispose()

    def row(self, number=0):
        with reading(self.engine) as connection:
            query = select(source_table).where(source_table.c.name == self.sources[number].name)
            return connection.execute(query).one_or_none()

    def said(self, name, number=0):
        row = self.row(number)
        return json.loads(row.counts).get(name, 0) if row else 0

    def records(self):
        with self.engine.begin() as connection:
            tallies.flush(connection, "p", SLOT_S, NOW)
            return list(connection.scalars(select(telemetry.c.payload)))

    def counts(self):
        return counts_of(self.records(), HOW)


async def until(condition):
    end = time.monotonic() + WAIT_S
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.05)


@pytest.fixture
def quick(monkeypatch):
    """Sources begin again after a tenth of a second, and look after one: tests need no patience."""
    monkeypatch.setattr(running, "Backoff", lambda: running_backoff(0.1, 0.2))
    monkeypatch.setattr(kafka, "LOOK_S", 1.0)


running_backoff = running.Backoff


def mqtt_source(broker, **more):
    return Mqtt("plant", "p", samples="plant/{device}/raw", address=broker.address, plain=True, **more)


def kafka_source(broker):
    return Kafka("lake", "p", samples="raw", servers=(broker.address,), plain=True)


async def publish(broker, *messages, device="a", **more):
    async with aiomqtt.Client("127.0.0.1", broker.port, **more) as client:
        for payload in messages:
            await client.publish(f"plant/{device}/raw", payload, qos=1)


async def produce(broker, *messages, device=b"a"):
    producer = AIOKafkaProducer(bootstrap_servers=broker.address)
    await producer.start()
    try:
        for payload in messages:
            await producer.send_and_wait("raw", payload, key=device)
    finally:
        await producer.stop()


def run(work, *readers):
    try:
        asyncio.run(asyncio.wait_for(work(), 4 * WAIT_S))
    finally:
        for reader in readers:
            reader.close()


def test_mqtt_messages_count_once_and_nonsense_stops_nothing(mosquitto, database_url):
    reader = Reader(database_url, mqtt_source(mosquitto))

    async def work():
        async with reader:
            await until(lambda: reader.row() is not None)
            await publish(mosquitto, message(1), message(0), b"\xff nonsense", message(1), message(2))
            await publish(mosquitto, message(0), device="b")
            await publish(mosquitto, message(0), device="stranger")
            await until(lambda: reader.said("counted") == 4 and len(reader.said("refused")) == 2)

    run(work, reader_kept := _Kept(reader))
    assert reader_kept.said == {"counted": 4, "repeated": 1, "refused": {"message": 1, "device": 1}}
    np.testing.assert_array_equal(reader_kept.counts, expected(HOW, [0, 1, 2, 0]))
    assert reader_kept.standing == ("connected", 0)


class _Kept:
    """What a reader found, looked at before it closes."""

    def __init__(self, reader):
        self._reader = reader

    def close(self):
        row = self._reader.row()
        self.said, self.standing = json.loads(row.counts), (row.standing, row.num_broken)
        self.counts = self._reader.counts()
        with self._reader.engine.connect() as connection:
            self.reasons = sorted(connection.scalars(select(dead_letters.c.reason)))
        self._reader.close()


def test_mqtt_messages_wait_while_nobody_reads(mosquitto, database_url):
    reader = Reader(database_url, mqtt_source(mosquitto, max_pending=3))

    async def work():
        async with reader:
            await until(lambda: reader.row() is not None)
        await publish(mosquitto, *(message(n) for n in range(20)))
        async with reader:
            await until(lambda: reader.said("counted") == 20)

    run(work, kept := _Kept(reader))
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

    run(work, kept := _Kept(reader))
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

    run(work, kept := _Kept(reader))
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
        run(work, kept := _Kept(reader))
    finally:
        broker.close()
    np.testing.assert_array_equal(kept.counts, expected(HOW, [1]))


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

    run(work, kept := _Kept(reader))
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

    run(work, kept := _Kept(reader))
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

    run(work, first, kept := _Kept(second))
    assert kept.said == {"counted": 3, "refused": {}}


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


class Deciding:
    """A leader's work without models."""

    trust_version = 0

    def turn(self, now):
        pass

    def binners(self):
        return {"p": HOW}

    def close(self):
        pass


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

    run(work, kept := _Kept(reader))
    assert kept.said["anew"] == 1
    assert kept.standing[1] >= 1
    np.testing.assert_array_equal(kept.counts, expected(HOW, range(9)))


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

    run(work, kept := _Kept(reader))
    assert kept.said["refused"] == {}
    assert kept.standing[0] == "connected"
    assert kept.standing[1] >= 2
    np.testing.assert_array_equal(kept.counts, expected(HOW, range(60)))


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


def tls_files(folder, authority):
    """A server's key and certificate of an authority."""
    key, certificate = folder / "server.key", folder / "server.pem"
    create_key(key)
    request = request_certificate(load_key(key), "p", "broker")
    certificate.write_bytes(authority.issue_server(request, ("localhost",), now=time.time()))
    return key, certificate


def password_line(user, password):
    """As mosquitto_passwd writes it: PBKDF2 with SHA-512."""
    salt = b"0123456789ab"
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101)
    return f"{user}:$7$101${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}\n"
