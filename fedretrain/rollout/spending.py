"""Alpha spending: how much of an error rate each of several looks at growing data may use.

Rules of this file:
    * The looks are fixed beforehand as fractions of the last look's information.
    * `levels` are nominal one-sided levels per look: testing look k at its level makes the chance of a false rejection at any look at most
      `alpha`, when the statistics are correlated at least as a random walk's are. Device effects that persist only raise that correlation
      (Slepian's inequality), so information in proportion to time is the safe assumption.

Sources: Lan and DeMets 1983, "Discrete sequential boundaries for clinical trials", https://doi.org/10.1093/biomet/70.3.659; the recursion over
looks is Armitage, McPherson and Rowe 1969, https://doi.org/10.2307/2343787; Hwang, Shih and DeCani 1990, https://doi.org/10.1002/sim.4780091207.
"""

from __future__ import annotations

import math
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.rollout.tails import normal_above, normal_quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NODES = 300  # Gauss-Legendre nodes per look: the levels agree with 1,000 nodes to 1e-7
_EARLY = 3.0
_REACH = 8.5  # standard deviations beyond which there is no mass


class Spending(StrEnum):
    """Which share of alpha is used by when."""

    EARLY = "early"  # most of it in the first third (Hwang, Shih and DeCani's family with gamma 3)
    POCOCK = "pocock"  # nearly even: finds large harm early
    OBRIEN_FLEMING = "obrien_fleming"  # almost nothing early, nearly all at the end


def spent(spending: Spending, fraction: float, alpha: float) -> float:
    """Alpha used up to an information fraction of 0 to 1 (one-sided)."""
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"{fraction} is not an information fraction")
    if fraction == 0.0:
        return 0.0
    if spending is Spending.EARLY:
        return alpha * math.expm1(-_EARLY * fraction) / math.expm1(-_EARLY)
    if spending is Spending.POCOCK:
        return alpha * math.log1p((math.e - 1.0) * fraction)
    return 2.0 * normal_above(normal_quantile(alpha / 2.0) / math.sqrt(fraction))


@lru_cache(maxsize=512)
def levels(spending: Spending, fractions: tuple[float, ...], alpha: float) -> tuple[float, ...]:
    """The nominal one-sided level of each look.

    Args:
        spending: The spending function.
        fractions: Information at each look over that of the last look, increasing, in (0, 1].
        alpha: The chance of a false rejection at any look.

    Raises:
        ValueError: If the fractions do not increase within (0, 1], or alpha is not in (0, 0.5).
    """
    if (
        list(fractions) != sorted(set(fractions))
        or not fractions
        or not 0 < fractions[0] <= fractions[-1] <= 1
    ):
        raise ValueError(f"information fractions must increase within (0, 1]: {fractions}")
    if not 0.0 < alpha < 0.5:
        raise ValueError(f"alpha is {alpha}, not in (0, 0.5)")
    used, result = 0.0, []
    nodes, mass, before = np.zeros(1), np.ones(1), 0.0  # where the walk is, if it has not crossed yet
    for fraction in fractions:
        share = spent(spending, fraction, alpha) - used
        used += share
        scale = math.sqrt(fraction - before)
        bound = _crossing(nodes, mass, scale, share)
        result.append(normal_above(bound / math.sqrt(fraction)))
        nodes, mass = _advance(nodes, mass, scale, bound, math.sqrt(fraction))
        before = fraction
    return tuple(result)


def _crossing(nodes: NDArray[np.float64], mass: NDArray[np.float64], scale: float, share: float) -> float:
    """The height that the walk exceeds at this look, not having crossed before, with probability `share`.

    Newton's steps from 0: beyond its mode the tail is convex, so they approach from below and never overshoot.
    """
    places, masses = (nodes / scale).tolist(), mass.tolist()
    height = 0.0
    for _ in range(100):
        above = sum(m * normal_above(height - x) for x, m in zip(places, masses, strict=True))
        z = height - nodes / scale
        density = float(np.exp(-0.5 * z * z) @ mass) / math.sqrt(2.0 * math.pi)
        step = (above - share) / density
        height += step
        if abs(step) < 1e-10:
            break
    return height * scale


def _advance(
    nodes: NDArray[np.float64], mass: NDArray[np.float64], scale: float, bound: float, spread: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and masses of the walk at this look, where it stayed below `bound`."""
    unit, weight = _legendre()
    low, high = -_REACH * spread, bound
    at = 0.5 * (high - low) * unit + 0.5 * (high + low)
    z = (at[:, None] - nodes[None, :]) / scale
    density = np.exp(-0.5 * z * z) @ mass / (scale * math.sqrt(2.0 * math.pi))
    return at, density * weight * 0.5 * (high - low)


@lru_cache(maxsize=1)
def _legendre() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights on (-1, 1); slow to find, so found once."""
    unit, weight = np.polynomial.legendre.leggauss(_NODES)
    return unit, weight
