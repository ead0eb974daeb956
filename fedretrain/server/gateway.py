"""The device API: `FleetControl` over gRPC with mutual TLS.

Rules of this file:
    * It decides nothing: it says who speaks, keeps what they say durably, and hands out what was signed beforehand.
    * Blocking work (the database, files) runs in threads; the event loop only moves messages.
    * A peer that is not allowed to speak, or speaks nonsense, gets a status and no trace of ours.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from sqlalchemy.exc import SQLAlchemyError

from fedretrain.artifacts.encryption import file_info, seal
from fedretrain.artifacts.identity import read_identity
from fedretrain.core.errors import DataError, UserError
from fedretrain.server import intake
from fedretrain.server.database import DatabaseDamagedError
from fedretrain.server.lateness import stretch
from fedretrain.wire.control import CALL_S, FIXED_WINDOW, MAX_MESSAGE_BYTES, PROTOCOL
from fedretrain.wire.v1 import fleet_pb2 as pb
from fedretrain.wire.v1 import fleet_pb2_grpc as rpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from fedretrain.artifacts.identity import DeviceIdentity
    from fedretrain.server.annotation_store import Annotations
    from fedretrain.server.commit import GroupCommit
    from fedretrain.server.fleet import Device
    from fedretrain.server.lateness import Lateness
    from fedretrain.server.peers import Peers
    from fedretrain.server.quota import Quotas

    Context = grpc.aio.ServicerContext[Any, Any]

_log = logging.getLogger(__name__)
OLDEST_PROTOCOL = 1
CHUNK_BYTES = 256 * 1024
ACCEPTING = 8
"""Servers behind the device API's one address (SO_REUSEPORT). Each takes one call in a turn of the event loop: one alone was full at 460 calls a
second, with time to spare."""
_MOST_WAITING = 4000
"""Calls of enrolled devices that wait at each of these. From a thousand on gRPC refuses what comes, as cancelled: of ten thousand devices that had
something new to do at once, thousands were then not heard for another heartbeat, though all could have been answered within a second or two."""
_LONGEST_WAIT_S = round(CALL_S / 2)
"""A call that waits longer is ended, as cancelled, and its device comes again when it likes: who is late answers none that hang up meanwhile."""
HASTE = 2.0 / 3.0
"""While a candidate serves somewhere, devices are heard after so much of the usual time: an order to go back, which takes seconds to be signed for
thousands of them, then reaches the last so much sooner."""
_MAX_HELD = 64
_MAX_WORD = 64  # a digest: what a device says of itself is kept, and read at every turn


@dataclass(frozen=True)
class Files:
    """What may be fetched.

    Attributes:
        blob: A file of an installable package by its digest, for a device; raises DataError.
        trust: A file of the trust metadata by its name; raises DataError.
        trust_version: Changes with the trust metadata.
        renew: The next certificate of a device; raises DataError.
        annotations: Labels that people brought.
    """

    blob: Callable[[Device, str], bytes]
    trust: Callable[[str], bytes]
    trust_version: Callable[[], int]
    renew: Callable[[Device, pb.RenewRequest], pb.RenewReply]
    annotations: Annotations


class Gateway(rpc.FleetControlServicer):
    """Serves devices that are enrolled.

    Args:
        peers: Who they are.
        writer: Where their records go.
        files: What they may fetch.
        clock: Seconds since the epoch.
        heartbeat_s: How often they shall be heard.
        slot_s: The devices of a population report one row for each slot of so many seconds; below 0: nothing.
        quotas: How much each may ask.
        lateness: How long calls wait here.
    """

    def __init__(
        self,
        peers: Peers,
        writer: GroupCommit,
        files: Files,
        clock: Callable[[], float],
        heartbeat_s: float,
        slot_s: Mapping[str, float],
        quotas: Quotas,
        lateness: Lateness,
    ) -> None:
        self._peers, self._writer, self._files, self._quotas = peers, writer, files, quotas
        self._clock, self._heartbeat_s, self._slot_s = clock, heartbeat_s, slot_s
        self._lateness = lateness

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewReply:  # noqa: N802
        """The next certificate."""
        device = await self._peer(context, request.protocol, self._clock())
        await _keep_within(context, self._quotas.call(device))
        try:
            return await asyncio.to_thread(self._files.renew, device, request)
        except DataError as error:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, error.what)

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Context) -> pb.HeartbeatReply:  # noqa: N802
        """Keep what the device says of itself; tell it what it shall run."""
        now, left_s = self._clock(), context.time_remaining()
        device = await self._peer(context, request.protocol, now)
        await _keep_within(context, self._quotas.call(device))
        self._lateness.took_up(device.population, device.device, left_s)
        self._peers.heard(device, now, _said(request))
        told = self._peers.announcement(device.population)
        return pb.HeartbeatReply(
            protocol=PROTOCOL,
            assignment=device.assignment or b"",
            server_at=now,
            next_s=self._heartbeat_s * (HASTE if told.hasten else 1.0) * stretch(self._lateness.late_s),
            trust_version=self._files.trust_version(),
            slot_s=self._slot_s.get(device.population, 0.0),  # none: the population was taken out of the file
            evaluation=told.question,
            annotations=self._files.annotations.waits(device),
            notice=told.notice,
        )

    async def Telemetry(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.TelemetryBatch], context: Context
    ) -> AsyncIterator[pb.TelemetryAck]:
        """Keep batches as they come; each is acknowledged once it is durable."""
        async for batch in request_iterator:
            yield await self._keep(batch, context)

    async def ReportLabels(self, request: pb.TelemetryBatch, context: Context) -> pb.TelemetryAck:  # noqa: N802
        """Keep one batch."""
        return await self._keep(request, context)

    async def Annotate(self, request: pb.AnnotateRequest, context: Context) -> pb.AnnotateReply:  # noqa: N802
        """What became of annotations, and those that wait."""
        device = await self._peer(context, request.protocol, self._clock())
        await _keep_within(context, self._quotas.call(device))
        return await asyncio.to_thread(self._files.annotations.exchange, device, request)

    async def FetchArtifact(  # noqa: N802
        self, request: pb.ArtifactRequest, context: Context
    ) -> AsyncIterator[pb.ArtifactChunk]:
        """A file, from an offset on."""
        device = await self._peer(context, request.protocol, self._clock())
        await _keep_within(context, self._quotas.call(device))
        try:
            if request.WhichOneof("what") == "digest":
                content = await asyncio.to_thread(self._files.blob, device, request.digest)
            else:
                content = await asyncio.to_thread(self._files.trust, request.trust_file)
        except DataError as error:
            await _abort(context, grpc.StatusCode.NOT_FOUND, error.what)
        except FileNotFoundError:
            await _abort(context, grpc.StatusCode.NOT_FOUND, "there is no such file")
        content, sealed = content[request.offset :], False
        if request.sealed and request.digest and device.traits.sealing_key:
            info = file_info(device.population, device.device, request.digest)
            key = bytes.fromhex(device.traits.sealing_key)
            content, sealed = await asyncio.to_thread(seal, content, key, info), True
        for start in range(0, len(content), CHUNK_BYTES):
            yield pb.ArtifactChunk(content=content[start : start + CHUNK_BYTES], sealed=sealed)

    async def _keep(self, batch: pb.TelemetryBatch, context: Context) -> pb.TelemetryAck:
        now = self._clock()
        device = await self._peer(context, batch.protocol, now)
        await _keep_within(context, self._quotas.carry(device, batch.ByteSize()))
        refused = intake.check(batch)
        if refused is not None:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, refused.why)
        arrived = intake.Arrived(device, batch, now)
        future = self._writer.submit_one_of(intake.keep_all, arrived, len(batch.records))
        try:
            return await asyncio.wrap_future(future)
        except (
            SQLAlchemyError,
            OSError,
            DatabaseDamagedError,
        ) as error:  # a full disk, or a database that is away
            _log.error("records of %s: %s", device.device, error)
            await _abort(
                context, grpc.StatusCode.UNAVAILABLE, "records cannot be kept just now: send them again"
            )

    async def _peer(self, context: Context, protocol: int, now: float) -> Device:
        """Who speaks; aborts where that is nobody who may."""
        if protocol < OLDEST_PROTOCOL:
            await _abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f"protocol {protocol} is older than {OLDEST_PROTOCOL}",
            )
        certificate = next(iter(context.auth_context().get("x509_pem_cert", ())), None)
        device = None
        if certificate is not None:
            shown = _identity(certificate)
            if shown is not None and shown.expires_at > now:  # TLS looked at that when it connected
                # Who is not in the picture is looked for in the database, where others may be writing.
                device = self._peers.at_hand(shown) or await asyncio.to_thread(self._peers.find, shown)
        if device is None:
            await _abort(context, grpc.StatusCode.UNAUTHENTICATED, "no enrolled device has this certificate")
        return device


class Enrolment(rpc.FleetControlServicer):
    """Serves devices that have a token and no certificate yet.

    Args:
        enrol: Makes a device of a request; raises UserError.
    """

    def __init__(self, enrol: Callable[[pb.EnrolRequest], pb.EnrolReply]) -> None:
        self._enrol = enrol

    async def Enrol(self, request: pb.EnrolRequest, context: Context) -> pb.EnrolReply:  # noqa: N802
        """A certificate for a token."""
        try:
            return await asyncio.to_thread(self._enrol, request)
        except UserError as error:
            await _abort(context, grpc.StatusCode.PERMISSION_DENIED, error.what)


@lru_cache(maxsize=16_384)
def _identity(certificate: bytes) -> DeviceIdentity | None:
    """Who a certificate names; it is read once, not at each call. None where it is no device's."""
    try:
        return read_identity(certificate)
    except DataError:
        return None


