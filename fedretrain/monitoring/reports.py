"""What devices send: telemetry rows and labels that came back, K rows at once (a single device is K = 1).

Rules of this file:
    * Counts, never samples: every array is additive, so rows merge by addition in any order.
    * One telemetry row is one device, one slot, one serving version; one label row is one device, the slot *of the
      prediction* and the version that made it.
    * A sequence number identifies a row among those that a device sent for a slot. Sending it again is the same row again.
    * The edges of latency and delay bins are constants here, so that every device and every release share them.

Shapes: K rows, F features, C cells, M classes (or baseline bins of a regression's output), B confidence bins,
L latency bins, D delay bins, R registers, P distance bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from fedretrain.core.clock import DAY_S, HOUR_S
from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

NUM_CONFIDENCE_BINS = 10
LATENCY_EDGES_S: tuple[float, ...] = tuple(float(edge) for edge in np.geomspace(1e-5, 10.0, 25))
"""Four bins a decade from 10 us to 10 s; the first and the last bin are open: L = 26."""
DELAY_EDGES_S: tuple[float, ...] = (
    60.0,
    600.0,
    HOUR_S,
    3 * HOUR_S,
    6 * HOUR_S,
    12 * HOUR_S,
    DAY_S,
    2 * DAY_S,
    3 * DAY_S,
    7 * DAY_S,
    14 * DAY_S,
    30 * DAY_S,
)
"""Inner edges: bin 0 is below a minute, the last one 30 days and more: D = 13."""
DISTANCE_EDGES: tuple[float, ...] = tuple(float(edge) for edge in np.geomspace(1e-3, 10.0, 17))
"""Four bins a decade of the relative distance between a personal and the global model: P = 18."""
LOG_LOSS_LEAST = 1e-3
"""Confidence is taken to be no nearer to 0 or 1 when its log score is counted."""
LOG_LOSS_STEP = 2.0**-10
"""The unit of summed log scores, in nats."""
LOG_LOSS_MOST = math.ceil(-math.log(LOG_LOSS_LEAST) / LOG_LOSS_STEP)
"""No prediction costs more steps."""
LATENCY_KPI = "latency_s"
"""The KPI that every device reports: seconds of all predictions with a class, and their number."""
NUM_LATENCY_BINS = len(LATENCY_EDGES_S) + 1
NUM_DELAY_BINS = len(DELAY_EDGES_S) + 1
NUM_DISTANCE_BINS = len(DISTANCE_EDGES) + 1


def latency_bin(latency_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """The latency bin of each duration; any shape."""
    return np.searchsorted(np.asarray(LATENCY_EDGES_S), latency_s, side="right").astype(np.int64)


def delay_bin(delay_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """The delay bin of each duration; any shape."""
    return np.searchsorted(np.asarray(DELAY_EDGES_S), delay_s, side="right").astype(np.int64)


def distance_bin(distance: NDArray[np.float64]) -> NDArray[np.int64]:
    """The distance bin of each relative distance; any shape."""
    return np.searchsorted(np.asarray(DISTANCE_EDGES), distance, side="right").astype(np.int64)


@dataclass(frozen=True)
class _Rows:
    """What both kinds of rows carry.

    Attributes:
        device_K: Device indices.
        slot_K: Slot indices, ``floor(event_at / slot_s)``.
        version_K: The release that served (0 is the rules baseline).
        sequence_K: The device's own number of the row, from 0 to 2**32 - 1.
        sent_at_K: The device's clock when it sent, seconds.
    """

    device_K: NDArray[np.int64]
    slot_K: NDArray[np.int64]
    version_K: NDArray[np.int64]
    sequence_K: NDArray[np.int64]
    sent_at_K: NDArray[np.float64]

    def __post_init__(self) -> None:
        for name, value in self._arrays().items():
            if len(value) != len(self.device_K):
                raise DataError(
                    f"{len(value)} rows, but there are {len(self.device_K)} devices",
                    where=f"{type(self).__name__}.{name}",
                    fix="give one entry per row",
                )

    def __len__(self) -> int:
        return len(self.device_K)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """Every array of rows by name; those of the KPIs as ``kpis.NAME``."""
        found: dict[str, NDArray[Any]] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, np.ndarray):
                found[entry.name] = value
            elif isinstance(value, dict):
                found.update({f"{entry.name}.{key}": part for key, part in value.items()})
        return found

    @property
    def columns(self) -> frozenset[str]:
        """Names of the arrays that are there: rows with the same can be joined."""
        return frozenset(self._arrays())

    def take(self, keep: NDArray[Any]) -> Self:
        """The rows where `keep` (a mask or indices) points, in that order."""
        changed: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, np.ndarray):
                changed[entry.name] = value[keep]
            elif isinstance(value, dict):
                changed[entry.name] = {key: part[keep] for key, part in value.items()}
        return replace(self, **changed)


@dataclass(frozen=True)
class Reports(_Rows):
    """Telemetry: one row is one device, one slot, one serving version.

    Attributes:
        bins: Digest of the `Bins` that the features were counted on.
        features_KFC: int32 rows of sensor data by feature and cell.
        violations_KF: int32 values outside of the schema's range, by feature.
        outputs_KM: int32 predictions by class, or by baseline bin of a regression's output.
        confidence_KB: int32 predictions by confidence, ten equal bins of [0, 1]; all 0 where there is none.
        entropy_KB: int32 predictions by entropy over log M, ten equal bins; all 0 where there is none.
        latency_KL: int32 predictions by latency, on `LATENCY_EDGES_S`.
        kpis: float64 ``[K, 2]`` (total, weight) by the KPI's name; a name that is absent counts nothing.
        distinct_KFR: uint8 HyperLogLog registers of each feature, or None.
        distance_KP: int32 re-fits by the relative distance of what the device goes on with from the new global model, on
            `DISTANCE_EDGES`, or None on devices that have no personal model; so are the next two.
        gap_K2: float64 (sum, count) of held-out score of what the device goes on with, minus that of the new global model.
        bases_K2: int32 (asked, refused) new global models that the device was to go over to.
    """

    bins: str
    features_KFC: NDArray[np.int32]
    violations_KF: NDArray[np.int32]
    outputs_KM: NDArray[np.int32]
    confidence_KB: NDArray[np.int32]
    entropy_KB: NDArray[np.int32]
    latency_KL: NDArray[np.int32]
    kpis: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    distinct_KFR: NDArray[np.uint8] | None = None
    distance_KP: NDArray[np.int32] | None = None
    gap_K2: NDArray[np.float64] | None = None
    bases_K2: NDArray[np.int32] | None = None

    @property
    def num_predictions(self) -> NDArray[np.int64]:
        """``[K]`` predictions of each row."""
        total: NDArray[np.int64] = self.outputs_KM.sum(axis=1, dtype=np.int64)
        return total


@dataclass(frozen=True)
class LabelReports(_Rows):
    """Labels that came back: one row is one device, one slot of predictions, one version.

    Attributes:
        confusion_KMM: int32 ``[K, true, predicted]`` (classification), or None.
        error_K2: float64 sum of squared errors and their count (regression), or None.
        calibration_KB2: int32 (labelled, correct) by confidence bin.
        delay_KD: int32 labels by the time from prediction to arrival, on `DELAY_EDGES_S`.
        log_loss_K: int64 sum of the log scores of their confidence (`calibration.log_loss_steps`), of all that `calibration_KB2` counts; None for a
            regression.
    """

    confusion_KMM: NDArray[np.int32] | None
    error_K2: NDArray[np.float64] | None
    calibration_KB2: NDArray[np.int32]
    delay_KD: NDArray[np.int32]
    log_loss_K: NDArray[np.int64] | None = None

    @property
    def num_labelled(self) -> NDArray[np.int64]:
        """``[K]`` predictions that each row labels."""
        if self.confusion_KMM is not None:
            labelled: NDArray[np.int64] = self.confusion_KMM.sum(axis=(1, 2), dtype=np.int64)
            return labelled
        if self.error_K2 is not None:
            return np.asarray(self.error_K2[:, 1], dtype=np.int64)
        return np.zeros(len(self), dtype=np.int64)

    @property
    def num_correct(self) -> NDArray[np.int64]:
        """``[K]`` labelled predictions that were right; 0 for a regression."""
        if self.confusion_KMM is None:
            return np.zeros(len(self), dtype=np.int64)
        right: NDArray[np.int64] = np.einsum("kmm->k", self.confusion_KMM, dtype=np.int64)
        return right


RowsT = TypeVar("RowsT", bound=_Rows)


def join(parts: Sequence[RowsT]) -> RowsT:
    """All rows of `parts`, one after the other.

    Raises:
        DataError: If there is no part, or parts differ in bins, KPIs or in what is None.
    """
    if not parts:
        raise DataError("there are no rows to join", fix="join at least one batch, which may be empty")
    first = parts[0]
    changed: dict[str, Any] = {}
    for entry in fields(first):
        values = [getattr(part, entry.name) for part in parts]
        if all(isinstance(value, np.ndarray) for value in values):
            changed[entry.name] = np.concatenate(values)
        elif all(isinstance(value, dict) and value.keys() == values[0].keys() for value in values):
            changed[entry.name] = {key: np.concatenate([v[key] for v in values]) for key in values[0]}
        elif any(isinstance(value, np.ndarray) for value in values) or any(v != values[0] for v in values):
            raise DataError("batches of different kinds cannot be joined", where=entry.name)
    return replace(first, **changed)
