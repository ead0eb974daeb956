"""The simulated fleet as a field trial sees it: who is in which arm and cluster, and what was measured there.

Rules of this file:
    * What devices reported is measured by `coordinator.trial`, from the same counts as on a server. Latency alone is told by the simulation, which
      knows it without noise.
    * Arms are compared as they were ordered: a device that refused the candidate stays in the treated arm. A device that is kept out counts in none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.clock import DAY_S
from fedretrain.rollout.clusters import ClusterBy, make_clusters
from fedretrain.rollout.evidence import Coverage
from fedretrain.rollout.metrics import DeviceMeans, MetricEvidence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from fedretrain.coordinator.trial import Arms, Trial
    from fedretrain.rollout.clusters import Cluster, ClusterRules
    from fedretrain.rollout.state import RolloutState
    from sim.devices import Traits
    from sim.lifetime.rows import LifeRows

LATENCY = "latency"


@dataclass(frozen=True)
class Field:
    """The fleet.

    Attributes:
        rows: Every row of the life.
        trial: What devices reported.
        traits: Of all devices.
        latency_of: Median latency in seconds of a version.
    """

    rows: LifeRows
    trial: Trial
    traits: Traits
    latency_of: Callable[[int], float]

    def clusters(self, rules: ClusterRules, counted: NDArray[np.bool_]) -> tuple[Cluster, ...]:
        """Sites and device types, of the devices that count ``[D]``."""
        traits = {
            ClusterBy.SITE: self.traits.site.astype(np.str_).tolist(),
            ClusterBy.DEVICE_TYPE: self.traits.device_type.astype(np.str_).tolist(),
        }
        return make_clusters(rules, traits, counted)

    def measure(
        self, metrics: Iterable[str], arms: Arms, rollout: RolloutState, start_at: float, now: float
    ) -> list[MetricEvidence]:
        """Evidence for each metric since a stage of a rollout began."""
        names = list(metrics)
        told = [name for name in names if name != LATENCY]
        found = self.trial.measure(told, arms, rollout, start_at, now)
        return found if told == names else [*found, self._latency(arms, rollout)]

    def covered(self, start_at: float, now: float, counted: NDArray[np.bool_]) -> Coverage:
        """Hours of the day and device types with scored rows since the stage began, of the devices that count ``[D]``."""
        taken = self.rows.between(start_at, now)
        which = np.arange(taken.start, taken.stop)
        which = which[counted[self.rows.device[which]]]
        hours = np.unique((self.rows.event_at[which] % DAY_S // 3600.0).astype(np.int64))
        types = np.unique(self.traits.device_type[self.rows.device[which]])
        wanted = np.unique(self.traits.device_type[counted])
        return Coverage(frozenset(hours.tolist()), frozenset(types.tolist()), frozenset(wanted.tolist()))

    def _latency(self, arms: Arms, rollout: RolloutState) -> MetricEvidence:
        """Median latency of each device's predictions."""
        candidate, champion = rollout.plan.candidate, rollout.plan.champion
        found = []
        others_D = arms.treated_D if arms.shadow else ~arms.treated_D
        for version, arm_D in ((candidate, arms.treated_D), (champion, others_D)):
            devices = np.flatnonzero(arm_D & arms.counted_D)
            spread = 1.0 + 0.02 * np.cos(
                devices * 2.399963
            )  # devices differ a little, always in the same way
            value, known = (self.latency_of(one) * spread for one in (version, champion))
            found.append(DeviceMeans(devices, value, np.full(len(devices), 100.0), known))
        return MetricEvidence(LATENCY, found[0], found[1], paired=arms.shadow)
