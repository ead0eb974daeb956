"""What the candidate gains over the champion, device by device, on the same rows.

Rules of this file:
    * A gain above 0 is for the candidate. Its unit is a share of the rows (accuracy), or a share of the champion's squared
      error on the same part of the data.
    * Every device counts the same where the question is about devices (the fleet, a group); every row where a device may
      have only a few (a label, a slice, late labels). The unit of uncertainty is the device either way.

Shape letters: as in `statistics`; U units (devices, or devices' time slices).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.validation.config import Unit
from fedretrain.validation.intervals import Estimate, jackknife, ratio, tail_mean
from fedretrain.validation.statistics import CANDIDATE, CHAMPION, STEP

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.validation.statistics import DeviceStatistics


@dataclass(frozen=True)
class Scores:
    """Summed scores of both models on a part of the data; higher is better.

    Attributes:
        rows_DS: int64.
        candidate_DS: float64: right ones, or minus the squared errors as a share of the champion's mean.
        champion_DS: Likewise.
        counted: True if the scores are counts of right rows.
    """

    rows_DS: NDArray[np.int64]
    candidate_DS: NDArray[np.float64]
    champion_DS: NDArray[np.float64]
    counted: bool

    @property
    def num_rows(self) -> int:
        """Rows."""
        return int(self.rows_DS.sum())

    @property
    def num_devices(self) -> int:
        """Devices with a row."""
        return int(np.count_nonzero(self.rows_DS.sum(axis=1)))

    def only(self, *, devices: NDArray[np.bool_] | None = None, slice_: int | None = None) -> Scores:
        """The scores of some devices (``[D]``), or of one time slice; the others' are 0."""
        keep: NDArray[np.int64] = np.ones_like(self.rows_DS)
        if devices is not None:
            keep[~devices] = 0
        if slice_ is not None:
            keep[:, np.arange(self.rows_DS.shape[-1]) != slice_] = 0
        return Scores(self.rows_DS * keep, self.candidate_DS * keep, self.champion_DS * keep, self.counted)


def scores(
    stats: DeviceStatistics, *, timeliness: int | None = None, labels: NDArray[np.int64] | None = None
) -> Scores:
    """The scores on the rows of one timeliness, or of some labels (of a classifier); all rows by default."""
    t: Any = slice(None) if timeliness is None else [timeliness]
    if stats.layout.num_classes:
        m: Any = slice(None) if labels is None else labels
        paired = stats.paired_DSTM4[:, :, t][:, :, :, m].sum(axis=(2, 3))
        both, first, second = (paired[..., i].astype(np.float64) for i in range(3))
        return Scores(paired.sum(axis=-1), both + first, both + second, counted=True)
    rows = stats.sound_DST[:, :, t].sum(axis=2)
    loss = stats.loss_DST2[:, :, t].sum(axis=2).astype(np.float64) * STEP
    return _relative(rows, loss)


def _relative(rows_DS: NDArray[np.int64], loss_DS2: NDArray[np.float64]) -> Scores:
    """Scores from squared errors, in units of the champion's mean one (taken as a constant)."""
    scale = max(float(loss_DS2[..., CHAMPION].sum()) / max(1, int(rows_DS.sum())), STEP)
    return Scores(rows_DS, -loss_DS2[..., CANDIDATE] / scale, -loss_DS2[..., CHAMPION] / scale, counted=False)


def brier_scores(stats: DeviceStatistics) -> Scores:
    """Minus the Brier scores of a classifier, which need no scale."""
    loss = stats.loss_DST2.sum(axis=2).astype(np.float64) * STEP
    return Scores(stats.sound_DST.sum(axis=2), -loss[..., CANDIDATE], -loss[..., CHAMPION], counted=False)


def level(part: Scores, unit: Unit, *, champion: bool = False, by_rows: bool = False) -> Estimate:
    """One model's mean score."""
    total = part.champion_DS if champion else part.candidate_DS
    return _mean(part, total, unit, by_rows=by_rows, num_rows=0)


