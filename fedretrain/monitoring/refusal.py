"""Rows that the store must not count are refused by name, counted, and without effect.

Rules of this file:
    * A row is refused for the *first* reason that applies, in the order of `Refusal`; the others are accepted.
    * Nothing here changes the store. A batch is looked at as a whole: of two equal rows the first is accepted.
    * Labels may not outnumber the predictions of their (device, slot, version). Labels that outran their own telemetry
      look the same as invented ones, so `Intake` holds them a while before it asks (`intake.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from fedretrain.monitoring.reports import (
    LOG_LOSS_MOST,
    NUM_CONFIDENCE_BINS,
    NUM_DELAY_BINS,
    NUM_DISTANCE_BINS,
    NUM_LATENCY_BINS,
    LabelReports,
    Reports,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEQUENCE_LIMIT = 2**32
VALUE_LIMIT = 2.0**40  # of one KPI total: 2**23 rows of the largest value still add up exactly in 63 bits


class Refusal(StrEnum):
    """Why a row was not counted, in the order in which reasons are looked for."""

    UNKNOWN_DEVICE = "unknown_device"
    WRONG_BINS = "wrong_bins"
    NEGATIVE_COUNT = "negative_count"
    MALFORMED = "malformed"  # wrong shapes, numbers that are not finite, totals that contradict each other
    UNKNOWN_VERSION = "unknown_version"
    FUTURE_CLOCK = "future_clock"
    TOO_LATE = "too_late"  # older than what the store keeps
    DUPLICATE = "duplicate"
    LABEL_WITHOUT_PREDICTION = "label_without_prediction"


_POSITION = {reason: position for position, reason in enumerate(Refusal)}


class Past(Protocol):
    """What the store remembers of rows that it counted."""

    @property
    def oldest_slot(self) -> int:
        """The oldest slot that still takes data."""

    def fresh(
        self, kind: str, device_K: NDArray[np.int64], slot_K: NDArray[np.int64], sequence_K: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """``[K]`` True for the first row of its (device, slot, sequence); `kind` is ``"telemetry"`` or ``"labels"``."""

    def room(
        self, device_K: NDArray[np.int64], slot_K: NDArray[np.int64], version_K: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """``[K]`` predictions without a label of each (device, slot, version)."""


@dataclass(frozen=True)
class Known:
    """What a row may refer to.

    Attributes:
        bins: Digest of the bins in use.
        num_devices: Devices are 0 .. num_devices - 1.
        versions: Released versions.
        shape: F, C and M of the store.
        classification: Labels come as confusion counts; otherwise as squared errors.
        kpis: Names that rows may carry.
        slot_s: Length of a slot.
        past: The store.
        tolerance_s: How far a device's clock may be ahead.
    """

    bins: str
    num_devices: int
    versions: frozenset[int]
    shape: tuple[int, int, int]
    classification: bool
    kpis: tuple[str, ...]
    slot_s: float
    past: Past
    tolerance_s: float = 300.0


RowsT = TypeVar("RowsT", Reports, LabelReports)


def refuse(rows: RowsT, known: Known, now: float) -> tuple[RowsT, dict[Refusal, int]]:
    """Split a batch into what may be counted and why the rest may not.

    Args:
        rows: Telemetry or labels.
        known: What they may refer to.
        now: The instant, seconds.

    Returns:
        The accepted rows in their order, and the number of refused rows by reason (absent: none).
    """
    reason_K = reasons(rows, known, now)
    counts = tally(reason_K)
    return (rows.take(reason_K < 0) if counts else rows), counts


def tally(reason_K: NDArray[np.int8]) -> dict[Refusal, int]:
    """The number of rows by reason, of what `reasons` says."""
    names = list(Refusal)
    index, numbers = np.unique(reason_K[reason_K >= 0], return_counts=True)
    return {names[i]: int(number) for i, number in zip(index.tolist(), numbers.tolist(), strict=True)}


def reasons(rows: Reports | LabelReports, known: Known, now: float) -> NDArray[np.int8]:
    """``[K]`` why each row is refused, as a position in `Refusal`; -1 if it is not. The arguments are those of `refuse`."""
    judge = _Judge(len(rows))
    device_K = rows.device_K
    judge.refuse(Refusal.UNKNOWN_DEVICE, (device_K < 0) | (device_K >= known.num_devices))
    if isinstance(rows, Reports):
        judge.refuse(Refusal.WRONG_BINS, np.full(len(rows), rows.bins != known.bins))
        malformed_K, negative_K = _telemetry_faults(rows, known)
        kind = "telemetry"
    else:
        malformed_K, negative_K = _label_faults(rows, known)
        kind = "labels"
    judge.refuse(Refusal.NEGATIVE_COUNT, negative_K)
    judge.refuse(Refusal.MALFORMED, malformed_K | _bad_head(rows))
    judge.refuse(Refusal.UNKNOWN_VERSION, ~np.isin(rows.version_K, sorted(known.versions)))
    judge.refuse(Refusal.FUTURE_CLOCK, _future(rows, known, now))
    judge.refuse(Refusal.TOO_LATE, rows.slot_K < known.past.oldest_slot)
    index = np.flatnonzero(judge.open_K)
    fresh = known.past.fresh(kind, device_K[index], rows.slot_K[index], rows.sequence_K[index])
    judge.refuse(Refusal.DUPLICATE, judge.spread(index, ~fresh))
    if isinstance(rows, LabelReports):
        judge.refuse(Refusal.LABEL_WITHOUT_PREDICTION, _without_prediction(rows, known, judge))
    return judge.reason_K


class _Judge:
    """Why each row fell; the first reason counts."""

    def __init__(self, num_rows: int) -> None:
        self.reason_K = np.full(num_rows, -1, dtype=np.int8)

    @property
    def open_K(self) -> NDArray[np.bool_]:  # noqa: N802 - a shape suffix
        """``[K]`` rows that nothing speaks against so far."""
        return self.reason_K < 0

    def refuse(self, reason: Refusal, bad_K: NDArray[np.bool_]) -> None:
        """Close the open rows where `bad_K` holds."""
        self.reason_K[bad_K & self.open_K] = _POSITION[reason]

    def spread(self, index: NDArray[np.int64], bad: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask over all rows from one over the rows at `index`."""
        mask = np.zeros(len(self.reason_K), dtype=bool)
        mask[index] = bad
        return mask


