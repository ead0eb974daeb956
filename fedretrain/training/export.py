"""From a torch model to an ONNX graph without weights.

Rules of this file:
    * The graph is the architecture: versions of one model share its digest. Each parameter is an external initializer
      that bears its name in the parameter tree; the weights are injected when a device loads the model.
    * One model, one sequence of bytes: no names, versions or paths of tools.
    * The batch axis is free; the model is exported as it predicts (evaluation mode).
    * Our own models are written layer by layer (`onnx_layers`), any other module by tracing it.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from fedretrain.core.errors import UnsupportedModelError
from fedretrain.training.onnx_layers import write_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import GraphProto, ModelProto
    from torch import nn

    from fedretrain.training.models import ModelBundle
    from fedretrain.training.onnx_layers import Nodes

INPUT, OUTPUT, BATCH = "x", "y", "n"
OPSET = 18
IR_VERSION = 8  # of opset 18; a newer one would shut out older runtimes for nothing
LOCATION = "weights"  # an external initializer must name a file; nobody opens it


def export_graph(model: ModelBundle, input_shape: Sequence[int]) -> bytes:
    """The model's ONNX graph, input ``x`` ``[n, *input_shape]``, output ``y`` ``[n, M]``, without weights.

    Raises:
        UnsupportedModelError: If ONNX cannot say what the module computes.
    """
    module = copy.deepcopy(model.module).eval()
    nodes = write_layers(module, input_shape)
    graph = _trace(model, module, input_shape) if nodes is None else _graph(nodes, model, input_shape)
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name=""
    )
    _check_all_used(made)
    return made.SerializeToString(deterministic=True)


def _check_all_used(made: ModelProto) -> None:
    """A runtime drops a parameter that nothing reads, and then refuses to be given it."""
    read = {name for node in made.graph.node for name in node.input}
    unused = [one.name for one in made.graph.initializer if one.name not in read]
    if unused:
        raise UnsupportedModelError(
            f"nothing that the model computes depends on its parameter {unused[0]!r}",
            where="model",
            fix="remove the parameter from the module",
        )


def _graph(nodes: Nodes, model: ModelBundle, input_shape: Sequence[int]) -> GraphProto:
    """A graph of hand-written nodes; the last value becomes the output."""
    nodes.add("Identity", nodes.last, outputs=[OUTPUT])
    ends = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shape])
        for name, shape in ((INPUT, input_shape), (OUTPUT, [None]))
    )
    return helper.make_graph(
        nodes.nodes,
        "model",
        [next(ends)],
        [next(ends)],
        [*_parameters(model), *nodes.constants.values()],
    )


def _parameters(model: ModelBundle) -> list[TensorProto]:
    """Every parameter of the tree as an initializer without content."""
    tensors = []
    for name, leaf in sorted(model.first.items()):
        tensor = TensorProto(
            name=name, dims=leaf.shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
        )
        tensor.external_data.add(key="location", value=LOCATION)
        tensors.append(tensor)
    return tensors


def _trace(model: ModelBundle, module: nn.Module, input_shape: Sequence[int]) -> GraphProto:
    """The graph of any module; what is no parameter of the tree stays in it as a constant."""
    traced = _traced(module, input_shape)
    graph = onnx.GraphProto()
    graph.CopyFrom(traced.graph)
    graph.name = "model"
    del graph.value_info[:]
    graph.initializer.extend(_parameters(model))
    constants, inputs = module.state_dict(), {one.name for one in graph.input} - {INPUT}
    for name in sorted(inputs - set(model.first)):
        if name not in constants or constants[name].is_floating_point():
            raise UnsupportedModelError(
                f"the graph of {type(module).__name__} reads {name!r}, which is no parameter of it",
                where="model",
            )
        graph.initializer.append(numpy_helper.from_array(constants[name].numpy(), name))
    for one in [one for one in graph.input if one.name != INPUT]:
        graph.input.remove(one)
    for node in graph.node:
        node.doc_string = ""
    return graph


def _make_distinct_(module: nn.Module) -> None:
    """Give every parameter other content: torch merges those that happen to be equal, such as scales of one."""
    for index, leaf in enumerate(module.state_dict().values()):
        if leaf.is_floating_point():
            size = max(leaf.numel(), 1)
            leaf.copy_((torch.arange(size) / size + index + 0.5)[: leaf.numel()].reshape(leaf.shape))


def _traced(module: nn.Module, input_shape: Sequence[int]) -> ModelProto:
    """What torch's exporter makes of it, with parameters as inputs.

    The exporter that traces is used on purpose: the newer one needs another library, and bakes weights in.
    """
    example = torch.zeros(2, *input_shape)  # not 1, which some operators treat as a constant
    _make_distinct_(module)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        warnings.simplefilter("ignore")  # deprecations of torch's own; what cannot be exported raises
        try:
            torch.onnx.export(
                module,
                (example,),
                file,
                dynamo=False,
                export_params=False,
                do_constant_folding=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: BATCH}, OUTPUT: {0: BATCH}},
                opset_version=OPSET,
            )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            raise UnsupportedModelError(
                f"ONNX cannot say what {type(module).__name__} computes: {str(error).splitlines()[0]}",
                where="model",
                fix="use other layers, or one of mlp, cnn1d and gru",
            ) from error
        return onnx.load(file)
