"""Watched devices, a champion's binner and messages, for tests of sources."""

from __future__ import annotations

import json

import numpy as np

from fedretrain.core.clock import HOUR_S
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Channel, Schema
from fedretrain.monitoring.bins import fit_bins
from fedretrain.server import fleet
from fedretrain.server.fleet import Traits
from fedretrain.server.sources.binning import Binner
from fedretrain.wire.control import ReportShape, decode
from fedretrain.wire.samples import Samples, encode_samples
from fedretrain.wire.sequence import Key, Priority

PACKAGE = "ab" * 32
SLOT_S = HOUR_S
NOW = 1000 * SLOT_S + 600.0
SCHEMA = Schema((Channel("a", "1", -8.0, 8.0), Channel("b", "1", -8.0, 8.0)))
INSTALLATION = "0" * 32


def binner(package: str = PACKAGE) -> Binner:
    pipeline = Pipeline((Scaler("range"),)).fit(np.zeros((2, 2), dtype=np.float32), SCHEMA)
    past = pipeline.apply(np.random.default_rng(3).normal(size=(500, 2)).astype(np.float32))
    return Binner(package, pipeline, fit_bins(past, ("a", "b"), num_bins=4), 3, SLOT_S, 300.0)


def rows(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, 2)).round(3)


def message(sequence: int | None, num: int = 5, *, at: float = NOW - SLOT_S, boot: int = 1, **more) -> bytes:
    """Samples whose rows follow from their number."""
    key = None if sequence is None else Key(INSTALLATION, boot, Priority.SAMPLES, sequence)
    content = encode_samples(Samples(np.full(num, at), rows(num, sequence or 0), key))
    return json.dumps(json.loads(content) | more).encode() if more else content


def watch(engine, *names: str, population: str = "p") -> None:
    with engine.begin() as connection:
        for name in names:
            fleet.watch(connection, population, name, Traits("pump", "north"), 1.0)


def counts_of(payloads, how: Binner) -> np.ndarray:
    """``[F, C]`` the sum of reports, as the coordinator reads them."""
    shape = ReportShape(how.bins.num_features, how.bins.num_cells, how.num_outputs)
    total = np.zeros((how.bins.num_features, how.bins.num_cells), dtype=np.int64)
    for payload in payloads:
        said = decode(payload, 0, NOW, shape, {how.package: 1}.get)
        assert said.num_predictions.sum() == 0
        total += said.features_KFC.sum(axis=0)
    return total


def expected(how: Binner, sequences, num: int = 5) -> np.ndarray:
    """``[F, C]`` by another way: each value is put into its bin by itself."""
    total = np.zeros((how.bins.num_features, how.bins.num_cells), dtype=np.int64)
    for sequence in sequences:
        inputs = how.pipeline.apply(rows(num, sequence).astype(np.float64))
        for feature in range(inputs.shape[1]):
            edges = how.bins.edges_FE[feature].tolist()
            for value in inputs[:, feature].tolist():
                inside = [i for i in range(1, len(edges)) if edges[i - 1] <= value < edges[i]]
                top = len(edges) - 1 if value == edges[-1] else len(edges)
                total[feature, inside[0] if inside else 0 if value < edges[0] else top] += 1
    return total
