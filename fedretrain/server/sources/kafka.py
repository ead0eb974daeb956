"""Messages of a Kafka cluster; how far they were read stands in our own database, beside what they said.

Rules of this file:
    * No consumer group and no commit to the broker: partitions are read from where the database says they were counted.
    * A topic that ends below where it was counted was made anew: it is read from its beginning, and that is told.
    * What the cluster has deleted before it was read is counted as lost.
    * A consumer says nothing of a cluster that is away: where no message comes it is asked how far it is, every `LOOK_S`.
    * Whatever breaks is raised; whoever runs this begins again.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer

from fedretrain.server.sources.keeping import BackwardsError, Kind, Message, Position
from fedretrain.server.sources.mqtt import tls_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from fedretrain.server.sources.config import Kafka

MAX_BATCH = 500
LOOK_S = 5.0
_WAIT_MS = 500


@dataclass(frozen=True)
class Places:
    """How far partitions were counted, by topic and number.

    Attributes:
        read: Of all partitions.
        change: Set one, why, and how often: so many messages were ``lost``, or the topic was made ``anew``.
    """

    read: Callable[[], Awaitable[dict[tuple[str, int], int]]]
    change: Callable[[Position, str, int], Awaitable[None]]


async def consume(
    source: Kafka,
    keep: Callable[[Sequence[Message]], Awaitable[None]],
    connected: Callable[[], Awaitable[None]],
    places: Places,
) -> None:
    """Take messages until something breaks.

    Args:
        source: The cluster.
        keep: Makes messages and their positions durable.
        connected: Called once messages may come.
        places: How far they were counted.

    Raises:
        aiokafka.errors.KafkaError: If the cluster cannot be reached, or refuses us.
        BackwardsError: If a topic was made anew while it was read.
    """
    kinds = {getattr(source, kind): kind for kind in Kind if getattr(source, kind)}
    consumer = AIOKafkaConsumer(*kinds, **_options(source))
    await consumer.start()
    try:
        following = await _place(consumer, places)
        await connected()
        looked_at = time.monotonic()
        while True:
            found = await consumer.getmany(timeout_ms=_WAIT_MS, max_records=MAX_BATCH)
            messages = []
            for records in found.values():
                for one in records:
                    at = one.topic, one.partition
                    if one.offset < following.get(at, 0):
                        raise BackwardsError(f"{one.topic}, partition {one.partition}, begins again")
                    following[at] = one.offset + 1
                    messages.append(_message(kinds[one.topic], one))
            if messages:
                await keep(messages)
            elif time.monotonic() - looked_at >= LOOK_S:
                await _look(consumer, following)
                looked_at = time.monotonic()
    finally:
        await consumer.stop()


async def _look(consumer: AIOKafkaConsumer, following: dict[tuple[str, int], int]) -> None:
    """Whether the cluster is there, and its topics are those that were read."""
    async with asyncio.timeout(LOOK_S):
        end = await consumer.end_offsets(list(consumer.assignment()))
    for partition, offset in end.items():
        if offset < following.get((partition.topic, partition.partition), 0):
            raise BackwardsError(f"{partition.topic}, partition {partition.partition}, begins again")


async def _place(consumer: AIOKafkaConsumer, places: Places) -> dict[tuple[str, int], int]:
    """Go to where each partition was counted; where that is."""
    known, assigned = await places.read(), list(consumer.assignment())
    first, end = await consumer.beginning_offsets(assigned), await consumer.end_offsets(assigned)
    found = {}
    for partition in assigned:
        at = partition.topic, partition.partition
        wanted = known.get(at, first[partition])
        begin = Position(*at, first[partition])
        if wanted > end[partition]:
            await places.change(begin, "anew", 1)
            wanted = begin.offset
        elif wanted < begin.offset:
            await places.change(begin, "lost", begin.offset - wanted)
            wanted = begin.offset
        consumer.seek(partition, wanted)
        found[at] = wanted
    return found


def _options(source: Kafka) -> dict[str, Any]:
    options: dict[str, Any] = {
        "bootstrap_servers": list(source.servers),
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "metadata_max_age_ms": 60_000,
        "security_protocol": ("SASL_" if source.username else "") + ("PLAINTEXT" if source.plain else "SSL"),
    }
    if not source.plain:
        options["ssl_context"] = tls_of(source)
    if source.username:
        options["sasl_mechanism"] = str(source.mechanism)
        options |= {"sasl_plain_username": source.username, "sasl_plain_password": source.password}
    return options


def _message(kind: Kind, record: Any) -> Message:
    name = (record.key or b"").decode(errors="replace")
    place = Position(record.topic, record.partition, record.offset)
    origin = f"topic {record.topic}, partition {record.partition}, offset {record.offset}"
    return Message(kind, name, record.value or b"", place, origin)
