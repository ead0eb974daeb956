"""Layers over stacked parameters with hand-written gradients: what `batched` runs for most models.

Shape letters: K clients of a block (each with its own parameters), B samples of a step, F inputs and H outputs of a
layer, C channels, T time.

Rules of this file:
    * A rule serves one leaf module. `forward` gives the output and what `backward` needs; `backward` hands the
      parameter gradients to a `Sink` and returns the gradient of the input. No autograd graph is built: a step of
      a small model is a dozen matrix products, and autograd's bookkeeping would cost as much again.
    * A gradient that is a matrix product is handed over unmultiplied (`Sink.product`), so that plain SGD is one
      fused call (`baddbmm_`) per weight and no gradient is ever written to memory.
    * `backward` returns the input's gradient before it hands over its own parameters' gradients, since the sink may
      change the parameters in place.
    * Exact to rounding: nothing is approximated or padded here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import nn

    from fedretrain.training.task import Tree


class Sink(Protocol):
    """Where parameter gradients go."""

    def wants(self, name: str) -> bool:
        """True if the parameter is differentiated."""
        ...

    def product(self, name: str, left: Tensor, right: Tensor, *, taps_first: bool = False) -> None:
        """The gradient is ``left @ right``: ``[K, H, R] @ [K, R, F]``, in the parameter's shape.

        With `taps_first` F is ``W * C`` for a parameter ``[K, H, C, W]``.
        """
        ...

    def dense(self, name: str, grad: Tensor) -> None:
        """The gradient itself."""
        ...


@dataclass
class Collect:
    """A sink that keeps the gradients.

    Attributes:
        params: The stacked parameters.
        names: Those that are differentiated.
        grads: What was handed over.
    """

    params: Tree
    names: Collection[str]
    grads: Tree = field(default_factory=dict)

    def wants(self, name: str) -> bool:
        """See `Sink`."""
        return name in self.names

    def product(self, name: str, left: Tensor, right: Tensor, *, taps_first: bool = False) -> None:
        """See `Sink`."""
        product, shape = torch.bmm(left, right), self.params[name].shape
        self.grads[name] = _from_taps_first(product, shape) if taps_first else product.view(shape)

    def dense(self, name: str, grad: Tensor) -> None:
        """See `Sink`."""
        self.grads[name] = grad.reshape(self.params[name].shape)


@dataclass
class Descend:
    """A sink that takes a plain SGD step at once.

    Attributes:
        params: The stacked parameters, changed in place.
        names: Those that are differentiated.
        lr: Learning rate.
    """

    params: Tree
    names: Collection[str]
    lr: float

    def wants(self, name: str) -> bool:
        """See `Sink`."""
        return name in self.names

    def product(self, name: str, left: Tensor, right: Tensor, *, taps_first: bool = False) -> None:
        """See `Sink`."""
        target = self.params[name]
        if taps_first:
            held = target.transpose(2, 3)
            if not held.is_contiguous():
                self.dense(name, _from_taps_first(torch.bmm(left, right), target.shape))
                return
            target = held
        target.view(len(target), left.shape[1], right.shape[2]).baddbmm_(left, right, alpha=-self.lr)

    def dense(self, name: str, grad: Tensor) -> None:
        """See `Sink`."""
        target = self.params[name]
        target.add_(grad.reshape(target.shape), alpha=-self.lr)


def _from_taps_first(product: Tensor, shape: torch.Size) -> Tensor:
    return product.view(*shape[:2], shape[3], shape[2]).transpose(2, 3)


class Rule(Protocol):
    """How one leaf module is run for K clients at once."""

    def forward(self, params: Tree, x: Tensor, *, scratch: bool) -> tuple[Tensor, Any]:
        """Output and what `backward` needs.

        Args:
            params: Stacked parameters ``[K, ...]``.
            x: ``[K, B, ...]``.
            scratch: True if nobody else needs `x`, so it may be overwritten.
        """
        ...

    def backward(self, params: Tree, saved: Any, grad: Tensor, sink: Sink, *, inputs: bool) -> Tensor | None:
        """Hand over parameter gradients; return the gradient of the input if `inputs`.

        `grad` may be overwritten.
        """
        ...

    @property
    def keeps_output(self) -> bool:
        """True if the output is among what `backward` needs (nobody may overwrite it)."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters of the rule."""
        ...

    @property
    def taps_first(self) -> tuple[str, ...]:
        """Convolution weights ``[H, C, W]`` that are better held as ``[H, W, C]`` in memory."""
        ...


