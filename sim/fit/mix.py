"""Which classes devices see: shares by cluster, and how much devices differ.

Rules of this file:
    * Counts are of labels that arrived: it is the mix of those. Labels that are biased by class (an operator looks at alarms) bias it;
      `sim.fit.label_rates` says by how much.
    * How devices differ is said twice: as the concentration of a Dirichlet law (`fleet.label_alpha`, for fleets dealt from a data set)
      and as the share of rows from two favourite classes (`fleet.generator.label_skew`, for generated fleets).

Shape letters: D devices, Q clusters, M classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.fleetlog.log import cluster_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.fleetlog.log import FleetLog

    Floats = NDArray[np.float64]

_MOST_ALPHA = 1e4  # more concentrated than this no fleet can be told from an even one
_STEPS = 500


@dataclass(frozen=True)
class Mix:
    """A fitted class mix.

    Attributes:
        cluster: Site and type of each cluster.
        shares_QM: Class shares by cluster, half a label added to each class.
        label_alpha: Concentration per class of the devices' shares around the fleet's.
        label_skew: Share of a device's rows that come from two favourite classes, of a generated fleet.
        num_labels: What it rests on.
    """

    cluster: tuple[tuple[int, int], ...]
    shares_QM: Floats
    label_alpha: float
    label_skew: float
    num_labels: int


def class_counts(log: FleetLog) -> Floats:
    """``[D, M]`` labels that came, by device and class."""
    num_classes, arrivals = len(log.header.class_names), log.arrivals
    cell = arrivals.device * num_classes + arrivals.label
    counts = np.bincount(cell, minlength=log.header.num_devices * num_classes)
    return counts.reshape(log.header.num_devices, num_classes).astype(np.float64)


def cluster_shares(log: FleetLog) -> Floats:
    """``[Q, M]`` class shares of each cluster."""
    of, cluster = cluster_of(log.header)
    counts_DM = class_counts(log)
    summed = np.zeros((len(cluster), counts_DM.shape[1]))
    np.add.at(summed, of, counts_DM)
    smoothed = summed + 0.5
    shares: Floats = smoothed / smoothed.sum(axis=1, keepdims=True)
    return shares


def fit_mix(log: FleetLog) -> Mix | None:
    """The class mix; None for a regression, or where no device has two labels."""
    if not log.header.class_names or len(log.arrivals) < 2:
        return None
    counts_DM = class_counts(log)
    counts_DM = counts_DM[counts_DM.sum(axis=1) >= 2]
    if not len(counts_DM):
        return None
    _, cluster = cluster_of(log.header)
    return Mix(
        tuple(cluster),
        cluster_shares(log),
        concentration(counts_DM),
        favourites(counts_DM),
        int(counts_DM.sum()),
    )


def concentration(counts_DM: Floats) -> float:
    """The concentration per class of a Dirichlet-multinomial law around the pooled shares, by maximum likelihood.

    Source: Minka 2000, "Estimating a Dirichlet distribution", section 4 (fixed-point iteration for the precision),
        https://tminka.github.io/papers/dirichlet/
    """
    from scipy.special import digamma

    size_D = counts_DM.sum(axis=1)
    share_M = counts_DM.sum(axis=0) / size_D.sum()
    used = share_M > 0
    share_M, counts_DM = share_M[used], counts_DM[:, used]
    whole = float(len(share_M))
    for _ in range(_STEPS):
        top = (share_M * (digamma(counts_DM + whole * share_M) - digamma(whole * share_M))).sum()
        bottom = (digamma(size_D + whole) - digamma(whole)).sum()
        fresh = float(np.clip(whole * top / max(bottom, 1e-300), 1e-3, _MOST_ALPHA))
        if abs(fresh - whole) < 1e-6 * whole:
            break
        whole = fresh
    return whole / len(share_M)


def favourites(counts_DM: Floats) -> float:
    """The share of a generated device's rows from its two favourite classes, by the mean of its squared class shares.

    With two favourites drawn from M classes (possibly one twice) and a share s of the rows from them, the squared
    shares add up to ``1 / M + s**2 (1 / 2 - 1 / (2 M))`` in expectation.
    """
    size_D, num_classes = counts_DM.sum(axis=1), counts_DM.shape[1]
    if num_classes < 2:
        return 0.0
    # Pairs of different rows: no bias from small devices.
    same = (counts_DM * (counts_DM - 1.0)).sum(axis=1) / (size_D * (size_D - 1.0))
    excess = float(np.average(same, weights=size_D)) - 1.0 / num_classes
    return float(np.sqrt(np.clip(excess / (0.5 - 0.5 / num_classes), 0.0, 1.0)))
