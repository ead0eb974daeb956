"""What the store keeps of each device in chunks of slots: a part of the store.

Rules of this file:
    * Whatever version served: how soon labels come back is no work of a model, and a device that refuses a new one says so
      while it serves the old one.
    * Integers by addition only, so the order of arrival changes no bit.

Shapes: K rows, P chunks (ring), D devices, B delay bins, N distance bins, Q pairs of integers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedretrain.monitoring.reports import NUM_DELAY_BINS, NUM_DISTANCE_BINS
from fedretrain.monitoring.rings import ByKey, from_whole, to_whole
from fedretrain.monitoring.windows import PersonalCounts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.monitoring.reports import LabelReports, Reports
    from fedretrain.monitoring.rings import Horizon


class DeviceChunks:
    """Sums by device over the kept chunks. Mutable.

    Args:
        horizon: Which chunks are kept.
        num_devices: D.
    """

    def __init__(self, horizon: Horizon, num_devices: int) -> None:
        self._horizon = horizon
        size = horizon.num_chunks, num_devices
        self._delays_PDB = np.zeros((*size, NUM_DELAY_BINS), dtype=np.int32)
        self._distance_PDN = np.zeros((*size, NUM_DISTANCE_BINS), dtype=np.int32)
        self._gap_PDQ = np.zeros((*size, 4), dtype=np.int64)
        self._bases_PD2 = np.zeros((*size, 2), dtype=np.int32)

    def arrays(self) -> tuple[NDArray[np.integer], ...]:
        """Everything that is kept."""
        return self._delays_PDB, self._distance_PDN, self._gap_PDQ, self._bases_PD2

    def clear(self, chunk: int) -> None:
        """Forget a chunk of the ring."""
        for array in self.arrays():
            array[chunk] = 0

    def add(self, rows: Reports) -> None:
        """Count what telemetry says of personal models, if it says anything."""
        said = (
            (self._distance_PDN, rows.distance_KP),
            (self._gap_PDQ, None if rows.gap_K2 is None else to_whole(rows.gap_K2).reshape(-1, 4)),
            (self._bases_PD2, rows.bases_K2),
        )
        if all(counts is None for _, counts in said) or not len(rows):
            return
        keys = self._keys(rows)
        for kept, counts in said:
            if counts is not None:
                keys.add_to(kept.reshape(-1, kept.shape[2]), counts)

    def add_labels(self, rows: LabelReports) -> None:
        """Count labels in the chunk of their predictions."""
        if len(rows):
            self._keys(rows).add_to(self._delays_PDB.reshape(-1, NUM_DELAY_BINS), rows.delay_KD)

    def delays(self, chunks: list[int]) -> NDArray[np.int64]:
        """``[D, P, B]`` labels by delay, of some chunks of the ring."""
        return self._delays_PDB[chunks].astype(np.int64).transpose(1, 0, 2)

    def personal(self, chunks: list[int], out: NDArray[np.int64]) -> PersonalCounts:
        """What was said of personal models in some chunks of the ring; nothing by the devices that are left out."""
        distance_DP = self._distance_PDN[chunks].sum(axis=0, dtype=np.int64)
        gap_DQ = self._gap_PDQ[chunks].sum(axis=0)
        bases_D2 = self._bases_PD2[chunks].sum(axis=0, dtype=np.int64)
        distance_DP[out], gap_DQ[out], bases_D2[out] = 0, 0, 0
        return PersonalCounts(distance_DP, from_whole(gap_DQ.reshape(-1, 2, 2)), bases_D2)

    def _keys(self, rows: Reports | LabelReports) -> ByKey:
        """The rows, not none, by (chunk, device)."""
        chunk_K = rows.slot_K // self._horizon.chunk_slots % self._horizon.num_chunks
        return ByKey.of(chunk_K * self._delays_PDB.shape[1] + rows.device_K)
