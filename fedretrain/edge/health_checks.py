"""The statistics behind the health checks: shares that are too high, memory that grows, accuracy that fell.

Rules of this file:
    * Pure arithmetic on what the fold has kept; nothing here knows a clock, a model or a limit's name.
    * A burst is not a fault: a share must be too high in most blocks of the window, and in all of it beyond chance.
    * Steps of the allocator are no leak, and drops do not hide one: the typical rise of a window counts, not its largest nor its sum.
    * Every test says what its error is, and under which assumption.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

ALPHA = 5e-8
"""The chance that one look at one share is false where the true share is what is allowed; 5.8 million looks are 1,000 device-days."""
NUM_BAD = 16
"""Blocks of a full window of twenty that must be over the limit: bursts have to cover most of four minutes in five."""
LAG = 2
"""Readings of memory between the two that a rise is taken of: half a minute."""
BETS = (0.05, 0.08, 0.12, 0.18, 0.27, 0.41, 0.62, 0.95)
"""What the accuracy test stakes, as fractions of the most that it may stake: one gambler each, alike in capital."""


@dataclass(frozen=True)
class ShareLimit:
    """When a share of predictions (slow ones, failed ones) is a fault.

    Attributes:
        limit: A block with a greater share is bad.
        allowed: The share that chance is reckoned with; a device below it for ever is rolled back with a chance of at most
            `ALPHA` at each look, if its predictions are independent.
    """

    limit: float
    allowed: float

    def breached(self, counts: Sequence[tuple[int, int]], num_bad: int = NUM_BAD) -> bool:
        """Whether a window shows a fault.

        Args:
            counts: (hits, trials) of each block, oldest first.
            num_bad: How many blocks must be bad.
        """
        bad = sum(hits > self.limit * trials for hits, trials in counts)
        if bad < num_bad:
            return False
        hits, trials = (sum(column) for column in zip(*counts, strict=True))
        return log_tail(hits, trials, self.allowed) <= math.log(ALPHA)


def log_tail(hits: int, trials: int, share: float) -> float:
    """An upper bound on the log of the chance of so many hits or more: Chernoff's, never too small.

    Source: Chernoff 1952, https://doi.org/10.1214/aoms/1177729330 (in Hoeffding's form with the relative entropy).
    """
    seen = hits / trials if trials else 0.0
    if seen <= share:
        return 0.0
    miss = (1.0 - seen) * math.log((1.0 - seen) / (1.0 - share)) if seen < 1.0 else 0.0
    return -trials * (seen * math.log(seen / share) + miss)


def growth(minutes: ArrayLike, mib: ArrayLike) -> NDArray[np.float64]:
    """How fast memory grows, MiB a minute: the median of its rises over half a minute (readings `LAG` apart).

    A rise of an allocator, or the drop at the end of a garbage collector's sawtooth, is in at most `LAG` of the rises; the median does not
    see them while they spoil less than half: four steps in a window of nineteen readings, whatever their heights. So a sawtooth is
    measured by its ramp, alike in each window, and a leak *adds* to that. Slopes over the whole window (Theil and Sen) see a ramp
    or not, as its drop happens to lie. A median over longer lags has less noise and bears fewer steps.

    Source: the repeated-differences form of Theil 1950, Sen 1968 (https://doi.org/10.1080/01621459.1968.10480934), with pairs of one
    lag alone.

    Args:
        minutes: ``[..., N]`` instants of the readings, increasing.
        mib: ``[..., N]`` the readings; more than `LAG`.

    Returns:
        ``[...]``.
    """
    at, level = np.asarray(minutes, dtype=np.float64), np.asarray(mib, dtype=np.float64)
    rises = level[..., LAG:] - level[..., :-LAG]
    return np.asarray(np.median(rises / (at[..., LAG:] - at[..., :-LAG]), axis=-1))


def wagered(log_wealth: tuple[float, ...], share: float, floor: float) -> tuple[float, ...]:
    """The gamblers' log wealth after one more block of labels.

    Each stakes a fixed fraction on "the share of right predictions is below the floor". While the expected share of a block, given all
    before it, is at least the floor, the mean wealth is a supermartingale: it ever reaches 1 / alpha with a chance of at most
    alpha, however often it is looked at (Ville). Labels *within* a block may depend on each other in any way.

    Source: Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting",
    https://doi.org/10.1093/jrsssb/qkad009.

    Args:
        log_wealth: Of each gambler.
        share: Right predictions of the block, 0 to 1.
        floor: The accuracy that is defended, below 1.
    """
    gain = (floor - share) / (1.0 - floor)  # -1 at worst: a stake below 1 never ruins
    return tuple(wealth + math.log1p(bet * gain) for wealth, bet in zip(log_wealth, BETS, strict=True))


def log_mean_wealth(log_wealth: tuple[float, ...]) -> float:
    """Log of the gamblers' mean wealth: the test's evidence."""
    most = max(log_wealth)
    return most + math.log(sum(math.exp(wealth - most) for wealth in log_wealth) / len(log_wealth))