@dataclass(frozen=True)
class Linear:
    """`nn.Linear` on the last axis."""

    weight: str
    bias: str | None
    keeps_output = False
    taps_first = ()

    @property
    def names(self) -> tuple[str, ...]:
        """See `Rule`."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def forward(self, params: Tree, x: Tensor, *, scratch: bool) -> tuple[Tensor, Any]:  # noqa: ARG002
        """See `Rule`."""
        weight = params[self.weight]
        rows = x.reshape(len(x), -1, weight.shape[2])
        y = torch.bmm(rows, weight.mT)
        if self.bias is not None:
            y.add_(
                params[self.bias].unsqueeze(1)
            )  # cheaper than baddbmm, which first copies the bias to every row
        return y.view(*x.shape[:-1], weight.shape[1]), rows

    def backward(self, params: Tree, saved: Any, grad: Tensor, sink: Sink, *, inputs: bool) -> Tensor | None:
        """See `Rule`."""
        weight, rows = params[self.weight], saved
        flat = grad.reshape(len(rows), rows.shape[1], -1)
        before = torch.bmm(flat, weight).view(*grad.shape[:-1], weight.shape[2]) if inputs else None
        if sink.wants(self.weight):
            sink.product(self.weight, flat.mT, rows)
        if self.bias is not None and sink.wants(self.bias):
            sink.dense(self.bias, flat.sum(1))
        return before


@dataclass(frozen=True)
class ReLU:
    """`nn.ReLU`."""

    keeps_output = True
    taps_first = ()
    names: tuple[str, ...] = ()

    def forward(self, params: Tree, x: Tensor, *, scratch: bool) -> tuple[Tensor, Any]:  # noqa: ARG002
        """See `Rule`."""
        y = x.relu_() if scratch else x.relu()
        return y, y

    def backward(self, params: Tree, saved: Any, grad: Tensor, sink: Sink, *, inputs: bool) -> Tensor | None:  # noqa: ARG002
        """See `Rule`."""
        if not inputs:
            return None
        if grad.stride() == saved.stride():
            return torch.ops.aten.threshold_backward.grad_input(grad, saved, 0, grad_input=grad)
        return torch.ops.aten.threshold_backward(grad, saved, 0)


@dataclass(frozen=True)
class Flatten:
    """`nn.Flatten` of everything behind the batch axis."""

    keeps_output = False
    taps_first = ()
    names: tuple[str, ...] = ()

    def forward(self, params: Tree, x: Tensor, *, scratch: bool) -> tuple[Tensor, Any]:  # noqa: ARG002
        """See `Rule`."""
        return x.flatten(2), x.shape

    def backward(self, params: Tree, saved: Any, grad: Tensor, sink: Sink, *, inputs: bool) -> Tensor | None:  # noqa: ARG002
        """See `Rule`."""
        return grad.reshape(saved) if inputs else None


@dataclass(frozen=True)
class MeanOverTime:
    """The mean over the last axis."""

    keeps_output = False
    taps_first = ()
    names: tuple[str, ...] = ()

    def forward(self, params: Tree, x: Tensor, *, scratch: bool) -> tuple[Tensor, Any]:  # noqa: ARG002
        """See `Rule`."""
        return x.mean(-1), x.shape

    def backward(self, params: Tree, saved: Any, grad: Tensor, sink: Sink, *, inputs: bool) -> Tensor | None:  # noqa: ARG002
        """See `Rule`."""
        return (grad / saved[-1]).unsqueeze(-1).expand(saved) if inputs else None


@dataclass(frozen=True)
class Local:
    """A torch layer without parameters that treats every sample apart: by autograd of this layer alone."""

    module: nn.Module
    keeps_output = True
    taps_first = ()
    names: tuple[str, ...] = ()

    def forward(self, params: Tree, x: Tensor, *, scratch: bool) -> tuple[Tensor, Any]:  # noqa: ARG002
        """See `Rule`."""
        with torch.enable_grad():
            leaf = x.detach().flatten(0, 1).requires_grad_()
            y = self.module(leaf)
        return y.detach().unflatten(0, x.shape[:2]), (leaf, y, x.shape)

    def backward(self, params: Tree, saved: Any, grad: Tensor, sink: Sink, *, inputs: bool) -> Tensor | None:  # noqa: ARG002
        """See `Rule`."""
        if not inputs:
            return None
        leaf, y, shape = saved
        (before,) = torch.autograd.grad(y, leaf, grad.reshape(y.shape))
        return before.view(shape)


@dataclass(frozen=True)
class Chain:
    """Rules one after the other.

    Attributes:
        rules: In order.
    """

    rules: tuple[Rule, ...]

    def outputs(self, params: Tree, x: Tensor) -> Tensor:
        """The model's outputs ``[K, B, outputs]``."""
        return self.forward(params, x)[0]

    def arranged(self, params: Tree) -> Tree:
        """One client's parameters, each in the memory order that its rule likes best (the shapes stay)."""
        found = dict(params)
        for rule in self.rules:
            for name in rule.taps_first:
                if name in found:
                    found[name] = found[name].transpose(1, 2).contiguous().transpose(1, 2)
        return found

    def forward(self, params: Tree, x: Tensor) -> tuple[Tensor, list[Any]]:
        """Outputs, and what every rule saved."""
        kept: list[Any] = []
        scratch = False  # the samples themselves are never overwritten
        for rule in self.rules:
            x, saved = rule.forward(params, x, scratch=scratch)
            kept.append(saved)
            scratch = not rule.keeps_output and (scratch or bool(rule.names))
        return x, kept

    def backward(self, params: Tree, kept: Sequence[Any], grad: Tensor, sink: Sink) -> None:
        """Hand the gradients of all wanted parameters to the sink."""
        first = self._first_wanted(sink)
        for at in range(len(self.rules) - 1, first - 1, -1):
            before = self.rules[at].backward(params, kept[at], grad, sink, inputs=at > first)
            if before is None:
                return
            grad = before

    def _first_wanted(self, sink: Sink) -> int:
        for at, rule in enumerate(self.rules):
            if any(sink.wants(name) for name in rule.names):
                return at
        return len(self.rules)
