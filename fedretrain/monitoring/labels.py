"""What late labels tell: how soon they come, whom they leave out, and how right the predictions were.

Rules of this file:
    * Everything is told by *prediction* time and comes from additive counts: a late label corrects the slot of its
      prediction, and devices, groups and fleet differ only in leading axes.
    * Delay bins lie between inner edges (`reports.DELAY_EDGES_S`): the first begins at 0, the last never ends.
    * A prediction too young for a delay bin is censored there, never counted as without a label.
    * M classes, S slots, B delay bins, D devices; a confusion matrix is ``[..., true, predicted]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import DataError
from fedretrain.monitoring.intervals import Interval, device_share, divide, student_sf

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


_ROUNDING = 1e-12  # a score that differs from 0 by this share of the labels is 0


@dataclass(frozen=True)
class ArrivalCurve:
    """How soon labels arrive: F(d) is the share of predictions labelled within d.

    The product-limit estimate (Kaplan and Meier 1958, https://doi.org/10.1080/01621459.1958.10501452) on delay bins.
    Labels that never come are allowed: F then levels off below 1. Curves are additive: add counts, never curves.

    Attributes:
        edges_s: ``[B - 1]`` inner edges of the delay bins in seconds.
        labelled_B: ``[..., B]`` labels that came in each bin, of predictions old enough to have passed it.
        at_risk_B: ``[..., B]`` those predictions without a label before the bin.
    """

    edges_s: NDArray[np.float64]
    labelled_B: NDArray[np.float64]
    at_risk_B: NDArray[np.float64]

    @property
    def fraction(self) -> NDArray[np.float64]:
        """``[..., B]`` F at the upper edge of each bin; NaN from the first bin that no prediction is old enough for."""
        hazard_B = divide(self.labelled_B, self.at_risk_B)
        waiting_B = np.cumprod(1.0 - np.nan_to_num(hazard_B), axis=-1)
        return np.where(np.isnan(hazard_B) & (waiting_B > 0), np.nan, 1.0 - waiting_B)

    @property
    def error(self) -> NDArray[np.float64]:
        """``[..., B]`` standard error of F by Greenwood's formula, were the labels independent of each other."""
        terms = divide(self.labelled_B, self.at_risk_B * (self.at_risk_B - self.labelled_B))
        return (1.0 - self.fraction) * np.sqrt(np.cumsum(np.nan_to_num(terms), axis=-1))

    def with_room(self, num_devices: int) -> ArrivalCurve:
        """A curve ``[D, B]`` of each device, for a fleet of more devices; the new ones predicted nothing."""
        more = ((0, num_devices - len(self.labelled_B)), (0, 0))
        return ArrivalCurve(self.edges_s, np.pad(self.labelled_B, more), np.pad(self.at_risk_B, more))

    def within(self, delay_s: ArrayLike) -> NDArray[np.float64]:
        """F at any delays: linear inside a bin; beyond the last observed edge, F there.

        Args:
            delay_s: ``[N]`` seconds.

        Returns:
            ``[..., N]``; NaN where nothing was observed at all.
        """
        delays, fraction_B = np.asarray(delay_s, dtype=np.float64), self.fraction
        rows = [
            _interpolated(delays, self.edges_s, row) for row in fraction_B.reshape(-1, fraction_B.shape[-1])
        ]
        return np.reshape(rows, (*fraction_B.shape[:-1], *delays.shape))


@dataclass(frozen=True)
class CurveDrift:
    """Whether labels now come at another pace.

    Attributes:
        surplus: Labels that came in the later sample beyond what a common pace predicts, as a share of that
            prediction; above 0 they come sooner. NaN where the samples share no delay bin in which a label came.
        p_value: Two-sided, with the device as the unit; NaN where nothing can be said: fewer than two devices in either
            sample. That is not 1, which says that nothing changed.
        num_devices: Devices behind it: those of the smaller sample.
    """

    surplus: float = math.nan
    p_value: float = math.nan
    num_devices: int = 0


@dataclass(frozen=True)
class LabelBias:
    """Whose predictions are labelled.

    Attributes:
        share_M: ``[..., M]`` labelled share of the predictions of each class; NaN where none was predicted.
        relative_M: ``[..., M]`` the same divided by the labelled share of all: 1 everywhere without bias.
    """

    share_M: NDArray[np.float64]
    relative_M: NDArray[np.float64]


def arrival_curve(
    delays_SB: ArrayLike, predicted_S: ArrayLike, age_S: ArrayLike, edges_s: ArrayLike
) -> ArrivalCurve:
    """The curve of a window of slots.

    A slot counts in a bin only once its youngest prediction is older than the whole bin, so no label of that bin can be
    still on its way.

    Args:
        delays_SB: ``[..., S, B]`` labels that came, by slot of the prediction and delay.
        predicted_S: ``[..., S]`` predictions made in each slot.
        age_S: ``[S]`` seconds from the slot's *end* to now.
        edges_s: ``[B - 1]`` increasing inner edges. No prediction is ever older than the whole last bin, so F at its end is
            NaN: labels that took longer than the last edge are counted by nobody.

    Raises:
        DataError: More labels than predictions in a slot, or edges that do not increase.
    """
    delays_SB, predicted_S, edges_s = (
        np.asarray(a, dtype=np.float64) for a in (delays_SB, predicted_S, edges_s)
    )
    ends_B = np.append(edges_s, np.inf)
    if len(ends_B) != delays_SB.shape[-1] or not np.all(np.diff(ends_B, prepend=0.0) > 0):
        raise DataError(
            "inner delay edges increase from above 0 and are one fewer than the bins", where="edges_s"
        )
    before_SB = np.cumsum(delays_SB, axis=-1) - delays_SB
    if np.any(delays_SB < 0) or np.any(delays_SB.sum(axis=-1) > predicted_S):
        raise DataError(
            "a slot has more labels than predictions, or a negative count",
            where="delays_SB",
            fix="refuse labels for predictions that never were before they are counted",
        )
    passed_SB = np.asarray(age_S, dtype=np.float64)[:, None] >= ends_B
    labelled_B = (delays_SB * passed_SB).sum(axis=-2)
    at_risk_B = ((predicted_S[..., None] - before_SB) * passed_SB).sum(axis=-2)
    return ArrivalCurve(edges_s, labelled_B, at_risk_B)


def curve_drift(before: ArrivalCurve, after: ArrivalCurve) -> CurveDrift:
    """The log-rank test of two arrival curves, with the device as the unit.

    Log-rank (Mantel 1966) compares the labels that came in each bin with those a common pace predicts, so censoring
    does not bias it. Labels of one device often come together; the variance is therefore that of the devices' own
    scores (Lin and Wei 1989, https://doi.org/10.1080/01621459.1989.10478874) judged by Student's t, and a device may be in
    both samples.

    Args:
        before: Counts ``[D, B]``: row d of both curves is the same device.
        after: Likewise.
    """
    risk_0, risk_1 = before.at_risk_B.sum(axis=0), after.at_risk_B.sum(axis=0)
    # Where one sample has nobody waiting, nothing is compared: such a bin would count a device that says nothing.
    shared_B = (risk_0 > 0) & (risk_1 > 0)
    risk = np.where(shared_B, risk_0 + risk_1, 0.0)
    pace_B = np.nan_to_num(divide(before.labelled_B.sum(axis=0) + after.labelled_B.sum(axis=0), risk))
    share_0, share_1 = np.nan_to_num(divide(risk_0, risk)), np.nan_to_num(divide(risk_1, risk))
    rest_0 = (before.labelled_B - before.at_risk_B * pace_B) * shared_B
    rest_1 = (after.labelled_B - after.at_risk_B * pace_B) * shared_B
    seen_D = (before.at_risk_B + after.at_risk_B)[:, shared_B].any(axis=-1)
    score_D = (rest_1 * share_0 - rest_0 * share_1).sum(axis=-1)[seen_D]
    num_devices = min(int(curve.at_risk_B[:, shared_B].any(axis=-1).sum()) for curve in (before, after))
    expected = float((risk_1 * pace_B)[shared_B].sum())
    if expected == 0.0:
        return CurveDrift(num_devices=num_devices)
    surplus = float(rest_1.sum()) / expected
    if num_devices < 2:
        return CurveDrift(surplus, math.nan, num_devices)
    # About their mean: scores about 0 could not reject below Student's tail at sqrt(D), however far all devices moved.
    error = float(score_D.std(ddof=1)) * math.sqrt(len(score_D))
    total = abs(float(score_D.sum()))
    if total <= _ROUNDING * expected:  # every device is to the last label as it was
        return CurveDrift(surplus, 1.0, num_devices)
    t = total / max(error, _ROUNDING * expected)
    return CurveDrift(surplus, 2 * student_sf(t, num_devices - 1), num_devices)


def label_bias(predicted_M: ArrayLike, confusion_MM: ArrayLike) -> LabelBias:
    """Labelled share by predicted class.

    Args:
        predicted_M: ``[..., M]`` predictions by class.
        confusion_MM: ``[..., M, M]`` labelled ones, ``[true, predicted]``.
    """
    predicted_M = np.asarray(predicted_M, dtype=np.float64)
    labelled_M = np.asarray(confusion_MM, dtype=np.float64).sum(axis=-2)
    share_M = divide(labelled_M, predicted_M)
    overall = completeness(labelled_M.sum(axis=-1), predicted_M.sum(axis=-1))
    return LabelBias(share_M, divide(share_M, overall[..., None]))


def completeness(labelled: ArrayLike, predicted: ArrayLike) -> NDArray[np.float64]:
    """Labelled share of the predictions, any shape; NaN without predictions."""
    return divide(np.asarray(labelled, dtype=np.float64), predicted)


def expected_completeness(
    curve: ArrivalCurve, predicted_S: ArrayLike, age_S: ArrayLike
) -> NDArray[np.float64]:
    """How complete the labels of a window should be by now, if they come as `curve` says.

    Args:
        curve: One curve, without leading axes.
        predicted_S: ``[..., S]`` predictions of each slot.
        age_S: ``[S]`` seconds since the slot's middle.
    """
    predicted_S = np.asarray(predicted_S, dtype=np.float64)
    return divide((predicted_S * curve.within(age_S)).sum(axis=-1), predicted_S.sum(axis=-1))


def accuracy(confusion_MM: ArrayLike) -> NDArray[np.float64]:
    """``[...]`` share of the labelled predictions that are right; NaN without labels."""
    confusion_MM = np.asarray(confusion_MM, dtype=np.float64)
    return divide(np.trace(confusion_MM, axis1=-2, axis2=-1), confusion_MM.sum(axis=(-2, -1)))


def device_accuracy(confusion_DMM: ArrayLike, confidence: float = 0.95) -> Interval:
    """Accuracy over devices with an interval that takes the device as the unit (see `device_share`).

    Args:
        confusion_DMM: ``[D, ..., M, M]``, devices first.
        confidence: Two-sided.
    """
    confusion_DMM = np.asarray(confusion_DMM, dtype=np.float64)
    return device_share(
        np.trace(confusion_DMM, axis1=-2, axis2=-1), confusion_DMM.sum(axis=(-2, -1)), confidence
    )


def macro_f1(confusion_MM: ArrayLike) -> NDArray[np.float64]:
    """``[...]`` mean F1 over the classes that were true or predicted at least once; NaN without labels."""
    confusion_MM = np.asarray(confusion_MM, dtype=np.float64)
    right_M = np.diagonal(confusion_MM, axis1=-2, axis2=-1)
    f1_M = divide(2 * right_M, confusion_MM.sum(axis=-1) + confusion_MM.sum(axis=-2))
    present_M = ~np.isnan(f1_M)
    return divide(np.where(present_M, f1_M, 0.0).sum(axis=-1), present_M.sum(axis=-1))


def reweighted_accuracy(confusion_MM: ArrayLike, predicted_M: ArrayLike) -> NDArray[np.float64]:
    """Accuracy with each predicted class at its share of *all* predictions: the cure for a bias that `label_bias` shows.

    It is right as long as labels are missing at random within a predicted class (post-stratification).

    Args:
        confusion_MM: ``[..., M, M]``.
        predicted_M: ``[..., M]`` predictions by class.

    Returns:
        ``[...]``; NaN where a class that was predicted has no label: nothing can be said about it.
    """
    confusion_MM, predicted_M = (np.asarray(a, dtype=np.float64) for a in (confusion_MM, predicted_M))
    right_M = divide(np.diagonal(confusion_MM, axis1=-2, axis2=-1), confusion_MM.sum(axis=-2))
    weighted_M = np.where(predicted_M > 0, predicted_M * right_M, 0.0)
    return divide(weighted_M.sum(axis=-1), predicted_M.sum(axis=-1))


def _interpolated(
    delays: NDArray[np.float64], edges_s: NDArray[np.float64], fraction_B: NDArray[np.float64]
) -> NDArray[np.float64]:
    """One curve between its known edges."""
    known = int(np.isfinite(fraction_B[:-1]).sum())
    if known == 0:
        return np.full(delays.shape, np.nan)
    places = np.concatenate([[0.0], edges_s[:known]]), np.concatenate([[0.0], fraction_B[:known]])
    return np.asarray(np.interp(delays, *places), dtype=np.float64)
