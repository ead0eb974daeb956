"""``python -m benchmarks.fleet.load ORDERS``: one process that plays many devices against a real coordinator.

Rules of this file:
    * Each device has a connection of its own, mutual TLS with its own key, and speaks as the agent does: a heartbeat, what it is told,
      a second heartbeat if its assignment changed what it serves, then its records until they are acknowledged. What it leaves out is the model.
    * A record is made once and sent until it is acknowledged; at the end it is known how many were made and acknowledged. One that is not
      acknowledged waits on its device; lost is one that was acknowledged and is not in the store.
    * It is told what to do by lines on its standard input, and answers with JSON lines; its figures go into a file at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import grpc

from fedretrain.wire.control import CALL_S, FIXED_WINDOW, MAX_MESSAGE_BYTES, PROTOCOL
from fedretrain.wire.sequence import Priority
from fedretrain.wire.v1 import fleet_pb2 as pb
from fedretrain.wire.v1 import fleet_pb2_grpc as rpc

BATCH_BYTES = 1 << 20
_MAX_RECORDS = 2000
_CONNECTING = 40  # handshakes under way in one process
_READY_S = 60.0
_LAST_S = 300.0  # so long, after the order to stop, a device goes on until everything is acknowledged


@dataclass(frozen=True)
class Orders:
    """What a process of the load is to do.

    Attributes:
        control: ``host:port`` of the coordinator.
        authority: PEM that it is known by.
        devices: Name, number, key and certificate of each device.
        report: A report for slot 0, hexadecimal.
        labels: A row of labels for slot 0.
        heartbeat_s: Between heartbeats.
        report_s: Between reports; 0 for none.
        slot_s: Of reports.
        connect_s: Within which all devices come.
        backlog: Slots that each device has to tell from before: a report and labels of each.
        result: File of the figures.
    """

    control: str
    authority: str
    devices: list[dict[str, Any]]
    report: str
    labels: str
    heartbeat_s: float
    report_s: float
    slot_s: float
    connect_s: float
    result: str
    backlog: int = 0


@dataclass
class Figures:
    """What happened. Instants are seconds since the epoch.

    Attributes:
        heartbeats: (when it was sent, seconds until it was answered).
        sends: Likewise of batches.
        served: (device, instant, what it serves from then on, heartbeats that it had sent).
        first_batches: When each device sent its first batch.
        drained: When each device had nothing left.
        failures: Calls that failed, by the status.
    """

    heartbeats: list[tuple[float, float]] = field(default_factory=list)
    sends: list[tuple[float, float]] = field(default_factory=list)
    served: list[tuple[int, float, str, int]] = field(default_factory=list)
    first_batches: dict[int, float] = field(default_factory=dict)
    drained: dict[int, float] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    num_made: int = 0
    num_acknowledged: int = 0
    num_repeated: int = 0


class Device:
    """One device.

    Args:
        load: The process.
        one: Who it is.
    """

    def __init__(self, load: Load, one: dict[str, Any]) -> None:
        self.load, self.number = load, int(one["number"])
        shown = grpc.ssl_channel_credentials(
            load.orders.authority.encode(), one["key"].encode(), one["certificate"].encode()
        )
        options = [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.enable_retries", 0),
            *FIXED_WINDOW,
        ]
        self.channel = grpc.aio.secure_channel(f"ipv4:{load.orders.control}", shown, options=options)
        self.stub: Any = rpc.FleetControlStub(self.channel)  # type: ignore[no-untyped-call]
        self.counter, self.serves, self.shadows = 0, str(one.get("serves", "")), ""
        self.next_s = load.orders.heartbeat_s
        self.num_heartbeats = self.num_batches = 0
        self.pending: deque[tuple[Priority, int, float, bytes]] = deque()
        self.next = dict.fromkeys(Priority, 0)

    async def visit(self) -> bool:
        """A heartbeat and what follows; whether it was answered."""
        reply = await self.heartbeat()
        if reply is None:
            return False
        self.next_s = reply.next_s
        if self.follow(reply) and not reply.notice:
            await self.heartbeat()
        await self.send()
        return True

    async def heartbeat(self) -> Any:
        """Say how the device is; the reply, or None."""
        self.num_heartbeats += 1
        request = pb.HeartbeatRequest(
            protocol=PROTOCOL,
            agent_version="bench",
            installation=f"{self.number:032x}",
            boot=1,
            clock_at=time.time(),
            clock_trusted=True,
            serves=self.serves,
            shadows=self.shadows,
            counter=self.counter,
            healthy=True,
            holds=[self.serves] if self.serves else [],
            pending_records=len(self.pending),
        )
        return await self.call(self.stub.Heartbeat, request, self.load.figures.heartbeats)

    def follow(self, reply: pb.HeartbeatReply) -> bool:
        """Serve what the assignment says; whether that is another version. The signature is the agent's matter."""
        if not reply.assignment:
            return False
        said = json.loads(reply.assignment[reply.assignment.index(b'{"counter"') :])
        self.counter, self.shadows, serve = int(said["counter"]), said["shadow"], said["serve"]
        if reply.notice:
            notice = json.loads(reply.notice[reply.notice.index(b'{"ends_at"') :])
            if notice["issued_at"] > said["issued_at"] and serve in notice["withdrawn"]:
                serve = notice["serve"]
        if serve == self.serves:
            return False
        self.serves = serve
        self.load.figures.served.append((self.number, time.time(), self.serves, self.num_heartbeats))
        return True

    def make(self, payload: bytes, priority: Priority, at: float) -> None:
        """A record that is to be sent."""
        self.pending.append((priority, self.next[priority], at, payload))
        self.next[priority] += 1
        self.load.figures.num_made += 1

    async def send(self) -> None:
        """Batches, until nothing waits or one is not acknowledged."""
        figures = self.load.figures
        while self.pending:
            records = self._next_batch()
            self.num_batches += 1
            batch = pb.TelemetryBatch(
                protocol=PROTOCOL,
                installation=f"{self.number:032x}",
                boot=1,
                oldest_boot=1,
                batch=self.num_batches,
                sent_at=time.time(),
                records=records,
            )
            figures.first_batches.setdefault(self.number, time.time())
            ack = await self.call(self.stub.ReportLabels, batch, figures.sends)
            if ack is None or ack.refused_records:
                return
            for _ in records:
                self.pending.popleft()
            figures.num_acknowledged += ack.num_fresh + ack.num_repeated
            figures.num_repeated += ack.num_repeated
        figures.drained[self.number] = time.time()

    def _next_batch(self) -> list[pb.Record]:
        """The oldest records that make up a batch, as the agent's outbox does it."""
        found: list[pb.Record] = []
        size = 0
        for priority, sequence, at, payload in self.pending:
            if len(found) == _MAX_RECORDS or size >= BATCH_BYTES:
                break
            size += len(payload) + 32
            found.append(pb.Record(boot=1, priority=int(priority), sequence=sequence, at=at, payload=payload))
        return found

    async def call(self, method: Any, request: Any, times: list[tuple[float, float]]) -> Any:
        """Ask, and note how long it took; None if nobody answered."""
        sent_at, begun = time.time(), time.perf_counter()
        try:
            reply = await method(request, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            name = error.code().name
            self.load.figures.failures[name] = self.load.figures.failures.get(name, 0) + 1
            return None
        times.append((sent_at, time.perf_counter() - begun))
        return reply


class Load:
    """Plays the devices of its orders until it is told to stop.

    Args:
        orders: Which.
    """

    def __init__(self, orders: Orders) -> None:
        self.orders, self.figures = orders, Figures()
        self.stopping = asyncio.Event()
        self._connecting = asyncio.Semaphore(_CONNECTING)
        self._draw = random.Random(len(orders.devices))
        self._num_connected = 0

    async def run(self) -> None:
        """All of it: until it is told to stop, and every record is acknowledged."""
        devices = [Device(self, one) for one in self.orders.devices]
        listening = threading.Thread(target=self._listen, args=(asyncio.get_running_loop(),), daemon=True)
        listening.start()
        await asyncio.gather(*(self._play(device) for device in devices))

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Orders on standard input; its end is an order to stop."""
        for line in sys.stdin:
            if line.strip() == "stop":
                break
        loop.call_soon_threadsafe(self.stopping.set)

    async def _play(self, device: Device) -> None:
        """One device, from its first connection to the end."""
        orders = self.orders
        self._lay_backlog(device)
        await self._wait(self._draw.uniform(0.0, orders.connect_s))
        await self._connect(device)
        due = time.monotonic() + (0.0 if orders.backlog else self._draw.uniform(0.0, orders.heartbeat_s))
        report_due = time.monotonic() + self._draw.uniform(0.0, orders.report_s)
        while not await self._wait(due - time.monotonic()):
            now = time.monotonic()
            if orders.report_s and now >= report_due:
                report_due += orders.report_s
                self._report(device, orders.report, time.time())
            await device.visit()
            due = max(due + device.next_s, now)  # as it was told just now
        # As a device does it: a call that failed is tried again at the next heartbeat, not at once by all together.
        until = time.monotonic() + _LAST_S
        while device.pending and time.monotonic() < until:
            await asyncio.sleep(self._draw.uniform(0.0, orders.heartbeat_s))
            await device.visit()
        await device.channel.close()

    async def _connect(self, device: Device) -> None:
        """The handshake; not all at once."""
        async with self._connecting:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(device.channel.channel_ready(), _READY_S)
        self._num_connected += 1
        if self._num_connected == len(self.orders.devices):
            say(connected=self._num_connected)

    def _report(self, device: Device, report: str, at: float) -> None:
        """A slot's report, and one of the candidate that is scored beside it."""
        slot = int(at // self.orders.slot_s)
        device.make(_payload(report, slot), Priority.HISTOGRAMS, at)
        if device.shadows:
            device.make(_payload(report, slot, device.shadows), Priority.HISTOGRAMS, at)

    def _lay_backlog(self, device: Device) -> None:
        """What the device could not tell while it was offline, oldest first."""
        orders, now = self.orders, time.time()
        for slot in range(orders.backlog, 0, -1):
            at = now - slot * orders.slot_s
            device.make(_payload(orders.labels, int(at // orders.slot_s)), Priority.LABELS, at)
            self._report(device, orders.report, at)

    async def _wait(self, seconds: float) -> bool:
        """Wait; True if it is time to end."""
        try:
            await asyncio.wait_for(self.stopping.wait(), max(0.0, seconds))
        except TimeoutError:
            return False
        return True


@lru_cache(maxsize=1 << 14)
def _payload(payload: str, slot: int, shadow: str = "") -> bytes:
    """A payload for a slot; of a candidate that is scored in shadow, if one is named."""
    said = pb.Payload.FromString(bytes.fromhex(payload))
    body = said.report if said.WhichOneof("what") == "report" else said.labels
    body.slot = slot
    if shadow:
        body.package, body.shadow = shadow, True
    return said.SerializeToString()


def say(**facts: object) -> None:
    """One JSON line."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    played = Load(Orders(**json.loads(Path(sys.argv[1]).read_text())))
    asyncio.run(played.run())
    Path(played.orders.result).write_text(json.dumps(asdict(played.figures)))
    say(ended=len(played.orders.devices))