def gain(part: Scores, unit: Unit, *, by_rows: bool = False) -> Estimate:
    """Candidate minus champion."""
    difference = part.candidate_DS - part.champion_DS
    return _mean(part, difference, unit, by_rows=by_rows, num_rows=part.num_rows if part.counted else 0)


def _mean(
    part: Scores, total_DS: NDArray[np.float64], unit: Unit, *, by_rows: bool, num_rows: int
) -> Estimate:
    if unit is Unit.DEVICE:
        rows, total = part.rows_DS.sum(axis=1), total_DS.sum(axis=1)
    else:
        rows, total = part.rows_DS.ravel(), total_DS.ravel()
    if by_rows:
        return ratio(total, rows.astype(np.float64), num_rows)
    return ratio(total / np.maximum(rows, 1), (rows > 0).astype(np.float64), num_rows)


def tail_gain(part: Scores, fraction: float) -> Estimate:
    """The mean score of the worst `fraction` of devices, each model's own worst, candidate minus champion."""
    rows = part.rows_DS.sum(axis=1)
    kept = rows > 0

    def tail(total_DS: NDArray[np.float64]) -> Estimate:
        return tail_mean(total_DS.sum(axis=1)[kept] / rows[kept], fraction)

    return tail(part.candidate_DS) - tail(part.champion_DS)


def macro_f1_gain(stats: DeviceStatistics) -> Estimate:
    """Macro-F1 over all rows, candidate minus champion; a device is left out each time."""
    return _jackknifed(stats.confusion_D2MM, macro_f1)


def macro_f1(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """``[...]`` mean F1 over the labels that occur, from ``[..., M, M]`` [true, predicted]; NaN without rows."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    # F1 = 2 TP / (2 TP + FP + FN): how often the label was true plus how often it was said.
    met = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    occur = np.count_nonzero(met, axis=-1)
    total: NDArray[np.float64] = (2.0 * hits / np.maximum(met, 1)).sum(axis=-1)
    return np.where(occur > 0, total / np.maximum(occur, 1), np.nan)


def label_f1_gain(stats: DeviceStatistics, label: int) -> float:
    """F1 of one label over all rows, candidate minus champion; a broken prediction is a miss of the row's label."""
    confusion = stats.confusion_D2MM.sum(axis=0)
    said = confusion[:, :, label].sum(axis=1)
    true = int(stats.paired_DSTM4[:, :, :, label].sum())
    f1 = 2.0 * confusion[:, label, label] / np.maximum(said + true, 1)
    return float(f1[CANDIDATE] - f1[CHAMPION])


def calibration_gain(stats: DeviceStatistics) -> Estimate:
    """Expected calibration error over all rows, champion minus candidate; a device is left out each time."""
    return _jackknifed(stats.calibration_D2B3, lambda bins: -calibration_error(bins))


def calibration_error(bins: NDArray[np.int64]) -> NDArray[np.float64]:
    """``[...]`` expected calibration error from ``[..., B, 3]`` (rows, right ones, confidence in `STEP`).

    The mean over rows of their bin's distance between accuracy and confidence (Guo et al. 2017, arXiv 1706.04599).
    """
    distance = np.abs(bins[..., 1] - bins[..., 2] * STEP).sum(axis=-1)
    rows = bins[..., 0].sum(axis=-1)
    return np.where(rows > 0, distance / np.maximum(rows, 1), np.nan)


def _jackknifed(by_device: NDArray[np.int64], figure: Any) -> Estimate:
    """Candidate minus champion of a figure of summed counts ``[D, 2, ...]``."""
    total = by_device.sum(axis=0)
    whole, without = figure(total), figure(total - by_device)
    return jackknife(float(whole[CANDIDATE] - whole[CHAMPION]), without[:, CANDIDATE] - without[:, CHAMPION])
