"""Example-level DP on the device (DP-SGD): the pieces that every executor shares.

Rules of this file:
    * A private gradient is (sum over the batch of gradients clipped by example + noise) / `batch_size`. The
      divisor is the expected size of a Poisson batch, never the size drawn: that would depend on the data.
    * The clip and the noise cover all parameters that are differentiated, jointly.
    * Noise is seeded by client and step (simulation only), so executors agree with the noise on, too.
    * `accounting` says what a device must be charged for; whoever trains charges it.

Source: Abadi et al. 2016, "Deep learning with differential privacy", https://arxiv.org/abs/1607.00133.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedretrain.core.errors import PrivacyError, UnsupportedModelError
from fedretrain.core.params import Layout
from fedretrain.core.rng import normals
from fedretrain.training.data import client_seeds, num_steps, sample_rates

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from fedretrain.training.config import ExampleDp, LocalTraining
    from fedretrain.training.phase import Phase
    from fedretrain.training.task import Tree


@dataclass(frozen=True)
class ExampleAccounting:
    """What one device's local training must be charged for: so many Poisson-sampled Gaussian releases.

    Attributes:
        sample_rate: The probability with which an example joins a batch.
        noise_multiplier: Noise standard deviation on the sum, in clip norms.
        steps: Releases in one round.
    """

    sample_rate: float
    noise_multiplier: float
    steps: int


def accounting(
    local: LocalTraining, phases: Sequence[Phase], sizes: NDArray[np.int64]
) -> list[ExampleAccounting]:
    """What each device's training in one round costs under example-level DP (add/remove one example).

    A phase that is not `released` (a private copy that feeds nothing) costs nothing; a device without samples takes
    no step and is charged nothing.

    Args:
        local: How clients train.
        phases: `task.phases()`, or `task.refit_phases()` for a re-fit.
        sizes: ``[K]`` samples of each device.

    Raises:
        PrivacyError: If example-level DP is off, or its noise is.
    """
    dp = local.example_dp
    if dp is None or dp.noise_multiplier == 0:
        raise PrivacyError(
            "there is no example-level privacy to account: its noise is off",
            where="training.example_dp.noise_multiplier",
            fix="set a noise multiplier above 0",
        )
    steps = sum(
        (
            num_steps(sizes, local.batch_size, phase.epochs, phase.max_steps)
            for phase in phases
            if phase.released
        ),
        start=np.zeros_like(sizes),
    )
    rates = sample_rates(sizes, local.batch_size)
    return [
        ExampleAccounting(float(q), dp.noise_multiplier, int(s)) for q, s in zip(rates, steps, strict=True)
    ]


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
