"""The personal state of simulated devices, kept outside the workers so that a killed worker loses none.

Rules of this file:
    * A row is what one device would hold in its own store: it goes to the worker that plays the device and comes
      back from it, and to nothing else. The coordinator's code never sees it.
    * Rows are staged as devices finish training and commit together when the round is over, whatever became of it:
      a run that is interrupted in mid-round leaves the store as it was, and repeats the round when it is resumed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Rows = dict[int, NDArray[np.float32]]


class PersonalStore:
    """Packed personal states by device.

    Args:
        size: Q, the length of a row.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._rows: Rows = {}
        self._staged: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
        self._before: dict[int, NDArray[np.float32] | None] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, devices: Iterable[int]) -> Rows:
        """The rows of those devices that have one."""
        return {d: self._rows[d] for d in map(int, devices) if d in self._rows}

    def stage(self, devices: NDArray[np.int64], rows_KQ: NDArray[np.float32]) -> None:
        """Hold new rows until `commit`.

        Args:
            devices: ``[K]``.
            rows_KQ: ``[K, Q]``.
        """
        if self.size == 0:
            return
        if rows_KQ.shape != (len(devices), self.size):
            raise ValueError(f"rows of shape {(len(devices), self.size)} were expected, not {rows_KQ.shape}")
        self._staged.append((devices, rows_KQ))

    def commit(self) -> None:
        """Keep what was staged; `undo` takes it back."""
        staged = (device for devices, _ in self._staged for device in devices.tolist())
        self._before = {device: self._rows.get(device) for device in staged}
        for devices, rows_KQ in self._staged:
            for device, row in zip(devices.tolist(), rows_KQ, strict=True):
                self._rows[device] = row.copy()
        self._staged = []

    def discard(self) -> None:
        """Forget what was staged, and how to undo the last commit."""
        self._staged, self._before = [], {}

    def undo(self) -> None:
        """Take the last commit back."""
        for device, row in self._before.items():
            if row is None:
                self._rows.pop(device, None)
            else:
                self._rows[device] = row
        self.discard()

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Two arrays that hold everything: device ids ``[K]`` and rows ``[K, Q]``."""
        ids = np.array(sorted(self._rows), dtype=np.int64)
        rows = (
            np.stack([self._rows[d] for d in ids.tolist()])
            if len(ids)
            else np.zeros((0, self.size), np.float32)
        )
        return {"devices": ids, "rows": rows}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[np.generic]]) -> PersonalStore:
        """The store of `to_arrays`."""
        store = cls(arrays["rows"].shape[1])
        store.stage(arrays["devices"].astype(np.int64), arrays["rows"].astype(np.float32))
        store.commit()
        return store
