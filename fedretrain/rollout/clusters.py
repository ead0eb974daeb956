"""Device clusters: who is judged apart, by how wide a margin, and with which share of the rollout's alpha.

Rules of this file:
    * A cluster is a site or a device type. Harm to one of them hides in a mean that improves, so each is judged by every guardrail of the fleet.
    * Its share of alpha comes out of each look's level of harm: `alpha_fraction` of it, split evenly over guardrails and over the clusters that are
      judged at that exposure (Bonferroni; sites and types overlap, which only makes it cautious). Fleet-wide checks keep the rest, and all of it
      where no cluster can be judged. The split depends on who was exposed by lot, never on what was measured.
    * A cluster is judged from `min_devices` devices in either arm on. A canary of a few per cent has none: there only the fleet is watched, and the
      cluster is seen in the ramp, where its exposure grows.
    * Its margin is the fleet's times `margin_factor` times sqrt(devices of the fleet / devices of the cluster): a mean over fewer devices errs by
      that much more, so the limit is the same number of standard errors away as the fleet's, and `margin_factor` times as many, because
      every cluster has to be proven at the same look. With a factor of 1.5 proof is as hard for ten clusters together as for the fleet.
    * The last step must prove each cluster within its margin: one beyond it is promoted with at most the rollout's alpha.
    * A cluster in which the control too measures little says nothing: it is reported, and holds nobody (labels come from some sites alone). Where
      the control measures and the candidate's devices measure less than half as often, it is INCONCLUSIVE and holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.checks import as_tuples, positive, require

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from fedretrain.rollout.metrics import DeviceMeans, MetricEvidence


class ClusterBy(StrEnum):
    """What makes devices alike."""

    SITE = "site"
    DEVICE_TYPE = "device_type"


@dataclass(frozen=True)
class ClusterRules:
    """What is demanded of each device cluster.

    Attributes:
        by: What makes a cluster; empty: the fleet alone is judged.
        alpha_fraction: Share of each look's level of harm that is spent on clusters.
        min_devices: Fewer devices in either arm are not judged apart.
        min_events: Fewer events in either arm are not judged apart.
        margin_factor: See the rules of this file.
    """

    by: tuple[ClusterBy, ...] = (ClusterBy.SITE, ClusterBy.DEVICE_TYPE)
    alpha_fraction: float = 0.1
    min_devices: int = 8
    min_events: int = 40
    margin_factor: float = 1.5

    def __post_init__(self) -> None:
        as_tuples(self, ["by"])
        require(len(set(self.by)) == len(self.by), f"{self.by} names one twice", key="gate.clusters.by")
        require(
            0.0 < self.alpha_fraction < 1.0,
            f"a share of {self.alpha_fraction} of alpha",
            key="gate.clusters.alpha_fraction",
            fix="give a number between 0 and 1",
        )
        require(
            self.min_devices >= 2,
            f"{self.min_devices} devices have no spread to judge by",
            key="gate.clusters.min_devices",
            fix="give at least 2",
        )
        require(self.min_events >= 1, f"{self.min_events} events", key="gate.clusters.min_events")
        positive("gate.clusters.margin_factor", self.margin_factor)

    def margin(self, margin: float, num_fleet: int, num_devices: int) -> float:
        """The margin of a cluster of `num_devices` in a fleet of `num_fleet`, where the fleet's is `margin`."""
        return margin * self.margin_factor * math.sqrt(num_fleet / num_devices)


@dataclass(frozen=True)
class Cluster:
    """Devices that are alike.

    Attributes:
        name: For people, for example ``"site north"``.
        device_K: ``[K]`` int64 their ids, ascending.
    """

    name: str
    device_K: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.device_K)

    def of(self, arm: DeviceMeans) -> DeviceMeans:
        """The rows of an arm that are this cluster's."""
        return arm.take(np.isin(arm.device_K, self.device_K))


def make_clusters(
    rules: ClusterRules, traits: Mapping[ClusterBy, Sequence[str]], counted_D: NDArray[np.bool_]
) -> tuple[Cluster, ...]:
    """The clusters of a fleet. A trait that all devices share makes none: that cluster is the fleet.

    Args:
        rules: Says by which traits.
        traits: Of each device, ``[D]``.
        counted_D: ``[D]`` devices that count.
    """
    found: list[Cluster] = []
    for by in rules.by:
        value_D = np.asarray(traits[by], dtype=np.str_)
        kinds = np.unique(value_D[counted_D])
        if len(kinds) > 1:
            what = by.replace("_", " ")
            found += [
                Cluster(f"{what} {kind}", np.flatnonzero(counted_D & (value_D == kind))) for kind in kinds
            ]
    return tuple(found)


@dataclass(frozen=True)
class ClusterEvidence:
    """A cluster's part of a metric's evidence.

    Attributes:
        cluster: Which.
        treated: Its devices of the treated arm.
        control: Its devices of the control.
    """

    cluster: Cluster
    treated: DeviceMeans
    control: DeviceMeans


def exposed_clusters(
    rules: ClusterRules, row: MetricEvidence, clusters: Sequence[Cluster]
) -> list[ClusterEvidence]:
    """The clusters with enough devices in both arms to be judged, by who was exposed."""
    found = []
    for cluster in clusters:
        mine = ClusterEvidence(cluster, cluster.of(row.treated), cluster.of(row.control))
        if min(len(mine.treated), len(mine.control)) >= rules.min_devices:
            found.append(mine)
    return found


def is_silenced(found: ClusterEvidence) -> bool:
    """Whether the candidate's devices of a cluster measure less than half as often as its control."""
    treated, control = len(found.treated.measured()), len(found.control.measured())
    return 2 * treated * len(found.control) < control * len(found.treated)
