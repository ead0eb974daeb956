"""Test doubles: they behave like the real thing, and misbehave on request.

`FakeRunner` trains by a formula, so that a test knows every update; it is the smallest proper `CohortRunner`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedretrain.aggregation.aggregator import FixedDenominatorMean
from fedretrain.coordinator.ports import RoundSpec, ShardResult
from fedretrain.coordinator.reduce import Reducer
from fedretrain.core.ids import ClientId
from fedretrain.core.rng import normals, seeds_for
from fedretrain.core.types import ClientFailure, FailureKind, UpdateBlock

Deltas = Callable[[RoundSpec, NDArray[np.int64]], NDArray[np.float32]]


def random_deltas(spec: RoundSpec, clients: NDArray[np.int64]) -> NDArray[np.float32]:
    """Standard normal updates ``[K, P]`` that depend on (seed, round, client) alone."""
    return normals(seeds_for(spec.seed, spec.round, clients, "fake"), spec.size).astype(np.float32)


def block_of(
    clients: NDArray[np.int64],
    delta_KP: NDArray[np.floating],
    num_examples: NDArray[np.int64] | None = None,
) -> UpdateBlock:
    """A block with loss 1 and nothing personal; 10 examples each unless told."""
    count = len(clients)
    return UpdateBlock(
        clients=np.asarray(clients, dtype=np.int64),
        delta_KP=delta_KP,
        num_examples=np.full(count, 10) if num_examples is None else np.asarray(num_examples),
        loss=np.ones(count, dtype=np.float32),
        personal_KQ=np.zeros((count, 0), dtype=np.float32),
    )


def reduced(delta_KP: NDArray[np.generic], clip_norm: float) -> ShardResult:
    """Updates of clients 0, 1, ... taken through the product's one clip path."""
    base = {"w": np.zeros(np.shape(delta_KP)[-1], np.float32)}
    reducer = Reducer(RoundSpec(0, base, 0, 1, 0.0, FixedDenominatorMean(1), clip_norm))
    reducer.add(block_of(np.arange(len(delta_KP)), delta_KP))
    return reducer.result()


def clipped_rows(delta_KP: NDArray[np.generic], clip_norm: float) -> NDArray[np.float64]:
    """What the reducer adds to the sum for each row ``[K, P]``: each is the only one of a round of its own."""
    return np.stack([reduced(row[None], clip_norm).partial.state.value() for row in np.asarray(delta_KP)])


@dataclass
class FakeRunner:
    """A cohort runner that computes updates by a formula.

    Attributes:
        deltas: The updates of clients.
        shard_size: Clients to a shard.
        block_size: Clients to a block.
        fails: Clients that fail, and how.
        num_examples: Numbers of examples by client; 10 where not named.
        tamper: Called with the shards before they are handed out: repeats, loses or reorders them.
    """

    deltas: Deltas = random_deltas
    shard_size: int = 4
    block_size: int = 3
    fails: Mapping[int, FailureKind] = field(default_factory=dict)
    num_examples: Mapping[int, int] = field(default_factory=dict)
    tamper: Callable[[list[ShardResult]], list[ShardResult]] = list
    specs: list[RoundSpec] = field(default_factory=list)
    closed: bool = False

    def run(self, spec: RoundSpec, cohort: NDArray[np.int64]) -> Iterator[ShardResult]:
        """Every shard of the cohort."""
        self.specs.append(spec)
        parts = [cohort[i : i + self.shard_size] for i in range(0, len(cohort), self.shard_size)]
        yield from self.tamper([self._shard(spec, part) for part in parts])

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True

    def _shard(self, spec: RoundSpec, clients: NDArray[np.int64]) -> ShardResult:
        reducer = Reducer(spec, clients)
        working = np.array([c for c in clients.tolist() if c not in self.fails], dtype=np.int64)
        for i in range(0, len(working), self.block_size):
            ids = working[i : i + self.block_size]
            sizes = np.array([self.num_examples.get(c, 10) for c in ids.tolist()])
            reducer.add(block_of(ids, self.deltas(spec, ids), sizes))
        failed = [c for c in clients.tolist() if c in self.fails]
        reducer.fail(ClientFailure(ClientId(c), self.fails[c], "fake") for c in failed)
        return reducer.result(
            bytes_down=4 * spec.size * len(clients), bytes_up=4 * spec.size * len(working), busy_s=0.001
        )
