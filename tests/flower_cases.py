"""Real Flower processes on the loopback interface: a SuperLink, agents with their SuperNodes, a campaign."""

from __future__ import annotations

import ipaddress
import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedretrain.artifacts.at_rest import AtRest, StorePlace
from fedretrain.artifacts.store import ContentStore
from fedretrain.artifacts.weights import encode_params
from fedretrain.core.ids import ClientId
from fedretrain.core.types import ClientData
from fedretrain.edge.supernode import CampaignProcesses, Invitation, NodeKeys
from fedretrain.edge.training_data import FolderData
from fedretrain.server.campaign import CampaignDefinition, define_campaign, read_campaign
from fedretrain.server.campaign_process import CampaignFiles, CampaignProcess
from fedretrain.server.campaign_rules import CampaignRules, SamplingRule
from fedretrain.server.database import open_database
from fedretrain.server.event_log import EventLog
from fedretrain.server.superlink import SuperLink, SuperLinkConfig, campaign_bundle
from fedretrain.training.config import LocalTraining, OptimizerConfig
from fedretrain.training.plan import ModelName, TrainingPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from fedretrain.server.campaign import CampaignRecord

PLAN = TrainingPlan(
    ModelName.MLP,
    (4,),
    3,
    options={"hidden": (8,)},
    training=LocalTraining(batch_size=4, epochs=1, optimizer=OptimizerConfig(lr=0.1)),
)
NUM_DEVICES = 4


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody takes connections there."""
    import socket

    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def examples(client: int, num: int = 12) -> ClientData:
    rng = np.random.default_rng(client)
    x = rng.normal(size=(num, 4)).astype(np.float32)
    return ClientData(x, (np.abs(x).argmax(axis=1) % 3).astype(np.int64))


def definition(store: ContentStore, **changes: object) -> CampaignDefinition:
    base = store.put(encode_params(PLAN.make().first_shared()))
    values: dict[str, object] = {
        "campaign": "c1",
        "population": "watches",
        "num_devices": NUM_DEVICES,
        "base": base,
        "num_rounds": 3,
        "plan": PLAN,
        "rules": CampaignRules(SamplingRule(cohort_size=NUM_DEVICES), quorum=1, deadline_s=60.0),
        "seed": 7,
        "min_online": NUM_DEVICES,
        "bundle": store.put(campaign_bundle().content),
    }
    return CampaignDefinition(**(values | changes))  # type: ignore[arg-type]


class Keys:
    """A server certificate for the loopback interface, and keys of SuperNodes, below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        certificate = (
            builder.not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(names, critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.certificate, self.private_key = folder / "server.pem", folder / "server.key"
        self.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.private_key.write_bytes(_private(key, serialization.PrivateFormat.PKCS8))

    def superlink(self) -> SuperLinkConfig:
        return SuperLinkConfig(
            port=free_port(),
            certificate=self.certificate,
            private_key=self.private_key,
            root_certificates=self.certificate,
        )

    def node(self, name: str) -> tuple[NodeKeys, str]:
        """An agent's keys, and its public key as the server knows it."""
        key, file = ec.generate_private_key(ec.SECP384R1()), self.folder / f"{name}.key"
        file.write_bytes(_private(key, serialization.PrivateFormat.OpenSSH))
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return NodeKeys(file, self.certificate), public.decode()


def _private(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def plain_place(folder: Path) -> StorePlace:
    """A store whose files lie as they are."""
    return StorePlace(str(folder), AtRest(development=True))


@dataclass
class Fleet:
    """A coordinator's and several agents' processes below one folder.

    With `keys` connections are TLS and every node has a key; without, it is a development machine. With `link`, agents reach the
    SuperLink there.
    """

    root: Path
    keys: Keys | None = None
    nodes: dict[str, list[int]] = field(default_factory=dict)
    agents: dict[str, CampaignProcesses] = field(default_factory=dict)
    campaign: CampaignProcess | None = None
    link: str = ""

    def __post_init__(self) -> None:
        self.database = f"sqlite:///{self.root / 'server.db'}"
        self.log = EventLog(open_database(self.database))
        self.store = ContentStore(self.root / "store")
        plain = SuperLinkConfig(port=free_port(), insecure=True)
        self.superlink = SuperLink(self.keys.superlink() if self.keys else plain, self.root / "superlink")

    def recruit(self, name: str, data: Mapping[int, ClientData], bundle: str = "") -> None:
        """An agent that hosts some clients and was invited to campaigns of a bundle."""
        folder = self.root / name
        for client, found in data.items():
            FolderData(folder / "data").put_examples(ClientId(client), found)
        digest = bundle or campaign_bundle().digest
        invitation = Invitation("any", self.link or self.superlink.config.address, digest)
        keys = NodeKeys(insecure=True)
        if self.keys is not None:
            keys, public = self.keys.node(name)
            self.enrol({**self.nodes, public: sorted(data)})
        self.agents[name] = CampaignProcesses(invitation, keys, folder / "data", folder)

    def enrol(self, nodes: dict[str, list[int]]) -> None:
        """Which public keys there are, and the devices of each."""
        self.nodes = nodes
        (self.root / "nodes.json").write_text(json.dumps(nodes))

    def begin(self, wanted: CampaignDefinition) -> None:
        """The next campaign."""
        if self.campaign is not None:
            self.campaign.stop()
        define_campaign(self.log, wanted, at=time.time(), fence=None)
        witness = self.root / f"{wanted.population}.witness"
        nodes = None if self.keys is None else self.root / "nodes.json"
        files = CampaignFiles(
            self.database, plain_place(self.root / "store"), self.root / "apps", nodes, witness
        )
        self.campaign = CampaignProcess(wanted.campaign, self.log, self.superlink, files)

    def tick(self) -> bool:
        """One look at everything; whether the campaign goes on."""
        assert self.campaign is not None
        now = time.monotonic()
        on = self.campaign.ensure(now)
        for agent in self.agents.values():
            agent.ensure(now)
        return on

    def run(
        self, until: Callable[[CampaignRecord], bool] | None = None, patience_s: float = 150.0
    ) -> CampaignRecord:
        """Until the campaign ends, or `until` holds of its record."""
        assert self.campaign is not None
        begun = time.monotonic()
        while time.monotonic() - begun < patience_s:
            on = self.tick()
            record = read_campaign(self.log, self.campaign.campaign)
            if not on or (until is not None and until(record)):
                return record
            time.sleep(0.2)
        raise AssertionError(f"no end in {patience_s} s:\n{self.told()}")

    def told(self) -> str:
        """The ends of all logs."""
        logs = sorted(self.root.rglob("*.log"))
        return "\n".join(f"--- {log.relative_to(self.root)}\n{log.read_text()[-3000:]}" for log in logs)

    def stop(self) -> None:
        if self.campaign is not None:
            self.campaign.stop()
        for agent in self.agents.values():
            agent.stop()
        self.superlink.stop()
