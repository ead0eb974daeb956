"""``python -m fedretrain.server.gateway_process SERVER_TOML [--json]``: the process that devices speak with, a child of the coordinator's.

Rules of this file:
    * It decides nothing, and shares the database and the trust metadata with whoever decides, and nothing else. An interpreter runs one
      thread at a time: a turn over ten thousand devices in this one would hold every heartbeat up, and they the turn.
    * A database or a disk that fails for a while ends nothing: it is told, and tried again. A damaged database ends the process,
      by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import logging
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from fedretrain.artifacts.package import read_manifest, references
from fedretrain.coordinator.policy import TelemetryMode, read_policy
from fedretrain.core.ending import pause, run_until_signals
from fedretrain.core.errors import DataError, FedretrainError, UserError
from fedretrain.core.log_lines import log_lines
from fedretrain.server import policies
from fedretrain.server.annotation_store import Annotations
from fedretrain.server.commit import GroupCommit
from fedretrain.server.config import read_server
from fedretrain.server.database import DatabaseDamagedError, open_database
from fedretrain.server.enrolment import Enrolling, Told
from fedretrain.server.event_log import EventLog
from fedretrain.server.gateway import Enrolment, Files, Gateway, Tls, serve, stop
from fedretrain.server.keys import open_keys, open_stores
from fedretrain.server.lateness import Lateness
from fedretrain.server.peers import POLL_S, Peers
from fedretrain.server.quota import Quotas
from fedretrain.server.steady_clock import SteadyClock
from fedretrain.server.training_file import read_yaml
from fedretrain.wire.control import NO_TELEMETRY

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

    from fedretrain.artifacts.store import ContentStore
    from fedretrain.server.config import Population, ServerConfig
    from fedretrain.server.fleet import Device
    from fedretrain.server.keys import Keys

TOLD = 2
"""Exit status of one that cannot run and has said why: to start it again mends nothing."""
JSON = "--json"
SWITCH_S = 0.0005
"""So long a thread that computes keeps the interpreter's lock from one that has something to do. The event loop gives it up for a moment
thousands of times a second and waits so long to have it back: with Python's 5 ms whoever wrote heartbeats down held others up."""
_FLUSH_S = 1.0
_FOR_A_WHILE = (SQLAlchemyError, OSError)
_log = logging.getLogger("fedretrain.server.gateway_process")  # it runs as __main__


class GatewayProcess:
    """See the module.

    Args:
        config: ``server.toml``.
        log: The event log.
        keys: What it shows, and whom it trusts.
        packages: What devices may fetch.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        config: ServerConfig,
        log: EventLog,
        keys: Keys,
        packages: ContentStore,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config, self._log, self._keys, self._packages, self._clock = config, log, keys, packages, clock
        self._writer = GroupCommit(log.engine)
        self._peers = Peers(log.engine, self._writer, clock)
        self._annotations = Annotations(log.engine)
        self._servers: list[grpc.aio.Server] = []
        self._trust_version = 0
        self._unreadable: set[str] = set()
        self._slot_s: dict[str, float] = {}
        self._policies_read: dict[str, int] = {}
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Serve until `stop`."""
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
        gateway = Gateway(
            self._peers, self._writer, files, self._clock, heartbeat_s, self._slot_s, quotas, Lateness()
        )
        tls = Tls(
            self._keys.server_key.read_bytes(),
            self._keys.server_certificate.read_bytes(),
            self._keys.authority.certificate,
        )
        try:
            enrolment = Enrolment(enrolling.enrol)
            self._servers, _ = await serve(gateway, enrolment, tls, listen.control, listen.enrol)
            _log.info("devices: %s, enrolment: %s", listen.control, listen.enrol)
            gc.collect()
            gc.freeze()  # see `coordinator`: what was imported stays
            await self._follow()
        finally:
            await self._close()

    def stop(self) -> None:
        """End `run`; from its own thread, or a signal handler of the loop."""
        self._stop.set()

    async def _follow(self) -> None:
        """Keep the gateway's picture of the table fresh, and write heartbeats down."""
        flushed_at = 0.0
        while not await pause(self._stop, POLL_S):
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

    def _blob(self, device: Device, digest: str) -> bytes:
        """A file of a package that may be installed, or is: nothing else leaves the store."""
        if digest not in self._installable(device.population):
            raise DataError(f"there is no {digest}")
        try:
            content = self._packages.get(digest)
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
                found |= _files_of(self._packages, digest)
        return found

    async def _close(self) -> None:
        await stop(self._servers, 1.0)
        # A database that is damaged or away must not hide why the process ends: heartbeats come again.
        with contextlib.suppress(DatabaseDamagedError, *_FOR_A_WHILE):
            await asyncio.to_thread(self._peers.flush)
        self._writer.close()


def _slot_s(log: EventLog, name: str, population: Population) -> float:
    """The length of a population's slots, as its devices are told: none where the policy in force wants no telemetry."""
    policy = policies.in_force(log, name)
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


def main(words: list[str]) -> int:
    """Run one until SIGTERM or Ctrl-C; the exit status."""
    log_lines(as_json=JSON in words)
    sys.setswitchinterval(SWITCH_S)
    try:
        config = read_server(Path(words[0]))
        clock, engine = SteadyClock(), open_database(config.database_url)
        try:
            keys, packages = open_keys(config, clock()), open_stores(config).packages
            gateway = GatewayProcess(config, EventLog(engine), keys, packages, clock)
            run_until_signals(gateway.run, gateway.stop)
        finally:
            engine.dispose()
    except FedretrainError as error:
        sys.stderr.write(f"fedretrain: {error}\n")
        return TOLD
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
