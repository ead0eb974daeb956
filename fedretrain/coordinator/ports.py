"""What passes between the round and whoever trains its cohort.

Rules of this file:
    * A `CohortRunner` streams `ShardResult`s: one for each worker, or for each device, as they come in. The round folds them;
      their order and number do not change one bit of the aggregate.
    * A shard never carries single updates: only their sum, who is in it, who failed and why.
    * `Oracle` is what the *simulator* knows of single devices. It lies outside every epsilon, is never filled in production
      with DP on, and nothing that is released may be computed from it.
    * Personal state is the runner's own business: it commits on the device when local training ends, whatever becomes of
      the round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from fedretrain.aggregation.aggregator import Aggregator
    from fedretrain.core.params import Params
    from fedretrain.core.types import ClientFailure


@dataclass(frozen=True)
class RoundSpec:
    """What a cohort is asked to do. Picklable.

    Attributes:
        round: Index of the round in its campaign, from 0; a repeated round has the next index.
        base: The shared parameters that everybody trains from.
        base_version: How many releases made `base`; a reply made from another version is STALE.
        seed: The run's seed: streams are ``seed_for(seed, round, client, purpose)``.
        at: The instant at which the round begins, seconds.
        aggregator: How updates combine; a worker accumulates with it through `reduce.Reducer`.
        clip_norm: C of this round; None where updates are not clipped.
        deadline_s: Replies later than this after `at` are TIMEOUT.
        stop_after: The runner may stop waiting after this many replies (over-selection). None: every reply before the
            deadline is used, which is what Poisson amplification demands.
    """

    round: int
    base: Params
    base_version: int
    seed: int
    at: float
    aggregator: Aggregator[Any]
    clip_norm: float | None = None
    deadline_s: float = math.inf
    stop_after: int | None = None

    @property
    def size(self) -> int:
        """P: the number of shared parameters."""
        return sum(int(np.size(leaf)) for leaf in self.base.values())


@dataclass(frozen=True)
class PartialSum:
    """The updates of some clients, aggregated. Mergeable, picklable, as small as the model.

    Attributes:
        state: The aggregator's state.
        num_clients: How many updates are in it.
        num_unclipped: How many of them were *not* clipped: the sum of adaptive clipping's bits.
    """

    state: Any
    num_clients: int = 0
    num_unclipped: int = 0

    def merge(self, other: PartialSum, aggregator: Aggregator[Any]) -> PartialSum:
        """The partial sum of both; changes neither."""
        return PartialSum(
            aggregator.merge(self.state, other.state),
            self.num_clients + other.num_clients,
            self.num_unclipped + other.num_unclipped,
        )


def _ids() -> NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)


def _floats() -> NDArray[np.float32]:
    return np.zeros(0, dtype=np.float32)


@dataclass(frozen=True)
class Oracle:
    """What only a simulator may know of single clients; one entry per client that contributed.

    Attributes:
        clients: ``[K]`` int64.
        num_examples: ``[K]`` int64.
        loss: ``[K]`` float32 mean training loss.
        norm: ``[K]`` float32 norm of the update before clipping.
    """

    clients: NDArray[np.int64] = field(default_factory=_ids)
    num_examples: NDArray[np.int64] = field(default_factory=_ids)
    loss: NDArray[np.float32] = field(default_factory=_floats)
    norm: NDArray[np.float32] = field(default_factory=_floats)

    @classmethod
    def join(cls, parts: list[Oracle]) -> Oracle:
        """All of them, in the order of client ids."""
        if not parts:
            return cls()
        clients = np.concatenate([part.clients for part in parts])
        order = np.argsort(clients, kind="stable")
        return cls(
            clients[order],
            np.concatenate([part.num_examples for part in parts])[order],
            np.concatenate([part.loss for part in parts])[order],
            np.concatenate([part.norm for part in parts])[order],
        )


@dataclass(frozen=True)
class ShardResult:
    """What one worker, or one device, hands to the round.

    Attributes:
        partial: The sum of the updates that counted.
        clients: ``[K]`` int64: whose updates those are.
        failures: Everybody else who was asked, and why.
        num_duplicates: Second updates of a client, refused.
        oracle: The simulator's knowledge of single clients; empty in production with DP on.
        bytes_down: Sent to devices.
        bytes_up: Received from devices.
        busy_s: Processor or device seconds spent on it.
        reply_s: Seconds from asked to replied of those whose updates these are, by client; empty where nobody measured them.
    """

    partial: PartialSum
    clients: NDArray[np.int64] = field(default_factory=_ids)
    failures: tuple[ClientFailure, ...] = ()
    num_duplicates: int = 0
    oracle: Oracle = field(default_factory=Oracle)
    bytes_down: int = 0
    bytes_up: int = 0
    busy_s: float = 0.0
    reply_s: Mapping[int, float] = field(default_factory=dict)


class CohortRunner(Protocol):
    """Trains a cohort: in this process, on Ray actors, over Flower, or on real devices."""

    def run(self, spec: RoundSpec, cohort: NDArray[np.int64]) -> Iterator[ShardResult]:
        """Train and stream the results.

        Each client of the cohort ends up in one shard: in its `clients` or in its `failures`. A client that is in none
        counts as LOST. What a device does wrong is a `ClientFailure`, never an exception; an exception means that the
        run itself cannot go on.
        """
        ...

    def close(self) -> None:
        """Free workers and connections. May be called twice."""
        ...
