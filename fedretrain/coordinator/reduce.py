"""The one streaming reducer: blocks of updates in, one partial sum out. Used by simulator and server alike.

Rules of this file:
    * The order is: refuse strangers and duplicates, refuse what is malformed or not finite (a `ClientFailure` each, the
      others are not affected), clip, hand to the aggregator. There is no other path to an aggregate.
    * Clipping is over the whole packed row, so 0-d parameters count; the model is never clipped, only updates.
    * Memory is one model-sized state and a tile, whatever the cohort (8 bytes per client for refusing duplicates apart).
    * The result has the same bits whatever the order of the blocks, their size, and the sharding (with the mean
      aggregators: int64 fixed point, `aggregation.fixed_point`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.aggregation.aggregator import Updates
from fedretrain.coordinator.ports import Oracle, PartialSum, ShardResult
from fedretrain.core.ids import ClientId
from fedretrain.core.types import ClientFailure, FailureKind
from fedretrain.privacy.rows import clip_factors, row_norms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from fedretrain.coordinator.ports import RoundSpec
    from fedretrain.core.types import UpdateBlock

MAX_NORM = 2.0**14
"""Without a clip norm, an update longer than this is refused as diverged: its client is reported, nobody else suffers."""
_CHUNK_BYTES = 2**22  # rows taken through clip and sum at once


class Reducer:
    """A running aggregate of one shard.

    Args:
        spec: The round.
        cohort: ``[K]`` ids of the clients that were asked; None accepts anybody (a worker that trains what it was given).
        keep_oracle: Whether to keep numbers of examples, losses and norms of single clients: simulation only.
    """

    def __init__(
        self, spec: RoundSpec, cohort: NDArray[np.int64] | None = None, *, keep_oracle: bool = True
    ) -> None:
        self._spec = spec
        self._size = spec.size
        self._state = spec.aggregator.init(self._size, spec.clip_norm)
        self._asked = None if cohort is None else frozenset(cohort.tolist())
        self._seen: set[int] = set()
        self._failures: list[ClientFailure] = []
        self._num_unclipped = self._num_duplicates = 0
        self._clients: list[NDArray[np.int64]] = []
        self._keep_oracle = keep_oracle
        self._oracle: list[Oracle] = []

    def add(self, block: UpdateBlock) -> None:
        """Add the updates of a block; what cannot be used is reported, never raised."""
        delta_KP = self._readable(block)
        if delta_KP is None:
            return
        # Norms and sum of some rows before the next: they are still in the cache when read again.
        step = max(1, _CHUNK_BYTES // max(delta_KP[:1].nbytes, 1))
        for first in range(0, len(delta_KP), step):
            self._add_rows(block, delta_KP, slice(first, first + step))

    def _add_rows(self, block: UpdateBlock, delta_KP: NDArray[Any], rows: slice) -> None:
        """Refuse or admit, clip and sum some rows of a block."""
        clients, examples, delta_KP = block.clients[rows], block.num_examples[rows], delta_KP[rows]
        norm_K = row_norms(delta_KP)
        admitted = map(self._admit, clients.tolist(), examples.tolist(), norm_K.tolist())
        keep = np.fromiter(admitted, dtype=bool, count=len(clients))
        if keep.all():
            self._accumulate(clients, delta_KP, norm_K, examples, block.loss[rows])
        elif keep.any():
            self._accumulate(
                clients[keep], delta_KP[keep], norm_K[keep], examples[keep], block.loss[rows][keep]
            )

    def fail(self, failures: Iterable[ClientFailure]) -> None:
        """Record clients that contributed nothing."""
        self._failures.extend(failures)

    def result(self, *, bytes_down: int = 0, bytes_up: int = 0, busy_s: float = 0.0) -> ShardResult:
        """What was reduced so far. The reducer must not be used afterwards: the result holds its memory."""
        clients = np.concatenate(self._clients) if self._clients else np.zeros(0, dtype=np.int64)
        return ShardResult(
            PartialSum(self._state, len(clients), self._num_unclipped),
            np.sort(clients),
            tuple(self._failures),
            self._num_duplicates,
            Oracle.join(self._oracle),
            bytes_down,
            bytes_up,
            busy_s,
        )

    def _readable(self, block: UpdateBlock) -> NDArray[Any] | None:
        """The block's updates as a floating-point array ``[K, P]``, or None if it is malformed."""
        delta = np.asarray(block.delta_KP)
        wanted = (len(block.clients), self._size)
        if delta.shape != wanted or delta.dtype.kind not in "fiu":
            detail = f"update of shape {delta.shape} and type {delta.dtype}, expected {wanted} of floats"
            for client in block.clients.tolist():
                self._refuse(client, FailureKind.MALFORMED, detail)
            return None
        return delta if delta.dtype.kind == "f" else delta.astype(np.float64)

    def _admit(self, client: int, num_examples: int, norm: float) -> bool:
        """Whether the update counts; if not, it is reported."""
        if client in self._seen:
            self._num_duplicates += 1
        elif self._asked is not None and client not in self._asked:
            self._refuse(client, FailureKind.MALFORMED, "not in the cohort")
        elif not math.isfinite(norm):
            self._refuse(client, FailureKind.NONFINITE, "NaN or infinity in the update")
        elif self._spec.clip_norm is None and norm > MAX_NORM:
            self._refuse(
                client, FailureKind.NONFINITE, f"diverged: norm {norm:.3g}, at most {MAX_NORM:g} is taken"
            )
        elif num_examples < 1:
            self._refuse(client, FailureKind.NO_DATA, f"{num_examples} examples")
        else:
            self._seen.add(client)
            return True
        return False

    def _refuse(self, client: int, kind: FailureKind, detail: str) -> None:
        self._failures.append(ClientFailure(ClientId(client), kind, detail))

    def _accumulate(
        self,
        clients: NDArray[np.int64],
        delta_KP: NDArray[Any],
        norm_K: NDArray[np.float64],
        examples: NDArray[np.int64],
        loss: NDArray[np.float32],
    ) -> None:
        """Clip admitted rows and hand them to the aggregator."""
        if self._spec.clip_norm is None:
            factor_K, unclipped = np.ones(len(norm_K)), np.ones(len(norm_K), dtype=bool)
        else:
            factor_K, unclipped = clip_factors(norm_K, self._spec.clip_norm)
        updates = Updates(delta_KP, factor_K, norm_K, examples)
        self._state = self._spec.aggregator.accumulate(self._state, updates)
        self._num_unclipped += int(unclipped.sum())
        self._clients.append(clients)
        if self._keep_oracle:
            norm_K = np.minimum(
                norm_K, np.finfo(np.float32).max
            )  # a float32 row's norm may be beyond float32
            self._oracle.append(Oracle(clients, examples, loss, norm_K.astype(np.float32)))
