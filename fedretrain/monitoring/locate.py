"""Where drift lives: in one device (a broken sensor), in a cluster (a site, a type), or everywhere.

Rules of this file:
    * A device is measured against *its own* earlier record first, so a device that was always different is no outlier; it
      must then also depart further than the rest of the fleet does, so a season that moves everybody breaks nobody.
    * Distances are judged by what they were in the device's earlier windows, never by a fixed table.
    * A verdict about a group or the fleet needs a strict majority of judged members; silence is never "no drift".

The distance of a device's window from its record is ``x = ln(PSI n m / (n + m))``. Without a shift PSI times that size is
chi-square for independent rows and about a positive sum of chi-squares for dependent ones (the weights unknown). Such sums
have exponential tails, so their logarithm has a right tail lighter than a normal variable's, and with
``z = (x - center) / scale``, center and scale from the record's windows, each held against the others, P(Z > z) errs on
the safe side. (The cube root, which makes a chi-square nearly normal, does not: with an autocorrelation of 0.7 it
named an innocent device in 30 of 100 fleets.)

The rule, for each window:
    1. p of a device and feature: P(Z > z), or 1 if PSI less its bias is not above ``psi``. A device's p is that of its
       most extreme feature times F (Bonferroni).
    2. A device *moved* if its p is below ``moved_alpha``. A group moved if more than half of its judged members did.
       The fleet moved if more than half of the groups and of the devices did: scope FLEET. Else, if a group moved: CLUSTER.
    3. Among the devices of groups that did not move (all of them, if the fleet moved), an outlier is found by its own p
       *and* by z against the median and spread (MAD) of these devices' z: the larger p of both goes into Benjamini and
       Hochberg's procedure at ``alpha``. Features in which most of them moved accuse nobody: devices answer one cause in
       different degrees. Some outliers: DEVICE; a share above ``max_device_fraction``: FLEET, for it is then about
       something that the groups do not name.

Error rates, if nothing drifted: an outlier is named with probability at most ``alpha`` for each window (for the false-discovery rate of true
nulls only is the chance of any discovery); n members make a false majority with probability at most
``C(n, k) moved_alpha ** k``, ``k = n // 2 + 1``, if devices err independently: 3e-4 for three members at 0.01.
Beside one that did, at most a share ``alpha`` of the outliers are false in the mean. Measured (40 devices in 5 groups, 150 rows in
a window, 8 windows of record, 150 fleets a case): one stuck sensor found in 150 and 147 of 150 at autocorrelations of 0 and
0.7, one site in 149 and 118, everybody in 150 and 135; an innocent device named in 0 and 3 fleets without drift.

Shapes: W windows, D devices, G groups, F features, C cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import DataError
from fedretrain.monitoring.discovery import benjamini_hochberg
from fedretrain.monitoring.divergence import psi, psi_bias
from fedretrain.monitoring.gamma import upper_gamma

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from fedretrain.monitoring.config import PlaceRules

MIN_WINDOWS = 3  # of a record: center and scale from fewer are guesses
_LEAST_DISTANCE = (
    1e-3  # of a chi-square of 1 degree of freedom 2.5 % are less: a constant's distance of 0 has a logarithm
)
_LEAST_SCALE = 0.1  # of x, whose scale is 0.5 for 9 degrees of freedom: a feature that never moved
_MAD = 1.4826  # the median absolute deviation of a normal variable times this is its standard deviation


class Scope(StrEnum):
    """Where drift lives."""

    UNKNOWN = "unknown"  # no device could be judged
    NONE = "none"
    DEVICE = "device"
    CLUSTER = "cluster"
    FLEET = "fleet"


@dataclass(frozen=True)
class DeviceRecord:
    """How devices were, and how far their windows used to be from it.

    Attributes:
        features_DFC: int64 counts of the whole record.
        center_DF: Mean distance of the record's windows; NaN for a device with too few of them.
        scale_DF: Its spread, at least that of the fleet.
        window_slots: Length of the windows.
    """

    features_DFC: NDArray[np.int64]
    center_DF: NDArray[np.float64]
    scale_DF: NDArray[np.float64]
    window_slots: int

    def keeping(self, older: DeviceRecord, devices: Iterable[int]) -> DeviceRecord:
        """This record, but some devices as they were in an older one: what is broken must not become how a device is.

        Args:
            older: Of the same fleet and features, and of windows of the same length.
            devices: Which.
        """
        mine_D = np.isin(np.arange(len(self.center_DF)), list(devices))
        return DeviceRecord(
            np.where(mine_D[:, None, None], older.features_DFC, self.features_DFC),
            np.where(mine_D[:, None], older.center_DF, self.center_DF),
            np.where(mine_D[:, None], older.scale_DF, self.scale_DF),
            self.window_slots,
        )

    def with_room(self, num_devices: int) -> DeviceRecord:
        """The same for a fleet of more devices; the new ones have no record, and are not judged."""
        more = ((0, num_devices - len(self.center_DF)), (0, 0))
        return DeviceRecord(
            np.pad(self.features_DFC, (*more, (0, 0))),
            np.pad(self.center_DF, more, constant_values=np.nan),
            np.pad(self.scale_DF, more, constant_values=np.nan),
            self.window_slots,
        )


@dataclass(frozen=True)
class DriftPlace:
    """Where drift lives in one window.

    Attributes:
        scope: The verdict.
        devices: Outliers, ascending: what a quarantine is about.
        groups: Groups that moved, ascending.
        features: Features that moved in what the scope names, by name.
        num_judged: Devices with enough rows and record.
        p_devices: The outliers' p-values, in the order of `devices`.
        moved_fraction: Share of the judged devices that moved.
    """

    scope: Scope
    devices: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    features: tuple[str, ...] = ()
    num_judged: int = 0
    p_devices: tuple[float, ...] = ()
    moved_fraction: float = float("nan")


def make_record(windows: Sequence[NDArray[np.integer]], window_slots: int, min_rows: int) -> DeviceRecord:
    """The record of a fleet.

    Args:
        windows: Counts ``[D, F, C]`` of windows that do not overlap.
        window_slots: How long each is.
        min_rows: Rows under which a device's window is left out.

    Raises:
        DataError: If there are fewer than `MIN_WINDOWS` windows.
    """
    if len(windows) < MIN_WINDOWS:
        raise DataError(
            f"a record of {len(windows)} windows", where="record", fix=f"give at least {MIN_WINDOWS}"
        )
    total_DFC: NDArray[np.int64] = np.sum(np.stack(windows), axis=0, dtype=np.int64)
    x_WDF = np.stack([_distance(total_DFC - window, window, min_rows) for window in windows])
    known_DF = (~np.isnan(x_WDF)).sum(axis=0).astype(np.float64)
    known_DF[known_DF < MIN_WINDOWS] = np.nan
    center_DF = np.nansum(x_WDF, axis=0) / known_DF
    # Each window against the mean of the others, for that is what a new window will be held against.
    rest_WDF = (x_WDF - center_DF) * known_DF / (known_DF - 1.0)
    pooled_F = _MAD * _median(np.abs(rest_WDF).reshape(-1, x_WDF.shape[2]))
    own_DF = np.sqrt(np.nansum(np.square(x_WDF - center_DF), axis=0) / (known_DF - 1.0))
    scale_DF = np.maximum(np.fmax(own_DF, pooled_F), _LEAST_SCALE)
    return DeviceRecord(total_DFC, center_DF, scale_DF, window_slots)


def locate(
    record: DeviceRecord,
    features_DFC: NDArray[np.integer],
    group_D: NDArray[np.int64],
    names: Sequence[str],
    rules: PlaceRules,
) -> DriftPlace:
    """Where drift lives in a window.

    Args:
        record: What devices were.
        features_DFC: The window's counts by device.
        group_D: ``[D]`` the group of each device.
        names: F names of features.
        rules: Limits and error rates.
    """
    z_DF, far_DF = _standing(record, features_DFC, rules)
    judged_D: NDArray[np.bool_] = np.any(~np.isnan(z_DF), axis=1)
    if not judged_D.any():
        return DriftPlace(Scope.UNKNOWN)
    moved_DF = far_DF & (z_DF > NormalDist().inv_cdf(1.0 - rules.moved_alpha / z_DF.shape[1]))
    moved_D: NDArray[np.bool_] = np.any(moved_DF, axis=1)
    groups, groups_judged = _moved_groups(moved_D, judged_D, group_D, rules.min_group)
    everywhere = 2 * len(groups) > groups_judged and 2 * moved_D.sum() > judged_D.sum()
    reference_D = judged_D if everywhere else judged_D & ~np.isin(group_D, groups)
    common_F = 2 * moved_DF[reference_D].sum(axis=0) > reference_D.sum()
    p_D = _outlier_p(z_DF, far_DF & ~common_F, reference_D)
    outlier_D = benjamini_hochberg(p_D, rules.alpha)
    scattered = outlier_D.sum() > max(1.0, rules.max_device_fraction * reference_D.sum())
    if scattered:
        outlier_D = np.zeros_like(outlier_D)  # so many are no single devices any more: nobody is accused
    if everywhere or scattered:
        scope, who_D = Scope.FLEET, judged_D & moved_D
    elif groups:
        scope, who_D = Scope.CLUSTER, moved_D & np.isin(group_D, groups)
    else:
        scope, who_D = (Scope.DEVICE if outlier_D.any() else Scope.NONE), outlier_D
    return DriftPlace(
        scope,
        tuple(np.flatnonzero(outlier_D).tolist()),
        tuple(groups),
        _features_of(moved_DF, who_D, names),
        int(judged_D.sum()),
        tuple(p_D[outlier_D].tolist()),
        float(moved_D.sum() / judged_D.sum()),
    )


def _distance(
    record_DFC: NDArray[np.integer], window_DFC: NDArray[np.integer], min_rows: int
) -> NDArray[np.float64]:
    """``[D, F]`` the distance x of a window from its record; NaN where either has too few rows."""
    n_DF = record_DFC.sum(axis=-1, dtype=np.float64)
    m_DF = window_DFC.sum(axis=-1, dtype=np.float64)
    n_DF[n_DF < min_rows], m_DF[m_DF < min_rows] = np.nan, np.nan
    size_DF = n_DF * m_DF / (n_DF + m_DF)
    distance_DF: NDArray[np.float64] = np.log(
        np.maximum(psi(record_DFC, window_DFC) * size_DF, _LEAST_DISTANCE)
    )
    return distance_DF


def _standing(
    record: DeviceRecord, features_DFC: NDArray[np.integer], rules: PlaceRules
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """``[D, F]`` each window's z, and whether it is far from the record in effect too."""
    x_DF = _distance(record.features_DFC, features_DFC, rules.min_rows)
    z_DF = (x_DF - record.center_DF) / record.scale_DF
    effect_DF = psi(record.features_DFC, features_DFC) - psi_bias(record.features_DFC, features_DFC)
    return z_DF, effect_DF > rules.psi


