"""Sums by device over the kept slots, in as few bytes as the counts need: a part of the store.

Rules of this file:
    * A plane is a run of slots that is forgotten as a whole. It is made when something is first counted in it, and its integers are
      as narrow as its largest sum allows; one that no longer fits makes its plane wider. No sum is ever cut or wrapped.
    * What is read is int64, whatever is kept: how narrow a plane is changes no result and no digest.

Shapes: U rows by key, S slots (ring), D devices, N columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from fedretrain.monitoring.rings import ByKey

_WIDTHS: tuple[type[np.signedinteger[Any]], ...] = (np.int8, np.int16, np.int32, np.int64)


class NarrowRing:
    """Sums ``[S, D, N]`` of integers. Mutable.

    Args:
        num_slots: S; a multiple of `plane_slots`.
        plane_slots: Slots in a plane.
        num_devices: D.
        num_columns: N.
    """

    def __init__(self, num_slots: int, plane_slots: int, num_devices: int, num_columns: int) -> None:
        self.num_slots, self.num_devices, self.num_columns = num_slots, num_devices, num_columns
        self._plane_slots = plane_slots
        self._planes: list[NDArray[Any] | None] = [None] * (num_slots // plane_slots)

    @property
    def num_bytes(self) -> int:
        """What is kept, in memory."""
        return sum(plane.nbytes for plane in self._planes if plane is not None)

    def add(self, keys: ByKey, rows_KN: NDArray[np.integer]) -> None:
        """Add each row to its sum.

        Args:
            keys: Of the rows: ``slot of the ring * D + device``.
            rows_KN: Integers.
        """
        sums_UN, of_plane = keys.sums(rows_KN), self._plane_slots * self.num_devices
        plane_U = keys.keys_U // of_plane
        starts = np.flatnonzero(np.concatenate([[True], plane_U[1:] != plane_U[:-1]])).tolist()
        for first, end in zip(starts, [*starts[1:], len(plane_U)], strict=True):
            number = int(plane_U[first])
            self._add_to(number, keys.keys_U[first:end] - number * of_plane, sums_UN[first:end])

    def sum(self, pieces: Sequence[slice]) -> NDArray[np.int64]:
        """``[D, N]`` the sums over some slices of the ring."""
        total_DN = np.zeros((self.num_devices, self.num_columns), dtype=np.int64)
        for plane, part in self._parts(pieces):
            total_DN += (
                plane[part.start] if part.stop - part.start == 1 else plane[part].sum(axis=0, dtype=np.int64)
            )
        return total_DN

    def at(self, slot_K: NDArray[np.int64], device_K: NDArray[np.int64]) -> NDArray[np.int64]:
        """``[K, N]`` the sums of single slots and devices."""
        found_KN = np.zeros((len(slot_K), self.num_columns), dtype=np.int64)
        place_K, number_K = (
            slot_K % self.num_slots % self._plane_slots,
            slot_K % self.num_slots // self._plane_slots,
        )
        for number in np.unique(number_K).tolist():
            plane, mine_K = self._planes[number], number_K == number
            if plane is not None:
                found_KN[mine_K] = plane[place_K[mine_K], device_K[mine_K]]
        return found_KN

    def clear(self, at: slice) -> None:
        """Forget the planes of some slots of the ring, which are theirs alone."""
        for number in range(at.start // self._plane_slots, at.stop // self._plane_slots):
            self._planes[number] = None

    def content(self) -> Iterator[bytes]:
        """Everything that is kept, in one form: equal sums, and only those, give the same bytes."""
        for number, plane in enumerate(self._planes):
            if plane is not None and plane.any():
                yield number.to_bytes(8, "big")
                yield plane.astype(np.int64).tobytes()

    def _add_to(self, number: int, row_U: NDArray[np.int64], sums_UN: NDArray[np.int64]) -> None:
        plane = self._planes[number]
        if plane is None:
            plane = np.zeros((self._plane_slots, self.num_devices, self.num_columns), dtype=_WIDTHS[0])
        flat = plane.reshape(-1, self.num_columns)
        new_UN = flat[row_U] + sums_UN
        narrow = _narrowest(new_UN, plane.dtype)
        if narrow != plane.dtype:
            plane = plane.astype(narrow)
            flat = plane.reshape(-1, self.num_columns)
        flat[row_U] = new_UN
        self._planes[number] = plane

    def _parts(self, pieces: Sequence[slice]) -> Iterator[tuple[NDArray[Any], slice]]:
        """The planes that some slices of the ring touch, and which of their slots."""
        size = self._plane_slots
        for piece in pieces:
            for number in range(piece.start // size, -(-piece.stop // size)):
                plane, first = self._planes[number], number * size
                if plane is not None:
                    yield plane, slice(max(piece.start - first, 0), min(piece.stop - first, size))


def _narrowest(value_UN: NDArray[np.int64], least: np.dtype[Any]) -> np.dtype[Any]:
    """The narrowest integers, no narrower than some, that hold some values."""
    low, high = int(value_UN.min(initial=0)), int(value_UN.max(initial=0))
    for width in _WIDTHS:
        kept, held = np.dtype(width), np.iinfo(width)
        if kept.itemsize >= least.itemsize and held.min <= low and high <= held.max:
            return kept
    raise AssertionError  # int64 holds whatever is int64
