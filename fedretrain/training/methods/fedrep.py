"""FedRep: first the personal layers on a fixed representation, then the representation under fixed personal layers.

Source: Collins et al. 2021, "Exploiting shared representations for personalized federated learning",
https://arxiv.org/abs/2102.07078.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedretrain.core.errors import PrivacyError
from fedretrain.core.types import MethodKind
from fedretrain.training.methods.common import PERSONAL, SHARED, clone
from fedretrain.training.methods.fedper import FedPer

if TYPE_CHECKING:
    from torch import Tensor

    from fedretrain.training.phase import Phase
    from fedretrain.training.task import Batch, Engine, State, Tree


@dataclass(frozen=True)
class FedRep(FedPer):
    """The personal state is the layers that the patterns name, trained in a phase of their own."""

    kind: ClassVar[MethodKind] = MethodKind.FEDREP

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.local.example_dp is not None:
            raise PrivacyError(
                "example-level DP cannot serve fedrep: its head is fitted apart from the shared layers and carries "
                "every example into their gradients",
                where="personalization.kind",
                fix="use fedper (clipped and noised jointly), ditto, apfl, finetune or fedavg",
            )

    def phases(self) -> tuple[Phase, ...]:
        """The personal layers, then the shared ones."""
        return self._personal_phase(released=True), self._phase(SHARED)

    def init(self, shared: Tree, personal: Tree) -> State:
        """One whole model made of both parts."""
        model = {**clone(shared), **clone(personal)}
        return {
            "model": model,
            "base": shared,
            **self._slots(model, self.trainable_shared, SHARED),
            **self._slots(model, self.trainable_personal, PERSONAL),
        }

    def step(self, engine: Engine, state: State, batch: Batch, phase: Phase, index: int) -> Tensor:
        """One step of the personal layers, or of the shared ones."""
        return self._descend_(
            engine,
            state,
            phase.name,
            batch,
            index,
            params=state["model"],
            trainable=self.trainable_shared if phase.name == SHARED else self.trainable_personal,
            pull=(state["base"], self.local.prox_mu),
        )
