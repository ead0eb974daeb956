"""What a rollout's devices measured, from the counts that they sent.

Rules of this file:
    * Devices that are kept out, revoked or retired are in no arm and prove nothing; nor do those that joined later: no
      lot has put them into the control.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.coordinator.foreseeing import foresee
from fedretrain.coordinator.trial import Arms, Trial
from fedretrain.core.clock import DAY_S, HOUR_S
from fedretrain.rollout.assignment import shadowing
from fedretrain.rollout.causes import Phase
from fedretrain.rollout.clusters import ClusterBy, make_clusters
from fedretrain.rollout.evidence import Coverage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fedretrain.coordinator.foreseeing import Foreseen
    from fedretrain.coordinator.policy import Policy
    from fedretrain.coordinator.watching import Clockwork
    from fedretrain.rollout.assignment import Assignments
    from fedretrain.rollout.clusters import Cluster, ClusterRules
    from fedretrain.rollout.metrics import MetricEvidence
    from fedretrain.rollout.state import RolloutState
    from fedretrain.server.fleet import Device
    from fedretrain.server.telemetry import Telemetry


@dataclass(frozen=True)
class Field:
    """The fleet as a field trial sees it.

    Attributes:
        telemetry: Counts.
        clockwork: How time is cut.
        devices: Of the fleet, by number.
        counted_D: ``[D]`` devices that count.
    """

    telemetry: Telemetry
    clockwork: Clockwork
    devices: Sequence[Device]
    counted_D: NDArray[np.bool_]

    @property
    def trial(self) -> Trial:
        """The counts, as a rollout is judged by them."""
        return Trial(self.telemetry.served.store, self.telemetry.shadowed.store, self.clockwork)

    def measure(
        self,
        names: Sequence[str],
        rollout: RolloutState,
        assignments: Assignments,
        start_at: float,
        now: float,
    ) -> list[MetricEvidence]:
        """Evidence for each metric since a stage began.

        Args:
            names: The metrics.
            rollout: The one that is on.
            assignments: Who is exposed.
            start_at: When the stage began.
            now: Instant.
        """
        shadow = rollout.phase is Phase.SHADOW
        treated_D = shadowing(assignments) if shadow else assignments.version_D == rollout.plan.candidate
        arms = Arms(self._padded(treated_D), self._padded(self.counted_D), shadow)
        return self.trial.measure(names, arms, rollout, start_at, now)

    def clusters(self, rules: ClusterRules) -> tuple[Cluster, ...]:
        """Sites and device types, of the devices that count."""
        traits = {
            ClusterBy.SITE: [device.traits.site for device in self.devices],
            ClusterBy.DEVICE_TYPE: [device.traits.device_type for device in self.devices],
        }
        return make_clusters(rules, traits, self.counted_D)

    def foresee(self, policy: Policy, now: float) -> Foreseen:
        """What each step of a rollout that begins now could see."""
        clusters = self.clusters(policy.gate.clusters)
        return foresee(policy, self.trial, clusters, self._padded(self.counted_D), now)

    def coverage(self, candidate: int, start_at: float, now: float) -> Coverage:
        """Hours of the day and device types that have scored the candidate in shadow since an instant.

        Args:
            candidate: Its version.
            start_at: When shadow began.
            now: Instant.
        """
        types = sorted({device.traits.device_type for device in self.devices})
        number = {name: i for i, name in enumerate(types)}
        type_D = np.array([number[device.traits.device_type] for device in self.devices], dtype=np.int64)
        hours: set[int] = set()
        seen: set[int] = set()
        span, store = self.trial.span(start_at, now), self.telemetry.shadowed.store
        for slot in range(max(span.first, store.oldest_slot), span.end):
            scored = store.window(slot + 1, 1).served.get(candidate)
            if scored is None:
                continue
            scored_D = (scored.predictions_D[: len(self.devices)] > 0) & self.counted_D
            if scored_D.any():
                hours.add(int(slot * self.clockwork.slot_s % DAY_S // HOUR_S))
                seen |= set(type_D[scored_D].tolist())
        wanted = set(type_D[self.counted_D].tolist())
        return Coverage(frozenset(hours), frozenset(seen), frozenset(wanted))

    def _padded(self, mask_D: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask over the store's devices, which are more than the fleet's."""
        whole = np.zeros(self.telemetry.capacity, dtype=np.bool_)
        whole[: len(mask_D)] = mask_D
        return whole
