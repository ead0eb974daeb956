"""A block's samples and batches as the batched executor wants them.

Shape letters as in `batched`: K clients of a block, S steps, B samples of a batch, F model inputs, M samples of all
clients of the block.

Rules of this file:
    * Samples of a block lie end to end; a batch is one gather by global row numbers.
    * Clients come sorted by number of samples, most first, so those active at a step are a prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedretrain.training.task import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from fedretrain.training.data import BatchPlan
    from fedretrain.training.executor import ClientWork


@dataclass(frozen=True)
class BlockSamples:
    """The samples of a block's clients, end to end.

    Attributes:
        x: ``[M, *F]``.
        y: ``[M]``.
        sizes: ``[K]`` samples of each client.
        offsets: ``[K]`` row at which each client begins.
    """

    x: Tensor
    y: Tensor
    sizes: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, block: Sequence[ClientWork]) -> BlockSamples:
        """Put the clients' samples end to end (one copy)."""
        sizes = np.fromiter((len(one.data.y) for one in block), dtype=np.int64, count=len(block))
        filled = [one.data for one in block if len(one.data.y)] or [block[0].data]
        x = np.concatenate([one.x for one in filled])
        y = np.concatenate([one.y for one in filled])
        return cls(torch.from_numpy(x), torch.from_numpy(y), sizes, np.cumsum(sizes) - sizes)

    def window(self, start: int, stop: int) -> Tensor:
        """Samples `start` to `stop` of every client: ``[K, stop - start, *F]``, padded with rows of others."""
        rows = np.minimum(self.offsets[:, None] + np.arange(start, stop), max(len(self.y) - 1, 0))
        if len(self.y) == 0:
            return self.x.new_zeros(len(self.sizes), 0, *self.x.shape[1:])
        found = self.x.index_select(0, torch.from_numpy(rows.reshape(-1)))
        return found.view(*rows.shape, *self.x.shape[1:])


@dataclass(frozen=True)
class StepPlan:
    """The batches of a block's phase, step by step.

    Attributes:
        rows_SKB: ``[S, K, B]`` rows of the block's samples; padding points at any row.
        counts_SK: ``[S, K]`` samples in each batch.
        active: Clients with a batch at each step: a prefix of the block.
        widths: The largest batch of each step.
        tight: True where every active client's batch is full.
    """

    rows_SKB: Tensor
    counts_SK: NDArray[np.int64]
    active: tuple[int, ...]
    widths: tuple[int, ...]
    tight: tuple[bool, ...]
    weights_SKB: Tensor
    counts_float: Tensor

    @classmethod
    def of(cls, plan: BatchPlan, samples: BlockSamples) -> StepPlan:
        """A plan in terms of the block's rows."""
        index = plan.index_KSB.transpose(1, 0, 2)
        real = index >= 0
        counts = real.sum(axis=2)
        num_steps = index.shape[0]
        active = (plan.steps[None, :] > np.arange(num_steps)[:, None]).sum(axis=1)
        widths = counts.max(axis=1, initial=1)
        # Only active clients decide whether a step is without padding.
        least = np.where(plan.steps[None, :] > np.arange(num_steps)[:, None], counts, index.shape[2]).min(
            axis=1, initial=index.shape[2]
        )
        rows = np.minimum(np.maximum(index, 0) + samples.offsets[:, None], max(len(samples.y) - 1, 0))
        return cls(
            rows_SKB=torch.from_numpy(np.ascontiguousarray(rows)),
            counts_SK=counts,
            active=tuple(active.tolist()),
            widths=tuple(widths.tolist()),
            tight=tuple((least == widths).tolist()),
            weights_SKB=torch.from_numpy(real.astype(np.float32)),
            counts_float=torch.from_numpy(counts.astype(np.float32)),
        )

    def batch(self, index: int, samples: BlockSamples) -> Batch:
        """The batch of every active client at a step: ``[a, B, *F]``."""
        active, width = self.active[index], self.widths[index]
        rows = self.rows_SKB[index, :active, :width].reshape(-1)
        return Batch(
            x=samples.x.index_select(0, rows).view(active, width, *samples.x.shape[1:]),
            y=samples.y.index_select(0, rows).view(active, width),
            weight=self.weights_SKB[index, :active, :width],
        )

    def share(self, index: int) -> float | None:
        """What each sample counts in its client's mean where all batches of a step are full; otherwise None."""
        return 1.0 / self.widths[index] if self.tight[index] else None

    def counts(self, index: int) -> Tensor:
        """Samples in each active client's batch, ``[a]`` float32."""
        return self.counts_float[index, : self.active[index]]
