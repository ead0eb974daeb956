"""What devices remember of their personal models until they report.

Rules of this file:
    * Counts and sums only, in the form of a report; what was reported is forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedretrain.monitoring.reports import NUM_DISTANCE_BINS, distance_bin

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ids = NDArray[np.int64]


class PersonalRows(NamedTuple):
    """What K devices report: the columns of `monitoring.reports.Reports`."""

    distance_KP: NDArray[np.int32]
    gap_K2: NDArray[np.float64]
    bases_K2: NDArray[np.int32]


class PersonalLog:
    """Of D devices. Mutable.

    Args:
        num_devices: D.
    """

    def __init__(self, num_devices: int) -> None:
        self._distance_DP = np.zeros((num_devices, NUM_DISTANCE_BINS), dtype=np.int32)
        self._gap_D2 = np.zeros((num_devices, 2))
        self._bases_D2 = np.zeros((num_devices, 2), dtype=np.int32)

    def asked(self, devices: Ids, refused: NDArray[np.bool_]) -> None:
        """Distinct devices ``[K]`` were to go over to a new global model; some refused."""
        self._bases_D2[devices] += np.stack([np.ones(len(devices)), refused], axis=1).astype(np.int32)

    def gained(self, devices: Ids, gain: NDArray[np.float64]) -> None:
        """Distinct devices compared what they go on with and the global model; NaN could not."""
        known = np.isfinite(gain)
        self._gap_D2[devices[known]] += np.stack([gain[known], np.ones(int(known.sum()))], axis=1)

    def apart(self, devices: Ids, distance: NDArray[np.float64]) -> None:
        """Distinct devices go on with a personal model so far from the new global one."""
        self._distance_DP[devices, distance_bin(distance)] += 1

    def take(self, devices: Ids) -> PersonalRows:
        """What distinct devices ``[K]`` report now."""
        found = PersonalRows(self._distance_DP[devices], self._gap_D2[devices], self._bases_D2[devices])
        for array in (self._distance_DP, self._gap_D2, self._bases_D2):
            array[devices] = 0
        return found
