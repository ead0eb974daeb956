"""A device's outbox and its receiver, as the tests of both use them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from fedretrain.core.clock import Instant
from fedretrain.edge.database import AgentDatabase
from fedretrain.edge.outbox import Outbox
from fedretrain.wire.inbox import Inbox, receive
from fedretrain.wire.sequence import Arrival, Key
from fedretrain.wire.v1 import fleet_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

    from fedretrain.core.spans import Spans
    from fedretrain.edge.records import Batch


class Device:
    """An agent's outbox, with a clock that the test moves."""

    def __init__(self, path: Path, **bounds: float) -> None:
        self.path = path
        self.bounds = {"max_bytes": 1_000_000, "max_age_s": 1e9} | bounds
        self.now_s = 0.0
        self.at: float | None = None
        self.machine = ""
        self.start()

    def start(self, suspect: str = "") -> None:
        self.database = AgentDatabase(self.path, suspect=suspect, machine=self.machine)
        self.outbox = Outbox(self.database, opened=self.instant(), **self.bounds)

    def restart(self) -> None:
        self.database.close()
        self.start()

    def instant(self) -> Instant:
        return Instant(self.database.identity.boot, self.now_s, self.at)

    def add(self, priority, payload=b"x") -> Key:
        return self.outbox.add(priority, payload, self.instant())

    def flush(self) -> bool:
        return self.outbox.flush(self.instant())


class Server:
    """A receiver that counts each record, by payload, and keeps its state as JSON does."""

    def __init__(self) -> None:
        self.inbox = Inbox()
        self.counted: list[tuple[Key, bytes]] = []
        self.lost: list[Key] = []

    def receive(self, batch: Batch) -> Batch:
        """Settle a batch; the part of it to acknowledge."""
        keys = [record.key for record in batch.records]
        self.inbox, receipt = receive(self.inbox, batch.oldest_boot, keys, batch.gaps)
        self.inbox = Inbox.from_dict(self.inbox.to_dict())
        for record, arrival in zip(batch.records, receipt.records, strict=True):
            if arrival is Arrival.FRESH:
                self.counted.append((record.key, record.payload))
        for gap, spans in zip(batch.gaps, receipt.lost, strict=True):
            for first, last in spans:
                self.lost += [
                    Key(gap.installation, gap.boot, gap.priority, number) for number in range(first, last + 1)
                ]
        return keep(batch, receipt)


def keep(batch, receipt) -> Batch:
    """The part of a batch that a receipt settles."""
    return replace(
        batch,
        records=tuple(
            record
            for record, arrival in zip(batch.records, receipt.records, strict=True)
            if arrival is not Arrival.REFUSED
        ),
        gaps=tuple(
            gap
            for gap, arrival in zip(batch.gaps, receipt.gaps, strict=True)
            if arrival is not Arrival.REFUSED
        ),
    )


def drain(device: Device, server: Server, max_bytes: int = 10_000) -> None:
    """Send until nothing is left."""
    device.flush()
    for _ in range(10_000):
        batch = device.outbox.pending(max_bytes)
        if not batch:
            return
        device.outbox.acknowledge(server.receive(batch))
        device.flush()
    raise AssertionError("something is sent for ever")


def numbers(spans: Spans) -> set[int]:
    return {number for first, last in spans for number in range(first, last + 1)}


def notice_of(payload: bytes) -> dict[str, object]:
    """What an alert of the agent's own database says."""
    alert = pb.Payload.FromString(payload).alert
    notice = json.loads(alert.detail)
    assert alert.kind == notice["event"]
    return notice
