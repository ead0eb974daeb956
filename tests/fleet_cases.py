"""A gateway over loopback, with its fleet's keys, for tests."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedretrain.artifacts.encryption import public_half
from fedretrain.artifacts.identity import FleetAuthority, create_key, load_key, request_certificate
from fedretrain.core.errors import DataError
from fedretrain.edge.control import ControlClient, Credentials, enrol
from fedretrain.server.annotation_store import Annotations
from fedretrain.server.commit import GroupCommit
from fedretrain.server.config import Quota
from fedretrain.server.enrolment import Enrolling, Told, make_tokens
from fedretrain.server.gateway import Enrolment, Files, Gateway, Tls, serve
from fedretrain.server.lateness import Lateness
from fedretrain.server.peers import Peers
from fedretrain.server.quota import Quotas
from fedretrain.wire.control import PROTOCOL
from fedretrain.wire.v1 import fleet_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine


@dataclass
class Loopback:
    """A running gateway and what belongs to it."""

    folder: Path
    engine: Engine
    authority: FleetAuthority
    peers: Peers
    annotations: Annotations
    blobs: dict[str, bytes] = field(default_factory=dict)
    trust: dict[str, bytes] = field(default_factory=dict)
    trust_version: int = 7
    offset_s: float = 0.0  # of the server's clock
    control: str = ""
    enrolment: str = ""

    def token(self, device: str, population: str = "p", lifetime_s: float = 60.0) -> str:
        now = time.time()
        ((_, secret),) = make_tokens(self.engine, population, [device], now=now, lifetime_s=lifetime_s)
        return secret

    def key(self, name: str):
        path = self.folder / f"{name}.key"
        create_key(path)
        return load_key(path)

    def join(
        self, device: str, population: str = "p", *, token: str = "", key: str = "", sealing: bytes = b""
    ) -> Credentials:
        name = key or device
        request = pb.EnrolRequest(
            protocol=PROTOCOL,
            token=token or self.token(device, population),
            certificate_request=request_certificate(self.key(name), population, device),
            traits=pb.DeviceTraits(
                device_type="pump", site="north", sealing_key=public_half(sealing) if sealing else b""
            ),
        )
        reply = enrol(self.enrolment, self.authority.certificate, request)
        return Credentials((self.folder / f"{name}.key").read_bytes(), reply.certificate, reply.authority)

    def client(self, credentials: Credentials) -> ControlClient:
        return ControlClient(self.control, credentials)

    def trust_file(self, name: str) -> bytes:
        """As the repository does it: what is not there raises."""
        if name not in self.trust:
            raise FileNotFoundError(name)
        return self.trust[name]

    def file(self, files: dict[str, bytes], name: str) -> bytes:
        if name not in files:
            raise DataError(f"there is no {name}")
        return files[name]


@contextmanager
def loopback(
    folder: Path,
    engine: Engine,
    *,
    root: bytes = b"root",
    slot_s: float = 3600.0,
    ports: tuple[int, int] = (0, 0),
    quota: Quota | None = None,
    lateness: Lateness | None = None,
) -> Iterator[Loopback]:
    """A gateway in a thread of this process; `root` is what enrolled devices are told to trust."""
    authority = FleetAuthority(folder / "authority", now=time.time())
    create_key(folder / "server.key")
    request = request_certificate(load_key(folder / "server.key"), "p", "server")
    certificate = authority.issue_server(request, ["localhost", "127.0.0.1"], now=time.time())
    writer = GroupCommit(engine)
    peers = Peers(engine, writer, time.time)
    here = Loopback(folder, engine, authority, peers, Annotations(engine))
    # Devices are told an address that is known once the server listens.
    enrolling = Enrolling(engine, authority, peers, Told(root, "127.0.0.1:1"), time.time)
    files = Files(
        blob=lambda _device, digest: here.file(here.blobs, digest),
        trust=here.trust_file,
        trust_version=lambda: here.trust_version,
        renew=enrolling.renew,
        annotations=here.annotations,
    )
    gateway = Gateway(
        peers,
        writer,
        files,
        lambda: time.time() + here.offset_s,
        heartbeat_s=1.0,
        slot_s={"p": slot_s, "plant": slot_s},
        quotas=Quotas(quota or Quota()),
        lateness=lateness or Lateness(),
    )
    tls = Tls((folder / "server.key").read_bytes(), certificate, authority.certificate)
    ready, loop = threading.Event(), asyncio.new_event_loop()
    servers = []

    async def start() -> None:
        found, bound = await serve(
            gateway, Enrolment(enrolling.enrol), tls, *(f"127.0.0.1:{one}" for one in ports)
        )
        servers.extend(found)
        here.control, here.enrolment = (f"127.0.0.1:{port}" for port in bound)
        enrolling._told = Told(root, here.control)
        ready.set()

    async def stop() -> None:
        for server in servers:
            await server.stop(None)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(start(), loop).result(timeout=60)
    assert ready.is_set()
    try:
        yield here
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(timeout=60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=60)
        loop.close()
        writer.close()
