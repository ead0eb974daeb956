"""What the store says about a window of slots.

Rules of this file:
    * Counts only; divergences, shares and intervals are computed by who asks.
    * Groups come first; the fleet is their sum. What is by device says so in its name.

Shapes: G groups, D devices, F features, C cells, M classes, B confidence bins, L latency bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Served:
    """One version's predictions and labels in a window, by the time of the *prediction*.

    Attributes:
        outputs_GM: int64 predictions by class or baseline bin.
        confidence_GB: int64 predictions by confidence.
        entropy_GB: int64 predictions by entropy.
        latency_GL: int64 predictions by latency.
        confusion_GMM: int64 ``[G, true, predicted]``; all 0 for a regression.
        calibration_GB2: int64 (labelled, correct) by confidence.
        delay_GD: int64 labels by delay.
        error_G2: float64 (sum of squared errors, count); all 0 for a classification.
        kpis_G2: float64 (total, weight) of each KPI.
        predictions_D: int64 predictions of each device.
        confidence_DB: int64 those by confidence.
        labelled_D: int64 those with a label.
        correct_D: int64 those with a label that says they were right.
        log_loss_D2: int64 (sum in `reports.LOG_LOSS_STEP`, count) of the labelled ones' log scores; ``[D, 0]`` for a regression.
        error_D2: float64 (sum of squared errors, count) of each device.
        kpis_D2: float64 (total, weight) of each KPI by device.
    """

    outputs_GM: NDArray[np.int64]
    confidence_GB: NDArray[np.int64]
    entropy_GB: NDArray[np.int64]
    latency_GL: NDArray[np.int64]
    confusion_GMM: NDArray[np.int64]
    calibration_GB2: NDArray[np.int64]
    delay_GD: NDArray[np.int64]
    error_G2: NDArray[np.float64]
    kpis_G2: Mapping[str, NDArray[np.float64]]
    predictions_D: NDArray[np.int64]
    confidence_DB: NDArray[np.int64]
    labelled_D: NDArray[np.int64]
    correct_D: NDArray[np.int64]
    log_loss_D2: NDArray[np.int64]
    error_D2: NDArray[np.float64]
    kpis_D2: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class WindowCounts:
    """A window of the fleet.

    Attributes:
        first_slot: Its first slot.
        end_slot: The slot after its last.
        num_kept: Its slots that the store still has, or that have not come yet and are thus empty; fewer than the window's
            length if the window begins before what is kept.
        features_GFC: int64 sensor rows by group, feature and cell.
        violations_GF: int64 values outside of the schema's range.
        reported_D: bool devices that sent telemetry.
        served: By version; absent if it served nothing.
        distinct_GFR: uint8 HyperLogLog registers over the chunks that the window touches; R is 0 if they are not kept.
    """

    first_slot: int
    end_slot: int
    num_kept: int
    features_GFC: NDArray[np.int64]
    violations_GF: NDArray[np.int64]
    reported_D: NDArray[np.bool_]
    served: Mapping[int, Served]
    distinct_GFR: NDArray[np.uint8]

    @property
    def features_FC(self) -> NDArray[np.int64]:  # noqa: N802 - a shape suffix
        """The fleet's features."""
        total: NDArray[np.int64] = self.features_GFC.sum(axis=0)
        return total

    @property
    def num_rows(self) -> int:
        """Sensor rows of the fleet."""
        return int(self.features_GFC[:, 0].sum()) if self.features_GFC.shape[1] else 0


@dataclass(frozen=True)
class PersonalCounts:
    """What devices said of their personal models over whole chunks, whatever version they served.

    Attributes:
        distance_DP: int64 re-fits by relative distance from the global model.
        gap_D2: float64 (sum, count) of score gaps.
        bases_D2: int64 (asked, refused) new global models.
    """

    distance_DP: NDArray[np.int64]
    gap_D2: NDArray[np.float64]
    bases_D2: NDArray[np.int64]


@dataclass(frozen=True)
class DeviceCounts:
    """Features by device over whole chunks.

    Attributes:
        first_slot: The first chunk's first slot.
        end_slot: The slot after the last chunk's last.
        features_DFC: int32 or int64 sensor rows by device, feature and cell.
    """

    first_slot: int
    end_slot: int
    features_DFC: NDArray[np.integer]
