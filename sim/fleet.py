"""A fleet: devices and their streams of samples, made when asked for.

Rules of this file:
    * A device's stream is a pure function of (seed, device): the same whatever group and order it is asked in,
      on whatever worker.
    * Nothing is kept per device but a cache bounded in bytes; a million devices need no million objects.
    * Past rows are what a device may learn from; `future` rows are scored and never trained on.
    * A row is trainable at an instant only if it was taken and its label had arrived by then.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fedretrain.core.types import ClientData

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from sim.devices import DeviceProfile, Traits
    from sim.sensors.events import DriftEvent


@dataclass(frozen=True)
class DeviceStream:
    """One device's samples, in time order: sharded, drifted and preprocessed.

    Attributes:
        x: ``[N, *F]`` float32 model inputs, finite.
        y: ``[N]`` int64 class indices or float32 targets.
        event_at: ``[N]`` when each sample was taken, by the device's own clock (which may be skewed).
        label_at: ``[N]`` when its label arrives (true clock); inf if it never does.
        future: ``[N]`` True for rows that are scored and never trained on.
    """

    x: NDArray[np.float32]
    y: NDArray[Any]
    event_at: NDArray[np.float64]
    label_at: NDArray[np.float64]
    future: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.y)

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays."""
        arrays = (self.x, self.y, self.event_at, self.label_at, self.future)
        return sum(array.nbytes for array in arrays)

    def owned(self) -> DeviceStream:
        """A copy that holds no view of a larger array alive."""
        return DeviceStream(
            self.x.copy(), self.y.copy(), self.event_at.copy(), self.label_at.copy(), self.future.copy()
        )


def trainable_rows(stream: DeviceStream, at: float) -> NDArray[np.bool_]:
    """Rows that may be trained on at the instant `at`: ``[N]`` bool."""
    rows: NDArray[np.bool_] = ~stream.future & (stream.event_at <= at) & (stream.label_at <= at)
    return rows


def trainable(stream: DeviceStream, at: float) -> ClientData:
    """Past rows taken and labelled by the instant `at`."""
    rows = trainable_rows(stream, at)
    return ClientData(stream.x[rows], stream.y[rows])


def scored(stream: DeviceStream) -> ClientData:
    """Future rows: what models are scored on, whatever became of their labels on the device."""
    return ClientData(stream.x[stream.future], stream.y[stream.future])


class Fleet(Protocol):
    """What the loop asks of any fleet."""

    @property
    def num_devices(self) -> int:
        """Devices are 0 to ``num_devices - 1``."""
        ...

    @property
    def is_virtual(self) -> bool:
        """True if devices were made from others' signals by re-mounting; they must be called virtual."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of what the fleet was made from (data, sharding, drift, labels, seed)."""
        ...

    def traits(self, devices: ArrayLike) -> Traits:
        """Site and type of devices ``[K]``."""
        ...

    def profile(self, devices: ArrayLike) -> DeviceProfile:
        """Traits and hardware of devices ``[K]``."""
        ...

    def streams(self, devices: ArrayLike) -> list[DeviceStream]:
        """The samples of devices ``[K]``, in order."""
        ...

    def truth(self, devices: ArrayLike) -> list[DriftEvent]:
        """The drift injected into devices ``[K]``: exactly the events that their streams carry."""
        ...

    def name(self, device: int) -> str:
        """What to call a device in a report; virtual ones are called so."""
        ...


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
