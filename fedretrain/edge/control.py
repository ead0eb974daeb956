"""The device's end of the control plane.

Rules of this file:
    * Every call has a deadline: a server that hangs is a server that is not there.
    * What the network or the server does wrong is `ControlError`, in one line; the agent goes on without.
    * Records are acknowledged by place: what the server did not refuse may be forgotten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import grpc

from fedretrain.artifacts.encryption import SEAL_BYTES, file_info, open_sealed
from fedretrain.artifacts.identity import read_identity
from fedretrain.core.errors import FedretrainError
from fedretrain.wire.control import CALL_S, FIXED_WINDOW, MAX_MESSAGE_BYTES, PROTOCOL
from fedretrain.wire.v1 import fleet_pb2 as pb
from fedretrain.wire.v1 import fleet_pb2_grpc as rpc

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from fedretrain.core.clock import Instant
    from fedretrain.edge.records import Batch

FETCH_S = 600.0
_LOOK_S = 0.05
"""How often an enrolment looks whether the agent ends."""


class ControlError(FedretrainError):
    """The coordinator cannot be reached, or does not want to talk.

    Args:
        what: In one line.
        is_refusal: Whether it answered and said no: asking again in a moment changes nothing.
        is_silence: Whether nothing came back at all: the connection may be a dead one.
        said: What it answered in its own words; empty where nothing came back.
    """

    def __init__(
        self, what: str, *, is_refusal: bool = False, is_silence: bool = False, said: str = ""
    ) -> None:
        super().__init__(what)
        self.is_refusal, self.is_silence, self.said = is_refusal, is_silence, said


@dataclass(frozen=True)
class Credentials:
    """What a device shows, and whom it trusts.

    Attributes:
        key: PEM of its own key.
        certificate: PEM of its certificate.
        authority: PEM of the fleet's authority.
        sealing_key: Private X25519 key for which files are sealed; empty: they come as they are.
    """

    key: bytes
    certificate: bytes
    authority: bytes
    sealing_key: bytes = b""


def enrol(
    address: str,
    authority: bytes,
    request: pb.EnrolRequest,
    *,
    timeout_s: float = CALL_S,
    ending: threading.Event | None = None,
) -> pb.EnrolReply:
    """A certificate for a token.

    Args:
        address: ``host:port`` of the enrolment.
        authority: PEM of the fleet's authority, which the device was given beforehand.
        request: The token and the certificate request.
        timeout_s: Deadline.
        ending: Once set, it is waited no longer.

    Raises:
        ControlError: If there is none.
    """
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(authority), options=_options()) as channel:
        call = _stub(channel).Enrol.future(request, timeout=timeout_s)
        while ending is not None and not call.done():
            if ending.wait(_LOOK_S):
                call.cancel()
        try:
            reply: pb.EnrolReply = call.result()
        except grpc.FutureCancelledError as error:
            raise ControlError(f"{address}: the agent ends") from error
        except grpc.RpcError as error:
            raise _failed(error, address) from error
    return reply


class ControlClient:
    """A connection to the device API. Calls may come from several threads.

    Args:
        address: ``host:port``.
        credentials: Keys.
    """

    def __init__(self, address: str, credentials: Credentials) -> None:
        self._address, self._credentials = address, credentials
        shown = grpc.ssl_channel_credentials(credentials.authority, credentials.key, credentials.certificate)
        self._channel = grpc.secure_channel(address, shown, options=_options())
        self._stub = _stub(self._channel)
        self._num_batches = 0

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def heartbeat(self, request: pb.HeartbeatRequest, *, timeout_s: float = CALL_S) -> pb.HeartbeatReply:
        """Say how the device is; hear what it shall run.

        Raises:
            ControlError: If nobody answers.
        """
        try:
            reply: pb.HeartbeatReply = self._stub.Heartbeat(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise _failed(error, self._address) from error
        return reply

    def renew(self, request: pb.RenewRequest, *, timeout_s: float = CALL_S) -> pb.RenewReply:
        """The next certificate, by the present one.

        Raises:
            ControlError: If there is none.
        """
        try:
            reply: pb.RenewReply = self._stub.Renew(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise _failed(error, self._address) from error
        return reply

    def annotate(self, request: pb.AnnotateRequest, *, timeout_s: float = CALL_S) -> pb.AnnotateReply:
        """Answer for annotations, and hear of more.

        Raises:
            ControlError: If nobody answers.
        """
        try:
            reply: pb.AnnotateReply = self._stub.Annotate(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise _failed(error, self._address) from error
        return reply

    def send(self, batch: Batch, sent: Instant, installation: str, *, timeout_s: float = CALL_S) -> Batch:
        """Send a batch of the outbox.

        Args:
            batch: What to send.
            sent: The present instant.
            installation: Of the outbox.
            timeout_s: Deadline.

        Returns:
            The part of it that the server has for good.

        Raises:
            ControlError: If nothing of it is certain.
        """
        self._num_batches += 1
        message = encode_batch(batch, sent, installation, self._num_batches)
        try:
            ack: pb.TelemetryAck = self._stub.ReportLabels(message, timeout=timeout_s)
        except grpc.RpcError as error:
            raise _failed(error, self._address) from error
        if ack.batch != self._num_batches:
            raise ControlError(f"{self._address} acknowledged another batch")
        return _accepted(batch, set(ack.refused_records), set(ack.refused_gaps))

    def fetch_blob(self, digest: str, max_bytes: int) -> bytes:
        """A file of a package; one that was sealed for this device is opened.

        Raises:
            ControlError: If it cannot be had, or is longer than it may be.
            DataError: If it was sealed for another device or file.
        """
        key = self._credentials.sealing_key
        request = pb.ArtifactRequest(protocol=PROTOCOL, digest=digest, sealed=bool(key))
        chunks = list(self._fetch(request, max_bytes + SEAL_BYTES))
        content = b"".join(chunk.content for chunk in chunks)
        if any(chunk.sealed for chunk in chunks):
            own = read_identity(self._credentials.certificate)
            content = open_sealed(content, key, file_info(own.population, own.device, digest))
        if len(content) > max_bytes:
            raise ControlError(f"{self._address} sent more than {max_bytes} bytes")
        return content

    def fetch_trust(self, name: str, max_bytes: int) -> Iterator[bytes]:
        """A file of the trust metadata, in parts.

        Raises:
            FileNotFoundError: If there is none.
            ControlError: If it cannot be had, or is longer than it may be.
        """
        request = pb.ArtifactRequest(protocol=PROTOCOL, trust_file=name)
        try:
            yield from (chunk.content for chunk in self._fetch(request, max_bytes))
        except ControlError as error:
            if error.is_refusal:
                raise FileNotFoundError(name) from error
            raise ConnectionError(str(error)) from error

    def _fetch(self, request: pb.ArtifactRequest, max_bytes: int) -> Iterator[pb.ArtifactChunk]:
        received = 0
        try:
            for chunk in self._stub.FetchArtifact(request, timeout=FETCH_S):
                received += len(chunk.content)
                if received > max_bytes:
                    raise ControlError(f"{self._address} sent more than {max_bytes} bytes")
                yield chunk
        except grpc.RpcError as error:
            raise _failed(error, self._address) from error


def encode_batch(batch: Batch, sent: Instant, installation: str, number: int) -> pb.TelemetryBatch:
    """A batch of the outbox as a message."""
    return pb.TelemetryBatch(
        protocol=PROTOCOL,
        installation=installation,
        boot=sent.boot,
        oldest_boot=batch.oldest_boot,
        batch=number,
        sent_at=math.nan if sent.at is None else sent.at,
        sent_monotonic_s=sent.monotonic_s,
        records=[
            pb.Record(
                boot=record.key.boot,
                priority=int(record.key.priority),
                sequence=record.key.sequence,
                at=math.nan if record.instant.at is None else record.instant.at,
                monotonic_s=record.instant.monotonic_s,
                payload=record.payload,
            )
            for record in batch.records
        ],
        gaps=[
            pb.Gap(boot=gap.boot, priority=int(gap.priority), first=gap.first, last=gap.last)
            for gap in batch.gaps
        ],
    )


def _accepted(batch: Batch, refused_records: set[int], refused_gaps: set[int]) -> Batch:
    return replace(
        batch,
        records=tuple(one for place, one in enumerate(batch.records) if place not in refused_records),
        gaps=tuple(one for place, one in enumerate(batch.gaps) if place not in refused_gaps),
    )


def _stub(channel: grpc.Channel) -> Any:
    return rpc.FleetControlStub(channel)  # type: ignore[no-untyped-call]


def _options() -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.initial_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 60_000),
        *FIXED_WINDOW,
    ]


def _failed(error: grpc.RpcError, address: str) -> ControlError:
    code, details = error.code(), error.details() or ""
    refusals = (
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNIMPLEMENTED,
    )
    return ControlError(
        f"{address}: {code.name.lower()}: {details}"[:300],
        is_refusal=code in refusals,
        is_silence=code is grpc.StatusCode.DEADLINE_EXCEEDED,
        said=details,
    )
