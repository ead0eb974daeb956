"""Three versions of a model in a store, for devices that install them: the second and third come as deltas too."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from fedretrain.artifacts.decision import class_probabilities
from fedretrain.artifacts.delta import release
from fedretrain.artifacts.package import Contents, read_manifest, write_package
from fedretrain.artifacts.store import ContentStore
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Channel, Schema
from fedretrain.validation.sanity import SanityVectors
from tests.package_cases import deep_graph, graph

SIZE = 60  # inputs: enough weights for a delta to pay
SCHEMA = Schema(tuple(Channel(f"c{i}", "1", -1.0, 1.0) for i in range(SIZE)))
ROWS = np.random.default_rng(5).uniform(-1, 1, (4, SIZE)).astype(np.float32)
OUTPUTS = ("calm", "warm", "hot")


@dataclass
class Server:
    """Serves blobs, counts and spoils them."""

    store: ContentStore
    versions: tuple[str, ...]

    def __post_init__(self):
        self.asked = []
        self.spoilt = {}

    def __call__(self, digest):
        self.asked.append(digest)
        return self.spoilt[digest] if digest in self.spoilt else self.store.get(digest)

    def manifest(self, index):
        return read_manifest(self.store, self.versions[index])

    def spoil(self, blob):
        content = bytearray(self.store.get(blob.digest))
        content[-1] ^= 1
        self.spoilt[blob.digest] = bytes(content)


def serve(folder, num_versions=3):
    """A server with versions that each come from the one before."""
    store, base, digests = ContentStore(folder), None, []
    rng = np.random.default_rng(0)
    tree = {
        "head.weight": rng.normal(size=(3, SIZE)).astype(np.float32),
        "head.bias": np.zeros(3, np.float32),
    }
    for version in range(1, num_versions + 1):
        digests.append(write(store, release(base, tree), version))
        base = release(base, tree).weights
        tree = {n: leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32) for n, leaf in base.items()}
    return Server(store, tuple(digests))


def write(store, released, version, *, outputs=None, baseline=b"bins", how="range", **about):
    """One version; its sanity vectors are its own answers, unless others are given."""
    pipeline = Pipeline((Scaler(how),)).fit(ROWS, SCHEMA, device=np.zeros(len(ROWS), np.int64))
    weights = released.weights
    features, model = pipeline.localize(ROWS[:0]).apply(ROWS), graph(SIZE)
    if "body.weight" in weights:
        hidden = len(weights["body.bias"])
        features = np.maximum(features @ weights["body.weight"].T + weights["body.bias"], 0)
        model = deep_graph(SIZE, hidden)
    answers = class_probabilities(features @ weights["head.weight"].T + weights["head.bias"])
    sanity = SanityVectors(ROWS, (answers if outputs is None else outputs).astype(np.float64), 1e-4)
    parts = Contents(released, model, pipeline, sanity, baseline=baseline, report=b"page")
    return write_package(
        store, parts, population="plant", version=version, created_at=float(version), outputs=OUTPUTS, **about
    )


def fingerprint(folder):
    """Every visible file of a folder and what is in it."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
