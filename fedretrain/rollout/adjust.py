"""CUPED: subtract from each device what its own record from before predicts.

Rules of this file:
    * One regression coefficient for both arms, estimated on deviations from each arm's own mean, so that a difference between the arms
      does not leak into it.
    * A device without a record from before keeps its value: it is adjusted as if its record were the average one.
    * The adjustment moves both arms by the same expectation: it removes variance, never the effect.

Source: Deng, Xu, Kohavi, Walker 2013, "Improving the sensitivity of online controlled experiments by utilizing pre-experiment data",
https://doi.org/10.1145/2433396.2433413.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.rollout.metrics import DeviceMeans

_FEWEST = 10  # devices with a record from before, below which the coefficient is noise

_ROUNDING = 1e-20


@dataclass(frozen=True)
class Adjusted:
    """Device means with their predictable part removed.

    Attributes:
        treated_K: ``[K]`` of the treated devices.
        control_L: ``[L]`` of the control.
        coefficient: What was subtracted per unit of (before - mean before); 0 where nothing could be estimated.
        num_before: Devices that had a record from before.
    """

    treated_K: NDArray[np.float64]
    control_L: NDArray[np.float64]
    coefficient: float
    num_before: int


def adjust(treated: DeviceMeans, control: DeviceMeans) -> Adjusted:
    """Adjust both arms by the devices' records from before.

    Args:
        treated: Devices with finite values.
        control: Likewise.
    """
    x_K, x_L = treated.before_K, control.before_K
    has_K, has_L = np.isfinite(x_K), np.isfinite(x_L)
    num_before = int(has_K.sum() + has_L.sum())
    if num_before < _FEWEST:
        return Adjusted(treated.value_K, control.value_K, 0.0, num_before)
    x = np.concatenate([_centred(x_K[has_K]), _centred(x_L[has_L])])
    y = np.concatenate([_centred(treated.value_K[has_K]), _centred(control.value_K[has_L])])
    records = np.concatenate([x_K[has_K], x_L[has_L]])
    middle, spread = float(records.mean()), float(x @ x)
    flat = spread <= _ROUNDING * float(records @ records)  # equal records but for rounding predict nothing
    coefficient = 0.0 if flat else float(x @ y) / spread
    return Adjusted(
        treated.value_K - coefficient * np.where(has_K, x_K - middle, 0.0),
        control.value_K - coefficient * np.where(has_L, x_L - middle, 0.0),
        coefficient,
        num_before,
    )


def _centred(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x - x.mean() if len(x) else x
