"""FedAvg, and a copy of the global model fine-tuned on the device.

Rules of this file:
    * The copy starts from the global model just received, not from the last copy: it follows every release.
    * The copy never enters the delta.

Source: Yu, Bagdasaryan, Shmatikov 2020, "Salvaging federated learning by local adaptation",
https://arxiv.org/abs/2002.04758 (fine-tuning).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedretrain.core.types import MethodKind
from fedretrain.training.methods.common import PERSONAL, SHARED, clone
from fedretrain.training.methods.fedavg import FedAvg

if TYPE_CHECKING:
    from torch import Tensor

    from fedretrain.training.phase import Phase
    from fedretrain.training.task import Batch, Engine, State, Tree


@dataclass(frozen=True)
class Finetune(FedAvg):
    """The personal state is a full copy of the model."""

    kind: ClassVar[MethodKind] = MethodKind.FINETUNE

    def phases(self) -> tuple[Phase, ...]:
        """The shared parameters, then the copy."""
        return self._phase(SHARED), self._personal_phase()

    def refit_phases(self) -> tuple[Phase, ...]:
        """The copy alone."""
        return (self._personal_phase(),)

    def first_personal(self, shared: Tree) -> Tree:
        """The global model."""
        return clone(shared)

    def init(self, shared: Tree, personal: Tree) -> State:
        """Both start from the global model."""
        own = clone(shared)
        return {
            **super().init(shared, personal),
            "own": own,
            **self._slots(own, self.model.trainable, PERSONAL),
        }

    def step(self, engine: Engine, state: State, batch: Batch, phase: Phase, index: int) -> Tensor:
        """One step of the model, or of the copy."""
        if phase.name == SHARED:
            return super().step(engine, state, batch, phase, index)
        return self._descend_(
            engine,
            state,
            PERSONAL,
            batch,
            index,
            params=state["own"],
            trainable=self.model.trainable,
            personal=True,
        )

    def final(self, state: State) -> tuple[Tree, Tree]:
        """Local minus base, and the copy."""
        return super().final(state)[0], state["own"]
