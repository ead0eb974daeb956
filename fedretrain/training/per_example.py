"""Per-example gradients through Opacus: the reference for example-level DP.

Rules of this file:
    * One forward and one backward pass over a copy of the module that Opacus watches; the parameters are copied
      into it for each step. Slow and obvious.
    * Layers without per-example gradients are refused when the object is made, before any data are seen.

Source: Yousefpour et al. 2021, "Opacus", https://arxiv.org/abs/2109.12298.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from fedretrain.core.errors import UnsupportedModelError
from fedretrain.training.example_dp import clip_factors, refuse_unserved_layers

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import Tensor, nn

    from fedretrain.training.losses import Loss
    from fedretrain.training.task import Batch, Tree


class PerExampleGradients:
    """Sums of clipped per-example gradients of one module.

    Args:
        module: In training mode; it is copied.
        loss: The loss by sample.

    Raises:
        UnsupportedModelError: If Opacus cannot serve a layer, naming it.
    """

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        refuse_unserved_layers(module)
        from opacus import GradSampleModule

        self._loss, self._plain = loss, copy.deepcopy(module)
        try:
            self._watched = GradSampleModule(self._plain, batch_first=True, loss_reduction="sum")
        except (NotImplementedError, ValueError) as error:
            raise UnsupportedModelError(
                f"Opacus cannot serve this model: {error}", where="training.example_dp"
            ) from error
        self._params = dict(self._plain.named_parameters())
        self._buffers = dict(self._plain.named_buffers())

    def clipped_sums(
        self, params: Tree, batch: Batch, trainable: Collection[str], clip_norm: float
    ) -> tuple[Tree, Tensor]:
        """The sum over a batch of gradients clipped by example, and the mean loss.

        Args:
            params: Parameters without lead axes.
            batch: No padding; it may be empty.
            trainable: Names that are clipped jointly.
            clip_norm: The most that one example's gradient may measure.
        """
        if len(batch.y) == 0:
            return {name: torch.zeros_like(params[name]) for name in trainable}, torch.zeros(())
        self._load(params)
        # Opacus listens with full backward hooks, and torch warns when no input of a hooked layer asks for a gradient.
        x = batch.x.clone().requires_grad_()
        losses = self._loss.per_sample(self._watched(x), batch.y)
        torch.autograd.backward(losses.sum())
        by_example = {name: self._params[name].grad_sample for name in trainable}  # type: ignore[attr-defined]
        squares = torch.stack([g.flatten(1).square().sum(1) for g in by_example.values()])
        factors = clip_factors(squares.sum(0).sqrt(), clip_norm)
        sums = {name: torch.tensordot(factors, g, dims=1) for name, g in by_example.items()}
        self._watched.zero_grad()
        return sums, losses.detach().mean()

    def _load(self, params: Tree) -> None:
        with torch.no_grad():
            for name, target in (self._params | self._buffers).items():
                if name in params:
                    target.copy_(params[name])
