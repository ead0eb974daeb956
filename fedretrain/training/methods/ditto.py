"""Ditto: a personal model tied to the global one by a proximal term.

Rules of this file:
    * The anchor is the global model just received, never the locally trained one; so the order of the two phases
      is immaterial, and the personal model never influences the delta.

Source: Li et al. 2021, "Ditto: fair and robust federated learning through personalization",
https://arxiv.org/abs/2012.04221 (algorithm 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedretrain.core.types import MethodKind
from fedretrain.training.methods.common import PERSONAL, SHARED, clone
from fedretrain.training.methods.fedavg import FedAvg
from fedretrain.training.methods.finetune import Finetune

if TYPE_CHECKING:
    from torch import Tensor

    from fedretrain.training.phase import Phase
    from fedretrain.training.task import Batch, Engine, State, Tree


@dataclass(frozen=True)
class Ditto(Finetune):
    """The personal state is a full model that goes on from round to round."""

    kind: ClassVar[MethodKind] = MethodKind.DITTO

    def init(self, shared: Tree, personal: Tree) -> State:
        """The global model's copy, and the personal model where it stood."""
        own = clone(personal)
        return {
            **FedAvg.init(self, shared, personal),
            "own": own,
            **self._slots(own, self.model.trainable, PERSONAL),
        }

    def step(self, engine: Engine, state: State, batch: Batch, phase: Phase, index: int) -> Tensor:
        """One step of the model, or of the personal model pulled towards the global one."""
        if phase.name == SHARED:
            return FedAvg.step(self, engine, state, batch, phase, index)
        return self._descend_(
            engine,
            state,
            PERSONAL,
            batch,
            index,
            params=state["own"],
            trainable=self.model.trainable,
            pull=(state["base"], self.config.ditto_lambda),
            personal=True,
        )