def _said(request: pb.HeartbeatRequest) -> dict[str, Any]:
    """A heartbeat as it is kept."""
    conditions = request.conditions
    return {
        "agent": request.agent_version[:40],
        "installation": request.installation[:40],
        "boot": request.boot,
        "clock_at": request.clock_at if request.clock_trusted else None,
        "serves": request.serves[:_MAX_WORD],
        "shadows": request.shadows[:_MAX_WORD],
        "counter": request.counter,
        "healthy": request.healthy,
        "refused": request.refused[:_MAX_WORD],
        "reason": request.refused_reason[:200],
        "holds": [digest[:_MAX_WORD] for digest in request.holds[:_MAX_HELD]],
        "pending": request.pending_records,
        "on_power": conditions.on_power,
        "metered": conditions.metered,
        "temperature_c": round(conditions.temperature_c, 1),
        "free_bytes": conditions.free_bytes,
        "num_labelled": conditions.num_labelled,
        "ledger": [request.ledger_counter, request.ledger_hash[:_MAX_WORD]],
    }


async def _keep_within(context: Context, refused: str) -> None:
    """Refuse a call beyond a quota."""
    if refused:
        await _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, refused)


async def _abort(context: Context, code: grpc.StatusCode, why: str) -> NoReturn:
    await context.abort(code, why)
    raise AssertionError  # abort always raises


