"""APFL: the device predicts with a learnt blend of the global and a private model.

Rules of this file:
    * The private model v and the mixing weight alpha step on the loss of the blend alpha v + (1 - alpha) w, with
      w, the locally trained copy of the global model, taken before its own step on the same batch.
    * Neither v nor alpha influences w, hence the delta.
    * What is not differentiated (BatchNorm's statistics) is not blended: the private model keeps its own.

Source: Deng, Kamani, Mahdavi 2020, "Adaptive personalized federated learning", https://arxiv.org/abs/2003.13461
(algorithm 1; alpha steps with every batch).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from fedretrain.core.types import MethodKind
from fedretrain.training.methods.common import (
    JOINT,
    PERSONAL,
    SHARED,
    Method,
    clone,
    difference,
    packed_difference,
)
from fedretrain.training.personal import ALPHA

if TYPE_CHECKING:
    from torch import Tensor

    from fedretrain.training.phase import Phase
    from fedretrain.training.task import Batch, Engine, State, Tree


@dataclass(frozen=True)
class Apfl(Method):
    """The personal state is a full model and the mixing weight ``apfl.alpha``."""

    kind: ClassVar[MethodKind] = MethodKind.APFL

    def phases(self) -> tuple[Phase, ...]:
        """Both models step on every batch."""
        return (self._phase(JOINT),)

    def refit_phases(self) -> tuple[Phase, ...]:
        """The private model and the mixing weight, the global model held fixed."""
        return (self._personal_phase(),)

    def first_personal(self, shared: Tree) -> Tree:
        """The global model, and the configured mixing weight."""
        return {**clone(shared), ALPHA: torch.tensor(self.config.apfl_alpha)}

    def init(self, shared: Tree, personal: Tree) -> State:
        """Copies of both models and of the mixing weight."""
        model = clone(shared)
        own = {name: leaf.clone() for name, leaf in personal.items() if name != ALPHA}
        return {
            "model": model,
            "base": shared,
            "own": own,
            "mix": {ALPHA: personal[ALPHA].clone()},
            **self._slots(model, self.model.trainable, SHARED),
            **self._slots(own, self.model.trainable, PERSONAL),
        }

    def step(self, engine: Engine, state: State, batch: Batch, phase: Phase, index: int) -> Tensor:
        """One step of the private model and alpha, then (but for a re-fit) one of the shared model."""
        blend_loss = self._step_own_(engine, state, batch, index)
        if phase.name == PERSONAL:
            return blend_loss
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

    def _step_own_(self, engine: Engine, state: State, batch: Batch, index: int) -> Tensor:
        model, own, alpha = state["model"], state["own"], state["mix"][ALPHA]
        apart = difference(own, model, self.model.trainable)
        scaled = clone(apart)
        engine.scale_(scaled, alpha)
        blend = {name: model[name] + scaled[name] if name in scaled else own[name] for name in own}
        grads, loss = engine.grads(blend, batch, self.model.trainable, personal=True)
        alpha_grad = engine.dot(apart, grads)  # d loss / d alpha
        engine.scale_(grads, alpha)  # d loss / d v
        self._apply_(engine, state, PERSONAL, index, params=own, grads=grads)
        alpha.sub_(self.config.apfl_alpha_lr * alpha_grad).clamp_(0.0, 1.0)
        return loss

    def final(self, state: State) -> tuple[Tree, Tree]:
        """Local minus base, and the private model with its mixing weight."""
        delta = packed_difference(state["model"], state["base"], self.shared)
        return delta, {**state["own"], **state["mix"]}
