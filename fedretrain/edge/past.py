"""A device's own raw samples, for pipelines with local numbers: few, on the device, erased with everything else.

Rules of this file:
    * Kept only where the served model's pipeline has local numbers.
    * What a pipeline was made ready with is on the disk, so that a restart makes the same one. It is renewed with a new
      version, not in between: examples of another preparation cannot be trained on together.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from fedretrain.core.durable import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FILE = "past.safetensors"
ENOUGH_ROWS = 64
"""From so many rows on they are worth local numbers."""
MAX_ROWS = 512


class Past:
    """The newest raw samples of one device. Any thread may add.

    Args:
        folder: The device's.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._mutex = folder / FILE, threading.Lock()
        self._rows: deque[NDArray[Any]] = deque(maxlen=MAX_ROWS)
        self.used = self._read()
        if self.used is not None:
            self._rows.extend(self.used)

    def add(self, rows: NDArray[Any]) -> None:
        """Note samples ``[N, ...]``."""
        with self._mutex:
            if self._rows and self._rows[0].shape != rows.shape[1:]:
                self._rows.clear()  # another schema
            self._rows.extend(np.array(row, dtype=np.float32) for row in rows)

    @property
    def is_worth_using(self) -> bool:
        """Whether there are enough samples, and none were used yet."""
        return self.used is None and len(self._rows) >= ENOUGH_ROWS

    def use(self, row_shape: tuple[int, ...]) -> NDArray[Any] | None:
        """The samples to make a pipeline ready with from now on; None if there are too few of that shape."""
        with self._mutex:
            fits = len(self._rows) >= ENOUGH_ROWS and self._rows[0].shape == row_shape
            self.used = np.stack(self._rows) if fits else None
            if self.used is not None:
                with contextlib.suppress(OSError):  # a full disk: other numbers after the next start
                    write_whole(self._path, safetensors.numpy.save({"rows": self.used}))
            return self.used

    def forget(self) -> None:
        """Drop everything."""
        with self._mutex:
            self._rows.clear()
            self.used = None
            erase(self._path.parent)

    def _read(self) -> NDArray[Any] | None:
        try:
            found: NDArray[Any] = safetensors.numpy.load(self._path.read_bytes())["rows"]
        except (OSError, KeyError, ValueError, SafetensorError):
            return None
        return found


def erase(folder: Path) -> None:
    """Remove what is kept of a device's samples.

    Raises:
        OSError: If that fails.
    """
    path = folder / FILE
    if path.exists():
        write_whole(path, b"")
        path.unlink()
