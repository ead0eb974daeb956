"""FedPer: personal layers, trained jointly with the shared ones.

Rules of this file:
    * Personal layers never enter the delta.
    * With example-level DP shared and personal gradients are clipped jointly and both noised, in a re-fit too: an
      un-noised head would carry every example into the gradients of the shared layers (DESIGN section 6).

Source: Arivazhagan et al. 2019, "Federated learning with personalization layers",
https://arxiv.org/abs/1912.00818.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from fedretrain.core.params import Layout
from fedretrain.core.types import MethodKind
from fedretrain.training.methods.common import JOINT, PERSONAL, Method, clone, packed_difference
from fedretrain.training.partition import ParamPartition

if TYPE_CHECKING:
    from torch import Tensor

    from fedretrain.training.phase import Phase
    from fedretrain.training.task import Batch, Engine, State, Tree


@dataclass(frozen=True)
class FedPer(Method):
    """The personal state is the layers that the patterns name."""

    kind: ClassVar[MethodKind] = MethodKind.FEDPER

    def __post_init__(self) -> None:
        assert self.partition.shared

    @cached_property
    def partition(self) -> ParamPartition:
        """Which parameters are shared and which personal."""
        return ParamPartition.by_patterns(self.model.first, self.config.personal_patterns)

    @cached_property
    def shared(self) -> Layout:
        """The layers that the patterns leave."""
        return Layout.of({name: self.model.first[name] for name in self.partition.shared})

    @cached_property
    def trainable_personal(self) -> tuple[str, ...]:
        """Personal parameters that are differentiated."""
        return tuple(n for n in self.model.trainable if n in self.partition.personal)

    @cached_property
    def trainable_shared(self) -> tuple[str, ...]:
        """Shared parameters that are differentiated."""
        return tuple(n for n in self.model.trainable if n in self.partition.shared)

    def phases(self) -> tuple[Phase, ...]:
        """All layers together."""
        return (self._phase(JOINT),)

    def refit_phases(self) -> tuple[Phase, ...]:
        """The personal layers alone."""
        return (self._personal_phase(released=True),)  # the next round's shared gradients depend on it

    def first_personal(self, shared: Tree) -> Tree:  # noqa: ARG002 - a new head does not depend on it
        """The model's first personal layers, alike on every device."""
        return {name: self.model.first[name].clone() for name in self.partition.personal}

    def init(self, shared: Tree, personal: Tree) -> State:
        """One whole model made of both parts."""
        model = {**clone(shared), **clone(personal)}
        return {
            "model": model,
            "base": shared,
            **self._slots(model, self.model.trainable, JOINT),
            **self._slots(model, self.trainable_personal, PERSONAL),
        }

    def step(self, engine: Engine, state: State, batch: Batch, phase: Phase, index: int) -> Tensor:
        """One step of all layers, or of the personal ones."""
        joint = phase.name == JOINT
        return self._descend_(
            engine,
            state,
            phase.name,
            batch,
            index,
            params=state["model"],
            trainable=self.model.trainable if joint else self.trainable_personal,
            pull=(state["base"], self.local.prox_mu),
        )

    def final(self, state: State) -> tuple[Tree, Tree]:
        """Local minus base of the shared layers, and the personal ones."""
        model = state["model"]
        kept = {name: model[name] for name in self.partition.personal}
        return packed_difference(model, state["base"], self.shared), kept

    def global_params(self, shared: Tree) -> Tree:
        """The shared layers with the first personal ones."""
        return {**shared, **self.first_personal(shared)}
