"""A small fleet whose telemetry is made from Gaussian sensors, for the tests of monitoring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fedretrain.monitoring.bins import Bins, fit_bins
from fedretrain.monitoring.histogram import count_by
from fedretrain.monitoring.reports import (
    NUM_CONFIDENCE_BINS,
    NUM_DELAY_BINS,
    NUM_DISTANCE_BINS,
    NUM_LATENCY_BINS,
    LabelReports,
    Reports,
    distance_bin,
)
from fedretrain.monitoring.store import FleetStore

SLOT_S = 3600.0
NAMES = ("temperature", "pressure", "current")
Shift = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (values [N, F], device of each row [N]) -> values


def bins_of(num_features: int = len(NAMES)) -> Bins:
    x = np.random.default_rng(0).normal(size=(5_000, num_features))
    return fit_bins(
        x, NAMES[:num_features] if num_features <= len(NAMES) else [f"f{i}" for i in range(num_features)]
    )


def store_of(bins: Bins, num_devices: int, *, num_groups: int = 2, **options: object) -> FleetStore:
    settings: dict = {"num_outputs": 2, "keep_slots": 24 * 40, "kpis": ("alarms",), **options}
    return FleetStore(num_devices, np.arange(num_devices) % num_groups, bins, SLOT_S, **settings)


def telemetry(
    bins: Bins,
    slot: int,
    num_devices: int,
    rng: np.random.Generator,
    *,
    rows: int = 20,
    version: int = 1,
    shift: Shift | None = None,
    unsure: float = 0.1,
    alarms: float = 2.0,
) -> Reports:
    """One slot of every device: `rows` sensor rows and as many predictions each."""
    owner = np.repeat(np.arange(num_devices), rows)
    x = rng.normal(size=(len(owner), bins.num_features))
    if shift is not None:
        x = shift(x, owner)
    confidence = np.zeros((num_devices, NUM_CONFIDENCE_BINS), np.int32)
    confidence[:, 2] = rng.binomial(rows, unsure, num_devices)
    confidence[:, 9] = rows - confidence[:, 2]
    outputs = np.zeros((num_devices, 2), np.int32)
    outputs[:, 0] = rng.binomial(rows, 0.5, num_devices)
    outputs[:, 1] = rows - outputs[:, 0]
    latency = np.zeros((num_devices, NUM_LATENCY_BINS), np.int32)
    latency[:, 8] = rows
    return Reports(
        device_K=np.arange(num_devices),
        slot_K=np.full(num_devices, slot),
        version_K=np.full(num_devices, version),
        sequence_K=np.full(num_devices, slot),
        sent_at_K=np.full(num_devices, (slot + 1) * SLOT_S),
        bins=bins.digest,
        features_KFC=count_by(bins, x, owner, num_devices).astype(np.int32),
        violations_KF=np.zeros((num_devices, bins.num_features), np.int32),
        outputs_KM=outputs,
        confidence_KB=confidence,
        entropy_KB=confidence.copy(),
        latency_KL=latency,
        kpis={
            "alarms": np.stack([rng.poisson(alarms, num_devices), np.ones(num_devices)], axis=1).astype(float)
        },
    )


def personal_of(
    reports: Reports, gap_K: np.ndarray, distance_K: np.ndarray, refused_K: np.ndarray, times: int = 1
) -> Reports:
    """The rows, each with so many re-fits of one gap and one distance, and as many new bases, refused or not."""
    count = len(reports)
    distance = np.zeros((count, NUM_DISTANCE_BINS), np.int32)
    distance[np.arange(count), distance_bin(distance_K)] = times
    bases = np.stack([np.full(count, times), times * np.asarray(refused_K, np.int64)], axis=1).astype(
        np.int32
    )
    gap = np.stack([times * np.asarray(gap_K, np.float64), np.full(count, float(times))], axis=1)
    return replace(reports, distance_KP=distance, gap_K2=gap, bases_K2=bases)


def labels_for(
    reports: Reports, accuracy: float, rng: np.random.Generator, *, share: float = 0.5, delay_at: int = 3
) -> LabelReports:
    """Labels of some of the predictions, one to three hours late; right with probability `accuracy`."""
    count = len(reports)
    labelled = rng.binomial(reports.num_predictions, share)
    right = rng.binomial(labelled, accuracy)
    confusion = np.zeros((count, 2, 2), np.int32)
    confusion[:, 0, 0] = right // 2
    confusion[:, 1, 1] = right - right // 2
    confusion[:, 0, 1] = labelled - right
    calibration = np.zeros((count, NUM_CONFIDENCE_BINS, 2), np.int32)
    calibration[:, 9, 0] = np.minimum(labelled, reports.confidence_KB[:, 9])
    calibration[:, 9, 1] = np.minimum(right, calibration[:, 9, 0])
    delay = np.zeros((count, NUM_DELAY_BINS), np.int32)
    delay[:, delay_at] = labelled
    return LabelReports(
        reports.device_K,
        reports.slot_K,
        reports.version_K,
        reports.sequence_K,
        reports.sent_at_K + SLOT_S,
        confusion,
        None,
        calibration,
        delay,
    )


def fill(
    store: FleetStore,
    first: int,
    end: int,
    rng: np.random.Generator,
    *,
    accuracy: float = 0.9,
    share: float = 0.5,
    delay_at: int = 3,
    **options: object,
) -> None:
    """Telemetry and labels of some slots."""
    for slot in range(first, end):
        reports = telemetry(store.bins, slot, store.num_devices, rng, **options)
        store.add(reports)
        store.add_labels(labels_for(reports, accuracy, rng, share=share, delay_at=delay_at))