def _bad_head(rows: Reports | LabelReports) -> NDArray[np.bool_]:
    return (
        (rows.slot_K < 0)
        | (rows.sequence_K < 0)
        | (rows.sequence_K >= SEQUENCE_LIMIT)
        | ~np.isfinite(rows.sent_at_K)
    )


def _future(rows: Reports | LabelReports, known: Known, now: float) -> NDArray[np.bool_]:
    """Sent after now, or about a slot that had not begun when it was sent."""
    sent_at_K = np.where(np.isfinite(rows.sent_at_K), rows.sent_at_K, now)
    starts_K = rows.slot_K * known.slot_s
    return (sent_at_K > now + known.tolerance_s) | (starts_K > sent_at_K + known.tolerance_s)


def _negative(*counts: NDArray[np.integer]) -> NDArray[np.bool_]:
    """``[K]`` True where any count of the row is below 0."""
    bad_K = np.zeros(len(counts[0]), dtype=bool)
    for count in counts:
        if count.size and count.min() < 0:  # one pass over what is nearly always fine
            bad_K |= count.reshape(len(count), -1).min(axis=1) < 0
    return bad_K


def _shapes_fit(rows: Reports, known: Known) -> bool:
    """Whether every column has the width that is expected, and no KPI is a stranger."""
    num_features, num_cells, num_outputs = known.shape
    return (
        rows.features_KFC.shape[1:] == (num_features, num_cells)
        and rows.violations_KF.shape[1:] == (num_features,)
        and rows.outputs_KM.shape[1:] == (num_outputs,)
        and rows.confidence_KB.shape[1:] == rows.entropy_KB.shape[1:] == (NUM_CONFIDENCE_BINS,)
        and rows.latency_KL.shape[1:] == (NUM_LATENCY_BINS,)
        and all(kpi_K2.shape[1:] == (2,) for kpi_K2 in rows.kpis.values())
        and set(rows.kpis) <= set(known.kpis)
        and all(
            counts is None or counts.shape[1:] == shape
            for counts, shape in (
                (rows.distance_KP, (NUM_DISTANCE_BINS,)),
                (rows.gap_K2, (2,)),
                (rows.bases_K2, (2,)),
            )
        )
    )


