"""From predictions and labels to the rows that are sent: the same code on a device and for a simulated fleet.

Rules of this file:
    * Only counts come out, and only on pinned bins. A prediction without a class (a negative label) counts as sensor data and
      as nothing else.
    * Rows are numbered by whoever sends them: `sequence_K` is 0 here.

Shapes: N predictions, K rows; F features, M classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.monitoring.calibration import log_loss_steps
from fedretrain.monitoring.histogram import cells_of, out_of_range
from fedretrain.monitoring.reports import (
    LATENCY_KPI,
    NUM_CONFIDENCE_BINS,
    NUM_DELAY_BINS,
    NUM_LATENCY_BINS,
    LabelReports,
    Reports,
    delay_bin,
    latency_bin,
)

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from fedretrain.monitoring.bins import Bins

    Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Senders:
    """Whose each row is.

    Attributes:
        device_K: Device indices.
        slot_K: Slots of the predictions.
        version_K: The releases that served.
    """

    device_K: Ids
    slot_K: Ids
    version_K: Ids


def group(device_N: Ids, slot_N: Ids, version_N: Ids) -> tuple[Senders, Ids]:
    """The rows that predictions belong to, sorted by slot, version and device.

    Args:
        device_N: ``[N]`` device indices, from 0.
        slot_N: ``[N]`` slots.
        version_N: ``[N]`` releases, from 0.

    Returns:
        The rows, and ``[N]`` the row of each prediction.
    """
    first_slot = slot_N.min(initial=0)
    versions, devices = int(version_N.max(initial=0)) + 1, int(device_N.max(initial=0)) + 1
    key_N = ((slot_N - first_slot) * versions + version_N) * devices + device_N
    _, first_K, owner_N = np.unique(key_N, return_index=True, return_inverse=True)
    return Senders(device_N[first_K], slot_N[first_K], version_N[first_K]), owner_N


@dataclass(frozen=True)
class Predictions:
    """What was predicted.

    Attributes:
        label_N: Classes; negative where the model gave none.
        confidence_N: 0 to 1.
        entropy_N: Over log M, 0 to 1.
        latency_s_N: Seconds.
    """

    label_N: Ids
    confidence_N: NDArray[np.floating[Any]]
    entropy_N: NDArray[np.floating[Any]]
    latency_s_N: NDArray[np.float64]


def telemetry(
    senders: Senders,
    owner_N: Ids,
    x_NF: NDArray[Any],
    predictions: Predictions,
    bins: Bins,
    num_outputs: int,
    sent_at: float,
) -> Reports:
    """Telemetry rows of predictions.

    Args:
        senders: The K rows.
        owner_N: ``[N]`` the row of each prediction.
        x_NF: ``[N, F]`` model inputs, flattened.
        predictions: What the model made of them.
        bins: The pinned bins of the inputs.
        num_outputs: M.
        sent_at: The devices' clock, seconds.
    """
    num, features, cells = len(senders.device_K), bins.num_features, bins.num_cells
    flat = (owner_N[:, None] * features + np.arange(features)) * cells + cells_of(bins, x_NF)
    counted = np.bincount(flat.ravel(), minlength=num * features * cells)
    outside = out_of_range(bins, x_NF)
    violations = np.zeros((num, features), dtype=np.int32)
    if outside.any():
        np.add.at(violations, owner_N, outside.astype(np.int32))
    known = predictions.label_N >= 0
    owner = owner_N[known]
    return Reports(
        device_K=senders.device_K,
        slot_K=senders.slot_K,
        version_K=senders.version_K,
        sequence_K=np.zeros(num, dtype=np.int64),
        sent_at_K=np.full(num, sent_at),
        bins=bins.digest,
        features_KFC=counted.reshape(num, features, cells).astype(np.int32),
        violations_KF=violations,
        outputs_KM=_count(owner, predictions.label_N[known], num, num_outputs),
        confidence_KB=_count(owner, _tenth(predictions.confidence_N[known]), num, NUM_CONFIDENCE_BINS),
        entropy_KB=_count(owner, _tenth(predictions.entropy_N[known]), num, NUM_CONFIDENCE_BINS),
        latency_KL=_count(owner, latency_bin(predictions.latency_s_N[known]), num, NUM_LATENCY_BINS),
        kpis={LATENCY_KPI: _total(owner, predictions.latency_s_N[known], num)},
    )


def late_labels(
    senders: Senders,
    owner_N: Ids,
    truth_N: Ids,
    label_N: Ids,
    confidence_N: NDArray[np.floating[Any]],
    delay_s_N: NDArray[np.float64],
    num_outputs: int,
    sent_at: float,
) -> LabelReports:
    """Label rows of predictions whose label arrived.

    Args:
        senders: The K rows.
        owner_N: ``[N]`` the row of each prediction.
        truth_N: ``[N]`` the classes that the labels say.
        label_N: ``[N]`` the classes that were predicted.
        confidence_N: ``[N]`` of the predictions.
        delay_s_N: ``[N]`` seconds from the prediction to the arrival of its label.
        num_outputs: M.
        sent_at: The devices' clock, seconds.
    """
    num = len(senders.device_K)
    confusion = _count(owner_N, truth_N * num_outputs + label_N, num, num_outputs * num_outputs)
    tenth, right = _tenth(confidence_N), label_N == truth_N
    labelled = _count(owner_N, tenth, num, NUM_CONFIDENCE_BINS)
    correct = _count(owner_N[right], tenth[right], num, NUM_CONFIDENCE_BINS)
    return LabelReports(
        device_K=senders.device_K,
        slot_K=senders.slot_K,
        version_K=senders.version_K,
        sequence_K=np.zeros(num, dtype=np.int64),
        sent_at_K=np.full(num, sent_at),
        confusion_KMM=confusion.reshape(num, num_outputs, num_outputs),
        error_K2=None,
        calibration_KB2=np.stack([labelled, correct], axis=2),
        delay_KD=_count(owner_N, delay_bin(delay_s_N), num, NUM_DELAY_BINS),
        log_loss_K=_added(owner_N, log_loss_steps(confidence_N, right), num),
    )


def _count(owner: Ids, cell: Ids, num: int, cells: int) -> NDArray[np.int32]:
    """``[num, cells]`` how often each owner has each cell."""
    return np.bincount(owner * cells + cell, minlength=num * cells).reshape(num, cells).astype(np.int32)


def _added(owner: Ids, value: Ids, num: int) -> Ids:
    """``[num]`` the exact sum of each owner's integers."""
    total = np.zeros(num, dtype=np.int64)
    np.add.at(total, owner, value)
    return total


def _total(owner: Ids, value: NDArray[np.float64], num: int) -> NDArray[np.float64]:
    """``[num, 2]`` the sum of each owner's values, and how many they are."""
    return np.stack([np.bincount(owner, value, minlength=num), np.bincount(owner, minlength=num)], axis=1)


def _tenth(share: NDArray[np.floating[Any]]) -> Ids:
    """The bin of ten of each number in [0, 1]."""
    return np.minimum((share * NUM_CONFIDENCE_BINS).astype(np.int64), NUM_CONFIDENCE_BINS - 1)
