"""FedAvg: everything shared, nothing personal.

Source: McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data",
https://arxiv.org/abs/1602.05629. With `prox_mu` it is FedProx: Li et al. 2020, https://arxiv.org/abs/1812.06127.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedretrain.core.types import MethodKind
from fedretrain.training.methods.common import SHARED, Method, clone, packed_difference

if TYPE_CHECKING:
    from torch import Tensor

    from fedretrain.training.phase import Phase
    from fedretrain.training.task import Batch, Engine, State, Tree


@dataclass(frozen=True)
class FedAvg(Method):
    """Local SGD on the shared parameters."""

    kind: ClassVar[MethodKind] = MethodKind.FEDAVG

    def init(self, shared: Tree, personal: Tree) -> State:  # noqa: ARG002 - it has none
        """A copy of the global model to train, and the model itself as the base."""
        model = clone(shared)
        return {"model": model, "base": shared, **self._slots(model, self.model.trainable, SHARED)}

    def step(self, engine: Engine, state: State, batch: Batch, phase: Phase, index: int) -> Tensor:
        """One step of every parameter."""
        assert phase.name == SHARED
        return self._descend_(
            engine,
            state,
            SHARED,
            batch,
            index,
            params=state["model"],
            trainable=self.model.trainable,
            pull=(state["base"], self.local.prox_mu),
        )

    def final(self, state: State) -> tuple[Tree, Tree]:
        """Local minus base."""
        return packed_difference(state["model"], state["base"], self.shared), {}
