"""Additive statistics per device: what a device counts of itself, and what a pool counts of everybody.

Rules of this file:
    * `merge` of what each device counted of itself equals what a pool counts of everybody, bit for bit.
    * Everything is an integer count or sum (losses and confidences in units of `STEP`), so `merge` is exactly associative
      and commutative, and the digest does not depend on who was merged first.
    * A prediction that is no distribution (or no finite number) is counted as broken, as wrong, and has no loss.

Shape letters: D devices, S time slices, T timeliness of the label (early, late), M labels (1 for a regression),
Q critical segments, B confidence bins; 2 is (candidate, champion), 4 is `OUTCOMES`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fedretrain.validation.rows import Layout

OUTCOMES = ("both right", "only the candidate", "only the champion", "neither")
"""The last axis of paired counts. Every row of a regression is counted under ``neither``."""

CANDIDATE, CHAMPION = 0, 1
EARLY, LATE = 0, 1
STEP = 2.0**-20
"""The unit of summed losses and confidences: 1e-6."""


@dataclass(frozen=True)
class DeviceStatistics:
    """Sums per device; a monoid under `merge` with `empty` as its neutral element.

    Attributes:
        layout: The cells.
        device_D: int64, rising.
        group_D: int64.
        period_D2: float64 instants of the first and the last row.
        paired_DSTM4: int64 rows by `OUTCOMES`.
        loss_DST2: int64 sums of the Brier score or the squared error, in `STEP`, over rows broken for neither model.
        sound_DST: int64 rows in `loss_DST2`.
        confusion_D2MM: int64 [true, predicted]; broken rows are left out.
        calibration_D2B3: int64 rows, right ones, sum of the confidence in `STEP`; by bins of the confidence.
        segment_DQ4: int64 rows of each critical segment by `OUTCOMES`.
        segment_loss_DQ2: int64 sums of their losses.
        broken_D2: int64 rows without a usable prediction.
    """

    layout: Layout
    device_D: NDArray[np.int64]
    group_D: NDArray[np.int64]
    period_D2: NDArray[np.float64]
    paired_DSTM4: NDArray[np.int64]
    loss_DST2: NDArray[np.int64]
    sound_DST: NDArray[np.int64]
    confusion_D2MM: NDArray[np.int64]
    calibration_D2B3: NDArray[np.int64]
    segment_DQ4: NDArray[np.int64]
    segment_loss_DQ2: NDArray[np.int64]
    broken_D2: NDArray[np.int64]

    @property
    def num_devices(self) -> int:
        """D."""
        return len(self.device_D)

    @property
    def num_rows(self) -> int:
        """All rows."""
        return int(self.paired_DSTM4.sum())

    @property
    def digest(self) -> str:
        """SHA-256 of the content, in hex: of the data that a verdict rests on."""
        content = hashlib.sha256(self.layout.digest.encode())
        for name in ("device_D", "group_D", "period_D2", *SUMS):
            content.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return content.hexdigest()


SUMS = (
    "paired_DSTM4",
    "loss_DST2",
    "sound_DST",
    "confusion_D2MM",
    "calibration_D2B3",
    "segment_DQ4",
    "segment_loss_DQ2",
    "broken_D2",
)
"""The fields that are counts and sums: what `merge` adds."""


def empty(layout: Layout) -> DeviceStatistics:
    """The neutral element of `merge`: no device."""
    return zeros(layout, np.zeros(0, np.int64), np.zeros(0, np.int64))


def merge(a: DeviceStatistics, b: DeviceStatistics) -> DeviceStatistics:
    """The statistics of both; see `merge_all`."""
    return merge_all(a.layout, (a, b))


def merge_all(layout: Layout, parts: Sequence[DeviceStatistics]) -> DeviceStatistics:
    """The statistics of all parts: sums of the devices that occur in several.

    Raises:
        DataError: If a part counts other cells, or a device is in two groups.
    """
    parts = [part for part in parts if _same_cells(layout, part) and part.num_devices]
    if not parts:
        return empty(layout)
    device = np.concatenate([part.device_D for part in parts])
    group = np.concatenate([part.group_D for part in parts])
    order = np.argsort(device, kind="stable")
    starts = np.flatnonzero(np.diff(device[order], prepend=device[order[0]] - 1))
    require_one_group(device[order], group[order], starts)

    def stacked(name: str) -> NDArray[Any]:
        found: NDArray[Any] = np.concatenate([getattr(part, name) for part in parts])[order]
        return found

    period = stacked("period_D2")
    ends = (np.minimum.reduceat(period[:, 0], starts), np.maximum.reduceat(period[:, 1], starts))
    sums = {name: np.add.reduceat(stacked(name), starts, axis=0) for name in SUMS}
    return DeviceStatistics(
        layout, device[order][starts], group[order][starts], np.stack(ends, axis=1), **sums
    )


def _same_cells(layout: Layout, part: DeviceStatistics) -> bool:
    if part.layout != layout:
        raise DataError(
            "statistics that count different cells cannot be merged", fix="count both with one layout"
        )
    return True


def require_one_group(device: NDArray[np.int64], group: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
    """Refuse a device in two groups; rows are sorted by device, and each begins at one of `starts`.

    Raises:
        DataError: Naming it.
    """
    low, high = np.minimum.reduceat(group, starts), np.maximum.reduceat(group, starts)
    if np.any(low != high):
        at = int(np.argmax(low != high))
        raise DataError(
            f"device {device[starts[at]]} is in the groups {low[at]} and {high[at]}", where="group"
        )


def zeros(layout: Layout, device: NDArray[np.int64], group: NDArray[np.int64]) -> DeviceStatistics:
    """Statistics of the given devices, ``[D]`` each, before their first row."""
    d, s, m = len(device), layout.num_slices, layout.num_labels
    q = len(layout.segments)

    def count(*shape: int) -> NDArray[np.int64]:
        return np.zeros((d, *shape), np.int64)

    return DeviceStatistics(
        layout=layout,
        device_D=device,
        group_D=group,
        period_D2=np.zeros((d, 2)),
        paired_DSTM4=count(s, 2, m, 4),
        loss_DST2=count(s, 2, 2),
        sound_DST=count(s, 2),
        confusion_D2MM=count(2, m, m),
        calibration_D2B3=count(2, layout.confidence_bins, 3),
        segment_DQ4=count(q, 4),
        segment_loss_DQ2=count(q, 2),
        broken_D2=count(2),
    )
