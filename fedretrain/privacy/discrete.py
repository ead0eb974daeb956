"""The discrete Gaussian, drawn exactly: Canonne, Kamath and Steinke, arXiv:2004.00010, algorithms 1 to 3.

Rules of this file:
    * Integers and fractions only: no floating point, hence no rounding in any probability.
    * The sum of an integer vector of L2 sensitivity d and this noise is d^2 / (2 sigma^2)-concentrated private
      (theorem 14 there): the Renyi curve of the continuous Gaussian, so the RDP accountant is exact for it. PLD's
      curve is the continuous one's; use RDP where this noise is used.
    * Slow (tens of microseconds a draw). `mechanism.lattice_gaussian` over system noise is the default, and this its
      oracle; `ExactNoise` is for small releases and for those who accept nothing less.
"""

from __future__ import annotations

import secrets
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    RandBelow = Callable[[int], int]


class ExactNoise:
    """A noise source that draws the discrete Gaussian on the lattice itself, from the system's entropy.

    Args:
        randbelow: Uniform integers below a bound; `secrets.randbelow` in production.
    """

    def __init__(self, randbelow: RandBelow = secrets.randbelow) -> None:
        self._randbelow = randbelow

    def gaussian(self, size: int, stddev: float) -> NDArray[np.float64]:
        """Draws of the discrete Gaussian on a lattice of 2**-20 of the standard deviation."""
        return np.multiply(self.lattice(size, 2.0**20), stddev * 2.0**-20, dtype=np.float64)

    def lattice(self, size: int, stddev_steps: float) -> NDArray[np.int64]:
        """int64 ``[size]`` draws of the discrete Gaussian with sigma = `stddev_steps`."""
        return discrete_gaussian(size, Fraction(stddev_steps), self._randbelow)


def discrete_gaussian(size: int, sigma: Fraction, randbelow: RandBelow) -> NDArray[np.int64]:
    """Independent draws with probability proportional to exp(-x^2 / (2 sigma^2)) on the integers.

    Args:
        size: How many.
        sigma: Positive; exactly this value is used.
        randbelow: Uniform integers below a bound.
    """
    if sigma <= 0:
        raise ValueError(f"sigma is {sigma}, not positive")
    scale = int(sigma) + 1
    return np.array([_gaussian(sigma * sigma, scale, randbelow) for _ in range(size)], dtype=np.int64)


def _gaussian(variance: Fraction, scale: int, randbelow: RandBelow) -> int:
    while True:  # accepted with probability above 0.7
        drawn = _laplace(scale, randbelow)
        if _bernoulli_exp((abs(drawn) - variance / scale) ** 2 / (2 * variance), randbelow):
            return drawn


def _laplace(scale: int, randbelow: RandBelow) -> int:
    """P(x) proportional to exp(-|x| / scale)."""
    while True:
        low = randbelow(scale)
        if not _bernoulli_exp(Fraction(low, scale), randbelow):
            continue
        high = 0
        while _bernoulli_exp(Fraction(1), randbelow):
            high += 1
        magnitude = low + scale * high
        negative = randbelow(2) == 1
        if not (negative and magnitude == 0):
            return -magnitude if negative else magnitude


def _bernoulli_exp(gamma: Fraction, randbelow: RandBelow) -> bool:
    """True with probability exp(-gamma), exactly (von Neumann's series)."""
    while gamma > 1:
        if not _bernoulli_exp(Fraction(1), randbelow):
            return False
        gamma -= 1
    count = 1
    while randbelow(gamma.denominator * count) < gamma.numerator:
        count += 1
    return count % 2 == 1
