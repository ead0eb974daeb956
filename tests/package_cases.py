"""A small model package: a scaler over two channels, then one linear layer; built without torch."""

from __future__ import annotations

import numpy as np

from fedretrain.artifacts.delta import release
from fedretrain.artifacts.package import Contents
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Channel, Schema
from fedretrain.validation.sanity import SanityVectors

SCHEMA = Schema((Channel("heat", "K", 0.0, 500.0), Channel("hum", "1", 0.0, 1.0)))
OUTPUTS = ("calm", "warm", "hot")
ROWS = np.array([[250.0, 0.2], [499.0, 0.9], [1.0, 0.1]], np.float32)


def pipeline(schema=SCHEMA):
    return Pipeline((Scaler("range"),)).fit(ROWS, schema)


def weights(seed=0, size=2):
    rng = np.random.default_rng(seed)
    return {
        "head.weight": rng.normal(size=(3, size)).astype(np.float32),
        "head.bias": rng.normal(size=3).astype(np.float32),
    }


def logits(tree, rows, of=None):
    return (of or pipeline()).apply(rows) @ tree["head.weight"].T + tree["head.bias"]


def contents(tree=None, base=None, **changes):
    made = release(base, weights() if tree is None else tree)
    vectors = SanityVectors(ROWS, logits(made.weights, ROWS).astype(np.float64), 1e-4)
    parts = {"release": made, "graph": b"graph", "pipeline": pipeline(), "sanity": vectors, **changes}
    return Contents(**parts)


ABOUT = {"population": "greenhouse", "version": 3, "created_at": 1_750_000_000.0, "outputs": OUTPUTS}
