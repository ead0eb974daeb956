"""A trust repository, a device, and somebody between them who changes what the device is sent."""

from __future__ import annotations

import hashlib

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile

from fedretrain.artifacts.trust.client import TrustClient
from fedretrain.artifacts.trust.keys import create_keys, load_key, load_online
from fedretrain.artifacts.trust.repository import TrustRepository
from fedretrain.artifacts.trust.root import first_root, next_root
from fedretrain.artifacts.trust.words import TargetInfo, TrustError

NOW = 1_600_000_000.0  # years ago: whatever read the machine's clock would find everything expired
HOUR, DAY = 3_600.0, 86_400.0


def manifest(number):
    return f'{{"version": {number}}}'.encode()


def target(number, population="pumps"):
    content = manifest(number)
    return TargetInfo(
        hashlib.sha256(content).hexdigest(), len(content), population, number, number * 10, "e" * 64
    )


def block_of(call, *args, **kwargs):
    with pytest.raises(TrustError) as caught:
        call(*args, **kwargs)
    assert str(caught.value.block) in str(caught.value)
    return caught.value.block


class TrustWorld:
    """Everything on one disk: keys, repository, device; `sent` holds what somebody sends instead of the real file."""

    def __init__(self, folder, lifetimes=None):
        self.folder = folder
        create_keys(folder / "keys")
        self.offline = load_key(folder / "keys" / "offline" / "root.pem")
        self.online = load_online(folder / "keys" / "online")
        self.root = first_root(self.offline, self.online.public(), now=NOW)
        self.repository = TrustRepository(folder / "repository", self.online, lifetimes)
        self.repository.install_root(self.root, NOW)
        self.repository.publish([target(1)], NOW)
        self.sent, self.asked = {}, []
        self.client = self.new_client("device")

    def new_client(self, name, root=None):
        return TrustClient(self.folder / name, root or self.root, self.fetch)

    def fetch(self, name, max_bytes):
        self.asked.append((name, max_bytes))
        content = self.sent.get(name)
        if content is None:
            content = self.repository.read(name)
        if callable(content):
            yield from content()
            return
        for start in range(0, len(content), 100):
            yield content[start : start + 100]

    def installs(self, number, now=NOW, client=None):
        return (client or self.client).installable(target(number).digest, population="pumps", now=now)

    def files(self):
        """What the repository would send for the present state: by role."""
        timestamp = self.repository.read("timestamp.json")
        snapshot_version = Metadata.from_bytes(timestamp).signed.snapshot_meta.version
        snapshot = self.repository.read(f"{snapshot_version}.snapshot.json")
        targets_version = Metadata.from_bytes(snapshot).signed.meta["targets.json"].version
        return {
            "timestamp": timestamp,
            "snapshot": snapshot,
            "targets": self.repository.read(f"{targets_version}.targets.json"),
        }

    def edit(self, content, key, change):
        """Someone's own version of a signed file: changed, one version up, signed with `key`."""
        found = Metadata.from_bytes(content)
        found.signed.version += 1
        change(found.signed)
        found.sign(CryptoSigner(key))
        return found.to_bytes()

    def forge(self, number, keys):
        """Send a whole new list with one more target, each file signed with the key given for its role."""
        files = self.files()
        extra = target(number).to_target()
        targets = self.edit(
            files["targets"], keys["targets"], lambda part: part.targets.update({extra.path: extra})
        )
        targets_version = Metadata.from_bytes(targets).signed.version
        meta = MetaFile.from_data(targets_version, targets, ["sha256"])
        snapshot = self.edit(
            files["snapshot"], keys["snapshot"], lambda part: part.meta.update({"targets.json": meta})
        )
        snapshot_version = Metadata.from_bytes(snapshot).signed.version
        above = MetaFile.from_data(snapshot_version, snapshot, ["sha256"])
        timestamp = self.edit(
            files["timestamp"], keys["timestamp"], lambda part: setattr(part, "snapshot_meta", above)
        )
        self.sent = {
            f"{targets_version}.targets.json": targets,
            f"{snapshot_version}.snapshot.json": snapshot,
            "timestamp.json": timestamp,
        }

    def rotate(self, name, now, *, root_key=False, online=True):
        """New keys in a folder `name`, a root that tells of them, and a repository that has it."""
        create_keys(self.folder / name)
        new_key = load_key(self.folder / name / "offline" / "root.pem") if root_key else None
        new_online = load_online(self.folder / name / "online") if online else self.online
        present = max(
            self.folder.glob("repository/*.root.json"), key=lambda path: int(path.name.split(".")[0])
        )
        made = next_root(
            present.read_bytes(), self.offline, now=now, new_key=new_key, online=new_online.public()
        )
        self.repository = TrustRepository(self.folder / "repository", new_online)
        self.repository.install_root(made, now)
        self.offline, self.online = new_key or self.offline, new_online
        return made
