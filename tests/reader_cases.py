"""A coordinator's half that reads brokers into a database, and those who send, for tests."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time

import aiomqtt
from aiokafka import AIOKafkaProducer
from sqlalchemy import select

from fedretrain.artifacts.identity import create_key, load_key, request_certificate
from fedretrain.server.commit import GroupCommit
from fedretrain.server.database import open_database, reading
from fedretrain.server.event_log import EventLog
from fedretrain.server.sources import tallies
from fedretrain.server.sources.config import Kafka, Mqtt
from fedretrain.server.sources.running import Sources
from fedretrain.server.tables import dead_letters, telemetry
from fedretrain.server.tables import sources as source_table
from tests.source_cases import NOW, SLOT_S, binner, counts_of, watch

HOW = binner()
WAIT_S = 60.0


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


class Kept:
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


class Deciding:
    """A leader's work without models."""

    trust_version = 0

    def turn(self, now):
        pass

    def binners(self):
        return {"p": HOW}

    def close(self):
        pass


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
