"""Example-level DP on the device (DP-SGD): the pieces that every executor shares.

Rules of this file:
    * A private gradient is (sum over the batch of gradients clipped by example + noise) / `batch_size`. The
      divisor is the expected size of a Poisson batch, never the size drawn: that would depend on the data.
    * The clip and the noise cover all parameters that are differentiated, jointly.
    * In simulation noise is seeded by client and step, so executors agree with the noise on, too. On a device the server is the
      adversary and knows the seeds: noise and coins are the system's entropy there, and the noisy sum is rounded to a lattice
      that does not depend on the data: low bits of floating point would tell them (Mironov 2012).
    * `example_cost.accounting` says what a device must be charged for; whoever trains charges it.

Source: Abadi et al. 2016, "Deep learning with differential privacy", https://arxiv.org/abs/1607.00133.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedretrain.core import entropy
from fedretrain.core.errors import UnsupportedModelError
from fedretrain.core.params import Layout
from fedretrain.core.rng import normals
from fedretrain.training.data import client_seeds

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from fedretrain.training.config import ExampleDp
    from fedretrain.training.phase import Phase
    from fedretrain.training.task import Tree


def clip_factors(norms: Tensor, clip_norm: float) -> Tensor:
    """What each example's gradient is multiplied by: ``min(1, clip_norm / norm)``, 1 for a zero gradient."""
    return clip_norm / norms.clamp(min=clip_norm)


def noise_seeds(seeds: NDArray[np.uint64], phase: Phase, index: int) -> NDArray[np.uint64]:
    """The noise streams of one step: ``[K]``, from clients' own seeds."""
    return client_seeds(seeds, f"noise/{phase.name}", index)


def noise(
    dp: ExampleDp, seeds: NDArray[np.uint64], params: Tree, names: Collection[str], *, lead: int
) -> Tree:
    """Noise for the sum of clipped gradients.

    Args:
        dp: Clip norm and noise multiplier.
        seeds: Noise streams, shape ``[*lead]`` (from `noise_seeds`).
        params: Trees with `lead` leading axes, whose shapes the noise takes.
        names: The parameters that are differentiated.
        lead: 0 or 1.

    Returns:
        float32 noise of standard deviation ``noise_multiplier * clip_norm``, drawn in the order of the names, sorted.
    """
    shapes = tuple(tuple(params[name].shape[lead:]) for name in sorted(names))
    layout = Layout(tuple(sorted(names)), shapes)
    drawn = normals(seeds, layout.size) * (dp.noise_multiplier * dp.clip_norm)
    flat = torch.from_numpy(drawn.astype(np.float32))
    parts = torch.split(flat, list(layout.sizes), dim=-1)
    return {
        name: part.reshape(*seeds.shape, *shape)
        for name, part, shape in zip(layout.names, parts, shapes, strict=True)
    }


def noised_secretly(dp: ExampleDp, sums: Tree) -> Tree:
    """Sums of clipped gradients plus noise that nobody can replay.

    Sum and noise are added in 64 bits and rounded to whole steps of a power of two, a sixteenth of a thousandth of the noise's standard
    deviation or less; what is released is exact in 32 bits up to 256 standard deviations.

    Args:
        dp: Clip norm and a noise multiplier above 0.
        sums: Without lead axes.
    """
    stddev = dp.noise_multiplier * dp.clip_norm
    step = 2.0 ** (math.floor(math.log2(stddev)) - 15)
    found = {}
    for name in sorted(sums):
        total = sums[name].detach().double().numpy()
        total = total + entropy.normals(total.size).reshape(total.shape) * stddev
        found[name] = torch.from_numpy((np.rint(total / step) * step).astype(np.float32))
    return found


def refuse_unserved_layers(module: nn.Module) -> None:
    """Refuse, by name, layers whose per-example gradients do not exist or cannot be had.

    Raises:
        UnsupportedModelError: Naming the layer and the reason.
    """
    from opacus.validators import ModuleValidator

    for name, layer in module.named_modules():
        if reason := _reason_against(layer):
            raise UnsupportedModelError(
                f"the layer {name or 'itself'} ({type(layer).__name__}) cannot be trained with example-level DP: {reason}",
                where="training.example_dp",
                fix="use GroupNorm or LayerNorm for BatchNorm, the model gru for nn.GRU, or turn example_dp off",
            )
    if errors := ModuleValidator.validate(module, strict=False):
        raise UnsupportedModelError(
            f"Opacus cannot serve this model: {errors[0]}", where="training.example_dp"
        )


def _reason_against(layer: nn.Module) -> str:
    if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - torch names no public base
        return "it mixes the examples of a batch"
    if getattr(layer, "track_running_stats", False):
        return "its running statistics would be taken un-noised from the data"
    if isinstance(layer, torch.nn.RNNBase | torch.nn.MultiheadAttention):
        return "Opacus has no per-example gradients for it"
    return ""
