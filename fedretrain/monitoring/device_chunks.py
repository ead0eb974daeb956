"""What the store keeps of each device in chunks of slots: a part of the store.

Rules of this file:
    * Whatever version served: how soon labels come back is no work of a model.
    * Integers by addition only, so the order of arrival changes no bit.

Shapes: K rows, P chunks (ring), D devices, B delay bins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedretrain.monitoring.reports import NUM_DELAY_BINS
from fedretrain.monitoring.rings import ByKey

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.monitoring.reports import LabelReports
    from fedretrain.monitoring.rings import Horizon


class DeviceChunks:
    """Sums by device over the kept chunks. Mutable.

    Args:
        horizon: Which chunks are kept.
        num_devices: D.
    """

    def __init__(self, horizon: Horizon, num_devices: int) -> None:
        self._horizon = horizon
        self._delays_PDB = np.zeros((horizon.num_chunks, num_devices, NUM_DELAY_BINS), dtype=np.int32)

    def arrays(self) -> tuple[NDArray[np.integer], ...]:
        """Everything that is kept."""
        return (self._delays_PDB,)

    def clear(self, chunk: int) -> None:
        """Forget a chunk of the ring."""
        for array in self.arrays():
            array[chunk] = 0

    def add_labels(self, rows: LabelReports) -> None:
        """Count labels in the chunk of their predictions."""
        keys = ByKey.of(self._chunk(rows.slot_K) * self._delays_PDB.shape[1] + rows.device_K)
        keys.add_to(self._delays_PDB.reshape(-1, NUM_DELAY_BINS), rows.delay_KD)

    def delays(self, chunks: list[int]) -> NDArray[np.int64]:
        """``[D, P, B]`` labels by delay, of some chunks of the ring."""
        return self._delays_PDB[chunks].astype(np.int64).transpose(1, 0, 2)

    def _chunk(self, slot_K: NDArray[np.int64]) -> NDArray[np.int64]:
        """``[K]`` the ring's chunk of each slot."""
        return slot_K // self._horizon.chunk_slots % self._horizon.num_chunks
