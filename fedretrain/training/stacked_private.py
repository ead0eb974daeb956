"""Per-example gradients of stacked clients under torch.func.vmap: example-level DP in `batched`.

Rules of this file:
    * Sums of gradients clipped by example, plus noise, over the expected batch size: as `each` with Opacus does, with
      the same Poisson batches and the same seeded noise.
    * Clients are taken in portions, so that the per-example gradients of a portion fit in `_PORTION_BYTES`.

Source: Abadi et al. 2016, "Deep learning with differential privacy", https://arxiv.org/abs/1607.00133.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.func import functional_call, grad_and_value, vmap

from fedretrain.training import example_dp

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from fedretrain.training.config import LocalTraining
    from fedretrain.training.losses import Loss
    from fedretrain.training.task import Batch, Tree

_PORTION_BYTES = 64 * 2**20


def private_grads(
    module: nn.Module,
    loss: Loss,
    local: LocalTraining,
    seeds: NDArray[np.uint64],
    params: Tree,
    batch: Batch,
    trainable: Collection[str],
) -> tuple[Tree, Tensor]:
    """Private gradients ``[K, ...]`` of the named parameters, and each client's mean loss ``[K]``.

    Args:
        module: The model.
        loss: The loss by sample.
        local: With example-level DP.
        seeds: ``[K]`` the clients' noise streams of this step.
        params: Stacked parameters.
        batch: ``[K, B, ...]``, padding with weight 0; a client's batch may be empty.
        trainable: Names that are clipped jointly.
    """
    dp = local.example_dp
    assert dp is not None
    by_example = sum(params[name][0].numel() for name in trainable) * 4 * batch.y.shape[1]
    portion = max(1, _PORTION_BYTES // max(by_example, 1))
    sums, means = [], []
    for start in range(0, len(batch.y), portion):
        rows = slice(start, start + portion)
        part, mean = _clipped_sums(
            _example_grad(module, loss),
            {name: leaf[rows] for name, leaf in params.items()},
            (batch.x[rows], batch.y[rows], batch.weight[rows]),
            trainable,
            dp.clip_norm,
        )
        sums.append(part)
        means.append(mean)
    found = {name: torch.cat([part[name] for part in sums]) for name in trainable}
    if dp.noise_multiplier > 0:
        drawn = example_dp.noise(dp, seeds, params, trainable, lead=1)
        found = {name: leaf + drawn[name] for name, leaf in found.items()}
    return {name: leaf / local.batch_size for name, leaf in found.items()}, torch.cat(means)


def _example_grad(module: nn.Module, loss: Loss) -> Callable[..., tuple[Tree, Tensor]]:
    def of_one(own: Tree, constants: Tree, x: Tensor, y: Tensor) -> Tensor:
        outputs = functional_call(module, {**own, **constants}, (x.unsqueeze(0),))
        return loss.per_sample(outputs, y.unsqueeze(0)).squeeze(0)

    by_example = vmap(grad_and_value(of_one), in_dims=(None, None, 0, 0))
    return vmap(by_example)


def _clipped_sums(
    example_grad: Callable[..., tuple[Tree, Tensor]],
    params: Tree,
    samples: tuple[Tensor, Tensor, Tensor],
    trainable: Collection[str],
    clip_norm: float,
) -> tuple[Tree, Tensor]:
    x, y, weight = samples
    own = {name: params[name] for name in trainable}
    constants = {name: leaf for name, leaf in params.items() if name not in own}
    grads, losses = example_grad(own, constants, x, y)  # [K, B, ...]
    squares = torch.stack([g.flatten(2).square().sum(2) for g in grads.values()])
    factors = example_dp.clip_factors(squares.sum(0).sqrt(), clip_norm) * weight
    sums = {name: torch.einsum("kb,kb...->k...", factors, g) for name, g in grads.items()}
    return sums, (losses * weight).sum(1) / weight.sum(1).clamp(min=1.0)
