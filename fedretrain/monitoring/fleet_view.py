"""The fleet in one window, as a decision sees it: plain values.

Rules of this file:
    * What is not known is NaN or None, and the verdict is INCONCLUSIVE. Silence is never "fine".
    * What is estimated says so in its name.

Shapes: G groups, F features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from fedretrain.monitoring.labels import CurveDrift

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from fedretrain.monitoring.kpi import DecayEvidence
    from fedretrain.monitoring.locate import DriftPlace
    from fedretrain.monitoring.ratios import Ratio
    from fedretrain.monitoring.refusal import Refusal


class ViewVerdict(StrEnum):
    """What a window says about the inputs."""

    INCONCLUSIVE = "inconclusive"  # too few rows, no null, or a null too small to reject anything
    UNCHANGED = "unchanged"
    SHIFTED = "shifted"  # at least one feature above the limit and beyond its null


@dataclass(frozen=True)
class ServingView:
    """What the champion's predictions and their labels say.

    Attributes:
        num_predictions: Predictions in the window.
        output_psi: PSI of the predictions against the baseline's.
        output_p: Its p-value under the empirical null.
        low_confidence_fraction: Share of unsure predictions.
        decay: What recipe B makes of them.
        latency_s: Upper bounds of the 50th, 95th and 99th percentile.
        completeness: Labelled share of the predictions.
        expected_completeness: What it should be by now if labels come as they did.
        accuracy: Share of the labelled predictions that were right.
        accuracy_low: Lower bound.
        accuracy_high: Upper bound.
        macro_f1: Mean F1 over classes.
        rmse: Root mean squared error of a regression.
        rmse_low: Lower bound.
        rmse_high: Upper bound.
        num_labelled_devices: Devices with a label.
        estimated_accuracy: Accuracy estimated from confidence: an estimate, not a measurement.
        kpis: KPIs with their intervals.
        kpis_D2: Those with a sequential test, (total, weight) by device, in the window in which they are judged.
    """

    num_predictions: int
    output_psi: float
    output_p: float
    low_confidence_fraction: float
    decay: DecayEvidence
    latency_s: tuple[float, float, float]
    completeness: float
    expected_completeness: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    macro_f1: float
    rmse: float
    rmse_low: float
    rmse_high: float
    num_labelled_devices: int
    estimated_accuracy: float
    kpis: Mapping[str, Ratio]
    kpis_D2: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class PersonalView:
    """What devices say of their personal models against the global one; every device counts alike.

    Attributes:
        num_devices: Devices that compared them.
        gap: Mean held-out score of the personal model minus that of the global one; NaN if nobody compared.
        gap_low: Lower bound.
        gap_high: Upper bound.
        worse_fraction: Share of those devices whose personal model is the worse one.
        distance: Upper bounds of the median and of the 90th percentile of the relative distance.
        num_asked: Devices that were to go over to a new global model.
        refused_fraction: Share of them that refused it at least once; NaN if nobody was asked.
        refused_low: Lower bound.
        refused_high: Upper bound.
    """

    num_devices: int
    gap: float
    gap_low: float
    gap_high: float
    worse_fraction: float
    distance: tuple[float, float]
    num_asked: int
    refused_fraction: float
    refused_low: float
    refused_high: float


@dataclass(frozen=True)
class FleetView:
    """The fleet in one window.

    Attributes:
        at: The window's end, seconds.
        window_s: Its length.
        version: The champion.
        features: F names.
        verdict: What the window says about the inputs.
        num_rows: Sensor rows.
        num_devices: Devices that reported.
        psi_F: PSI of each feature; NaN where unknown.
        p_F: p-value under the empirical null; NaN where unknown.
        known_F: Features about which the window can say something.
        significant_F: Features beyond their null, false-discovery rate controlled.
        shifted_F: Those of them above the limit.
        psi_GF: PSI of each group against its own baseline; NaN where there are more groups than in the baseline.
        missing_F: Missing share.
        violations_F: Share outside of the schema's range.
        distinct_F: About how many distinct values; NaN if they are not counted.
        serving: Predictions and labels; None if the champion served nothing.
        where: Where drift lives.
        refusals: Rows refused so far, by reason.
        personal: Personal models against the global one; None if no device said anything of them.
        pace: How soon labels come, against the baseline; its p-value is NaN where that cannot be told.
    """

    at: float
    window_s: float
    version: int
    features: tuple[str, ...]
    verdict: ViewVerdict
    num_rows: int
    num_devices: int
    psi_F: NDArray[np.float64]
    p_F: NDArray[np.float64]
    known_F: NDArray[np.bool_]
    significant_F: NDArray[np.bool_]
    shifted_F: NDArray[np.bool_]
    psi_GF: NDArray[np.float64]
    missing_F: NDArray[np.float64]
    violations_F: NDArray[np.float64]
    distinct_F: NDArray[np.float64]
    serving: ServingView | None
    where: DriftPlace
    refusals: Mapping[Refusal, int] = field(default_factory=dict)
    pace: CurveDrift = field(default_factory=CurveDrift)
    personal: PersonalView | None = None

    @property
    def output_psi(self) -> float:
        """PSI of the predictions against the baseline's; NaN if the champion served nothing."""
        return math.nan if self.serving is None else self.serving.output_psi

    @property
    def low_confidence_fraction(self) -> float:
        """Share of unsure predictions; NaN likewise."""
        return math.nan if self.serving is None else self.serving.low_confidence_fraction

    @property
    def accuracy(self) -> float:
        """Share of the labelled predictions that were right; NaN without labels."""
        return math.nan if self.serving is None else self.serving.accuracy

    @property
    def accuracy_low(self) -> float:
        """Lower bound."""
        return math.nan if self.serving is None else self.serving.accuracy_low

    @property
    def accuracy_high(self) -> float:
        """Upper bound."""
        return math.nan if self.serving is None else self.serving.accuracy_high

    @property
    def macro_f1(self) -> float:
        """Mean F1 over classes; NaN without labels."""
        return math.nan if self.serving is None else self.serving.macro_f1

    @property
    def completeness(self) -> float:
        """Labelled share of the predictions; NaN without predictions."""
        return math.nan if self.serving is None else self.serving.completeness

    @property
    def estimated_accuracy(self) -> float:
        """Accuracy estimated from confidence: an estimate, not a measurement; NaN if it cannot be."""
        return math.nan if self.serving is None else self.serving.estimated_accuracy

    @property
    def kpis(self) -> Mapping[str, Ratio]:
        """KPIs with their intervals; empty if the champion served nothing."""
        return {} if self.serving is None else self.serving.kpis
