"""Bins with about as many rows in each, from counts on finer ones: when no baseline data is at hand, only what a fleet counted.

Rules of this file:
    * An edge is a quantile, interpolated inside the fine bin that holds it: it is off by less than that bin's width.
    * What lay beyond the fine bins only says that it did: the outer edge stays where theirs was.

Shapes: F features, B bins, C = B + 3 cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import DataError
from fedretrain.monitoring.bins import Bins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def even_bins(
    low_F: NDArray[np.float64], high_F: NDArray[np.float64], names: Sequence[str], num_bins: int
) -> Bins:
    """Bins of equal width, to count on until it is known what values come.

    Args:
        low_F: ``[F]`` where they begin.
        high_F: ``[F]`` where they end.
        names: F names.
        num_bins: B.

    Raises:
        DataError: If a range is empty or endless.
    """
    fine = np.isfinite(low_F) & np.isfinite(high_F) & (low_F < high_F)
    if not fine.all():
        raise DataError(
            f"there is no range of {names[int(np.argmin(fine))]!r}",
            where="bins",
            fix="bound the channel in the schema, or make the first champion with a pool",
        )
    edges_FE = np.linspace(low_F, high_F, num_bins + 1, axis=1)
    open_F = np.full(len(names), np.inf)
    return Bins(tuple(names), edges_FE, -open_F, open_F)


def quantile_bins(bins: Bins, counts_FC: NDArray[np.integer], num_bins: int = 10) -> Bins:
    """Bins whose edges are the quantiles of what was counted.

    Args:
        bins: The fine ones; numeric features only.
        counts_FC: ``[F, C]`` counts on them.
        num_bins: B of the result.

    Raises:
        DataError: If a feature has no value, is categorical, or the counts are of other bins.
    """
    if counts_FC.shape != (bins.num_features, bins.num_cells):
        raise DataError(f"counts {counts_FC.shape} are of other bins", where="counts")
    if bins.categories:
        raise DataError(f"{min(bins.categories)!r} is categorical", where="bins", fix="make them with a pool")
    quantiles_E = np.linspace(0.0, 1.0, num_bins + 1)
    edges_FE = np.empty((bins.num_features, num_bins + 1))
    for position, name in enumerate(bins.names):
        counted_C = counts_FC[position].astype(np.float64)
        under, inside_B, over = counted_C[0], counted_C[1:-2], counted_C[-2]
        total = under + inside_B.sum() + over
        if not total:
            raise DataError(
                f"no value of {name!r} was counted", where="counts", fix="wait for more telemetry"
            )
        up_to_E = under + np.concatenate([[0.0], np.cumsum(inside_B)])
        edges_FE[position] = np.maximum.accumulate(
            _quantiles(bins.edges_FE[position], up_to_E, quantiles_E * total)
        )
    return Bins(bins.names, edges_FE, bins.low_F, bins.high_F)


def _quantiles(
    edge_E: NDArray[np.float64], up_to_E: NDArray[np.float64], wanted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Values below which the wanted counts lie; inside an empty stretch its upper end, but for the first: its lower."""
    last = np.searchsorted(up_to_E, wanted, side="left").clip(1, len(edge_E) - 1)
    low, high = up_to_E[last - 1], up_to_E[last]
    share = np.clip((wanted - low) / np.maximum(high - low, 1e-300), 0.0, 1.0)
    found: NDArray[np.float64] = edge_E[last - 1] + share * (edge_E[last] - edge_E[last - 1])
    first = (
        np.searchsorted(up_to_E, up_to_E[0], side="right") - 1
    )  # the beginning of the first bin with anything in it
    found[wanted <= up_to_E[0]] = edge_E[first] if up_to_E[0] == 0.0 else edge_E[0]
    return found
