"""A fleet on this machine for tests of the agent: real gateway, trust repository, packages and signed assignments."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.artifacts.assignment import Assignment, sign
from fedretrain.artifacts.delta import release
from fedretrain.artifacts.notice import Notice
from fedretrain.artifacts.notice import sign as sign_notice
from fedretrain.artifacts.package import read_manifest, references
from fedretrain.artifacts.store import ContentStore
from fedretrain.artifacts.trust.keys import create_keys, load_key, load_online
from fedretrain.artifacts.trust.repository import TrustRepository
from fedretrain.artifacts.trust.root import first_root
from fedretrain.artifacts.trust.words import TargetInfo
from fedretrain.core.frozen import freeze
from fedretrain.edge.config import ApiConfig, DeviceConfig, EdgeConfig, OutboxConfig
from fedretrain.edge.device import DeviceRuntime
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.scaler import Scaler
from fedretrain.monitoring.bins import fit_bins
from fedretrain.privacy.ledger import Head
from fedretrain.server import announcements, fleet
from fedretrain.server.announcements import Announcement
from fedretrain.server.database import open_database
from fedretrain.server.tables import telemetry
from fedretrain.wire.v1 import fleet_pb2 as pb
from tests.fleet_cases import loopback
from tests.slot_cases import ROWS, SCHEMA, SIZE, write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fleet_cases import Loopback

POPULATION = "plant"
HOUR = 3_600.0
NO_LEDGER = Head(0, "")


def rows(num=1, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (num, SIZE)).astype(np.float32)


def bins():
    inputs = Pipeline((Scaler("range"),)).fit(ROWS, SCHEMA).apply(rows(500, 9))
    return fit_bins(inputs, SCHEMA.names)


class Clock:
    """Both clocks of a machine, moved by the test; the wall clock starts at the present, as TLS reads the machine's own."""

    def __init__(self, at=None):
        self.monotonic_s, self.at = 1_000.0, time.time() if at is None else at

    def monotonic(self):
        return self.monotonic_s

    def wall(self):
        return self.at

    def go(self, by_s, fleet=None):
        """Time passes, on the server of a fleet too."""
        self.monotonic_s += by_s
        self.at += by_s
        if fleet is not None:
            fleet.here.offset_s += by_s


class Trust:
    """The repository's files as a gateway's mapping."""

    def __init__(self, repository):
        self.repository = repository

    def __contains__(self, name):
        try:
            self.repository.read(name)
        except Exception:  # noqa: BLE001 - whatever is wrong, there is no such file
            return False
        return True

    def __getitem__(self, name):
        return self.repository.read(name)


