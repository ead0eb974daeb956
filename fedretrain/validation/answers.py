"""One device's statistics as the numbers that it sends, and what they must be to be counted.

Rules of this file:
    * A device tells counts and sums by cell. Which device it is, its group and the instants of its rows are not among them: the
      server knows the first two, and the time slices are agreed beforehand.
    * A device is not trusted: counts that no rows could have led to are refused by name, before they are added to anything.

Shape letters: as in `statistics`, D = 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import DataError
from fedretrain.validation.config import MAX_DEVICE_ROWS
from fedretrain.validation.count import LOSS_CAP
from fedretrain.validation.statistics import STEP, SUMS, DeviceStatistics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from fedretrain.validation.rows import Layout

MAX_CELLS = 60_000
"""Numbers of one answer: with more classes or slices than that devices cannot be asked."""
_WORST_BRIER = 2.01  # probabilities that miss 1 by as much as `count` allows
_ROUNDING = 1.0  # of a loss or a confidence, in `STEP`: the last digit of a float32 probability


def shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """The shape of each sum of one device, by the field's name."""
    s, m, q = layout.num_slices, layout.num_labels, len(layout.segments)
    return {
        "paired_DSTM4": (s, 2, m, 4),
        "loss_DST2": (s, 2, 2),
        "sound_DST": (s, 2),
        "confusion_D2MM": (2, m, m),
        "calibration_D2B3": (2, layout.confidence_bins, 3),
        "segment_DQ4": (q, 4),
        "segment_loss_DQ2": (q, 2),
        "broken_D2": (2,),
    }


def num_cells(layout: Layout) -> int:
    """How many numbers an answer has."""
    return sum(math.prod(shape) for shape in shapes(layout).values())


def to_numbers(stats: DeviceStatistics) -> dict[str, list[int]]:
    """The sums of one device, flat, by field."""
    return {name: getattr(stats, name)[0].reshape(-1).tolist() for name in SUMS}


def from_numbers(
    layout: Layout,
    numbers: Mapping[str, Sequence[int]],
    *,
    device: int,
    group: int,
    from_at: float,
    until_at: float,
    max_rows: int = MAX_DEVICE_ROWS,
) -> DeviceStatistics:
    """The statistics that a device's numbers say.

    Args:
        layout: The cells that were asked for.
        numbers: As `to_numbers` makes them.
        device: Who sent them.
        group: Its group.
        from_at: Where the period that was asked for begins: with it the first slice is closed.
        until_at: Where it ends.
        max_rows: As many were asked for at most.

    Raises:
        DataError: If a field has another length, or the counts contradict each other.
    """
    arrays: dict[str, Any] = {}
    for name, shape in shapes(layout).items():
        values = numbers[name]
        if len(values) != math.prod(shape):
            raise DataError(f"{len(values)} numbers, not {math.prod(shape)}", where=name)
        if values and not 0 <= min(values) <= max(values) < 2**63:
            raise DataError("a number that is no count", where=name)
        arrays[name] = np.array(values, dtype=np.int64).reshape(1, *shape)
    _require_possible(layout, {name: values[0] for name, values in arrays.items()}, max_rows)
    edges = np.array([from_at, *layout.cuts_at, until_at])
    seen = np.flatnonzero(arrays["paired_DSTM4"].sum(axis=(0, 2, 3, 4)))
    return DeviceStatistics(
        layout=layout,
        device_D=np.array([device], dtype=np.int64),
        group_D=np.array([group], dtype=np.int64),
        period_D2=np.array([[edges[seen[0]], edges[seen[-1] + 1]]]),
        **arrays,
    )


def _require_possible(layout: Layout, found: Mapping[str, NDArray[np.int64]], max_rows: int) -> None:
    """Refuse counts that no rows lead to."""
    # Every sum below is of numbers that were bounded before, so none can overflow.
    paired = found["paired_DSTM4"]
    _need(bool((paired <= max_rows).all()) and 0 < int(paired.sum()) <= max_rows, "paired_DSTM4", "rows")
    rows = int(paired.sum())
    for name in ("sound_DST", "confusion_D2MM", "segment_DQ4", "broken_D2"):
        _need(bool((found[name] <= rows).all()), name, "more than the rows")
    broken, by_slice = found["broken_D2"], paired.sum(axis=(-2, -1))
    sound = found["sound_DST"]
    _need(bool((sound <= by_slice).all()), "sound_DST", "more than the rows of a slice")
    lost = rows - int(sound.sum())
    _need(int(broken.max()) <= lost <= int(broken.sum()), "broken_D2", "not the rows without a loss")
    worst = _WORST_BRIER if layout.num_classes else LOSS_CAP
    most = (sound * (worst / STEP + _ROUNDING))[..., None]
    _need(bool((found["loss_DST2"] <= most).all()), "loss_DST2", "a loss above the largest")
    if layout.num_classes:
        _require_classes(found, paired, rows)
    else:
        _need(int(paired[..., 3].sum()) == rows, "paired_DSTM4", "a value that is right or wrong")
        for name in ("confusion_D2MM", "calibration_D2B3"):
            _need(not found[name].any(), name, "classes of a regression")
    counts, losses = found["segment_DQ4"].sum(axis=-1), found["segment_loss_DQ2"]
    _need(bool((counts <= rows).all()), "segment_DQ4", "more than the rows")
    _need(
        bool((losses <= (counts * (worst / STEP + _ROUNDING))[:, None]).all()), "segment_loss_DQ2", "too much"
    )


def _require_classes(found: Mapping[str, NDArray[np.int64]], paired: NDArray[np.int64], rows: int) -> None:
    """What the outcomes, the confusion and the calibration say of the same rows must agree."""
    by_label = paired.sum(axis=(0, 1))  # [M, 4]
    right = np.stack([by_label[:, 0] + by_label[:, 1], by_label[:, 0] + by_label[:, 2]])  # [2, M]
    kept = rows - found["broken_D2"]
    confusion, bins = found["confusion_D2MM"], found["calibration_D2B3"]
    _need(
        bool((np.diagonal(confusion, axis1=1, axis2=2) == right).all())
        and bool((confusion.sum(axis=(1, 2)) == kept).all())
        and bool((confusion.sum(axis=2) <= by_label.sum(axis=1)).all()),
        "confusion_D2MM",
        "not the rows that were counted",
    )
    _need(bool((bins[..., :2] <= rows).all()), "calibration_D2B3", "more than the rows")
    _need(
        bool((bins[..., 1] <= bins[..., 0]).all())
        and bool((bins[..., 2] <= bins[..., 0] * (1.0 / STEP + _ROUNDING)).all())
        and bool((bins[..., 0].sum(axis=1) == kept).all())
        and bool((bins[..., 1].sum(axis=1) == right.sum(axis=1)).all()),
        "calibration_D2B3",
        "not the rows that were counted",
    )


def _need(ok: bool, name: str, what: str) -> None:
    if not ok:
        raise DataError(f"counts that no rows lead to: {what}", where=name)
