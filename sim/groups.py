"""Streams of many devices, end to end in a few arrays.

Rules of this file:
    * What a round asks of ten thousand devices is answered by array passes over their rows; per device there is
      nothing but slices.
    * What is handed out may be a view: whoever keeps it keeps its whole group alive, and nobody writes to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.types import ClientData
from sim.fleet import DeviceStream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Ids = NDArray[np.int64]


@dataclass(frozen=True)
class StreamGroup:
    """The streams of K devices, one after the other.

    Attributes:
        x: ``[M, *F]`` float32 model inputs; see `DeviceStream` for these.
        y: ``[M]``.
        event_at: ``[M]``.
        label_at: ``[M]``.
        future: ``[M]``.
        ends: ``[K + 1]`` device k holds rows ``ends[k]`` to ``ends[k + 1]``; it begins with 0.
    """

    x: NDArray[np.float32]
    y: NDArray[Any]
    event_at: NDArray[np.float64]
    label_at: NDArray[np.float64]
    future: NDArray[np.bool_]
    ends: Ids

    @classmethod
    def of(cls, streams: Sequence[DeviceStream]) -> StreamGroup:
        """Put streams (at least one) end to end."""
        return cls(
            np.concatenate([one.x for one in streams]),
            np.concatenate([one.y for one in streams]),
            np.concatenate([one.event_at for one in streams]),
            np.concatenate([one.label_at for one in streams]),
            np.concatenate([one.future for one in streams]),
            np.cumsum([0, *map(len, streams)]),
        )

    def __len__(self) -> int:
        return len(self.ends) - 1

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays."""
        arrays = (self.x, self.y, self.event_at, self.label_at, self.future, self.ends)
        return sum(array.nbytes for array in arrays)

    def stream(self, k: int) -> DeviceStream:
        """Device k's samples (views)."""
        rows = slice(int(self.ends[k]), int(self.ends[k + 1]))
        return DeviceStream(
            self.x[rows], self.y[rows], self.event_at[rows], self.label_at[rows], self.future[rows]
        )

    def trainable(self, chosen: Ids, at: float) -> list[ClientData]:
        """Past rows taken and labelled by the instant `at`, of the devices at places `chosen` ``[C]``, in order."""
        sizes = self.ends[chosen + 1] - self.ends[chosen]
        rows = _ranges(self.ends[chosen], sizes)
        ready = (self.event_at[rows] <= at) & (self.label_at[rows] <= at) & ~self.future[rows]
        taken, owner = rows[ready], np.repeat(np.arange(len(chosen)), sizes)[ready]
        counts = np.bincount(owner, minlength=len(chosen))
        return self._cut(taken, counts)

    def _cut(self, taken: Ids, counts: Ids) -> list[ClientData]:
        """Rows `taken`, `counts[k]` of them for each device: views where every device's follow one another."""
        starts = np.cumsum(counts) - counts
        some = counts > 0
        first, last = taken[starts[some]], taken[starts[some] + counts[some] - 1]
        if np.array_equal(last - first + 1, counts[some]):
            x, y = self.x, self.y
            starts[some] = first
        else:
            x, y = self.x[taken], self.y[taken]
        spans = zip(starts.tolist(), (starts + counts).tolist(), strict=True)
        return [ClientData(x[a:b], y[a:b]) for a, b in spans]


def _ranges(starts: Ids, sizes: Ids) -> Ids:
    """``starts[k], starts[k] + 1, ...``, `sizes[k]` numbers of each, end to end."""
    first = np.cumsum(sizes) - sizes
    places: Ids = np.arange(int(sizes.sum())) + np.repeat(starts - first, sizes)
    return places
