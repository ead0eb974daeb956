"""Models that people bring: safetensors of a plan's parameters, or an ONNX model, taken apart into graph and weights.

Rules of this file:
    * Nothing that executes code is read: pickles and archives of torch are refused by name before anything opens them.
    * An ONNX model becomes a graph without weights and a tree of weights, as our own models are. What cannot be taken apart (weights in
      another file, in a subgraph or of another type, operators of another vendor, or that draw random numbers) is named.
    * The parts, put together again, must answer exactly as the whole: on made-up inputs, in the same runtime.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import safetensors.numpy
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from fedretrain.artifacts.inference import Model
from fedretrain.artifacts.weights import canonical
from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto

_LOCATION = "weights"  # an external initializer must name a file; nobody opens it
_STANDARD = ("", "ai.onnx")
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_CONSTANT_SIZE = 16  # a float constant from this size on is a weight, whatever the exporter made of it
_ROWS = 33
_ARCHIVES = (
    ("serialized_exported_program", "an archive of torch.export"),
    ("archive_format", "an archive of torch.export"),
    ("constants.pkl", "a TorchScript archive"),
    ("data.pkl", "an archive of torch.save, with a pickle in it"),
)


@dataclass(frozen=True, eq=False)
class OnnxParts:
    """An ONNX model, taken apart.

    Attributes:
        graph: ONNX bytes without weights.
        weights: By the names of the graph's initializers.
        input_shape: Of one row.
        num_outputs: M.
    """

    graph: bytes
    weights: dict[str, NDArray[np.float32]]
    input_shape: tuple[int, ...]
    num_outputs: int


def read_weights(content: bytes) -> dict[str, NDArray[np.float32]]:
    """Weights that a person brings: any safetensors of floating-point tensors.

    Raises:
        DataError: If they are anything else.
    """
    refuse_code(content)
    try:
        tree = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"these are not weights: {error}", where="weights", fix="give safetensors") from error
    return canonical(tree)


def refuse_code(content: bytes) -> None:
    """Raise a `DataError` where reading a file would run what it says."""
    what = ""
    if content[:1] == b"\x80" and content[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        what = "a pickle"
    elif content.startswith(b"PK\x03\x04"):
        what = _archive(content)
    elif content.startswith(b"\x89HDF"):
        what = "an HDF5 file"
    if what:
        raise DataError(
            f"this is {what}, which may run code when it is read",
            where="model",
            fix="export safetensors or ONNX where you trust it",
        )


def _archive(content: bytes) -> str:
    try:
        names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return "a damaged archive"
    found = (text for mark, text in _ARCHIVES if any(mark in name for name in names))
    return next(found, "an archive")


def read_onnx(content: bytes) -> OnnxParts:
    """An ONNX model with one input ``[n, ...]`` and one output ``[n, M]``, both float32.

    Raises:
        DataError: If it is none, or cannot be taken apart.
    """
    refuse_code(content)
    model = _parsed(content)
    graph = model.graph
    _check_nodes(graph)
    weights = _take_weights(graph)
    input_shape = _input_shape(graph)
    stripped = _stripped(model)
    answers = _answers(content, input_shape)
    parts = OnnxParts(stripped, canonical(weights), input_shape, answers.shape[1])
    _check_equal(parts, answers)
    return parts


def _parsed(content: bytes) -> ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise _bad("this is no ONNX model", "export it again") from error
    if not model.graph.node:
        raise _bad("this is no ONNX model: it computes nothing", "export it again")
    if model.functions:
        raise _bad(
            f"the model defines an operator of its own, {model.functions[0].name}", "export it inlined"
        )
    _check_where_weights_are(model.graph)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise _bad(f"the model is not valid ONNX: {_first_line(error)}", "export it again") from error
    return model


def _check_where_weights_are(graph: GraphProto) -> None:
    for tensor in graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raise _bad(f"the weights {tensor.name!r} lie in another file", "save it as one file")
    if graph.sparse_initializer:
        raise _bad(f"the weights {graph.sparse_initializer[0].values.name!r} are sparse", "export them dense")


def _check_nodes(graph: GraphProto) -> None:
    """Only operators of ONNX itself, that compute the same each time, without graphs inside."""
    for node in graph.node:
        if node.domain not in _STANDARD:
            raise _bad(
                f"the operator {node.domain}.{node.op_type} is not one of ONNX", "use standard operators"
            )
        if node.op_type in _RANDOM:
            raise _bad(f"the operator {node.op_type} draws random numbers", "export the model as it predicts")
        for attribute in node.attribute:
            if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                raise _bad(
                    f"the operator {node.op_type} has a graph of its own", "export it without control flow"
                )
            if attribute.t.data_location == TensorProto.EXTERNAL:
                raise _bad(f"the operator {node.op_type} reads another file", "save it as one file")


def _take_weights(graph: GraphProto) -> dict[str, NDArray[np.float32]]:
    """The weights; in the graph each leaves its name and shape behind."""
    _constants_to_initializers(graph)
    read = {name for node in graph.node for name in node.input} | {one.name for one in graph.output}
    for tensor in [one for one in graph.initializer if one.name not in read]:
        graph.initializer.remove(tensor)  # a runtime drops it, and then refuses to be given it
    weights: dict[str, NDArray[np.float32]] = {}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            weights[tensor.name] = numpy_helper.to_array(tensor)
            bare = TensorProto(name=tensor.name, dims=tensor.dims, data_type=TensorProto.FLOAT)
            bare.data_location = TensorProto.EXTERNAL
            bare.external_data.add(key="location", value=_LOCATION)
            tensor.CopyFrom(bare)
        elif tensor.data_type not in (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL):
            kind = TensorProto.DataType.Name(tensor.data_type)
            raise _bad(f"the weights {tensor.name!r} are {kind}", "export them as 32-bit floats")
    if not weights:
        raise _bad("the model has no weights", "export it with its parameters")
    for one in [one for one in graph.input if one.name in {tensor.name for tensor in graph.initializer}]:
        graph.input.remove(one)
    return weights


def _constants_to_initializers(graph: GraphProto) -> None:
    """Weights that an exporter has put into Constant nodes."""
    for node in [one for one in graph.node if one.op_type == "Constant"]:
        value = next((one.t for one in node.attribute if one.name == "value"), None)
        is_weight = value is not None and value.data_type == TensorProto.FLOAT
        if value is not None and is_weight and np.prod(value.dims, dtype=np.int64) >= _CONSTANT_SIZE:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            graph.node.remove(node)


def _input_shape(graph: GraphProto) -> tuple[int, ...]:
    """The shape of one row."""
    for what, ends in (("input", graph.input), ("output", graph.output)):
        if len(ends) != 1:
            names = ", ".join(one.name for one in ends)
            raise _bad(f"the model has {len(ends)} {what}s: {names}", f"export it with one {what}")
        if ends[0].type.tensor_type.elem_type != TensorProto.FLOAT:
            raise _bad(f"the {what} {ends[0].name!r} is no 32-bit float", "export it with float32")
    given = [one.dim_value for one in graph.input[0].type.tensor_type.shape.dim]
    if not given or given[0]:
        raise _bad("the batch axis of the input is fixed", "export it with a dynamic first axis")
    if len(given) < 2 or not all(given[1:]):
        raise _bad(f"the input has the shape {given}", "export it with a fixed shape but for the first axis")
    return tuple(given[1:])


def _stripped(model: ModelProto) -> bytes:
    """The graph without words of the tool that made it: one model, one sequence of bytes."""
    for name in (
        "producer_name",
        "producer_version",
        "domain",
        "doc_string",
        "model_version",
        "metadata_props",
    ):
        model.ClearField(name)
    for name in ("training_info",):
        model.ClearField(name)
    graph = model.graph
    for name in ("doc_string", "value_info", "quantization_annotation", "metadata_props"):
        graph.ClearField(name)
    graph.name = "model"
    for node in graph.node:
        _strip_node(node)
    return model.SerializeToString(deterministic=True)


def _strip_node(node: NodeProto) -> None:
    for name in ("doc_string", "name", "metadata_props"):
        node.ClearField(name)


def _answers(whole: bytes, input_shape: tuple[int, ...]) -> NDArray[np.float32]:
    """``[N, M]`` what the model answers on made-up rows."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(whole, options, providers=["CPUExecutionProvider"])
        (answers,) = session.run(None, {session.get_inputs()[0].name: _rows(input_shape)})
    except Exception as error:  # the runtime's own exceptions have no root in common
        raise _bad(f"onnxruntime cannot run it: {_first_line(error)}", "use operators that it has") from error
    if answers.ndim != 2 or len(answers) != _ROWS:
        raise _bad(f"it answers {_ROWS} rows with the shape {answers.shape}", "let it answer [n, M]")
    if not np.isfinite(answers).all():
        raise _bad("the model's answers are not finite", "train it again")
    found: NDArray[np.float32] = answers
    return found


def _check_equal(parts: OnnxParts, answers: NDArray[np.float32]) -> None:
    """The parts answer exactly as the whole."""
    found = Model(parts.graph, parts.weights).predict(_rows(parts.input_shape))
    if not np.array_equal(found, answers):
        raise _bad("taken apart, the model answers otherwise", "export it again, with another exporter")


def _rows(input_shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(_ROWS, *input_shape)).astype(np.float32)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]


def _bad(what: str, fix: str) -> DataError:
    return DataError(what, where="model", fix=fix)
