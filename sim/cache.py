"""Device streams most recently used, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from sim.fleet import DeviceStream


class StreamCache:
    """Streams most recently used, bounded in bytes.

    Args:
        limit_bytes: Memory to stay within; 0 keeps nothing.
        make: Materialises a group of devices at once.
    """

    def __init__(self, limit_bytes: int, make: Callable[[NDArray[np.int64]], Sequence[DeviceStream]]) -> None:
        self._limit, self._make = limit_bytes, make
        self._held: OrderedDict[int, DeviceStream] = OrderedDict()
        self._bytes = 0

    @property
    def num_bytes(self) -> int:
        """Memory held now."""
        return self._bytes

    def get(self, devices: ArrayLike) -> list[DeviceStream]:
        """Streams of devices ``[K]``, making those that are not held in one group."""
        ids = np.atleast_1d(np.asarray(devices, dtype=np.int64))
        wanted = ids.tolist()
        absent = np.array([d for d in dict.fromkeys(wanted) if d not in self._held], dtype=np.int64)
        made = dict(zip(absent.tolist(), self._make(absent), strict=True)) if len(absent) else {}
        streams = [made[d] if d in made else self._held[d] for d in wanted]
        self._keep(made, wanted)
        return streams

    def _keep(self, made: dict[int, DeviceStream], used: list[int]) -> None:
        """Mark what was used, hold what was made, and let the oldest go."""
        if not self._limit:
            return
        for device in used:
            if device in self._held:
                self._held.move_to_end(device)
        for device, stream in made.items():
            if stream.num_bytes <= self._limit:
                self._held[device] = stream.owned()
                self._bytes += stream.num_bytes
        while self._bytes > self._limit:
            _, gone = self._held.popitem(last=False)
            self._bytes -= gone.num_bytes
