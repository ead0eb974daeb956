"""Devices that are kept out: since when, until when, and which of their rows are not the fleet's.

Rules of this file:
    * A row belongs to the time of its slot, not of its arrival: what a device measured while it was kept out is left out however late it comes, and
      what it measured before counts.
    * Sums of the fleet and of its groups leave out the rows of those slots. What is told by device leaves the whole device out of every window that
      touches them: half a window says nothing of a device.
    * Features by device are counted all the while: that is how a device is seen to be well again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from numpy.typing import NDArray

    Ids = NDArray[np.int64]


@dataclass(frozen=True)
class KeptOut:
    """One stay.

    Attributes:
        device: Whose.
        first: The first slot that is left out.
        end: The slot after the last; None while it lasts.
    """

    device: int
    first: int
    end: int | None = None

    def touches(self, first: int, end: int) -> bool:
        """Whether any slot of ``[first, end)`` is left out."""
        return self.first < end and (self.end is None or self.end > first)


def after(
    stays: Iterable[KeptOut], kept: Collection[int], slot: int, oldest_slot: int
) -> tuple[KeptOut, ...]:
    """The stays once it is known who is kept out now.

    Args:
        stays: Those so far.
        kept: Devices that are kept out.
        slot: The present slot: new stays begin with it, and those that are over end before it.
        oldest_slot: Stays that ended before it are forgotten.
    """
    found = []
    for stay in stays:
        ended = KeptOut(stay.device, stay.first, slot)
        one = ended if stay.end is None and stay.device not in kept else stay
        if one.end is None or one.end > max(one.first, oldest_slot):
            found.append(one)
    inside = {stay.device for stay in found if stay.end is None}
    found += [KeptOut(device, slot) for device in sorted(set(kept) - inside)]
    return tuple(found)


def left_out(stays: Iterable[KeptOut], device_K: Ids, slot_K: Ids) -> NDArray[np.bool_]:
    """``[K]`` rows that are not the fleet's."""
    out_K = np.zeros(len(device_K), dtype=np.bool_)
    for stay in stays:
        inside_K = slot_K >= stay.first
        if stay.end is not None:
            inside_K &= slot_K < stay.end
        out_K |= inside_K & (device_K == stay.device)
    return out_K


def absent(stays: Iterable[KeptOut], first: int, end: int) -> Ids:
    """Devices of which a window ``[first, end)`` says nothing."""
    return np.array(sorted({one.device for one in stays if one.touches(first, end)}), dtype=np.int64)
