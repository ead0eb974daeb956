"""A small model package: a scaler over two channels, then one linear layer; built without torch."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from fedretrain.artifacts.decision import class_probabilities
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


def graph(size=2):
    """One linear layer over the weights above."""
    dims = {"head.weight": (3, size), "head.bias": (3,)}
    return _model([helper.make_node("Gemm", ["x", *dims], ["y"], transB=1)], dims, size)


def deep_graph(size, hidden):
    """A shared body (linear, ReLU) under the head."""
    body = {"body.weight": (hidden, size), "body.bias": (hidden,)}
    head = {"head.weight": (3, hidden), "head.bias": (3,)}
    nodes = [
        helper.make_node("Gemm", ["x", *body], ["a"], transB=1),
        helper.make_node("Relu", ["a"], ["h"]),
        helper.make_node("Gemm", ["h", *head], ["y"], transB=1),
    ]
    return _model(nodes, body | head, size)


def _model(nodes, dims, size):
    """A model without its weights."""
    weights = [
        TensorProto(name=n, dims=d, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
        for n, d in dims.items()
    ]
    for one in weights:
        one.external_data.add(key="location", value="weights")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", m]) for n, m in (("x", size), ("y", 3))]
    made = helper.make_graph(nodes, "linear", ends[:1], ends[1:], weights)
    opset = helper.make_opsetid("", 18)
    return helper.make_model(made, opset_imports=[opset], ir_version=8).SerializeToString()


def logits(tree, rows, of=None):
    return (of or pipeline()).apply(rows) @ tree["head.weight"].T + tree["head.bias"]


def contents(tree=None, base=None, **changes):
    made = release(base, weights() if tree is None else tree)
    shares = class_probabilities(logits(made.weights, ROWS))
    vectors = SanityVectors(ROWS, shares.astype(np.float64), 1e-4)
    parts = {"release": made, "graph": b"graph", "pipeline": pipeline(), "sanity": vectors, **changes}
    return Contents(**parts)


ABOUT = {"population": "greenhouse", "version": 3, "created_at": 1_750_000_000.0, "outputs": OUTPUTS}
