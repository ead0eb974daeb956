"""What predictions tell before any label: their classes, their confidence, and how long they took.

Rules of this file:
    * Everything comes from additive counts with the cells last; devices, groups and fleet differ in leading axes.
    * A share that the bins cannot answer exactly is refused, a quantile comes with the bounds of its bin: no value is
      made up inside a bin.
    * B equal bins of ``[0, 1]`` (1 belongs to the last), L latency bins, M classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedretrain.core.checks import require
from fedretrain.core.errors import DataError
from fedretrain.monitoring.divergence import psi
from fedretrain.monitoring.intervals import divide
from fedretrain.monitoring.reports import NUM_CONFIDENCE_BINS

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class Bounds(NamedTuple):
    """A value known to lie between two others, arrays of one shape."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]


def unit_bins(value: ArrayLike, num_bins: int = NUM_CONFIDENCE_BINS) -> NDArray[np.int64]:
    """The bin of each value of ``[0, 1]``, any shape.

    Raises:
        DataError: A value that is NaN or outside: a broken model head, not a low confidence.
    """
    value = np.asarray(value, dtype=np.float64)
    if not np.all((value >= 0) & (value <= 1)):
        raise DataError("a confidence or an entropy share is NaN or outside [0, 1]", where="unit_bins")
    return np.minimum((value * num_bins).astype(np.int64), num_bins - 1)


def entropy_fraction(probability_M: ArrayLike) -> NDArray[np.float64]:
    """``[...]`` entropy of class probabilities as a share of its maximum log M: 0 is certain, 1 knows nothing.

    Args:
        probability_M: ``[..., M]``, at least two classes, each row sums to 1.
    """
    p = np.asarray(probability_M, dtype=np.float64)
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    share: NDArray[np.float64] = np.clip(-(p * logs).sum(axis=-1) / np.log(p.shape[-1]), 0.0, 1.0)
    return share


def class_shares(outputs_M: ArrayLike) -> NDArray[np.float64]:
    """``[..., M]`` share of each predicted class; NaN without predictions."""
    outputs_M = np.asarray(outputs_M, dtype=np.float64)
    return divide(outputs_M, outputs_M.sum(axis=-1, keepdims=True))


def output_skew(baseline_M: ArrayLike, outputs_M: ArrayLike) -> NDArray[np.float64]:
    """``[...]`` PSI of the predicted classes (or, for regression, of the predictions on baseline bins).

    Args:
        baseline_M: ``[M]`` the champion's own counts when it was released.
        outputs_M: ``[..., M]`` live counts.

    Returns:
        PSI; NaN where nothing was predicted, which is no evidence of anything.
    """
    outputs_M = np.asarray(outputs_M)
    skew = np.asarray(psi(np.asarray(baseline_M), outputs_M), dtype=np.float64)
    return np.where(outputs_M.sum(axis=-1) > 0, skew, np.nan)


def low_share(counts_B: ArrayLike, below: float) -> NDArray[np.float64]:
    """``[...]`` share of the predictions whose confidence is under `below`; NaN without predictions.

    Args:
        counts_B: ``[..., B]`` equal bins of ``[0, 1]``.
        below: An edge of the bins (0.6 with ten bins).

    Raises:
        ConfigError: If `below` is inside a bin, where the counts cannot tell.
    """
    counts_B = np.asarray(counts_B, dtype=np.float64)
    return divide(counts_B[..., : _edge(below, counts_B.shape[-1])].sum(axis=-1), counts_B.sum(axis=-1))


def mean_bounds(counts_B: ArrayLike) -> Bounds:
    """Bounds of the mean of values counted in equal bins of ``[0, 1]``: they are one bin's width apart."""
    counts_B = np.asarray(counts_B, dtype=np.float64)
    num_bins, total = counts_B.shape[-1], counts_B.sum(axis=-1)
    low = divide((counts_B * (np.arange(num_bins) / num_bins)).sum(axis=-1), total)
    return Bounds(low, low + 1 / num_bins)


def quantile_bounds(counts_L: ArrayLike, edges: ArrayLike, q: float) -> Bounds:
    """Bounds of a quantile from binned counts.

    The quantile is the smallest value that at least the share `q` of all values do not exceed (numpy's
    ``inverted_cdf``); the sum of any devices' counts gives the bounds for all of them together.

    Args:
        counts_L: ``[..., L]``.
        edges: ``[L - 1]`` increasing inner edges of values of at least 0 (`reports.LATENCY_EDGES_S`). Edges of equal ratio
            r give bounds of ratio r; below the first one the lower bound is 0, above the last the upper is infinite.
        q: 0 < q <= 1.

    Returns:
        ``[...]`` edges of the quantile's bin; NaN without counts.
    """
    counts_L, edges = np.asarray(counts_L, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    if len(edges) + 1 != counts_L.shape[-1]:
        raise DataError(
            f"{counts_L.shape[-1]} bins have one fewer inner edges, got {len(edges)}", where="edges"
        )
    edges = np.concatenate([[0.0], edges, [np.inf]])
    cumulated_L = np.cumsum(counts_L, axis=-1)
    total = cumulated_L[..., -1]
    rank = np.ceil(q * total * (1 - 1e-12))  # so that 0.9 of 10 is 9 and not, by rounding, 10
    bin_ = np.minimum((cumulated_L < np.maximum(rank, 1)[..., None]).sum(axis=-1), len(edges) - 2)
    return Bounds(np.where(total > 0, edges[bin_], np.nan), np.where(total > 0, edges[bin_ + 1], np.nan))


def _edge(value: float, num_bins: int) -> int:
    """The number of bins below a bin edge."""
    edge = round(value * num_bins)
    ok = 0 <= edge <= num_bins and abs(edge - value * num_bins) < 1e-9
    require(ok, f"{value} is not an edge of {num_bins} equal bins", key="below", fix=f"use k / {num_bins}")
    return edge
