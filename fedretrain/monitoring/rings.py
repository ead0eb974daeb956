"""Building blocks of the store: which slots are kept, sums of rows by key, and sums of real numbers without rounding.

Rules of this file:
    * Only integers are added, so the order of additions changes no bit.
    * Old slots leave in whole chunks, so which rows still count depends on the newest slot alone.

Shapes: K rows, W columns, U keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_PART_BITS = (
    32  # of the fraction: a resolution of 2.3e-10, and 2**31 rows before the sum of fractions overflows
)


@dataclass
class Horizon:
    """The slots that are kept: `num_chunks` whole chunks, the newest among them. Mutable.

    Attributes:
        chunk_slots: Slots in a chunk.
        num_chunks: Chunks kept, the current one included.
        newest_slot: The newest slot so far; -1 before the first.
    """

    chunk_slots: int
    num_chunks: int
    newest_slot: int = -1

    @property
    def num_slots(self) -> int:
        """Slots in the ring."""
        return self.chunk_slots * self.num_chunks

    @property
    def oldest_slot(self) -> int:
        """The oldest slot that is kept."""
        return max(0, (self.newest_slot // self.chunk_slots - self.num_chunks + 1) * self.chunk_slots)

    def advance(self, slot: int) -> list[int]:
        """Let `slot` be the newest, if it is; the ring positions of chunks whose content is over."""
        before, after = self.newest_slot // self.chunk_slots, slot // self.chunk_slots
        self.newest_slot = max(self.newest_slot, slot)
        first = max(before + 1, after - self.num_chunks + 1)
        return [chunk % self.num_chunks for chunk in range(first, after + 1)]

    def pieces(self, first: int, end: int) -> Iterator[slice]:
        """Ring slices of the kept slots of ``[first, end)``, in time order."""
        first, end = max(first, self.oldest_slot), min(end, self.newest_slot + 1)
        while first < end:
            at = first % self.num_slots
            length = min(end - first, self.num_slots - at)
            yield slice(at, at + length)
            first += length


CHUNK_SLOTS = 24
"""Slots in a chunk, where nobody says otherwise: a day of hours."""


def kept_horizon(keep_slots: int, chunk_slots: int = CHUNK_SLOTS) -> Horizon:
    """Whole chunks that hold some slots, and one more: the newest is never whole."""
    return Horizon(chunk_slots, -(-keep_slots // chunk_slots) + 1)


@dataclass(frozen=True)
class ByKey:
    """Rows grouped by an integer key.

    Attributes:
        keys_U: Distinct keys, ascending.
        starts_U: Where each key's rows begin in `order_K`.
        order_K: Rows sorted by key, or None if they are already.
    """

    keys_U: NDArray[np.int64]
    starts_U: NDArray[np.int64]
    order_K: NDArray[np.int64] | None

    @classmethod
    def of(cls, key_K: NDArray[np.int64]) -> ByKey:
        """Group rows by `key_K`, which is not empty."""
        order_K = None
        if (key_K[1:] < key_K[:-1]).any():
            order_K = np.argsort(key_K, kind="stable")
            key_K = key_K[order_K]
        starts_U = np.flatnonzero(np.concatenate([[True], key_K[1:] != key_K[:-1]]))
        return cls(key_K[starts_U], starts_U, order_K)

    def add_to(self, target_RW: NDArray[Any], rows_KW: NDArray[Any]) -> None:
        """Add each key's rows to the row of `target_RW` that the key numbers."""
        sums_UW = self._combine(np.add, rows_KW, target_RW.dtype)
        span = int(self.keys_U[-1] - self.keys_U[0]) + 1
        if span == len(self.keys_U):  # neighbours: no gather, no scatter
            target_RW[self.keys_U[0] : self.keys_U[0] + span] += sums_UW
        else:
            target_RW[self.keys_U] += sums_UW

    def sums(self, rows_KW: NDArray[Any]) -> NDArray[np.int64]:
        """``[U, W]`` the sum of each key's rows."""
        return self._combine(np.add, rows_KW, np.dtype(np.int64)).astype(np.int64, copy=False)

    def raise_to(self, target_RW: NDArray[np.uint8], rows_KW: NDArray[np.uint8]) -> None:
        """As `add_to` with the maximum for the sum."""
        tops_UW = self._combine(np.maximum, rows_KW, target_RW.dtype)
        target_RW[self.keys_U] = np.maximum(target_RW[self.keys_U], tops_UW)

    def _combine(self, operation: np.ufunc, rows_KW: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        if self.order_K is not None:
            rows_KW = rows_KW[self.order_K]
        if len(self.keys_U) == len(rows_KW):
            return rows_KW
        combined: NDArray[Any] = operation.reduceat(rows_KW, self.starts_U, axis=0, dtype=dtype)
        return combined


def sum_pieces(ring: NDArray[Any], pieces: Sequence[slice]) -> NDArray[np.int64]:
    """The sum of some slices of a ring over its first axis, as int64."""
    total = np.zeros(ring.shape[1:], dtype=np.int64)
    for piece in pieces:
        total += ring[piece].sum(axis=0, dtype=np.int64)
    return total


def to_whole(value: NDArray[np.float64]) -> NDArray[np.int64]:
    """Two integers for each real number, (whole, fraction in 2**-32): ``[..., 2]``. They add up without rounding."""
    whole = np.floor(value)
    part = np.rint((value - whole) * 2.0**_PART_BITS)
    return np.stack([whole, part], axis=-1).astype(np.int64)


def from_whole(pair: NDArray[np.int64]) -> NDArray[np.float64]:
    """The real numbers of ``[..., 2]`` sums of `to_whole`."""
    value: NDArray[np.float64] = pair[..., 0] + pair[..., 1] * 2.0**-_PART_BITS
    return value