@dataclass
class Fleet:
    """The server's side, as a test speaks with it."""

    here: Loopback
    store: ContentStore
    repository: TrustRepository
    key: object
    counters: dict[str, int] = field(default_factory=dict)
    versions: list[str] = field(default_factory=list)
    heads: dict[str, Head] = field(default_factory=dict)

    def make(self, num=1, *, wrong=False, hidden=0, head=NO_LEDGER, **about):
        """New versions, installable; a wrong one has another model's sanity vectors. The list bears the head of the privacy ledger."""
        rng = np.random.default_rng(len(self.versions))
        base = None
        for _ in range(num):
            number = len(self.versions) + 1
            tree = {
                "head.weight": rng.normal(size=(3, hidden or SIZE)).astype(np.float32),
                "head.bias": np.zeros(3, np.float32),
            }
            if hidden:
                tree["body.weight"] = rng.normal(size=(hidden, SIZE)).astype(np.float32)
                tree["body.bias"] = np.zeros(hidden, np.float32)
            made = release(base, tree)
            base = made.weights
            if wrong:
                about["outputs"] = np.full((4, 3), 1 / 3)
            self.versions.append(write(self.store, made, number, baseline=freeze(bins()), **about))
            self.heads[self.versions[-1]] = head
            self.serve_blobs(self.versions[-1])
        self.publish(self.versions)
        return self.versions[-num:]

    def serve_blobs(self, digest):
        manifest = read_manifest(self.store, digest)
        for one in (digest, *(blob.digest for blob in references(manifest))):
            self.here.blobs[one] = self.store.get(one)

    def publish(self, digests):
        targets = [
            TargetInfo(
                digest,
                len(self.store.get(digest)),
                POPULATION,
                read_manifest(self.store, digest).version,
                self.heads[digest].counter,
                self.heads[digest].hash,
            )
            for digest in digests
        ]
        self.repository.publish(targets, time.time())
        self.here.trust_version += 1

    def assign(self, device, serve="", *, counter=None, valid_s=HOUR, **more):
        number = counter or self.counters.get(device, 0) + 1
        self.counters[device] = number
        now = time.time()
        assignment = Assignment(
            POPULATION, device, serve, more.pop("shadow", ""), number, now, now + valid_s, **more
        )
        envelope = sign(assignment, self.key)
        with self.here.engine.begin() as connection:
            fleet.assign(connection, POPULATION, [(device, envelope, number)], now)
        self.here.peers.poll()
        return assignment

    def notify(self, *withdrawn, serve="", safe_mode=False, key=None, **more):
        """What the whole population must leave."""
        now = time.time()
        more = {"issued_at": now, "ends_at": now + HOUR} | more
        notice = Notice(
            more.pop("population", POPULATION), tuple(sorted(withdrawn)), serve, safe_mode, **more
        )
        announcements.tell(
            self.here.engine, None, POPULATION, Announcement(notice=sign_notice(notice, key or self.key))
        )
        self.here.peers.poll()

    def heard(self, device):
        self.here.peers.flush()
        with self.here.engine.connect() as connection:
            return fleet.find(connection, POPULATION, device).heartbeat

    def records(self, kind=""):
        """What arrived, in order."""
        with self.here.engine.connect() as connection:
            payloads = [
                row.payload for row in connection.execute(telemetry.select().order_by(telemetry.c.number))
            ]
        found = [pb.Payload.FromString(payload) for payload in payloads]
        return [getattr(one, kind) for one in found if one.WhichOneof("what") == kind] if kind else found

    def config(self, folder, device="a", *, token=None, **more):
        authority = folder / "authority.pem"
        authority.write_bytes(self.here.authority.certificate)
        named = DeviceConfig(device, token=self.here.token(device, POPULATION) if token is None else token)
        return EdgeConfig(
            folder=str(folder / "edge"),
            enrol=self.here.enrolment,
            authority=str(authority),
            devices=(named,),
            outbox=OutboxConfig(flush_s=1.0),
            api=ApiConfig(http=""),
            **more,
        )

    def device(self, folder, clock=None, device="a", **more):
        """A device that runs; enrolled on its first start."""
        clock = clock or Clock()
        config = self.config(folder, device, **more)
        return DeviceRuntime(config, config.devices[0], monotonic=clock.monotonic, wall=clock.wall)


@contextmanager
def fleet_of(folder: Path, *, slot_s: float = 60.0, ports: tuple[int, int] = (0, 0)) -> Iterator[Fleet]:
    """A server's side that runs; again with the same folder and ports: it goes on where it was."""
    engine = open_database(f"sqlite:///{folder}/server.db")
    create_keys(folder / "keys")
    online = load_online(folder / "keys" / "online")
    now = time.time()
    repository, path = TrustRepository(folder / "repository", online), folder / "root.json"
    if not path.exists():
        path.write_bytes(
            first_root(load_key(folder / "keys" / "offline" / "root.pem"), online.public(), now=now)
        )
    root = path.read_bytes()
    repository.install_root(root, now)
    repository.publish([], now)
    with loopback(folder, engine, root=root, slot_s=slot_s, ports=ports) as here:
        here.trust = Trust(repository)
        yield Fleet(here, ContentStore(folder / "server"), repository, online.assignment)
    engine.dispose()
