"""An exact running sum: int64 fixed point, the same bits in any order and any sharding.

Rules of this file:
    * Value v of a client becomes the integer trunc(v * 2**bits): truncated *toward zero*, so no entry grows and the
      quantised update's norm never exceeds the norm it was clipped to.
    * Integers add associatively, so merging partial sums in any order gives the same bits. Floating-point is used on
      the way only where it is exact: a tile is summed in float64 while the sum of its entries' bounds stays at or
      under 2**53, and no longer.
    * Never a silent wrap: `bound` is an upper bound on every entry's magnitude, kept as an unbounded Python integer, and
      a sum that could leave int64 raises instead.

Bounds. With clip norm C the scale is chosen so that C * 2**bits lies in (2**39, 2**40]: one client adds at most 2**40 to
an entry and 2**22 (4.19 million) clients fit below 2**62. The accuracy lost is under 2**-bits < C * 2**-39 per client and
entry, toward zero: under 1.9e-12 of the clip norm in the mean, where noise with multiplier 1 over 10,000 clients is 1e-4
of it. With weights 12 bits are given up: the weights may add up to 2**34. Without a clip norm the scale is fixed: 34 bits
(5.8e-11 per client and entry) where all weigh 1, and 28 bits with weights, in units of one example; the sum over clients
of weight times norm may reach 2**28 and 2**34 (10,000 clients of 1,000 examples and norm 1,000).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNCLIPPED_BITS = 34
UNCLIPPED_WEIGHTED_BITS = 28
_WEIGHT_BITS = 12  # of a clipped sum's scale, given up to make room for weights
_LARGEST = 2**62  # leaves a bit of room below int64's 2**63
_EXACT = 2**53  # float64 holds every integer up to here
_SLACK = 1.0 + 2.0**-30  # covers the rounding of norms and products
_TILE_COLUMNS, _TILE_ELEMENTS = 16_384, 262_144  # 2 MiB of float64; measured best of 0.1 to 4 MiB


def bits_for(clip_norm: float | None, *, weighted: bool = False) -> int:
    """The scale 2**bits for updates of at most `clip_norm` (None: not clipped)."""
    if clip_norm is None:
        return UNCLIPPED_WEIGHTED_BITS if weighted else UNCLIPPED_BITS
    fraction, exponent = math.frexp(clip_norm)  # clip_norm = fraction * 2**exponent, 0.5 <= fraction < 1
    bits = 40 - exponent if fraction > 0.5 else 41 - exponent
    return bits - _WEIGHT_BITS if weighted else bits


@dataclass(frozen=True)
class FixedPointSum:
    """A running sum of updates.

    Attributes:
        total: ``[P]`` int64: the sum times 2**bits.
        bits: The scale. Sums of different scales do not merge.
        bound: No entry of `total` exceeds this magnitude.
        weight: The sum of the integer weights (the number of updates where all weigh 1).
    """

    total: NDArray[np.int64]
    bits: int
    bound: int = 0
    weight: int = 0

    @classmethod
    def zero(cls, size: int, clip_norm: float | None, *, weighted: bool = False) -> FixedPointSum:
        """The empty sum of updates of `size` elements, at most `clip_norm` long (None: not clipped)."""
        return cls(np.zeros(size, dtype=np.int64), bits_for(clip_norm, weighted=weighted))

    def add(
        self,
        delta_KP: NDArray[np.floating[Any]],
        factor_K: NDArray[np.float64],
        norm_K: NDArray[np.float64],
        weight_K: NDArray[np.int64] | None = None,
    ) -> FixedPointSum:
        """The sum with ``weight_K * factor_K * delta_KP`` added. `total` is updated in place.

        Args:
            delta_KP: ``[K, P]`` updates, finite.
            factor_K: ``[K]`` what each is multiplied with (the clip; at most 1).
            norm_K: ``[K]`` an upper bound on the magnitude of each row's entries before the factor.
            weight_K: ``[K]`` non-negative integer weights; None means 1 each.

        Raises:
            ConfigError: If the sum could outgrow 64 bits. The sum must not be used any more.
        """
        scale_K = np.ldexp(factor_K if weight_K is None else factor_K * weight_K, self.bits)
        bounds = [math.ceil(bound) for bound in (scale_K * norm_K * _SLACK).tolist()]
        bound = self.bound + sum(bounds)
        if bound > _LARGEST:
            raise ConfigError(
                f"the weighted sum of updates outgrows 64 bits (bound 2**{bound.bit_length()})",
                where="aggregation",
                fix="lower the cap on examples per client or the largest update norm, or use smaller cohorts",
            )
        columns = min(_TILE_COLUMNS, self.total.size)
        most = max(1, _TILE_ELEMENTS // max(columns, 1))
        buffer = np.empty((min(most, len(bounds)), columns))
        for rows in _row_tiles(bounds, most):
            _add_rows(self.total, delta_KP[rows], scale_K[rows], buffer)
        weight = len(delta_KP) if weight_K is None else int(weight_K.sum())
        return replace(self, bound=bound, weight=self.weight + weight)

    def __add__(self, other: FixedPointSum) -> FixedPointSum:
        """The sum of both; neither is changed."""
        if self.bits != other.bits or self.total.shape != other.total.shape:
            raise ValueError(
                f"sums of unlike form: {self.total.shape} at 2**{self.bits}, {other.total.shape} at 2**{other.bits}"
            )
        bound = self.bound + other.bound
        if bound > _LARGEST:
            raise ConfigError(
                "the sum of updates outgrows 64 bits", where="aggregation", fix="use smaller cohorts"
            )
        return FixedPointSum(self.total + other.total, self.bits, bound, self.weight + other.weight)

    @property
    def step(self) -> float:
        """What one unit of `total` is worth."""
        return math.ldexp(1.0, -self.bits)

    def value(self) -> NDArray[np.float64]:
        """The sum as float64 ``[P]``: exact up to 2**53 in magnitude, correctly rounded beyond."""
        return np.ldexp(self.total.astype(np.float64), -self.bits)


def _row_tiles(bounds: list[int], most: int) -> list[slice]:
    """Runs of at most `most` rows whose float64 sum is exact: bounds summing to at most 2**53."""
    tiles: list[slice] = []
    start = bound = 0
    for row, own in enumerate(bounds):
        if row > start and (bound + own > _EXACT or row - start == most):
            tiles.append(slice(start, row))
            start, bound = row, 0
        bound += own
    if start < len(bounds):
        tiles.append(slice(start, len(bounds)))
    return tiles


def _add_rows(
    total: NDArray[np.int64],
    delta_KP: NDArray[np.floating[Any]],
    scale_K: NDArray[np.float64],
    buffer: NDArray[np.float64],
) -> None:
    """Add one tile of rows, as many columns at a time as the buffer has, so that the work stays in the cache."""
    rows, size = delta_KP.shape
    columns = buffer.shape[1]
    ones = np.ones(rows)
    for left in range(0, size, columns):
        right = min(left + columns, size)
        tile = buffer[:rows, : right - left]
        np.copyto(tile, delta_KP[:, left:right])
        tile *= scale_K[:, None]
        np.trunc(tile, out=tile)
        total[left:right] += (ones @ tile if rows > 1 else tile[0]).astype(np.int64)