def _telemetry_faults(rows: Reports, known: Known) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """``[K]`` malformed rows and ``[K]`` rows with a negative count."""
    if not _shapes_fit(rows, known):
        return np.ones(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    values_KF = rows.features_KFC.sum(axis=2)
    bad_K = (values_KF != values_KF[:, :1]).any(
        axis=1
    )  # each feature counts every sensor row, missing ones too
    bad_K |= (rows.violations_KF > values_KF).any(axis=1)
    predictions_K = rows.num_predictions
    for optional in (rows.confidence_KB, rows.entropy_KB, rows.latency_KL):
        bad_K |= optional.sum(axis=1) > predictions_K
    for kpi_K2 in rows.kpis.values():
        bad_K |= ~(np.abs(kpi_K2) < VALUE_LIMIT).all(axis=1) | (kpi_K2[:, 1] < 0)
    if rows.gap_K2 is not None:
        bad_K |= _gap_faults(rows.gap_K2, known)
    if rows.bases_K2 is not None:
        bad_K |= rows.bases_K2[:, 1] > rows.bases_K2[:, 0]
    optional_counts = [counts for counts in (rows.distance_KP, rows.bases_K2) if counts is not None]
    return bad_K, _negative(
        rows.features_KFC,
        rows.violations_KF,
        rows.outputs_KM,
        rows.confidence_KB,
        rows.entropy_KB,
        rows.latency_KL,
        *optional_counts,
    )


def _gap_faults(gap_K2: NDArray[np.float64], known: Known) -> NDArray[np.bool_]:
    """``[K]`` sums and counts of score gaps that cannot be; those of accuracies are at most 1 each."""
    count_K, limit = gap_K2[:, 1], 1.0 if known.classification else VALUE_LIMIT
    bad_K = np.asarray(~(np.abs(gap_K2) < VALUE_LIMIT).all(axis=1), dtype=np.bool_)
    bad_K |= (count_K < 0) | (count_K != np.rint(count_K)) | ((count_K == 0) & (gap_K2[:, 0] != 0))
    bad_K |= ~(np.abs(gap_K2[:, 0]) <= limit * count_K + 1e-9)
    return bad_K


def _label_faults(rows: LabelReports, known: Known) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """``[K]`` malformed rows and ``[K]`` rows with a negative count."""
    none_K = np.zeros(len(rows), dtype=bool)
    num_outputs = known.shape[2]
    kind_fits = (rows.confusion_KMM is None, rows.error_K2 is None) == (
        not known.classification,
        known.classification,
    )
    shapes_fit = rows.calibration_KB2.shape[1:] == (NUM_CONFIDENCE_BINS, 2) and rows.delay_KD.shape[1:] == (
        NUM_DELAY_BINS,
    )
    if not (kind_fits and shapes_fit):
        return ~none_K, none_K
    bad_K = none_K.copy()
    counts: list[NDArray[np.integer]] = [rows.calibration_KB2, rows.delay_KD]
    if rows.confusion_KMM is not None:
        if rows.confusion_KMM.shape[1:] != (num_outputs, num_outputs):
            return ~none_K, none_K
        counts.append(rows.confusion_KMM)
    elif rows.error_K2 is not None:
        error_K2 = rows.error_K2
        bad_K |= ~((error_K2 >= 0) & (error_K2 < VALUE_LIMIT)).all(axis=1)
        bad_K |= error_K2[:, 1] != np.floor(error_K2[:, 1])
        if bad_K.any():  # the totals below would not be numbers
            return bad_K, none_K
    bad_K |= (rows.calibration_KB2[:, :, 1] > rows.calibration_KB2[:, :, 0]).any(axis=1)
    bad_K |= rows.calibration_KB2[:, :, 0].sum(axis=1) > rows.num_labelled
    bad_K |= rows.delay_KD.sum(axis=1) > rows.num_labelled
    if rows.log_loss_K is not None:
        if not known.classification or rows.log_loss_K.shape != bad_K.shape:
            return ~none_K, none_K
        bad_K |= rows.log_loss_K > LOG_LOSS_MOST * rows.calibration_KB2[:, :, 0].sum(axis=1, dtype=np.int64)
        counts.append(rows.log_loss_K)
    return bad_K, _negative(*counts)


def _without_prediction(rows: LabelReports, known: Known, judge: _Judge) -> NDArray[np.bool_]:
    """Open rows whose labels outnumber the predictions left of their (device, slot, version), earlier rows first."""
    index = np.flatnonzero(judge.open_K)
    part = rows.take(index)
    order = np.lexsort((part.sequence_K, part.version_K, part.slot_K, part.device_K))
    key_3K = np.stack([part.device_K, part.slot_K, part.version_K])[:, order]
    labelled_K = part.num_labelled[order]
    first_K = np.ones(len(order), dtype=bool)
    first_K[1:] = (key_3K[:, 1:] != key_3K[:, :-1]).any(axis=0)
    before = np.cumsum(labelled_K) - labelled_K
    so_far_K = before - np.maximum.accumulate(np.where(first_K, before, 0)) + labelled_K
    room_K = known.past.room(key_3K[0], key_3K[1], key_3K[2])
    return judge.spread(index[order], so_far_K > room_K)