def _tail(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(Z > z) of a standard normal."""
    upper = 0.5 * upper_gamma(0.5, np.square(z) / 2.0)
    return np.where(z > 0, upper, 1.0 - upper)


def _moved_groups(
    moved_D: NDArray[np.bool_], judged_D: NDArray[np.bool_], group_D: NDArray[np.int64], min_group: int
) -> tuple[list[int], int]:
    """The groups of which a majority moved, and how many groups were judged.

    Where no group has enough members, the fleet is one group without a name: none is returned, and the majority of the
    fleet decides alone.
    """
    size_G = np.bincount(group_D, weights=judged_D)
    moved_G = np.bincount(group_D, weights=moved_D & judged_D)
    judged_G = size_G >= min_group
    if not judged_G.any():
        return [], -1
    return np.flatnonzero(judged_G & (2 * moved_G > size_G)).tolist(), int(judged_G.sum())


def _outlier_p(
    z_DF: NDArray[np.float64], far_DF: NDArray[np.bool_], reference_D: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """``[D]`` p of "departs from its own record, and further than the others do"; NaN outside of the reference."""
    p_D = np.full(len(z_DF), np.nan)
    if not reference_D.any():
        return p_D
    z_KF = z_DF[reference_D]
    middle_F = _median(z_KF)
    spread_F = np.fmax(_MAD * _median(np.abs(z_KF - middle_F)), 1.0)
    among_KF = (z_KF - np.fmax(middle_F, 0.0)) / spread_F
    both_KF = np.where(far_DF[reference_D], np.fmin(z_KF, among_KF), -np.inf)
    p_D[reference_D] = np.minimum(z_DF.shape[1] * _tail(both_KF.max(axis=1)), 1.0)
    return p_D


def _median(x_KF: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[F]`` the median of what is known in each column; NaN where nothing is."""
    middle_F = np.full(x_KF.shape[1], np.nan)
    known_F = ~np.isnan(x_KF).all(axis=0)
    if known_F.any():
        middle_F[known_F] = np.nanmedian(x_KF[:, known_F], axis=0)
    return middle_F


def _features_of(
    moved_DF: NDArray[np.bool_], who_D: NDArray[np.bool_], names: Sequence[str]
) -> tuple[str, ...]:
    """Features in which at least half of the named devices moved, or else the one in which most of them did."""
    if not who_D.any():
        return ()
    share_F = moved_DF[who_D].mean(axis=0)
    chosen_F = (share_F >= 0.5) | ((share_F == share_F.max()) & (share_F > 0))
    return tuple(name for name, chosen in zip(names, chosen_F, strict=True) if chosen)
