"""From labelled predictions to additive statistics: the one function that a device and a pool both run.

Rules of this file:
    * A row counts on its own: nothing depends on which other rows are counted with it.
    * A loss is the Brier score of a classifier (0 to 2) or the squared error of a regression; it is rounded to a
      multiple of `STEP` before it is summed.

Shape letters: N rows; the others as in `statistics`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.validation.rows import check_rows, in_segment
from fedretrain.validation.statistics import STEP, empty, require_one_group, zeros

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.validation.rows import Labelled, Layout, Rows
    from fedretrain.validation.statistics import DeviceStatistics

LOSS_CAP = 2.0**24
"""A greater loss of one row counts as broken: 500,000 rows at the cap still fit into 63 bits."""

_SUM_TOLERANCE = 1e-3  # by which float32 probabilities may miss 1


@dataclass(frozen=True)
class _Scored:
    """One model's rows: ``[N]`` each; a broken row is not right, has label 0 predicted and no loss."""

    predicted: NDArray[np.int64]
    right: NDArray[np.bool_]
    broken: NDArray[np.bool_]
    loss: NDArray[np.int64]
    confidence: NDArray[np.float64]


def count_rows(layout: Layout, rows: Rows) -> DeviceStatistics:
    """The statistics of labelled predictions: of one device's, or of everybody's.

    Args:
        layout: The cells.
        rows: The predictions of both models.

    Raises:
        DataError: If the arrays do not fit each other or the layout, if a label is not a class, or if a device is in
            two groups.
    """
    check_rows(layout, rows)
    if not len(rows):
        return empty(layout)
    given = rows.labelled
    order = np.argsort(given.device_N, kind="stable")
    starts = np.flatnonzero(np.diff(given.device_N[order], prepend=given.device_N[order[0]] - 1))
    require_one_group(given.device_N[order], given.group_N[order], starts)
    device, index_N = np.unique(given.device_N, return_inverse=True)
    stats = zeros(layout, device, given.group_N[order][starts])
    at = given.at_N[order]
    period = np.stack([np.minimum.reduceat(at, starts), np.maximum.reduceat(at, starts)], axis=1)
    scored = _score(layout, rows.candidate, given.label_N), _score(layout, rows.champion, given.label_N)
    sums: dict[str, Any] = _sums(stats, given, index_N, scored)
    return replace(stats, period_D2=period, **sums)


def _sums(
    stats: DeviceStatistics, given: Labelled, d: NDArray[np.int64], scored: tuple[_Scored, _Scored]
) -> dict[str, NDArray[np.int64]]:
    """Every additive array; `d` is each row's device index."""
    layout, (a, b) = stats.layout, scored
    s = np.searchsorted(np.asarray(layout.cuts_at), given.at_N, side="right")
    limit = np.inf if layout.late_after_s is None else layout.late_after_s
    t = (given.delay_s_N > limit).astype(np.int64)
    m = given.label_N.astype(np.int64) if layout.num_classes else np.zeros(len(given), np.int64)
    outcome = 2 * ~a.right + 1 * ~b.right
    sound = ~a.broken & ~b.broken
    sums = {
        "paired_DSTM4": _bincount(stats.paired_DSTM4, (d, s, t, m, outcome)),
        "sound_DST": _bincount(stats.sound_DST, (d[sound], s[sound], t[sound])),
        "broken_D2": np.stack([_bincount(stats.broken_D2[:, 0], (d[x.broken],)) for x in scored], axis=-1),
        "loss_DST2": _by_model(stats.loss_DST2, (d, s, t), scored, sound),
    }
    if layout.num_classes:
        sums |= _class_sums(stats, d, m, scored)
    sums |= _segment_sums(stats, given, d, outcome, scored, sound)
    return sums


