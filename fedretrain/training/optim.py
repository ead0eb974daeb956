"""SGD and Adam as in-place updates of parameter trees.

Rules of this file:
    * Element-wise and in place, so that trees of one client and of K stacked clients (a leading axis, or views of
      the clients that still have steps to do) go through the same lines; `torch._foreach_*` makes one call of many.
    * Each equals torch.optim's optimizer of the same name, which the tests hold it to.
    * Gradients belong to the update and may be changed by it.

Sources: SGD with (Nesterov) momentum as torch.optim.SGD; Adam, https://arxiv.org/abs/1412.6980.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from fedretrain.training.config import OptimizerConfig, OptimizerKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from fedretrain.training.task import State, Tree


def slots(config: OptimizerConfig, params: Tree, names: Iterable[str], group: str) -> State:
    """The optimizer's state before its first step.

    Args:
        config: Which optimizer.
        params: The parameters it will step (shape and lead axes are taken from them).
        names: Those among them that it will step.
        group: A prefix, so that a task may hold several optimizers.
    """
    kinds: tuple[str, ...] = ()
    if config.kind is OptimizerKind.ADAM:
        kinds = ("mean", "square")
    elif config.momentum > 0:
        kinds = ("momentum",)
    kept = tuple(names)
    return {f"{group}.{kind}": {name: torch.zeros_like(params[name]) for name in kept} for kind in kinds}


def update_(
    config: OptimizerConfig, params: Tree, grads: Tree, state: State, *, group: str, index: int
) -> None:
    """One step in place.

    Args:
        config: Which optimizer.
        params: Parameters, changed in place; those without a gradient stay.
        grads: Gradients by name; changed in place.
        state: Where `slots` put the optimizer's state; changed in place.
        group: The prefix that `slots` was given.
        index: Steps already taken.
    """
    if not grads:
        return
    names = list(grads)
    weights, gradients = [params[n] for n in names], [grads[n] for n in names]
    if config.weight_decay:
        torch._foreach_add_(gradients, weights, alpha=config.weight_decay)
    if config.kind is OptimizerKind.ADAM:
        _adam_(
            config,
            weights,
            gradients,
            means=[state[f"{group}.mean"][n] for n in names],
            squares=[state[f"{group}.square"][n] for n in names],
            index=index,
        )
        return
    if config.momentum > 0:
        buffers = [state[f"{group}.momentum"][n] for n in names]
        torch._foreach_mul_(buffers, config.momentum)
        torch._foreach_add_(buffers, gradients)
        if config.nesterov:
            torch._foreach_add_(gradients, buffers, alpha=config.momentum)
        else:
            gradients = buffers
    torch._foreach_add_(weights, gradients, alpha=-config.lr)


def _adam_(
    config: OptimizerConfig,
    weights: list[Tensor],
    gradients: list[Tensor],
    *,
    means: list[Tensor],
    squares: list[Tensor],
    index: int,
) -> None:
    beta1, beta2 = config.betas
    torch._foreach_lerp_(means, gradients, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
    correction1, correction2 = 1 - beta1 ** (index + 1), 1 - beta2 ** (index + 1)
    roots = torch._foreach_sqrt(squares)  # noqa: SLF001 - the only fused form that torch has
    torch._foreach_div_(roots, math.sqrt(correction2))
    torch._foreach_add_(roots, config.eps)
    torch._foreach_addcdiv_(weights, means, roots, -config.lr / correction1)
