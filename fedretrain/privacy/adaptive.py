"""A clip norm that follows a quantile of the updates' norms (Andrew et al., arXiv:1905.03871), centred bit.

Rules of this file:
    * b = 1 where an update was *not* clipped. What is released is ``(sum of (b_i - gamma) + noise) / n`` over those
      who answered, n the expected cohort: a missing device adds 0, so dropouts slow the norm down and never push
      it. With the uncentred ``sum(b_i) / n - gamma`` a cohort that answers at a share below gamma looks as if
      everything was clipped, and the norm grows without end.
    * More unclipped than gamma: the norm is too large, and shrinks: ``C <- C exp(-rate * released)``.
    * A round is clipped and noised with *its own* clip norm; the update speaks of the next round.
    * The bit is charged with the round, jointly (`PrivacyEvent.mu_squared`), never for free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedretrain.core.errors import PrivacyError
from fedretrain.privacy.mechanism import Relation, Unit, lattice_gaussian, sensitivity_factor

if TYPE_CHECKING:
    from fedretrain.privacy.mechanism import NoiseSource

_LATTICE = 2.0**-20  # the centred sum is counted in integers of this step; gamma is rounded to it


def bit_sensitivity(quantile: float, relation: Relation, unit: Unit = Unit.DEVICE) -> float:
    """How far one contribution moves the sum of centred bits.

    Taken away (or zeroed) it moves b - gamma, one of 1 - gamma and -gamma, to 0: max(gamma, 1 - gamma). Replaced,
    it moves from one of these to the other: 1.
    """
    return max(quantile, 1 - quantile) if sensitivity_factor(relation, unit) == 1.0 else 1.0


def delta_noise_multiplier(
    total: float, bit_noise_stddev: float, quantile: float, relation: Relation, unit: Unit = Unit.DEVICE
) -> float:
    """What the updates' noise multiplier must be so that updates and bit together cost as much as `total` alone.

    Scale each released block to unit noise: one contribution moves the updates' sum by f C / (z_delta C) and the
    bits' by s / sigma_b, hence the joint vector by the root of the sum of squares. A spherical Gaussian's privacy
    loss depends on that distance alone, so ``(f / z_total)^2 = (f / z_delta)^2 + (s / sigma_b)^2``. With gamma = 1/2
    this is theorem 1 of arXiv:1905.03871, ``z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2)``.

    Raises:
        PrivacyError: If the bit alone costs more than `total`.
    """
    factor = sensitivity_factor(relation, unit)
    share = (factor / total) ** 2 - (bit_sensitivity(quantile, relation, unit) / bit_noise_stddev) ** 2
    if share <= 0:
        raise PrivacyError(
            f"the clipping bit with noise {bit_noise_stddev:g} costs more than noise multiplier {total:g} allows",
            where="privacy.adaptive_clip",
            fix="ask a larger cohort (the bit's noise is usually a twentieth of it), or allow a larger epsilon",
        )
    return factor / math.sqrt(share)


def total_noise_multiplier(
    delta: float, bit_noise_stddev: float, quantile: float, relation: Relation, unit: Unit = Unit.DEVICE
) -> float:
    """What updates with noise multiplier `delta` and the bit cost together: the inverse of `delta_noise_multiplier`."""
    factor = sensitivity_factor(relation, unit)
    bit = bit_sensitivity(quantile, relation, unit) / bit_noise_stddev
    return factor / math.hypot(factor / delta, bit)


@dataclass(frozen=True)
class AdaptiveClip:
    """The clip norm's rule; its state is the clip norm.

    Attributes:
        initial: First clip norm.
        quantile: Target gamma: the share of updates left unclipped.
        learning_rate: Of the geometric update; 0.2 in the paper.
        bit_noise_stddev: Noise on the centred *sum* of bits; a twentieth of the cohort in the paper.
        lowest: The norm never falls below this.
        highest: Nor rises above this.
    """

    initial: float
    bit_noise_stddev: float
    quantile: float = 0.5
    learning_rate: float = 0.2
    lowest: float = 1e-6
    highest: float = 1e6

    def __post_init__(self) -> None:
        sound = (
            0 < self.lowest <= self.initial <= self.highest < math.inf
            and 0 < self.quantile < 1
            and 0 < self.learning_rate < math.inf
            and 0 < self.bit_noise_stddev < math.inf
        )
        if not sound:
            raise PrivacyError(
                f"{self} cannot be run",
                where="privacy.adaptive_clip",
                fix="quantile in (0, 1); norms, rate and noise positive; initial between lowest and highest",
            )

    def init(self) -> float:
        """The first round's clip norm."""
        return self.initial

    def release(self, num_unclipped: int, num_replied: int, expected: float, noise: NoiseSource) -> float:
        """The noisy centred mean, in about [-gamma, 1 - gamma].

        Args:
            num_unclipped: Replies whose update kept its length, out of
            num_replied: those whose update entered the sum.
            expected: n, the public constant by which updates are divided too; never `num_replied`.
            noise: Where the bit's noise comes from; another stream than the updates'.
        """
        if not 0 <= num_unclipped <= num_replied:
            raise ValueError(f"{num_unclipped} unclipped of {num_replied} replies")
        gamma = round(self.quantile / _LATTICE)
        centred = num_unclipped * round(1 / _LATTICE) - num_replied * gamma
        drawn = lattice_gaussian(noise, 1, self.bit_noise_stddev, _LATTICE)
        return (centred + int(drawn[0])) * _LATTICE / expected

    def update(self, clip_norm: float, released: float) -> float:
        """The *next* round's clip norm."""
        grown = clip_norm * math.exp(-self.learning_rate * released)
        return min(max(grown, self.lowest), self.highest)
