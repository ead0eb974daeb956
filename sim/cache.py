"""Groups of device streams most recently used, bounded in bytes.

Rules of this file:
    * What was made together is kept and let go together, so keeping it costs no copy and no object per device.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    from fedretrain.core.types import ClientData
    from sim.fleet import DeviceStream
    from sim.groups import StreamGroup

    Ids = NDArray[np.int64]
    Part = tuple[StreamGroup, Ids, Ids]
    """A group, places in it, and the places in the answer that they are wanted at."""

_PLACE_BITS = 32


class StreamCache:
    """Streams most recently used, bounded in bytes.

    Args:
        limit_bytes: Memory to stay within; 0 keeps nothing.
        make: Materialises devices ``[K]`` (no repeats), in order, as one or more groups.
    """

    def __init__(self, limit_bytes: int, make: Callable[[Ids], Sequence[StreamGroup]]) -> None:
        self.limit_bytes, self._make = limit_bytes, make
        self._groups: OrderedDict[int, tuple[Ids, StreamGroup]] = OrderedDict()
        self._place: dict[
            int, int
        ] = {}  # device -> number of its group, and its place there in the lower bits
        self._made, self._bytes = 0, 0

    @property
    def num_bytes(self) -> int:
        """Memory held now."""
        return self._bytes

    def get(self, devices: ArrayLike) -> list[DeviceStream]:
        """Streams of devices ``[K]``, making those that are not held."""
        ids = _ids(devices)
        found: dict[int, DeviceStream] = {}
        for group, places, wanted in self._parts(ids):
            found.update((w, group.stream(k)) for w, k in zip(wanted.tolist(), places.tolist(), strict=True))
        return [found[k] for k in range(len(ids))]

    def trainable(self, devices: ArrayLike, at: float) -> list[ClientData]:
        """What each of devices ``[K]`` may train on at the instant `at`: `sim.fleet.trainable` of its stream."""
        ids = _ids(devices)
        found: dict[int, ClientData] = {}
        for group, places, wanted in self._parts(ids):
            found.update(zip(wanted.tolist(), group.trainable(places, at), strict=True))
        return [found[k] for k in range(len(ids))]

    def _parts(self, ids: Ids) -> Iterator[Part]:
        """The groups that hold devices ``[K]``; those that were not held are made first."""
        place = self._held(ids)
        absent, back = np.unique(ids[place < 0], return_inverse=True)
        wanted = np.flatnonzero(place < 0)
        parts: list[Part] = []
        for number in np.unique(place[place >= 0] >> _PLACE_BITS).tolist():
            mine = np.flatnonzero(place >> _PLACE_BITS == number)
            parts.append((self._groups[number][1], place[mine] & (2**_PLACE_BITS - 1), mine))
            self._groups.move_to_end(number)
        first = 0
        for group in self._make(absent) if len(absent) else ():
            inside = (back >= first) & (back < first + len(group))
            parts.append((group, back[inside] - first, wanted[inside]))
            self._keep(absent[first : first + len(group)], group)
            first += len(group)
        yield from parts

    def _held(self, ids: Ids) -> Ids:
        """Where each of devices ``[K]`` is held: see `_place`; -1 where it is not."""
        if not self._place:
            return np.full(len(ids), -1, dtype=np.int64)
        get = self._place.get
        return np.fromiter((get(device, -1) for device in ids.tolist()), dtype=np.int64, count=len(ids))

    def _keep(self, ids: Ids, group: StreamGroup) -> None:
        """Hold a group, and let the oldest go."""
        if group.num_bytes > self.limit_bytes:
            return
        number, self._made = self._made, self._made + 1
        self._groups[number] = (ids, group)
        first = number << _PLACE_BITS
        self._place.update(zip(ids.tolist(), range(first, first + len(ids)), strict=True))
        self._bytes += group.num_bytes
        while self._bytes > self.limit_bytes:
            _, (gone, old) = self._groups.popitem(last=False)
            self._bytes -= old.num_bytes
            for device in gone.tolist():
                del self._place[device]


def _ids(devices: ArrayLike) -> Ids:
    return np.atleast_1d(np.asarray(devices, dtype=np.int64))
