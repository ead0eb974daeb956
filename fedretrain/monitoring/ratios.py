"""Ratios of sums over devices, such as a KPI per device-hour or a mean squared error, with the device as the unit.

Rules of this file:
    * The spread between devices decides, never the number of events.
    * Fewer than two devices earn no bounds: they are infinite. No weight at all gives NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.monitoring.intervals import student_quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Ratio:
    """A ratio over devices.

    Attributes:
        value: Sum of totals over sum of weights; NaN without weight.
        low: Lower bound.
        high: Upper bound.
        num_devices: Devices with a weight.
    """

    value: float
    low: float
    high: float
    num_devices: int


def ratio(pair_D2: NDArray[np.float64], confidence: float) -> Ratio:
    """The ratio of sums and its interval.

    The variance is that of the devices' residuals (Cochran 1977, Sampling Techniques, section 2.11), the quantile Student's.

    Args:
        pair_D2: ``[D, 2]`` (total, weight) of each device, weights of at least 0.
        confidence: Two-sided.
    """
    counted_K2 = pair_D2[pair_D2[:, 1] > 0]
    number, weight = len(counted_K2), float(counted_K2[:, 1].sum())
    if not number:
        return Ratio(math.nan, math.nan, math.nan, 0)
    value = float(counted_K2[:, 0].sum()) / weight
    if number < 2:
        return Ratio(value, -math.inf, math.inf, number)
    rest_K = counted_K2[:, 0] - value * counted_K2[:, 1]
    error = math.sqrt(float(np.square(rest_K).sum()) * number / (number - 1)) / weight
    half = student_quantile(confidence, number - 1) * error
    return Ratio(value, value - half, value + half, number)