def _options() -> list[tuple[str, int]]:
    """Limits that keep a stranger from holding memory or connections for ever."""
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_connection_idle_ms", 300_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
        *FIXED_WINDOW,
    ]


def _patient() -> list[tuple[str, int]]:
    """For enrolled devices, of whom each has its quota."""
    return [
        *_options(),
        ("grpc.server.max_pending_requests", _MOST_WAITING),
        ("grpc.server.max_pending_requests_hard_limit", 2 * _MOST_WAITING),
        ("grpc.server_max_unrequested_time_in_server", _LONGEST_WAIT_S),
    ]


@dataclass(frozen=True)
class Tls:
    """What a server shows and whom it trusts.

    Attributes:
        key: PEM.
        certificate: PEM.
        authority: PEM of the fleet's authority.
    """

    key: bytes
    certificate: bytes
    authority: bytes


async def serve(
    gateway: Gateway, enrolment: Enrolment, tls: Tls, control: str, enrol: str
) -> tuple[list[grpc.aio.Server], tuple[int, int]]:
    """Start both servers.

    Args:
        gateway: For enrolled devices.
        enrolment: For the others.
        tls: Keys.
        control: ``host:port`` of the gateway; port 0 takes a free one.
        enrol: ``host:port`` of the enrolment.

    Returns:
        The servers and their ports.

    Raises:
        UserError: If an address cannot be listened on.
    """
    pair = [(tls.key, tls.certificate)]
    mutual = grpc.ssl_server_credentials(pair, root_certificates=tls.authority, require_client_auth=True)
    servers: list[grpc.aio.Server] = []
    ports = []
    try:
        for service, credentials, address, options, count in (
            (gateway, mutual, control, _patient(), ACCEPTING),
            (enrolment, grpc.ssl_server_credentials(pair), enrol, _options(), 1),
        ):
            port = 0
            for _ in range(count):
                server = grpc.aio.server(options=options)
                servers.append(server)
                rpc.add_FleetControlServicer_to_server(service, server)  # type: ignore[no-untyped-call]
                again = f"{address.rpartition(':')[0]}:{port}" if port else address
                port = _bound(server, again, credentials)
                await server.start()
            ports.append(port)
    except UserError:
        await stop(servers, 0.0)
        raise
    return servers, (ports[0], ports[1])


async def stop(servers: Sequence[grpc.aio.Server], grace_s: float) -> None:
    """End servers; calls under way have so long."""
    for server in servers:
        await server.stop(grace_s)


def _bound(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials) -> int:
    """Let a server listen; its port."""
    try:
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise DataError(f"cannot listen on {address}", where="server", fix="choose a free address") from error
