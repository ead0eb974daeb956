"""Models that people bring: what is taken apart answers the same, and everything else is refused by name."""

from __future__ import annotations

import contextlib
import io
import pickle
import warnings
import zipfile

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fedretrain.artifacts.inference import Model
from fedretrain.artifacts.manifest import Strategy
from fedretrain.artifacts.weights import encode_params
from fedretrain.core.errors import DataError
from fedretrain.core.types import MethodKind
from fedretrain.server.desk import Desk
from fedretrain.server.model_files import read_onnx, read_weights
from tests.server_cases import CLASSES, FEATURES, lines, rows

RNG = np.random.default_rng(3)
BODY, HEAD = (
    RNG.normal(size=(FEATURES, 8)).astype(np.float32),
    RNG.normal(size=(8, CLASSES)).astype(np.float32),
)
BIAS = RNG.normal(size=CLASSES).astype(np.float32)


def _ends(batch="n", width=FEATURES, kind=TensorProto.FLOAT):
    return (
        [helper.make_tensor_value_info("rows", kind, [batch, width])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, CLASSES])],
    )


def _nodes():
    return [
        helper.make_node("MatMul", ["rows", "body"], ["a"], name="made by a tool"),
        helper.make_node("Relu", ["a"], ["h"]),
        helper.make_node("Gemm", ["h", "head", "bias"], ["scores"]),
    ]


