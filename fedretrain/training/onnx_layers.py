"""ONNX nodes of our own models' layers, written by hand.

Rules of this file:
    * A layer that is not known exactly is not written at all: the caller then exports by tracing.
    * Parameters enter by their names in the parameter tree, as external initializers without content. What the runtime
      derives from them (reordered gates, an added axis) it computes once, when it loads the model.
    * Names and order of nodes depend on the model alone, so one architecture has one sequence of bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from fedretrain.training.layers import LinearGru, MeanOverTime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnx import NodeProto, TensorProto


@dataclass
class Nodes:
    """A graph in the making.

    Attributes:
        nodes: In order.
        constants: Numbers that belong to the architecture, by content.
        last: The name of the last value.
    """

    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    last: str = "x"

    def add(self, kind: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Append a node; the name of its (first) output, a new one if none is given."""
        names = list(outputs) or [f"v{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return next(name for name in names if name)

    def then(self, kind: str, *inputs: str, **attributes: Any) -> None:
        """Append a node on the last value."""
        self.last = self.add(kind, self.last, *inputs, **attributes)

    def integers(self, *values: int) -> str:
        """A constant vector of whole numbers."""
        return self._constant("i" + "_".join(map(str, values)), np.array(values, dtype=np.int64))

    def filled(self, value: float, size: int) -> str:
        """A constant float32 vector of one value."""
        return self._constant(f"f{value:g}x{size}", np.full(size, value, dtype=np.float32))

    def _constant(self, name: str, value: np.ndarray[Any, Any]) -> str:
        name = f"const.{name}"  # no torch module can be named so: "const" would be its parent
        self.constants.setdefault(name, numpy_helper.from_array(value, name))
        return name


def write_layers(module: nn.Module, input_shape: Sequence[int]) -> Nodes | None:
    """The nodes of a sequence of known layers; None if it is anything else.

    Args:
        module: The model, in evaluation mode.
        input_shape: Of one row.
    """
    if not isinstance(module, nn.Sequential) or "forward" in vars(module):
        return None
    nodes, x = Nodes(), torch.zeros(1, *input_shape)
    for name, layer in module.named_children():
        write = _WRITERS.get(type(layer))
        if write is None or not write(nodes, f"{name}.", layer, x):
            return None
        with torch.no_grad():
            x = layer(x)
    return nodes


def _flatten(nodes: Nodes, _name: str, layer: Any, _x: Tensor) -> bool:
    if (layer.start_dim, layer.end_dim) != (1, -1):
        return False
    nodes.then("Flatten", axis=1)
    return True


def _linear(nodes: Nodes, name: str, layer: Any, x: Tensor) -> bool:
    if x.dim() != 2:
        return False
    nodes.then("Gemm", *_weight_and_bias(name, layer), transB=1)
    return True


def _relu(nodes: Nodes, _name: str, _layer: Any, _x: Tensor) -> bool:
    nodes.then("Relu")
    return True


def _conv(nodes: Nodes, name: str, layer: Any, x: Tensor) -> bool:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str) or x.dim() != 3:
        return False
    nodes.then(
        "Conv",
        *_weight_and_bias(name, layer),
        kernel_shape=layer.kernel_size,
        strides=layer.stride,
        pads=layer.padding * 2,
        dilations=layer.dilation,
        group=layer.groups,
    )
    return True


def _group_norm(nodes: Nodes, name: str, layer: Any, x: Tensor) -> bool:
    """Instance normalisation of the groups, then scale and shift of the channels."""
    if x.dim() != 3 or not layer.affine:
        return False
    groups = layer.num_groups
    nodes.then("Reshape", nodes.integers(0, groups, -1))
    nodes.then(
        "InstanceNormalization", nodes.filled(1.0, groups), nodes.filled(0.0, groups), epsilon=layer.eps
    )
    nodes.then("Reshape", nodes.integers(0, layer.num_channels, -1))
    for kind, part in (("Mul", "weight"), ("Add", "bias")):
        nodes.then(kind, nodes.add("Unsqueeze", name + part, nodes.integers(1)))
    return True


def _mean_over_time(nodes: Nodes, _name: str, _layer: Any, _x: Tensor) -> bool:
    nodes.then("ReduceMean", nodes.integers(-1), keepdims=0)
    return True


def _gru(nodes: Nodes, name: str, layer: Any, _x: Tensor) -> bool:
    """ONNX's own GRU; its gates are in the order (update, reset, new), ours (reset, update, new)."""
    nodes.last = nodes.add("Transpose", nodes.last, perm=[2, 0, 1])  # [N, C, T] to [T, N, C]
    w, r, w_bias, r_bias = (
        _reordered(nodes, name + part) for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    bias = nodes.add("Concat", w_bias, r_bias, axis=0)
    weights = [nodes.add("Unsqueeze", part, nodes.integers(0)) for part in (w, r, bias)]
    outputs = [f"{name}states", f"{name}last"]
    nodes.add(
        "GRU", nodes.last, *weights, outputs=outputs, hidden_size=layer.hidden_size, linear_before_reset=1
    )
    if layer.sequence:  # [T, 1, N, H] to [N, H, T]
        states = nodes.add("Squeeze", outputs[0], nodes.integers(1))
        nodes.last = nodes.add("Transpose", states, perm=[1, 2, 0])
    else:
        nodes.last = nodes.add("Squeeze", outputs[1], nodes.integers(0))
    return True


def _reordered(nodes: Nodes, name: str) -> str:
    reset, update, new = (f"{name}.{gate}" for gate in ("reset", "update", "new"))
    nodes.add("Split", name, outputs=[reset, update, new], axis=0, num_outputs=3)
    return nodes.add("Concat", update, reset, new, axis=0)


def _weight_and_bias(name: str, layer: Any) -> list[str]:
    parts = ["weight"] if layer.bias is None else ["weight", "bias"]
    return [name + part for part in parts]


_WRITERS: dict[type[nn.Module], Callable[[Nodes, str, Any, Tensor], bool]] = {
    nn.Flatten: _flatten,
    nn.Linear: _linear,
    nn.ReLU: _relu,
    nn.Conv1d: _conv,
    nn.GroupNorm: _group_norm,
    MeanOverTime: _mean_over_time,
    LinearGru: _gru,
}
