"""Personal models against the global one, as devices say it after each re-fit.

Rules of this file:
    * Every device counts alike, however often it re-fits: its own mean is one value, its distances are one histogram.
    * Silence is None, not "no gap": a fleet without personal models has no view here.

Shapes: D devices, P distance bins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedretrain.monitoring.fleet_view import PersonalView
from fedretrain.monitoring.intervals import device_share, divide
from fedretrain.monitoring.predictions import quantile_bounds
from fedretrain.monitoring.ratios import ratio
from fedretrain.monitoring.reports import DISTANCE_EDGES

if TYPE_CHECKING:
    from fedretrain.monitoring.windows import PersonalCounts

_PARTS = 1_000_000  # of a device, so that shares of devices are whole counts


def personal_view(counts: PersonalCounts, confidence: float) -> PersonalView | None:
    """What devices said in a window; None if nobody said anything.

    Args:
        counts: By device.
        confidence: Of the intervals, two-sided.
    """
    compared_D, asked_D = counts.gap_D2[:, 1] > 0, counts.bases_D2[:, 0] > 0
    if not (compared_D.any() or asked_D.any() or counts.distance_DP.any()):
        return None
    gap_D = divide(counts.gap_D2[:, 0], counts.gap_D2[:, 1])[compared_D]
    gap = ratio(np.stack([gap_D, np.ones(len(gap_D))], axis=1), confidence)
    refused = device_share((counts.bases_D2[:, 1] > 0) & asked_D, asked_D, confidence)
    share_DP = divide(counts.distance_DP.astype(np.float64), counts.distance_DP.sum(axis=1, keepdims=True))
    parts_P = np.rint(_PARTS * np.nan_to_num(share_DP)).sum(axis=0)
    median, high = (float(quantile_bounds(parts_P, DISTANCE_EDGES, q).high) for q in (0.5, 0.9))
    return PersonalView(
        num_devices=len(gap_D),
        gap=gap.value,
        gap_low=gap.low,
        gap_high=gap.high,
        worse_fraction=float(np.mean(gap_D < 0)) if len(gap_D) else float("nan"),
        distance=(median, high),
        num_asked=int(asked_D.sum()),
        refused_fraction=float(refused.estimate),
        refused_low=float(refused.low),
        refused_high=float(refused.high),
    )
