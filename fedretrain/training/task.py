"""What local training is: one `LocalTask` per personalization method, run alike by every executor.

Rules of this file:
    * A method is written once, against `Engine`. `each` runs it on one client (`lead == 0`: parameters have their
      own shapes); `batched` runs it on K stacked clients (`lead == 1`: every tensor has a leading client axis).
      A method therefore uses element-wise arithmetic, and `Engine` for gradients, norms and dot products.
    * State is a dictionary of named trees. `step` updates its tensors *in place* (`add_`, `mul_`, `copy_`) and
      never rebinds them: an executor hands it views of the clients that still have steps to do.
    * All active clients of a step have taken the same number of steps before it, so counters (Adam's bias
      correction) are plain integers.

Source of the form (init, step, final with interchangeable executors): FedJAX, https://arxiv.org/abs/2108.02117.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import torch
    from torch import Tensor

    from fedretrain.core.params import Layout
    from fedretrain.training.phase import Phase

    Tree = dict[str, Tensor]
    State = dict[str, Tree]


@dataclass(frozen=True)
class Batch:
    """One step's samples.

    Attributes:
        x: ``[*lead, B, *F]`` float32.
        y: ``[*lead, B]``.
        weight: ``[*lead, B]`` float32, 1 for a sample, 0 for padding. The loss is the weighted mean over the batch.
    """

    x: Tensor
    y: Tensor
    weight: Tensor


class Engine(Protocol):
    """What a method may ask of the executor that runs it."""

    @property
    def lead(self) -> int:
        """Leading client axes of every tensor: 0 or 1."""
        ...

    def grads(
        self, params: Tree, batch: Batch, trainable: Collection[str], *, personal: bool = False
    ) -> tuple[Tree, Tensor]:
        """Gradients of the mean loss with respect to the named parameters.

        With example-level DP on, they are sums of clipped gradients by example plus noise, divided by the
        expected batch size, unless `personal` says that nothing made from them ever leaves the device.

        Args:
            params: Every parameter that the model needs (shared and personal names).
            batch: The step's samples.
            trainable: Names to differentiate by; the others are constants (float buffers that the module updates
                as it runs, such as BatchNorm's statistics, are updated in `params` in place).
            personal: True if nothing made from these gradients ever leaves the device.

        Returns:
            A tree of gradients for `trainable`, and the mean loss of each client (shape ``[*lead]``).
        """
        ...

    def descend_(
        self, params: Tree, batch: Batch, trainable: Collection[str], lr: float, *, personal: bool = False
    ) -> Tensor | None:
        """A step of plain SGD in place, fused with its gradient: ``params -= lr * grads(...)``.

        Returns:
            The mean loss of each client, or None if the engine cannot fuse them: nothing is changed then, and the
            caller asks for `grads`.
        """
        ...

    def dot(self, a: Tree, b: Tree) -> Tensor:
        """The inner product over all parameters of each client: shape ``[*lead]``."""
        ...

    def scale_(self, tree: Tree, factor: Tensor) -> None:
        """Multiply each client's tree in place by its own factor (shape ``[*lead]``)."""
        ...


class LocalTask(Protocol):
    """A personalization method with its hyperparameters; a frozen dataclass."""

    @property
    def shared(self) -> Layout:
        """The packed form of what is exchanged with the coordinator (P elements)."""
        ...

    @property
    def personal(self) -> Layout:
        """The packed form of the personal state (Q elements; 0 for `fedavg`)."""
        ...

    def phases(self) -> tuple[Phase, ...]:
        """The stretches of a client's training, in order."""
        ...

    def refit_phases(self) -> tuple[Phase, ...]:
        """What `refit` runs: phases that change personal state alone, the shared parameters held fixed."""
        ...

    def first_personal(self, shared: Tree) -> Tree:
        """Personal state of a device that has none yet, given the global model it received (no lead axis)."""
        ...

    def init(self, shared: Tree, personal: Tree) -> State:
        """The state before the first step. Clones what it will change."""
        ...

    def step(self, engine: Engine, state: State, batch: Batch, phase: Phase, index: int) -> Tensor:
        """One step in place; `index` counts the phase's steps from 0. Returns the loss of each client."""
        ...

    def final(self, state: State) -> tuple[Tree, Tree]:
        """The client update (local minus base, shared names) and the personal state to keep."""
        ...

    def model_params(self, shared: Tree, personal: Tree) -> Tree:
        """The parameters of the personalized model (no lead axis): what the device predicts with."""
        ...

    def global_params(self, shared: Tree) -> Tree:
        """The parameters of the model without any personal state (no lead axis)."""
        ...


class Model(Protocol):
    """A model as the executors see it: an `nn.Module` and its first parameters."""

    @property
    def module(self) -> torch.nn.Module:
        """The module; it is called through `torch.func.functional_call` and never changed."""
        ...

    @property
    def first(self) -> Mapping[str, Tensor]:
        """The initial parameters and float buffers, by name."""
        ...

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters that are differentiated; the rest (buffers, frozen parameters) are not."""
        ...
