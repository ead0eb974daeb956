"""Robust aggregators: coordinate-wise median and trimmed mean (Yin et al. 2018, arXiv 1803.01498).

Rules of this file:
    * They need every update at once, so they keep a *bounded list*: memory is `max_clients` times the model, and a larger
      cohort is refused by name before the round.
    * They are never combined with differential privacy (`aggregator.require_private`).
    * The result does not depend on the order of the list: each coordinate is sorted first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.aggregation.aggregator import Updates

_TILE_COLUMNS = 65_536


@dataclass(frozen=True)
class UpdateList:
    """Every update of the round so far.

    Attributes:
        size: P.
        blocks: Arrays ``[K_i, P]`` float32.
    """

    size: int
    blocks: tuple[NDArray[np.float32], ...] = ()

    def __len__(self) -> int:
        return sum(len(block) for block in self.blocks)


@dataclass(frozen=True)
class _Listing:
    """What the robust aggregators share.

    Attributes:
        max_clients: The bound of the list.
    """

    max_clients: int = 256

    @property
    def max_cohort(self) -> int | None:
        """The bound of the list."""
        return self.max_clients

    def init(self, size: int, clip_norm: float | None) -> UpdateList:
        """The empty list."""
        del clip_norm
        return UpdateList(size)

    def accumulate(self, state: UpdateList, updates: Updates) -> UpdateList:
        """The list with a block added (a copy of it).

        Raises:
            ConfigError: If the list outgrows its bound.
        """
        block = updates.scaled().astype(np.float32)
        return self.merge(state, UpdateList(state.size, (block,)))

    def merge(self, a: UpdateList, b: UpdateList) -> UpdateList:
        """Both lists.

        Raises:
            ConfigError: If the list outgrows its bound.
        """
        if len(a) + len(b) > self.max_clients:
            raise ConfigError(
                f"{type(self).__name__} keeps every update and is bounded to {self.max_clients} of them",
                where="aggregation.max_clients",
                fix="use a smaller cohort, raise the bound, or use a mean",
            )
        return UpdateList(a.size, a.blocks + b.blocks)

    def release(self, state: UpdateList) -> NDArray[np.float64]:
        """The aggregate of each coordinate."""
        answer = np.empty(state.size, dtype=np.float64)
        for left in range(0, state.size, _TILE_COLUMNS):
            columns = slice(left, left + _TILE_COLUMNS)
            rows = np.concatenate([block[:, columns] for block in state.blocks]).astype(np.float64)
            rows.sort(axis=0)
            answer[columns] = self._combine(rows)
        return answer

    def _combine(self, sorted_KP: NDArray[np.float64]) -> NDArray[np.float64]:
        """The aggregate of each column; each is sorted."""
        count = len(sorted_KP)
        middle: NDArray[np.float64] = (sorted_KP[(count - 1) // 2] + sorted_KP[count // 2]) / 2.0
        return middle


@dataclass(frozen=True)
class CoordinateMedian(_Listing):
    """The median of each coordinate. Keeps a bounded list of updates."""


@dataclass(frozen=True)
class TrimmedMean(_Listing):
    """The mean of each coordinate without its largest and smallest values. Keeps a bounded list of updates.

    Attributes:
        trim_fraction: The fraction of the updates dropped at *each* end, under 0.5.
    """

    trim_fraction: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.trim_fraction < 0.5:
            raise ConfigError(
                f"the trimmed fraction is {self.trim_fraction}",
                where="aggregation.trim_fraction",
                fix="give a number from 0 to below 0.5",
            )

    def _combine(self, sorted_KP: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean of the middle of each column."""
        dropped = int(self.trim_fraction * len(sorted_KP))
        mean: NDArray[np.float64] = sorted_KP[dropped : len(sorted_KP) - dropped].mean(axis=0)
        return mean
