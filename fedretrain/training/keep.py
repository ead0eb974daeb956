"""When a device keeps a re-fit of its personal state: the rule, the same with torch and without.

Rules of this file:
    * numpy only: the agent decides by it where no torch is installed, and `blend` for a simulated fleet.
    * The hold-out is temporal: a random one would let the re-fit see the future of a drifting sensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import ConfigError
from fedretrain.core.types import ClientData

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Verdict(StrEnum):
    """What became of a device's re-fit."""

    KEPT = "kept"
    FELL = "fell"  # its held-out score was lower than before
    TOO_FEW = "too_few"  # too few labelled samples to hold any out
    NONFINITE = "nonfinite"  # the re-fit ran away
    NOT_POSSIBLE = "not_possible"  # the device has no means to re-fit a personal state of this kind


@dataclass(frozen=True)
class BlendConfig:
    """When a re-fit is kept.

    Attributes:
        holdout_fraction: The newest part of a device's labelled samples, never trained on here.
        min_holdout: The fewest samples that a verdict may rest on; as many again are needed to fit.
        tolerance: How much the score may fall all the same (accuracy as a fraction, RMSE in the target's unit).
    """

    holdout_fraction: float = 0.25
    min_holdout: int = 5
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.holdout_fraction < 1:
            raise ConfigError(f"{self.holdout_fraction} is not in (0, 1)", where="blend.holdout_fraction")
        if self.min_holdout < 1:
            raise ConfigError("a verdict needs at least one sample", where="blend.min_holdout")
        if not self.tolerance >= 0:
            raise ConfigError(f"{self.tolerance} is below 0", where="blend.tolerance")

    def split(self, data: ClientData) -> tuple[ClientData, ClientData] | None:
        """The samples to fit on and the newest ones to judge by, or None if there are too few.

        Args:
            data: In the order of time.
        """
        held = max(self.min_holdout, round(self.holdout_fraction * len(data)))
        cut = len(data) - held
        if cut < self.min_holdout:
            return None
        return ClientData(data.x[:cut], data.y[:cut]), ClientData(data.x[cut:], data.y[cut:])


def verdict_of(fitted: NDArray[np.float32], before: float, after: float, tolerance: float) -> Verdict:
    """What becomes of a re-fit.

    Args:
        fitted: ``[Q]`` the new personal state, packed.
        before: Held-out score of what is served; higher is better.
        after: Held-out score of the re-fit.
        tolerance: How much it may fall all the same.
    """
    if not (np.isfinite(fitted).all() and np.isfinite(after)):
        return Verdict.NONFINITE
    # What was served before may have been NaN itself; anything finite is then no fall.
    return Verdict.FELL if after < before - tolerance else Verdict.KEPT
