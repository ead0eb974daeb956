"""What is known of devices before any of their data: their site and their type.

Rules of this file:
    * Values are arrays over the devices asked for, in the order asked; a million devices need no objects.
    * `Traits` depend on the seed and the device alone, so they are the same however a fleet is sharded over
      workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ids = NDArray[np.int64]
"""Device ids ``[K]``, 0 to `num_devices` - 1."""


@dataclass(frozen=True)
class Traits:
    """Where devices stand and what they are.

    Attributes:
        device: ``[K]`` int64 device ids.
        site: ``[K]`` int64.
        device_type: ``[K]`` int64.
    """

    device: Ids
    site: NDArray[np.int64]
    device_type: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.device)

    def take(self, index: NDArray[np.int64]) -> Traits:
        """The traits at the given positions (repeats allowed)."""
        return Traits(self.device[index], self.site[index], self.device_type[index])


TraitsOf = Callable[[Ids], Traits]
"""Where a model gets the traits of the devices it is asked about."""


def plain_traits(devices: ArrayLike) -> Traits:
    """Traits of a fleet with one site and one device type."""
    ids = np.asarray(devices, dtype=np.int64)
    return Traits(ids, np.zeros_like(ids), np.zeros_like(ids))
