"""Which samples make which batch: decided before an executor sees them.

Rules of this file:
    * A client's batches depend on its own seed and number of samples alone: cohort, block and shard layout never
      change them, and every executor takes the same.
    * Each epoch is a new permutation; the last, partial batch of an epoch is kept.
    * With example-level DP each sample joins each batch by its own coin (`poisson_plan`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core import entropy
from fedretrain.core.rng import permutations, seeds_for, uniforms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.training.config import LocalTraining
    from fedretrain.training.phase import Phase


@dataclass(frozen=True)
class BatchPlan:
    """The batches of K clients in one phase.

    Attributes:
        index_KSB: ``[K, S, B]`` sample numbers, -1 for padding; S is the most steps of any client.
        steps: ``[K]`` steps of each client; beyond them a row is padding.
    """

    index_KSB: NDArray[np.int64]
    steps: NDArray[np.int64]


def num_steps(sizes: NDArray[np.int64], batch_size: int, epochs: int, max_steps: int) -> NDArray[np.int64]:
    """Steps of each client: ``[K]``; 0 for a client without samples.

    Args:
        sizes: ``[K]`` samples of each client.
        batch_size: B.
        epochs: Passes; 0: exactly `max_steps` steps.
        max_steps: The most steps; 0: no bound.
    """
    steps = _ceil_div(sizes, batch_size) * epochs if epochs else np.full_like(sizes, max_steps)
    if max_steps:
        steps = np.minimum(steps, max_steps)
    return np.where(sizes > 0, steps, 0)


def plan(
    local: LocalTraining,
    phase: Phase,
    sizes: NDArray[np.int64],
    seeds: NDArray[np.uint64],
    *,
    secret: bool = False,
) -> BatchPlan:
    """The batches of one phase.

    Args:
        local: How clients train.
        phase: The phase; its name is part of the randomness.
        sizes: ``[K]`` samples of each client.
        seeds: ``[K]`` uint64, each client's own.
        secret: Toss the coins of example-level DP with the system's entropy: on a device, whose seeds the server knows.
    """
    steps = num_steps(sizes, local.batch_size, phase.epochs, phase.max_steps)
    if local.example_dp is not None:
        return poisson_plan(sizes, seeds, steps, local.batch_size, phase.name, secret=secret)
    return permuted_plan(sizes, seeds, steps, local.batch_size, phase.name)


def permuted_plan(
    sizes: NDArray[np.int64],
    seeds: NDArray[np.uint64],
    steps: NDArray[np.int64],
    batch_size: int,
    purpose: str,
) -> BatchPlan:
    """Epoch after epoch of permutations, cut into batches; see `plan`."""
    num_clients, most = len(sizes), int(steps.max(initial=0))
    index = np.full((num_clients, most, batch_size), -1, dtype=np.int64)
    if most == 0:
        return BatchPlan(index, steps)
    per_epoch = np.maximum(_ceil_div(sizes, batch_size), 1)
    epochs, widest = int(_ceil_div(steps, per_epoch).max()), int(per_epoch.max())
    streams = np.stack([client_seeds(seeds, purpose, epoch) for epoch in range(epochs)], axis=1)
    drawn = permutations(streams.reshape(-1), np.repeat(sizes, epochs), widest * batch_size)
    drawn = drawn.reshape(num_clients, epochs, widest, batch_size)
    # Batch j of epoch e is a client's step e * per_epoch + j, where it has that many.
    batch = np.arange(widest)
    step = np.arange(epochs)[None, :, None] * per_epoch[:, None, None] + batch
    real = (batch < per_epoch[:, None, None]) & (step < steps[:, None, None])
    client = np.broadcast_to(np.arange(num_clients)[:, None, None], real.shape)
    index[client[real], step[real]] = drawn[real]
    return BatchPlan(index, steps)


def poisson_plan(
    sizes: NDArray[np.int64],
    seeds: NDArray[np.uint64],
    steps: NDArray[np.int64],
    batch_size: int,
    purpose: str,
    *,
    secret: bool = False,
) -> BatchPlan:
    """Batches of independent coins: each sample joins each batch with probability ``batch_size / N`` (at most 1).

    A batch may be empty, or larger than `batch_size`; the last axis is as wide as the largest drawn.
    """
    most, widest = int(steps.max(initial=0)), int(sizes.max(initial=0))
    rate = sample_rates(sizes, batch_size)
    in_reach = np.arange(widest) < sizes[:, None]
    drawn: list[NDArray[np.int64]] = []
    width = 1
    for step in range(most):
        seeded = client_seeds(seeds, f"poisson/{purpose}", step)
        coins = entropy.uniforms(len(sizes), widest) if secret else uniforms(seeded, widest)
        joined = (coins < rate[:, None]) & in_reach & (step < steps)[:, None]
        width = max(width, int(joined.sum(axis=1).max(initial=0)))
        order = np.argsort(~joined, axis=1, kind="stable")
        drawn.append(np.where(np.take_along_axis(joined, order, axis=1), order, -1))
    if not drawn:
        return BatchPlan(np.full((len(sizes), 0, 1), -1, dtype=np.int64), steps)
    index = np.stack(drawn, axis=1)[:, :, :width]
    return BatchPlan(np.ascontiguousarray(index), steps)


def sample_rates(sizes: NDArray[np.int64], batch_size: int) -> NDArray[np.float64]:
    """The probability with which each of a client's samples joins a Poisson batch: ``[K]``."""
    return np.minimum(1.0, batch_size / np.maximum(sizes, 1).astype(np.float64))


def client_seeds(seeds: NDArray[np.uint64], purpose: str, index: int) -> NDArray[np.uint64]:
    """Streams derived from clients' own seeds: ``[K]``, one for each purpose and index."""
    return seeds_for(0, index, seeds.view(np.int64), purpose)


def _ceil_div(a: NDArray[np.int64], b: int | NDArray[np.int64]) -> NDArray[np.int64]:
    quotient: NDArray[np.int64] = -(-a // b)
    return quotient
