"""How far the live counts are from the baseline's: PSI, KL and Jensen-Shannon, in nats.

Rules of this file:
    * Both sides are smoothed with Jeffreys' 0.5 for each cell that either side has seen. A cell that neither has seen
      (a repeated edge, a padded code, no missing value so far) is no cell: smoothing it would make up a difference
      between sides of different sizes.
    * The PSI of two samples of one distribution is not zero: independent rows give (B - 1)(1/n + 1/m) in the mean. A
      figure without its null (`psi_p_value`, `monitoring.null`) says little.
    * A side without any row has no divergence: NaN, never 0.

All functions take counts with the cells last and broadcast over what is before them.

Sources: PSI is Jeffreys' divergence of binned data, and n m / (n + m) times it tends to chi-square with B - 1 degrees of
freedom (Yurdakul and Naranjo 2020, "Statistical properties of the population stability index", Journal of Risk Model
Validation 14(4), https://doi.org/10.21314/JRMV.2020.227). Jensen-Shannon: Lin 1991, "Divergence measures based on the
Shannon entropy", https://doi.org/10.1109/18.61115.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedretrain.monitoring.gamma import upper_gamma

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

JEFFREYS = 0.5
"""The pseudo-count of each cell (Jeffreys' prior of a multinomial)."""


def psi(baseline_FC: ArrayLike, live_FC: ArrayLike) -> NDArray[np.float64]:
    """The population stability index, sum of (q - p) ln(q / p).

    Args:
        baseline_FC: ``[..., C]`` counts of the baseline.
        live_FC: ``[..., C]`` counts of the live window.

    Returns:
        ``[...]``; 0 for equal shares, commonly read as a shift from 0.2.
    """
    p, q = _shares(baseline_FC, live_FC)
    return _over_cells(q - p, np.log(q / p))


def kl(baseline_FC: ArrayLike, live_FC: ArrayLike) -> NDArray[np.float64]:
    """Kullback-Leibler of the live shares from the baseline's, sum of q ln(q / p): how badly the baseline codes what is live."""
    p, q = _shares(baseline_FC, live_FC)
    return _over_cells(q, np.log(q / p))


def js(baseline_FC: ArrayLike, live_FC: ArrayLike) -> NDArray[np.float64]:
    """Jensen-Shannon divergence, 0 to ln 2 (its root is a metric)."""
    p, q = _shares(baseline_FC, live_FC)
    middle = (p + q) / 2.0
    return (_over_cells(p, np.log(p / middle)) + _over_cells(q, np.log(q / middle))) / 2.0


def psi_bias(baseline_FC: ArrayLike, live_FC: ArrayLike) -> NDArray[np.float64]:
    """The mean PSI of two samples of these sizes from one distribution, if their rows are independent.

    (B - 1)(1/n + 1/m), B the cells that either side has seen.
    """
    return _degrees(baseline_FC, live_FC) * _variance(baseline_FC, live_FC)


def psi_unbiased(baseline_FC: ArrayLike, live_FC: ArrayLike) -> NDArray[np.float64]:
    """PSI less `psi_bias`: about 0 in the mean, and at times negative, without a shift."""
    return psi(baseline_FC, live_FC) - psi_bias(baseline_FC, live_FC)


def psi_p_value(baseline_FC: ArrayLike, live_FC: ArrayLike) -> NDArray[np.float64]:
    """The chi-square null of PSI. Only for rows that are independent; for rows of a sensor see `monitoring.null`.

    Returns:
        ``[...]`` the chance of at least this PSI without a shift; NaN where a side has no row.
    """
    degrees = _degrees(baseline_FC, live_FC)
    statistic = psi(baseline_FC, live_FC) / _variance(baseline_FC, live_FC)
    return upper_gamma(degrees / 2.0, statistic / 2.0)


def _seen(baseline_FC: ArrayLike, live_FC: ArrayLike) -> NDArray[np.bool_]:
    """``[..., C]`` which cells either side has seen."""
    seen: NDArray[np.bool_] = (np.asarray(baseline_FC) > 0) | (np.asarray(live_FC) > 0)
    return seen


def _shares(baseline_FC: ArrayLike, live_FC: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both sides' smoothed shares ``[..., C]``; 1 in cells that neither has seen, which then contribute nothing."""
    seen = _seen(baseline_FC, live_FC)
    prior = np.where(seen, JEFFREYS, 0.0)
    added = prior.sum(axis=-1, keepdims=True)
    sides = []
    for counts_FC in (np.asarray(baseline_FC), np.asarray(live_FC)):
        total = counts_FC.sum(axis=-1, keepdims=True, dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = (counts_FC + prior) / np.where(total > 0, total + added, np.nan)
        sides.append(np.where(seen | np.isnan(share), share, 1.0))
    return sides[0], sides[1]


def _over_cells(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.einsum("...c,...c->...", a, b))


def _degrees(baseline_FC: ArrayLike, live_FC: ArrayLike) -> NDArray[np.float64]:
    """B - 1, at least 0."""
    return np.asarray(np.maximum(_seen(baseline_FC, live_FC).sum(axis=-1) - 1.0, 0.0))


def _variance(baseline_FC: ArrayLike, live_FC: ArrayLike) -> NDArray[np.float64]:
    """1/n + 1/m; NaN without rows."""
    n = np.asarray(baseline_FC).sum(axis=-1, dtype=np.float64)
    m = np.asarray(live_FC).sum(axis=-1, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.where((n > 0) & (m > 0), 1.0 / n + 1.0 / m, np.nan)