def _model(nodes=None, tensors=None, ends=None, **more):
    ins, outs = ends or _ends()
    kept = {"body": BODY, "head": HEAD, "bias": BIAS} if tensors is None else tensors
    weights = [
        one if isinstance(one, TensorProto) else numpy_helper.from_array(one, name)
        for name, one in kept.items()
    ]
    graph = helper.make_graph(_nodes() if nodes is None else nodes, "g", ins, outs, weights)
    opsets = [helper.make_opsetid("", 18), *more.pop("opsets", [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="some tool", **more)


def onnx_bytes(**parts):
    return _model(**parts).SerializeToString()


def test_a_model_is_taken_apart_and_answers_exactly_as_before():
    whole = onnx_bytes()
    parts = read_onnx(whole)
    assert (parts.input_shape, parts.num_outputs) == ((FEATURES,), CLASSES)
    assert sorted(parts.weights) == ["bias", "body", "head"]
    np.testing.assert_array_equal(parts.weights["body"], BODY)
    for leaf in (BODY, HEAD, BIAS):
        assert leaf.tobytes() not in parts.graph
    assert b"some tool" not in parts.graph
    assert b"made by a tool" not in parts.graph
    x, _ = rows(50)
    np.testing.assert_array_equal(Model(parts.graph, parts.weights).predict(x), Model(whole, {}).predict(x))
    assert read_onnx(onnx_bytes()).graph == parts.graph  # one model, one sequence of bytes


def test_weights_in_constant_nodes_are_weights_too_and_unused_ones_are_dropped():
    nodes = [helper.make_node("Constant", [], ["body"], value=numpy_helper.from_array(BODY)), *_nodes()]
    spare = np.ones((3, 3), np.float32)
    parts = read_onnx(onnx_bytes(nodes=nodes, tensors={"head": HEAD, "bias": BIAS, "spare": spare}))
    assert sorted(parts.weights) == ["bias", "body", "head"]


def test_what_torch_exports_is_taken(tmp_path):
    module = torch.nn.Sequential(
        torch.nn.Linear(FEATURES, 8), torch.nn.Tanh(), torch.nn.Linear(8, CLASSES)
    ).eval()
    file = tmp_path / "model.onnx"
    axes = {"x": {0: "n"}, "y": {0: "n"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of torch's own
        torch.onnx.export(
            module,
            (torch.zeros(2, FEATURES),),
            file,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=axes,
        )
    parts = read_onnx(file.read_bytes())
    x, _ = rows(20)
    found = Model(parts.graph, parts.weights).predict(x)
    np.testing.assert_allclose(found, module(torch.from_numpy(x)).detach().numpy(), atol=1e-5)


def _external():
    tensor = numpy_helper.from_array(BODY, "body")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return {"body": tensor, "head": HEAD, "bias": BIAS}


def _branch():
    made = [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    graph = helper.make_graph([helper.make_node("Identity", ["h"], ["z"])], "b", [], made)
    return [
        *_nodes()[:2],
        helper.make_node("If", ["which"], ["k"], then_branch=graph, else_branch=graph),
        helper.make_node("Gemm", ["k", "head", "bias"], ["scores"]),
    ]


WRONG = {
    "lie in another file": lambda: onnx_bytes(tensors=_external()),
    "com.vendor.Fancy is not one of ONNX": lambda: onnx_bytes(
        nodes=[*_nodes()[:2], helper.make_node("Fancy", ["h"], ["scores"], domain="com.vendor")],
        opsets=[helper.make_opsetid("com.vendor", 1)],
    ),
    "RandomNormalLike draws random numbers": lambda: onnx_bytes(
        nodes=[*_nodes()[:2], helper.make_node("RandomNormalLike", ["h"], ["scores"])]
    ),
    "If has a graph of its own": lambda: onnx_bytes(
        nodes=_branch(), tensors={"body": BODY, "head": HEAD, "bias": BIAS, "which": np.array(True)}
    ),
    "'body' are DOUBLE": lambda: onnx_bytes(
        nodes=[
            helper.make_node("Cast", ["body"], ["b"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["rows", "b"], ["a"]),
            *_nodes()[1:],
        ],
        tensors={"body": BODY.astype(np.float64), "head": HEAD, "bias": BIAS},
    ),
    "batch axis of the input is fixed": lambda: onnx_bytes(ends=_ends(batch=4)),
    "2 inputs": lambda: onnx_bytes(
        ends=(_ends()[0] + [helper.make_tensor_value_info("more", 1, ["n", 1])], _ends()[1])
    ),
    "is no 32-bit float": lambda: onnx_bytes(
        nodes=[
            helper.make_node("Cast", ["rows"], ["r"], to=1),
            helper.make_node("MatMul", ["r", "body"], ["a"]),
            *_nodes()[1:],
        ],
        ends=_ends(kind=TensorProto.DOUBLE),
    ),
    "has no weights": lambda: onnx_bytes(nodes=[helper.make_node("Relu", ["rows"], ["scores"])], tensors={}),
    "not valid ONNX": lambda: onnx_bytes(
        nodes=[helper.make_node("Gemm", ["nothing", "head", "bias"], ["scores"])]
    ),
    "onnxruntime cannot run it": lambda: onnx_bytes(
        tensors={"body": BODY.T.copy(), "head": HEAD, "bias": BIAS}
    ),
    "no ONNX model": lambda: b"no model at all",
    "a pickle": lambda: pickle.dumps({"body": [1.0]}),
    "torch.save": lambda: _saved(torch.nn.Linear(2, 2)),
    "torch.export": lambda: _zip("archive_format", "models/model.json"),
    "TorchScript": lambda: _zip("m/constants.pkl", "m/data.pkl", "m/code/m.py"),
}


def _saved(module):
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    return file.getvalue()


def _zip(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return file.getvalue()


@pytest.mark.parametrize("named", WRONG)
def test_what_cannot_be_taken_is_named(named):
    with pytest.raises(DataError) as caught:
        read_onnx(WRONG[named]())
    assert named in str(caught.value)


def test_any_safetensors_of_floats_are_weights_and_no_pickle_is():
    tree = {"b": BIAS, "a": HEAD}
    for content in (encode_params(tree), safetensors.numpy.save({"b": BIAS.astype(np.float64), "a": HEAD})):
        found = read_weights(content)
        np.testing.assert_array_equal(found["b"], BIAS)
    with pytest.raises(DataError, match="a pickle"):
        read_weights(pickle.dumps(tree))
    with pytest.raises(DataError, match="not weights"):
        read_weights(b"rubbish")


def test_an_onnx_model_is_the_first_champion_without_a_training_file(office):
    file = office.folder / "first.onnx"
    file.write_bytes(onnx_bytes())
    office.config.write_text(office.config.read_text().replace('training = "training.yaml"\n', ""))
    said = office.on("models", "import", "--onnx", file, "--outputs", "a,b,c", "--json")
    assert (said.status, said.json["retrains"]) == (0, False)
    package = Desk(office.config, "").models.package(1)
    about = package.manifest
    assert (about.outputs, about.training.strategy) == (("a", "b", "c"), Strategy.IMPORTED)
    np.testing.assert_array_equal(package.weights["head"], HEAD)
    assert office.on("verify", "--json").json["wrong"] == []


def test_an_onnx_model_that_is_the_plans_can_be_retrained(office):
    assert office.on("models", "import", "--rounds", "1").status == 0
    package = Desk(office.config, "").models.package(1)
    model = onnx.ModelProto.FromString(package.graph)
    for tensor in model.graph.initializer:
        if tensor.name in package.weights:
            tensor.CopyFrom(numpy_helper.from_array(package.weights[tensor.name], tensor.name))
    file = office.folder / "same.onnx"
    file.write_bytes(model.SerializeToString())
    other = office.config.read_text().replace('folder = "state"', 'folder = "other"')
    office.config.write_text(other)
    said = office.on("models", "import", "--onnx", file, "--json")
    assert (said.status, said.json["retrains"]) == (0, True)
    again = Desk(office.config, "").models.package(1)
    assert again.graph == package.graph
    assert again.manifest.personalization.method is MethodKind.FEDAVG


def test_a_model_that_does_not_fit_the_features_is_one_line(office):
    file = office.folder / "first.onnx"
    wide = np.zeros((FEATURES + 1, 8), np.float32)
    file.write_bytes(
        onnx_bytes(tensors={"body": wide, "head": HEAD, "bias": BIAS}, ends=_ends(width=FEATURES + 1))
    )
    said = office.on("models", "import", "--onnx", file)
    (line,) = lines(said.err)
    assert (said.status, "the model wants (5,) and 3" in line) == (2, True)


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_model_is_read_or_refused_by_name(data):
    content = bytearray(onnx_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    with contextlib.suppress(DataError):
        read_onnx(bytes(content))
