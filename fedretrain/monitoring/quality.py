"""The quality of incoming data, from counts: what is missing, what is out of range, what the baseline never had.

Rules of this file:
    * Fractions of nothing are NaN: a silent sensor is not a clean one.
    * Everything is a function of additive counts, so that it serves a device, a group and the fleet alike. Cardinality
      is in `monitoring.cardinality`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.monitoring.histogram import out_of_range

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fedretrain.monitoring.bins import Bins


def missing_fraction(counts_FC: ArrayLike) -> NDArray[np.float64]:
    """The fraction of rows in which a feature was missing.

    Args:
        counts_FC: ``[..., F, C]`` counts of cells; missing is the last one.

    Returns:
        ``[..., F]``; NaN without rows.
    """
    counts = np.asarray(counts_FC)
    return _ratio(counts[..., -1], counts.sum(axis=-1))


def outside_fraction(bins: Bins, counts_FC: ArrayLike) -> NDArray[np.float64]:
    """The fraction of the values present that the baseline never reached: under or over; for codes, unseen.

    Args:
        bins: The bins of the counts.
        counts_FC: ``[..., F, C]``.

    Returns:
        ``[..., F]``; NaN without values.
    """
    counts = np.asarray(counts_FC)
    outside = counts[..., -2] + np.where(bins.is_numeric, counts[..., 0], 0)
    return _ratio(outside, counts[..., :-1].sum(axis=-1))


def count_violations(bins: Bins, x_NF: NDArray[Any]) -> NDArray[np.int64]:
    """``[F]`` how many of the rows ``[N, F]`` break the schema's range."""
    violations_F: NDArray[np.int64] = out_of_range(bins, x_NF).sum(axis=0, dtype=np.int64)
    return violations_F


def violation_fraction(violations_F: ArrayLike, counts_FC: ArrayLike) -> NDArray[np.float64]:
    """The fraction of the values present that break the schema's range.

    Args:
        violations_F: ``[..., F]`` as `count_violations` counts them.
        counts_FC: ``[..., F, C]`` of the same rows.

    Returns:
        ``[..., F]``; NaN without values.
    """
    return _ratio(np.asarray(violations_F), np.asarray(counts_FC)[..., :-1].sum(axis=-1))


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(whole > 0, part / whole, np.nan))
