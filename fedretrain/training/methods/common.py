"""What every method shares: its configuration, its phases and one gradient step.

Rules of this file:
    * Order of a step, as if the terms stood in the loss of a plain PyTorch loop: gradient, proximal term,
      gradient clipping, weight decay, optimizer.
    * Under example-level DP the gradient is private before anything is added to it; the rest is post-processing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch

from fedretrain.core.params import Layout
from fedretrain.training import optim
from fedretrain.training.config import OptimizerKind
from fedretrain.training.personal import effective_params, personal_layout
from fedretrain.training.phase import Phase

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from torch import Tensor

    from fedretrain.core.types import MethodKind
    from fedretrain.training.config import LocalTraining, MethodConfig
    from fedretrain.training.models import ModelBundle
    from fedretrain.training.task import Batch, Engine, State, Tree

SHARED = "shared"
PERSONAL = "personal"
JOINT = "joint"


@dataclass(frozen=True)
class Method:
    """The part of a `LocalTask` that is alike in all methods.

    Attributes:
        model: The model and its first parameters.
        local: How clients train.
        config: The method's hyperparameters.
    """

    kind: ClassVar[MethodKind]

    model: ModelBundle
    local: LocalTraining
    config: MethodConfig

    @cached_property
    def shared(self) -> Layout:
        """Everything is exchanged, unless a method says otherwise."""
        return Layout.of(self.model.first)

    @cached_property
    def personal(self) -> Layout:
        """What the method keeps on the device."""
        return personal_layout(self.kind, self.model.first, self.config.personal_patterns)

    def phases(self) -> tuple[Phase, ...]:
        """One phase over the shared parameters, unless a method says otherwise."""
        return (self._phase(SHARED),)

    def refit_phases(self) -> tuple[Phase, ...]:
        """Nothing to re-fit, unless a method says otherwise."""
        return ()

    def first_personal(self, shared: Tree) -> Tree:  # noqa: ARG002 - some methods start from it
        """Nothing, unless a method says otherwise."""
        return {}

    def model_params(self, shared: Tree, personal: Tree) -> Tree:
        """The method's rule: `training.personal`."""
        return effective_params(self.kind, shared, personal, self._fixed)

    def global_params(self, shared: Tree) -> Tree:
        """The global model as it was received."""
        return dict(shared)

    @cached_property
    def _fixed(self) -> frozenset[str]:
        """Parameters that are not differentiated."""
        return frozenset(self.model.first) - frozenset(self.model.trainable)

    def _phase(self, name: str) -> Phase:
        return Phase(name, self.local.epochs, self.local.max_steps)

    def _personal_phase(self, *, released: bool = False) -> Phase:
        most = self.config.personal_max_steps or self.local.max_steps
        # Under example-level DP no step count may depend on the device's number of samples.
        epochs = 0 if self.local.example_dp is not None else self.config.personal_epochs
        return Phase(PERSONAL, epochs, most, released=released)

    def _slots(self, params: Tree, names: Iterable[str], group: str) -> State:
        return optim.slots(self.local.optimizer, params, names, group)

    def _descend_(
        self,
        engine: Engine,
        state: State,
        group: str,
        batch: Batch,
        index: int,
        *,
        params: Tree,
        trainable: Collection[str],
        pull: tuple[Tree, float] | None = None,
        personal: bool = False,
    ) -> Tensor:
        """One step of the parameters `trainable` in place, pulled towards ``pull[0]`` by the factor ``pull[1]``."""
        if self._is_plain_sgd and (pull is None or pull[1] == 0):
            lr = self.local.optimizer.lr
            fused = engine.descend_(params, batch, trainable, lr, personal=personal)
            if fused is not None:
                return fused
        grads, loss = engine.grads(params, batch, trainable, personal=personal)
        if pull is not None:
            add_pull_(grads, params, *pull)
        self._apply_(engine, state, group, index, params=params, grads=grads)
        return loss

    @cached_property
    def _is_plain_sgd(self) -> bool:
        """True if a step is ``params -= lr * gradient`` and nothing else, so that an engine may fuse the two."""
        optimizer = self.local.optimizer
        return (
            optimizer.kind is OptimizerKind.SGD
            and optimizer.momentum == 0
            and optimizer.weight_decay == 0
            and self.local.grad_clip_norm == 0
        )

    def _apply_(
        self, engine: Engine, state: State, group: str, index: int, *, params: Tree, grads: Tree
    ) -> None:
        if self.local.grad_clip_norm > 0:
            clip_(engine, grads, self.local.grad_clip_norm)
        optim.update_(self.local.optimizer, params, grads, state, group=group, index=index)


def clone(tree: Tree) -> Tree:
    """A copy whose tensors are its own."""
    return {name: leaf.clone() for name, leaf in tree.items()}


class PackedTree(dict[str, "Tensor"]):
    """A tree whose leaves are views of one packed tensor, in the order of its (sorted) names.

    Attributes:
        packed: ``[*lead, P]``.
    """

    packed: Tensor


def difference(a: Tree, b: Tree, names: Iterable[str]) -> Tree:
    """``a - b`` for the given names."""
    kept = list(names)
    if not kept:
        return {}
    minus = torch._foreach_sub([a[n] for n in kept], [b[n] for n in kept])  # noqa: SLF001 - torch has no public form
    return dict(zip(kept, minus, strict=True))


def packed_difference(a: Tree, b: Tree, layout: Layout) -> PackedTree:
    """``a - b`` for a layout's names, written where the packed form wants it: one pass over memory, not two."""
    tree = PackedTree()
    lead = a[layout.names[0]].shape[: a[layout.names[0]].dim() - len(layout.shapes[0])]
    tree.packed = torch.empty(*lead, layout.size)
    parts = torch.split(tree.packed, list(layout.sizes), dim=-1)
    for name, shape, part in zip(layout.names, layout.shapes, parts, strict=True):
        tree[name] = part.view((*lead, *shape))
        torch.sub(a[name], b[name], out=tree[name])
    return tree


def add_pull_(grads: Tree, params: Tree, anchor: Tree, strength: float) -> None:
    """Add the gradient of ``strength / 2 * |params - anchor|^2`` over the names of both `grads` and `anchor`."""
    names = [name for name in grads if name in anchor]
    if strength == 0 or not names:
        return
    away = difference(params, anchor, names)
    torch._foreach_add_([grads[n] for n in names], [away[n] for n in names], alpha=strength)


def clip_(engine: Engine, grads: Tree, clip_norm: float) -> None:
    """Scale each client's gradient so that it measures at most `clip_norm`; zero-safe."""
    norm = engine.dot(grads, grads).sqrt()
    engine.scale_(grads, clip_norm / norm.clamp(min=clip_norm))
