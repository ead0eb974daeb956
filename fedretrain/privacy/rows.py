"""Norms and clip factors of the rows of a block; numpy only.

Rules of this file:
    * A row's norm depends on that row alone, to the last bit: not on its place in a block, on the block's size or on memory
      alignment. Otherwise the last bit of a clip factor, and with it the fixed-point sum, would depend on sharding.
    * Sums of squares are float64 and finite for every finite float32 row; NaN or infinity in a row shows in its norm.
    * Rows longer than (1 - 2**-22) C are scaled to that length: float32 rounding (2**-24 relative) and float64 summation
      (at most P * 2**-53) then cannot carry one past C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MARGIN = 1.0 - 2.0**-22
_TILE_COLUMNS, _TILE_ELEMENTS = 16_384, 262_144  # 2 MiB of float64; measured best of 0.1 to 4 MiB


def row_norms(delta_KP: NDArray[Any]) -> NDArray[np.float64]:
    """Euclidean norms ``[K]`` of rows ``[K, P]``; NaN or infinite where a row is not finite."""
    rows, size = delta_KP.shape
    squares = np.zeros(rows)
    columns = min(_TILE_COLUMNS, -(-size // 64) * 64)
    tile_rows = max(1, min(rows, _TILE_ELEMENTS // max(columns, 1)))
    buffer = np.zeros((tile_rows, columns))
    with np.errstate(over="ignore", invalid="ignore"):
        for left in range(0, size, _TILE_COLUMNS):
            width = min(_TILE_COLUMNS, size - left)
            padded = -(-width // 64) * 64  # the same length and alignment for every row
            buffer[:, width:padded] = 0.0
            for top in range(0, rows, tile_rows):
                tile = buffer[: min(tile_rows, rows - top), :padded]
                tile[:, :width] = delta_KP[top : top + tile_rows, left : left + width]
                squares[top : top + tile_rows] += np.vecdot(tile, tile)
        return np.sqrt(squares)


def clip_factors(
    norm_K: NDArray[np.float64], clip_norm: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """What each row is to be multiplied with so that its norm is at most `clip_norm`.

    Args:
        norm_K: ``[K]`` norms, from `row_norms`.
        clip_norm: C, positive.

    Returns:
        ``[K]`` float64 factors in (0, 1], 0 for rows that are not finite; and ``[K]`` bool: finite and left as it was,
        the bit of adaptive clipping. A norm of zero gives the factor 1.
    """
    limit = clip_norm * MARGIN
    finite = np.isfinite(norm_K)
    unclipped = finite & (norm_K <= limit)
    factor = np.where(finite, limit / np.where(finite & ~unclipped, norm_K, limit), 0.0)
    return factor, unclipped
