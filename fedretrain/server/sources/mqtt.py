"""Messages of an MQTT broker, at least once (QoS 1), acknowledged when they are durable.

Rules of this file:
    * The broker keeps the session while we are away, and sends again what was not acknowledged; numbers in the messages
      make it count once.
    * At most `max_pending` messages are on their way to us: the broker waits, and nothing is dropped for want of room.
    * Whatever breaks the connection is raised; whoever runs this begins again.
"""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fedretrain.server.sources.config import DEVICE
from fedretrain.server.sources.keeping import Kind, Message

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from fedretrain.server.sources.config import Mqtt, Source

QOS = 1
_REFUSED = 128


async def consume(
    source: Mqtt,
    keep: Callable[[Sequence[Message]], Awaitable[None]],
    connected: Callable[[], Awaitable[None]],
) -> None:
    """Take messages until the connection breaks.

    Args:
        source: The broker.
        keep: Makes messages durable; they are acknowledged when it returns.
        connected: Called once messages may come.

    Raises:
        aiomqtt.MqttError: If the broker cannot be reached, refuses us, or is gone.
    """
    host, port = source.address.rsplit(":", 1)
    client = aiomqtt.Client(
        host.strip("[]"),
        int(port),
        identifier=source.client or f"fedretrain-{source.name}",
        protocol=aiomqtt.ProtocolVersion.V5,
        clean_start=False,
        properties=_session(source),
        username=source.username or None,
        password=source.password or None,
        tls_context=None if source.plain else tls_of(source),
    )
    # aiomqtt acknowledges before we have seen a message; the client below it can wait until we say so.
    paho = client._client  # noqa: SLF001
    paho.manual_ack_set(True)
    async with client:
        kinds = {kind: getattr(source, kind) for kind in Kind if getattr(source, kind)}
        for topic in kinds.values():
            codes = await client.subscribe(topic.replace(DEVICE, "+"), qos=QOS)
            if any((code if isinstance(code, int) else code.value) >= _REFUSED for code in codes):
                raise aiomqtt.MqttError(f"the broker refuses the topic {topic}: {codes[0]}")
        await connected()
        names = {kind: _pattern(topic) for kind, topic in kinds.items()}
        async for first in client.messages:
            batch = [first]
            while len(client.messages) and len(batch) < source.max_pending:
                batch.append(await anext(client.messages))
            await keep([message for one in batch if (message := _message(one, names)) is not None])
            for one in batch:
                paho.ack(one.mid, one.qos)


def tls_of(source: Source) -> ssl.SSLContext:
    """How a broker is trusted, and what we show it."""
    context = ssl.create_default_context(cafile=source.authority or None)
    if source.certificate:
        context.load_cert_chain(source.certificate, source.key)
    return context


def _session(source: Mqtt) -> Properties:
    found = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    found.SessionExpiryInterval = int(min(source.session_s, 2**32 - 2))
    found.ReceiveMaximum = source.max_pending
    return found


def _pattern(topic: str) -> re.Pattern[str]:
    return re.compile(re.escape(topic).replace(re.escape(DEVICE), "([^/]*)"))


def _message(one: aiomqtt.Message, names: dict[Kind, re.Pattern[str]]) -> Message | None:
    """A message of a topic that we asked for; None of another: the broker keeps subscriptions of an older configuration."""
    topic = str(one.topic)
    for kind, pattern in names.items():
        found = pattern.fullmatch(topic)
        if found is not None:
            payload = one.payload if isinstance(one.payload, bytes) else b""
            return Message(kind, found.group(1), payload, origin=f"topic {topic}")
    return None
