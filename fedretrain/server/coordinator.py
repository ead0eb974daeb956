"""The coordinator: one process that decides for every population, beside the gateway that speaks with devices.

Rules of this file:
    * One leader by lease. Who holds it decides, signs and starts campaigns; who does not only serves devices.
    * The reconciler is level-triggered: each turn compares what should be with what is, so nothing is lost with a crash.
    * A turn that fails for one population is told and does not stop the others; a lost lease ends all of them.
    * A database or a disk that fails for a while ends nothing: it is told, and tried again. A damaged database ends the process,
      by name: nothing is decided on what can no longer be read.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import logging
import os
import socket
import sys
import time
import uuid
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from fedretrain.artifacts.package import read_manifest, references
from fedretrain.coordinator.policy import TelemetryMode, read_policy
from fedretrain.core.errors import DataError, FedretrainError, UserError
from fedretrain.server import policies
from fedretrain.server.annotation_store import Annotations
from fedretrain.server.commit import GroupCommit
from fedretrain.server.database import DatabaseDamagedError
from fedretrain.server.enrolment import Enrolling, Told
from fedretrain.server.event_log import FencedError
from fedretrain.server.gateway import Enrolment, Files, Gateway, Tls, serve
from fedretrain.server.peers import POLL_S, Peers
from fedretrain.server.quota import Quotas
from fedretrain.server.sources.running import Sources
from fedretrain.server.steward import Steward
from fedretrain.server.training_file import read_yaml
from fedretrain.wire.control import NO_TELEMETRY

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

    from fedretrain.artifacts.store import ContentStore
    from fedretrain.server.config import Population, ServerConfig
    from fedretrain.server.event_log import EventLog, Fence
    from fedretrain.server.fleet import Device
    from fedretrain.server.keys import Keys
    from fedretrain.server.models import Stores

LEASE = "coordinator"
LEASE_S = 15.0
LOOK_S = 1.0
"""So long an order waits at most until somebody looks whether there is one."""
_MOST_PROLONGED = 360
"""A turn that takes longer than so many thirds of a lease hangs: somebody else may decide."""
_FLUSH_S = 1.0
_FOR_A_WHILE = (SQLAlchemyError, OSError)
_log = logging.getLogger(__name__)


class Coordinator:
    """See the module.

    Args:
        config: ``server.toml``.
        log: The event log.
        keys: What it signs with.
        stores: Where files are.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        config: ServerConfig,
        log: EventLog,
        keys: Keys,
        stores: Stores,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config, self._log, self._keys, self._stores, self._clock = config, log, keys, stores, clock
        self._writer = GroupCommit(log.engine)
        self._peers = Peers(log.engine, self._writer, clock)
        self._annotations = Annotations(log.engine)
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._fence: Fence | None = None
        self._steward: Steward | None = None
        self._servers: list[grpc.aio.Server] = []
        self._trust_version = 0
        self._unreadable: set[str] = set()
        self._slot_s: dict[str, float] = {}
        self._policies_read: dict[str, int] = {}
        slot_s = {name: one.watching.slot_s for name, one in config.populations.items()}
        self._sources = Sources(config.sources, log.engine, self._writer, slot_s, clock)
        self._num_modules = 0
        self._stop = asyncio.Event()
        self.ports = (0, 0)

    async def run(self) -> None:
        """Serve and decide until `stop`."""
        listen = self._config.listen
        self._tell_slots()
        quotas = Quotas(self._config.quota)
        control = listen.public or f"{listen.hosts[0]}:{listen.control.rsplit(':', 1)[1]}"
        told = Told(self._keys.root, control)
        enrolling = Enrolling(self._log.engine, self._keys.authority, self._peers, told, self._clock)
        files = Files(
            self._blob, self._keys.trust.read, lambda: self._trust_version, enrolling.renew, self._annotations
        )
        heartbeat_s = listen.heartbeat_s
        gateway = Gateway(self._peers, self._writer, files, self._clock, heartbeat_s, self._slot_s, quotas)
        tls = Tls(
            self._keys.server_key.read_bytes(),
            self._keys.server_certificate.read_bytes(),
            self._keys.authority.certificate,
        )
        self._servers, self.ports = await serve(
            gateway, Enrolment(enrolling.enrol), tls, listen.control, listen.enrol
        )
        _log.info("devices: %s, enrolment: %s", listen.control, listen.enrol)
        try:
            await asyncio.gather(self._follow(), self._lead())
        finally:
            await self._close()

    def stop(self) -> None:
        """End `run`; from its own thread, or a signal handler of the loop."""
        self._stop.set()

    async def _follow(self) -> None:
        """Keep the gateway's picture of the table fresh, and write heartbeats down."""
        flushed_at = 0.0
        while not await self._pause(POLL_S):
            try:
                await asyncio.to_thread(self._look)
                if time.monotonic() - flushed_at >= _FLUSH_S:
                    flushed_at = time.monotonic()
                    await asyncio.to_thread(self._peers.flush)
                    await asyncio.to_thread(self._annotations.poll)
            except _FOR_A_WHILE as error:
                _log.error("devices: %s", error)

    def _look(self) -> None:
        """At the table of devices, the policies and the signed list: whoever leads has written them."""
        self._peers.poll()
        try:
            self._tell_slots()
        except DatabaseDamagedError:
            raise
        except UserError as error:  # a damaged record: what devices are told stays
            _log.error("%s", error)
        with contextlib.suppress(FileNotFoundError):  # nobody has published yet
            timestamp = self._keys.trust.read("timestamp.json")
            self._trust_version = int.from_bytes(hashlib.sha256(timestamp).digest()[:7], "big")

    def _tell_slots(self) -> None:
        """Look what devices are told of telemetry, where another policy is in force by now."""
        for name, one in self._config.populations.items():
            end = self._log.head(policies.stream(name)).counter
            if self._policies_read.get(name) != end:
                self._policies_read[name] = end  # first: what is damaged is said once
                self._slot_s[name] = _slot_s(self._log, name, one)

    async def _lead(self) -> None:
        """Decide while this process holds the lease."""
        turn_s = min(one.watching.tick_s for one in self._config.populations.values())
        while not await self._pause(min(turn_s, LOOK_S)):
            turn = asyncio.create_task(asyncio.to_thread(self._turn))
            try:
                for _ in range(_MOST_PROLONGED):
                    if (await asyncio.wait({turn}, timeout=LEASE_S / 3))[0]:
                        break
                    await asyncio.to_thread(self._prolong)
            except _FOR_A_WHILE as error:
                _log.error("%s", error)
            try:
                await turn
                binners = {} if self._steward is None else self._steward.binners()
                await self._sources.follow(self._fence, binners)
            except _FOR_A_WHILE as error:
                _log.error("%s", error)

    def _prolong(self) -> None:
        """Hold the lease through a long turn: counting a backlog, or validating a large candidate."""
        if self._fence is not None:
            self._log.acquire(LEASE, self._holder, now=self._clock(), ttl_s=LEASE_S)

    def _turn(self) -> None:
        now = self._clock()
        fence = self._log.acquire(LEASE, self._holder, now=now, ttl_s=LEASE_S)
        if fence != self._fence:
            self._resign()
            self._fence = fence
            if fence is not None:
                _log.info("this process decides now (token %d)", fence.token)
                self._steward = Steward(self._config, self._log, self._keys, self._stores, fence, self._clock)
        if self._steward is None:
            return
        try:
            self._steward.turn(now)
        except FencedError as error:
            _log.warning("%s", error)
            self._resign()
        except DatabaseDamagedError:
            raise
        except FedretrainError as error:
            _log.error("%s", error)
        self._set_aside()

    def _set_aside(self) -> None:
        """What was imported stays: the collector of cycles, which stops every thread, need not look through it again and again.

        It is a million objects where the rest is tens of thousands: 0.1 to 0.3 s every few seconds, in which no device is answered.
        """
        if len(sys.modules) != self._num_modules:
            self._num_modules = len(sys.modules)
            gc.collect()
            gc.freeze()

    def _resign(self) -> None:
        if self._steward is not None:
            self._steward.close()
        self._steward, self._fence = None, None

    def _blob(self, device: Device, digest: str) -> bytes:
        """A file of a package that may be installed, or is: nothing else leaves the store."""
        if digest not in self._installable(device.population):
            raise DataError(f"there is no {digest}")
        try:
            content = self._stores.packages.get(digest)
        except DataError as error:
            if digest not in self._unreadable:  # once, however many devices ask
                self._unreadable.add(digest)
                _log.error(
                    "devices ask for a file, and are refused: %s: put it back from a back-up", error.what
                )
            raise
        self._unreadable.discard(digest)
        return content

    def _installable(self, population: str) -> set[str]:
        found: set[str] = set()
        for digest, target in self._keys.trust.installable().items():
            if target.population == population:
                found |= _files_of(self._stores.packages, digest)
        return found

    async def _pause(self, seconds: float) -> bool:
        """Wait; True if it is time to end."""
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _close(self) -> None:
        for server in self._servers:
            await server.stop(1.0)
        await self._sources.close()
        fence = self._fence
        # A database that is damaged or away must not hide why the process ends: the lease runs out, heartbeats come again.
        with contextlib.suppress(DatabaseDamagedError, *_FOR_A_WHILE):
            await asyncio.to_thread(self._peers.flush)
        with contextlib.suppress(DatabaseDamagedError, *_FOR_A_WHILE):
            await asyncio.to_thread(self._resign)
            if fence is not None:
                self._log.release(fence)
        self._writer.close()


def _slot_s(log: EventLog, name: str, population: Population) -> float:
    """The length of a population's slots, as its devices are told: none where the policy in force wants no telemetry."""
    policy = policies.recall(log, name).in_force
    if policy is None:  # nobody has led yet: it will be taken as it is
        policy = read_policy(read_yaml(Path(population.policy)), where=population.policy)
    return NO_TELEMETRY if policy.telemetry is TelemetryMode.OFF else population.watching.slot_s


def _files_of(packages: ContentStore, digest: str) -> frozenset[str]:
    """The manifest of a package and the files that it names; of a damaged manifest nothing: other packages are not affected."""
    try:
        return _read_files_of(packages, digest)
    except DataError as error:
        _log.error("a package that is offered is damaged: %s", error)
        return frozenset()


@lru_cache(maxsize=1024)
def _read_files_of(packages: ContentStore, digest: str) -> frozenset[str]:
    """The digest says what they are, so they are read once."""
    return frozenset({digest, *(blob.digest for blob in references(read_manifest(packages, digest)))})