def _class_sums(
    stats: DeviceStatistics, d: NDArray[np.int64], m: NDArray[np.int64], scored: tuple[_Scored, _Scored]
) -> dict[str, NDArray[np.int64]]:
    """Confusion and calibration of both models, over the rows that each can be scored on."""
    confusion, calibration = stats.confusion_D2MM.copy(), stats.calibration_D2B3.copy()
    bins = stats.layout.confidence_bins
    for model, x in enumerate(scored):
        kept = ~x.broken
        confusion[:, model] = _bincount(confusion[:, model], (d[kept], m[kept], x.predicted[kept]))
        b = np.minimum((x.confidence[kept] * bins).astype(np.int64), bins - 1)
        cells = calibration[:, model]
        columns = (np.ones(len(b), np.int64), x.right[kept], _fixed(x.confidence[kept]))
        for column, weight in enumerate(columns):
            cells[..., column] = _bincount(cells[..., column], (d[kept], b), weight)
    return {"confusion_D2MM": confusion, "calibration_D2B3": calibration}


def _segment_sums(
    stats: DeviceStatistics,
    given: Labelled,
    d: NDArray[np.int64],
    outcome: NDArray[np.int64],
    scored: tuple[_Scored, _Scored],
    sound: NDArray[np.bool_],
) -> dict[str, NDArray[np.int64]]:
    """Outcomes and losses of each critical segment."""
    counts, losses = stats.segment_DQ4.copy(), stats.segment_loss_DQ2.copy()
    for q, segment in enumerate(stats.layout.segments):
        inside = in_segment(segment, given)
        counts[:, q] = _bincount(counts[:, q], (d[inside], outcome[inside]))
        losses[:, q] = _by_model(losses[:, q], (d,), scored, sound & inside)
    return {"segment_DQ4": counts, "segment_loss_DQ2": losses}


def _by_model(
    like: NDArray[np.int64],
    index: tuple[NDArray[np.int64], ...],
    scored: tuple[_Scored, _Scored],
    keep: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Sums of both models' losses over the kept rows."""
    kept = tuple(i[keep] for i in index)
    return np.stack([_bincount(like[..., 0], kept, x.loss[keep]) for x in scored], axis=-1)


def _bincount(
    like: NDArray[np.int64], index: tuple[NDArray[Any], ...], weight: NDArray[Any] | None = None
) -> NDArray[np.int64]:
    """Counts, or sums of integer weights, by cell; exact, where a float64 histogram would round."""
    flat = np.ravel_multi_index(tuple(np.asarray(i, np.int64) for i in index), like.shape)
    if weight is None:
        return np.bincount(flat, minlength=like.size).reshape(like.shape).astype(np.int64)
    total = np.zeros(like.size, np.int64)
    np.add.at(total, flat, np.asarray(weight, np.int64))
    return total.reshape(like.shape)


def _fixed(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(values / STEP).astype(np.int64)


def _score(layout: Layout, outputs: NDArray[np.floating[Any]], label: NDArray[Any]) -> _Scored:
    """One model's rows against the labels."""
    values = np.array(outputs, dtype=np.float64, order="C")  # one order of summation, whoever counts
    if not layout.num_classes:
        with np.errstate(over="ignore", invalid="ignore"):
            loss = np.square(values.reshape(len(label)) - label)
        broken = ~(loss <= LOSS_CAP)
        none = np.zeros(len(label), np.int64)
        fixed = _fixed(np.where(broken, 0.0, loss))
        return _Scored(none, none.astype(np.bool_), broken, fixed, none.astype(np.float64))
    with np.errstate(over="ignore", invalid="ignore"):
        broken = ~(np.abs(values.sum(axis=1) - 1.0) <= _SUM_TOLERANCE) | (values < -_SUM_TOLERANCE).any(
            axis=1
        )
    values[broken] = 0.0
    truth = np.arange(layout.num_classes) == label[:, None]
    loss = np.where(broken, 0.0, np.square(values - truth).sum(axis=1))
    predicted = values.argmax(axis=1)
    right = (predicted == label) & ~broken
    return _Scored(predicted, right, broken, _fixed(loss), np.clip(values.max(axis=1), 0.0, 1.0))
