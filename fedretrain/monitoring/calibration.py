"""Accuracy *estimated* from confidence while labels are missing.

Rules of this file:
    * Whatever is not counted from labels is called an estimate in its name, and never replaces a measured accuracy.
    * An estimate sees that inputs became harder; it cannot see that the same inputs now have other labels (concept drift,
      a label flip). A gate may hold on an estimate, never pass on one.
    * Everything comes from additive counts: B equal confidence bins last, or ``[..., B, 2]`` (labelled, correct).
    * Confidence against outcomes is judged by a proper score: a model that is surer or less sure than it is right loses by it at equal accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import DataError
from fedretrain.monitoring.intervals import divide
from fedretrain.monitoring.reports import LOG_LOSS_LEAST, LOG_LOSS_STEP

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_LABELLED, _CORRECT = 0, 1


@dataclass(frozen=True)
class Calibration:
    """How often predictions of each confidence were right, where labels told.

    Attributes:
        accuracy_B: ``[B]`` calibrated accuracy of each confidence bin.
    """

    accuracy_B: NDArray[np.float64]

    def estimated_accuracy(
        self, confidence_B: ArrayLike, calibration_B2: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """The estimate: each prediction counts with the calibrated accuracy of its confidence bin.

        Average calibrated confidence (Guillory et al. 2021, Predicting with confidence on unseen distributions,
        https://arxiv.org/abs/2107.03315, section 3). Labels that did come replace their own predictions' part.

        Args:
            confidence_B: ``[..., B]`` confidence counts of every prediction of the window.
            calibration_B2: ``[..., B, 2]`` (labelled, correct) of the same window; nothing is labelled if absent.

        Returns:
            ``[...]``; NaN without predictions.

        Raises:
            DataError: More labels than predictions in a bin.
        """
        confidence_B = np.asarray(confidence_B, dtype=np.float64)
        counted = np.zeros((*confidence_B.shape, 2)) if calibration_B2 is None else _counts(calibration_B2)
        unlabelled_B = confidence_B - counted[..., _LABELLED]
        if np.any(unlabelled_B < 0):
            raise DataError("a confidence bin has more labels than predictions", where="calibration_B2")
        right = counted[..., _CORRECT].sum(axis=-1) + (unlabelled_B * self.accuracy_B).sum(axis=-1)
        return divide(right, confidence_B.sum(axis=-1))


@dataclass(frozen=True)
class ConfidenceThreshold:
    """Average thresholded confidence (ATC): the share of predictions above a threshold estimates the accuracy.

    It takes confidence as an order, with the errors below the threshold. Of a calibrated model, which errs a little at every
    confidence, it exaggerates each change (a fall to 0.63 was estimated as 0.39 in the tests): prefer `Calibration` there.

    Source: Garg et al. 2022, Leveraging unlabeled data to predict out-of-distribution performance,
    https://arxiv.org/abs/2201.04234

    Attributes:
        threshold: In ``[0, 1]``; on the labelled window exactly the share `accuracy` of the predictions lay above it.
    """

    threshold: float

    def estimated_accuracy(self, confidence_B: ArrayLike) -> NDArray[np.float64]:
        """The estimate ``[...]``, with the predictions of the threshold's own bin spread evenly over it."""
        confidence_B = np.asarray(confidence_B, dtype=np.float64)
        num_bins = confidence_B.shape[-1]
        above_B = np.clip(np.arange(1, num_bins + 1) - self.threshold * num_bins, 0.0, 1.0)
        return divide((confidence_B * above_B).sum(axis=-1), confidence_B.sum(axis=-1))


def fit_calibration(calibration_B2: ArrayLike, prior_labels: float = 2.0) -> Calibration:
    """The calibrated accuracy of each bin from labels.

    A bin's accuracy is shrunk toward its own confidence (the middle of the bin) as if `prior_labels` labels had agreed
    with it, so a bin without labels believes the model and one with many believes the labels.

    Args:
        calibration_B2: ``[B, 2]`` (labelled, correct).
        prior_labels: At least 0; with 0 every bin needs a label.
    """
    counts = _counts(calibration_B2)
    middle_B = (np.arange(len(counts)) + 0.5) / len(counts)
    labelled_B, correct_B = counts[:, _LABELLED], counts[:, _CORRECT]
    accuracy_B = divide(correct_B + prior_labels * middle_B, labelled_B + prior_labels)
    if np.any(np.isnan(accuracy_B)):
        raise DataError(
            "a confidence bin has no label", where="calibration_B2", fix="give prior_labels above 0"
        )
    return Calibration(accuracy_B)


def fit_threshold(calibration_B2: ArrayLike) -> ConfidenceThreshold:
    """ATC's threshold from the labelled predictions: as many lie under it as were wrong.

    Args:
        calibration_B2: ``[B, 2]`` (labelled, correct).
    """
    counts = _counts(calibration_B2)
    labelled_B = counts[:, _LABELLED]
    wrong = float(labelled_B.sum() - counts[:, _CORRECT].sum())
    if labelled_B.sum() == 0:
        raise DataError("a threshold cannot be fitted without labels", where="calibration_B2")
    cumulated = np.concatenate([[0.0], np.cumsum(labelled_B)])
    bin_ = min(int(np.searchsorted(cumulated, wrong, side="right")) - 1, len(counts) - 1)
    inside = (wrong - cumulated[bin_]) / labelled_B[bin_] if labelled_B[bin_] else 0.0
    return ConfidenceThreshold(float((bin_ + inside) / len(counts)))


def accuracy_estimated_by_difference(
    accuracy: ArrayLike, baseline_B: ArrayLike, confidence_B: ArrayLike
) -> NDArray[np.float64]:
    """The estimate by difference of confidences (DoC): accuracy falls as much as the mean confidence does.

    Guillory et al. 2021, https://arxiv.org/abs/2107.03315, equation 3 with a slope of one; it needs no calibration, only
    an accuracy measured once.

    Args:
        accuracy: Measured on the baseline.
        baseline_B: ``[B]`` the baseline's confidence counts.
        confidence_B: ``[..., B]`` live ones.
    """
    change = _mean_confidence(confidence_B) - _mean_confidence(baseline_B)
    return np.clip(np.asarray(accuracy, dtype=np.float64) + change, 0.0, 1.0)


def calibration_error(calibration_B2: ArrayLike) -> NDArray[np.float64]:
    """``[...]`` expected calibration error: mean gap between confidence and accuracy, weighted by labels; NaN without.

    Source: Guo et al. 2017, On calibration of modern neural networks, https://arxiv.org/abs/1706.04599, equation 3, with
    the middle of a bin for its confidence (so it can be off by half a bin).
    """
    counts = _counts(calibration_B2)
    labelled_B, correct_B = counts[..., _LABELLED], counts[..., _CORRECT]
    middle_B = (np.arange(labelled_B.shape[-1]) + 0.5) / labelled_B.shape[-1]
    return divide(np.abs(correct_B - labelled_B * middle_B).sum(axis=-1), labelled_B.sum(axis=-1))


def log_loss_steps(confidence: ArrayLike, right: ArrayLike) -> NDArray[np.int64]:
    """The log score of "this prediction is right" under its confidence, in whole steps, so that sums of it are exact.

    -log(confidence) where it is right, -log(1 - confidence) where it is not: proper, so its mean is smallest where confidence is the chance of being
    right. It is preferred to the Brier score, which is proper too but bounded: of a model that is right in 93 % and says 99 % everywhere the Brier
    score hardly tells (0.060 after 0.054 in the sabotage experiment), while the log score grew by half.

    Source: Good 1952, https://doi.org/10.1111/j.2517-6161.1952.tb00104.x. Gneiting and Raftery 2007, https://doi.org/10.1198/016214506000001437.

    Args:
        confidence: Of predictions, any shape; kept `LOG_LOSS_LEAST` away from 0 and 1, so that one certain error costs 6.9 and not infinity.
        right: Whether the label says that they were right.
    """
    share = np.clip(np.asarray(confidence, dtype=np.float64), LOG_LOSS_LEAST, 1.0 - LOG_LOSS_LEAST)
    loss = -np.log(np.where(right, share, 1.0 - share))
    return np.rint(loss / LOG_LOSS_STEP).astype(np.int64)


def _mean_confidence(confidence_B: ArrayLike) -> NDArray[np.float64]:
    confidence_B = np.asarray(confidence_B, dtype=np.float64)
    middle_B = (np.arange(confidence_B.shape[-1]) + 0.5) / confidence_B.shape[-1]
    return divide((confidence_B * middle_B).sum(axis=-1), confidence_B.sum(axis=-1))


def _counts(calibration_B2: ArrayLike) -> NDArray[np.float64]:
    """The counts, checked: ``[..., B, 2]`` with 0 <= correct <= labelled."""
    counts = np.asarray(calibration_B2, dtype=np.float64)
    if counts.shape[-1:] != (2,):
        raise DataError("calibration counts end in (labelled, correct)", where="calibration_B2")
    if np.any((counts[..., _CORRECT] < 0) | (counts[..., _CORRECT] > counts[..., _LABELLED])):
        raise DataError(
            "a bin has more correct predictions than labels, or a negative count", where="calibration_B2"
        )
    return counts
