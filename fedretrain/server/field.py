"""What a rollout's devices measured, from the counts that they sent.

Rules of this file:
    * Slots count that began after a stage did and are over: a slot that two stages share is nobody's.
    * Devices that are kept out, revoked or retired are in no arm and prove nothing; nor do those that joined later: no
      lot has put them into the control.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.coordinator.trial import Arms, Span, measure
from fedretrain.core.clock import DAY_S, HOUR_S
from fedretrain.rollout.assignment import shadowing
from fedretrain.rollout.causes import Phase
from fedretrain.rollout.evidence import Coverage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fedretrain.coordinator.watching import Clockwork
    from fedretrain.rollout.assignment import Assignments
    from fedretrain.rollout.metrics import MetricEvidence
    from fedretrain.rollout.state import RolloutState
    from fedretrain.server.fleet import Device
    from fedretrain.server.telemetry import Telemetry

PRE_PERIOD_S = 14 * DAY_S
"""How far back a device's own record goes that gates adjust by."""


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

    def span(self, start_at: float, now: float) -> Span:
        """The slots that began after an instant and are over."""
        return Span(math.ceil(start_at / self.clockwork.slot_s - 1e-9), self.clockwork.end_slot(now))

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
        served = self.telemetry.served.store
        before = self.span(rollout.created_at - PRE_PERIOD_S, rollout.created_at)
        return measure(
            names,
            Arms(self._padded(treated_D), self._padded(self.counted_D), shadow),
            served,
            self.telemetry.shadowed.store,
            self.span(start_at, now),
            replace(before, first=max(before.first, served.oldest_slot)),
            rollout.plan.candidate,
        )

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
        span, store = self.span(start_at, now), self.telemetry.shadowed.store
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
