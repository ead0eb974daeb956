"""What PSI does without a drift: the baseline's own windows, each against the rest of the baseline.

Rules of this file:
    * Rows of a sensor are not independent: a week of weather differs from a year of it far beyond chi-square. So the
      null is counted, on windows as long as those that will be judged, and ships with the champion.
    * Leave-one-out: a window is never part of what it is compared with.
    * Where there are seasons, a window is judged by windows of its own season, all compared with the whole rest.
    * A p-value is never 0: (1 + #{null >= psi}) / (W + 1), valid if the judged window is exchangeable with the W
      (Davison and Hinkley 1997, "Bootstrap methods and their application", section 4.2).

Shapes: S slots, W windows, F features, C cells, G whatever is judged at once (groups, devices).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.monitoring.divergence import psi

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_AT_ONCE = 2**20  # counts of windows in memory


@dataclass(frozen=True)
class EmpiricalNull:
    """PSI of baseline windows.

    Attributes:
        psi_WF: ``[W, F]`` ascending in each column, within each season; NaN (a window without rows) last.
        season_W: ``[W]`` the season of each window, ascending; all 0 where there are none.
        window_slots: How long a window is; it judges windows of this length only.
    """

    psi_WF: NDArray[np.float64]
    season_W: NDArray[np.int64]
    window_slots: int

    def of_season(self, season: int | None) -> NDArray[np.float64]:
        """``[W', F]`` the windows of a season, ascending; all of them for None.

        Raises:
            DataError: If the baseline has no window of this season.
        """
        if season is None:
            return np.sort(self.psi_WF, axis=0)
        part_WF: NDArray[np.float64] = self.psi_WF[self.season_W == season]
        if not len(part_WF):
            raise DataError(f"the baseline has no window of season {season}", where="null")
        return part_WF


def fit_null(
    slot_counts_SFC: NDArray[np.integer],
    window_slots: int,
    stride_slots: int,
    season_S: ArrayLike | None = None,
) -> EmpiricalNull:
    """The null of windows of one length.

    Args:
        slot_counts_SFC: ``[S, F, C]`` the baseline's counts, slot by slot without gaps (a slot without rows is zeros).
        window_slots: How many slots a window has; at most half of the baseline.
        stride_slots: From the start of a window to the next one's. Strides below the length give more windows, none
            of them new evidence.
        season_S: ``[S]`` a number for the season of each slot; a window has that of its last slot.

    Raises:
        ConfigError: If the baseline is shorter than two windows, or a length is not positive.
    """
    num_slots = len(slot_counts_SFC)
    if not (1 <= window_slots <= num_slots // 2 and stride_slots >= 1):
        raise ConfigError(
            f"windows of {window_slots} slots every {stride_slots} in a baseline of {num_slots}",
            where="window_slots",
            fix="the baseline must be at least two windows long",
        )
    starts_W = np.arange(0, num_slots - window_slots + 1, stride_slots)
    until_SFC = np.zeros((num_slots + 1, *slot_counts_SFC.shape[1:]), dtype=np.int64)
    np.cumsum(slot_counts_SFC, axis=0, out=until_SFC[1:])
    at_once = max(1, _AT_ONCE // max(1, until_SFC[0].size))
    parts = []
    for left in range(0, len(starts_W), at_once):
        begin = starts_W[left : left + at_once]
        window_WFC = until_SFC[begin + window_slots] - until_SFC[begin]
        parts.append(psi(until_SFC[-1] - window_WFC, window_WFC))
    psi_WF = np.concatenate(parts)
    last_W = starts_W + window_slots - 1
    season_W = np.zeros(num_slots, np.int64)[last_W] if season_S is None else np.asarray(season_S)[last_W]
    order = np.argsort(season_W, kind="stable")
    psi_WF, season_W = psi_WF[order], season_W[order].astype(np.int64)
    for season in np.unique(season_W):
        psi_WF[season_W == season] = np.sort(psi_WF[season_W == season], axis=0)
    return EmpiricalNull(psi_WF, season_W, window_slots)


def p_value(null: EmpiricalNull, psi_GF: ArrayLike, season: int | None = None) -> NDArray[np.float64]:
    """The share of baseline windows at least as far away, the judged window counted among them.

    Args:
        null: The null of windows of this length.
        psi_GF: ``[..., F]`` PSI of live windows against the baseline; NaN where there was no telemetry.
        season: Judge by the windows of this season.

    Returns:
        ``[..., F]`` at least 1 / (W + 1); NaN where PSI is.

    Raises:
        DataError: If the baseline has no window of this season, or the features do not fit.
    """
    return _p_values(null.of_season(season), np.asarray(psi_GF, dtype=np.float64))


def pooled_p_value(null: EmpiricalNull, psi_GF: ArrayLike, season: int | None = None) -> NDArray[np.float64]:
    """As `p_value`, by the windows of all features together, each feature's PSI in units of its own null's median.

    W windows cannot give a p-value below 1 / (W + 1), and false-discovery control over many features asks for less from
    a feature that drifts alone. If the features' nulls differ by their scale only, W F values can: the smallest
    p-value is 1 / (W F + 1).

    Raises:
        DataError: As `p_value`.
    """
    null_WF, psi_GF = null.of_season(season), np.asarray(psi_GF, dtype=np.float64)
    _check_features(null_WF, psi_GF)
    known_F = ~np.all(np.isnan(null_WF), axis=0)
    scale_F = np.full(null_WF.shape[1], np.nan)
    scale_F[known_F] = np.nanmedian(null_WF[:, known_F], axis=0)
    scale_F[scale_F <= 0.0] = (
        np.nan
    )  # a feature that never moved (a constant) has no unit: it stays out of the pool
    pool = np.sort((null_WF / scale_F).ravel())
    pooled = _p_values(pool[:, None], (psi_GF / scale_F)[..., None])[..., 0]
    return np.where(np.isnan(scale_F), _p_values(null_WF, psi_GF), pooled)


def _check_features(null_WF: NDArray[np.float64], psi_GF: NDArray[np.float64]) -> None:
    if psi_GF.shape[-1:] != null_WF.shape[1:]:
        raise DataError(
            f"a null of {null_WF.shape[1]} features cannot judge PSI of shape {psi_GF.shape}", where="null"
        )


def _p_values(sorted_WF: NDArray[np.float64], psi_GF: NDArray[np.float64]) -> NDArray[np.float64]:
    """(1 + #{null >= psi}) / (W + 1) for each feature, W its windows that had rows."""
    _check_features(sorted_WF, psi_GF)
    answer_GF = np.empty(psi_GF.shape)
    for position in range(sorted_WF.shape[1]):
        column_W = sorted_WF[:, position]
        known = len(column_W) - int(np.isnan(column_W).sum())
        below = np.searchsorted(column_W[:known], psi_GF[..., position], side="left")
        answer_GF[..., position] = (1 + known - below) / (known + 1)
    answer_GF[np.isnan(psi_GF)] = np.nan
    return answer_GF
