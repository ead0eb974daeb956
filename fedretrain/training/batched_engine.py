"""Gradients of stacked clients: `task.Engine` with one leading axis.

Rules of this file:
    * `ChainEngine` runs hand-batched rules (`stacked`), `VmapEngine` any other module under torch.func.vmap with one
      backward pass of the summed loss. Both equal `each` to rounding.
    * Called under `no_grad`; autograd is switched on where a rule needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from fedretrain.training import example_dp
from fedretrain.training.batchable import vmapped
from fedretrain.training.losses import Loss, masked_mean
from fedretrain.training.stacked import Collect, Descend
from fedretrain.training.stacked_loss import loss_and_grad
from fedretrain.training.stacked_private import private_grads

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from fedretrain.training.config import LocalTraining
    from fedretrain.training.phase import Phase
    from fedretrain.training.stacked import Chain, Sink
    from fedretrain.training.task import Batch, Tree


class StackedEngine(Protocol):
    """`task.Engine`, and what the batched executor needs besides."""

    lead: int

    def begin(self, seeds: NDArray[np.uint64], phase: Phase, index: int, share: float | None) -> None:
        """Announce a step: the clients' seeds, and what a sample counts if all batches are full."""
        ...

    def outputs(self, params: Tree, x: Tensor) -> Tensor:
        """Outputs of stacked models: ``[K, B, outputs]``."""
        ...

    def arranged(self, params: Tree) -> Tree:
        """One client's parameters in the memory order that suits the engine; the shapes stay."""
        ...

    def grads(
        self, params: Tree, batch: Batch, trainable: Collection[str], *, personal: bool = False
    ) -> tuple[Tree, Tensor]:
        """See `task.Engine`."""
        ...

    def descend_(
        self, params: Tree, batch: Batch, trainable: Collection[str], lr: float, *, personal: bool = False
    ) -> Tensor | None:
        """See `task.Engine`."""
        ...

    def dot(self, a: Tree, b: Tree) -> Tensor:
        """See `task.Engine`."""
        ...

    def scale_(self, tree: Tree, factor: Tensor) -> None:
        """See `task.Engine`."""
        ...


class _Stacked:
    """What both engines share: arithmetic by client, and example-level DP."""

    lead = 1

    def __init__(self, module: nn.Module, local: LocalTraining) -> None:
        self._module, self._local, self._loss = module, local, Loss.of(local)
        self._seeds: NDArray[np.uint64] | None = None
        self._share: float | None = None
        if local.example_dp is not None:
            example_dp.refuse_unserved_layers(module)

    def begin(self, seeds: NDArray[np.uint64], phase: Phase, index: int, share: float | None) -> None:
        """See `StackedEngine`."""
        self._share = share
        if self._local.example_dp is not None:
            self._seeds = example_dp.noise_seeds(seeds, phase, index)

    def _is_private(self, *, personal: bool) -> bool:
        return self._local.example_dp is not None and not personal

    def _private_grads(self, params: Tree, batch: Batch, trainable: Collection[str]) -> tuple[Tree, Tensor]:
        assert self._local.example_dp is not None
        assert self._seeds is not None
        return private_grads(self._module, self._loss, self._local, self._seeds, params, batch, trainable)

    def dot(self, a: Tree, b: Tree) -> Tensor:
        """See `task.Engine`."""
        parts = [
            torch.linalg.vecdot(a[name].flatten(1), b[name].flatten(1))
            if a[name].dim() > 1
            else a[name] * b[name]
            for name in a
        ]
        return torch.stack(parts).sum(0) if parts else torch.zeros(())

    def scale_(self, tree: Tree, factor: Tensor) -> None:
        """See `task.Engine`."""
        for leaf in tree.values():
            leaf.mul_(factor.view(-1, *(1,) * (leaf.dim() - 1)))


class ChainEngine(_Stacked):
    """Hand-batched rules, without autograd."""

    def __init__(self, chain: Chain, module: nn.Module, local: LocalTraining) -> None:
        super().__init__(module, local)
        self._chain = chain

    def outputs(self, params: Tree, x: Tensor) -> Tensor:
        """See `StackedEngine`."""
        return self._chain.outputs(params, x)

    def arranged(self, params: Tree) -> Tree:
        """See `StackedEngine`."""
        return self._chain.arranged(params)

    def grads(
        self, params: Tree, batch: Batch, trainable: Collection[str], *, personal: bool = False
    ) -> tuple[Tree, Tensor]:
        """See `task.Engine`."""
        if self._is_private(personal=personal):
            return self._private_grads(params, batch, trainable)
        sink = Collect(params, trainable)
        loss = self._backward(params, batch, sink)
        return sink.grads, loss

    def descend_(
        self, params: Tree, batch: Batch, trainable: Collection[str], lr: float, *, personal: bool = False
    ) -> Tensor | None:
        """See `task.Engine`."""
        if self._is_private(personal=personal):
            return None
        return self._backward(params, batch, Descend(params, trainable, lr))

    def _backward(self, params: Tree, batch: Batch, sink: Sink) -> Tensor:
        outputs, kept = self._chain.forward(params, batch.x)
        share = self._share
        if share is None:
            by_sample = batch.weight / batch.weight.sum(1, keepdim=True).clamp(min=1.0)
        else:
            by_sample = torch.tensor(share)
        loss, grad = loss_and_grad(self._loss, outputs, batch.y, by_sample)
        self._chain.backward(params, kept, grad, sink)
        return loss


class VmapEngine(_Stacked):
    """Any module that torch.func.vmap can trace."""

    def __init__(self, module: nn.Module, local: LocalTraining) -> None:
        super().__init__(module, local)
        self._call = vmapped(module)

    def outputs(self, params: Tree, x: Tensor) -> Tensor:
        """See `StackedEngine`."""
        return self._call(params, x)

    def arranged(self, params: Tree) -> Tree:
        """See `StackedEngine`."""
        return params

    def grads(
        self, params: Tree, batch: Batch, trainable: Collection[str], *, personal: bool = False
    ) -> tuple[Tree, Tensor]:
        """See `task.Engine`."""
        if self._is_private(personal=personal):
            return self._private_grads(params, batch, trainable)
        leaves = {name: params[name].detach().requires_grad_() for name in trainable}
        with torch.enable_grad():
            outputs = self._call({**params, **leaves}, batch.x)
            loss = masked_mean(self._loss.per_sample(outputs, batch.y), batch.weight)
            found = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True)
        grads = {
            name: torch.zeros_like(leaf) if grad is None else grad.contiguous()
            for (name, leaf), grad in zip(leaves.items(), found, strict=True)
        }
        return grads, loss.detach()

    def descend_(
        self, params: Tree, batch: Batch, trainable: Collection[str], lr: float, *, personal: bool = False
    ) -> Tensor | None:
        """See `task.Engine`: nothing to fuse here."""
        del params, batch, trainable, lr, personal
        return None
