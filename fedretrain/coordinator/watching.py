"""Monitors over time: windows looked at when they are due, and the record that each champion is measured by.

Rules of this file:
    * A new champion is watched against its own record: for `settle_s` after its promotion nothing is judged, then its
      baseline is made from what it served. Its inputs are no work of its own: they may be those of a longer time.
    * A window is looked at once, at its own end, however often and however late it is asked for.
    * Instants come as arguments: the simulator's clock is virtual, the server's is the wall's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedretrain.coordinator.signals import signals_of
from fedretrain.core.checks import not_negative, positive
from fedretrain.monitoring.baseline import make_baseline, slots_of
from fedretrain.monitoring.locate import DriftPlace, Scope
from fedretrain.monitoring.view import view

if TYPE_CHECKING:
    from fedretrain.coordinator.signals import Facts
    from fedretrain.monitoring.baseline import Baseline
    from fedretrain.monitoring.config import MonitoringPolicy
    from fedretrain.monitoring.intake import Intake
    from fedretrain.monitoring.state import MonitorState
    from fedretrain.monitoring.view import FleetView
    from fedretrain.retraining.signals import Signals

_KEEP = 2.5  # longest windows that are kept: late data, and the window before


@dataclass(frozen=True)
class Clockwork:
    """How time is cut.

    Attributes:
        slot_s: Length of a slot.
        settle_s: After a promotion nothing is judged for so long; then the baseline is made.
        record_s: How long the record of devices' scores grows; no shorter than `settle_s` in effect.
        inputs_s: How long the record of inputs is; no shorter than `settle_s` in effect.
        offset_s: Added to an instant before slots are counted.
        grace_s: A slot is looked at so long after its end: reports take a while.
    """

    slot_s: float
    settle_s: float = 0.0
    record_s: float = 0.0
    inputs_s: float = 0.0
    offset_s: float = 0.0
    grace_s: float = 0.0

    def __post_init__(self) -> None:
        positive("watching.slot_s", self.slot_s)
        for key in ("settle_s", "record_s", "inputs_s", "offset_s", "grace_s"):
            not_negative(f"watching.{key}", getattr(self, key))

    def end_slot(self, now: float) -> int:
        """The first slot that is not over, or not old enough to be looked at."""
        return math.floor((now + self.offset_s - self.grace_s) / self.slot_s + 1e-9)

    @property
    def input_slots(self) -> int:
        """Slots of the record of inputs."""
        return slots_of(max(self.settle_s, self.inputs_s), self.slot_s)

    def keep_slots(self, policy: MonitoringPolicy) -> int:
        """Slots that a store must keep."""
        longest = max(window.length_s for window in policy.windows)
        return max(slots_of(_KEEP * longest, self.slot_s), self.input_slots)


class Watching:
    """The monitors of a population. Mutable.

    Args:
        policy: What is watched.
        intake: Where reports are taken in; its store is what is looked at.
        clockwork: How time is cut.
    """

    def __init__(self, policy: MonitoringPolicy, intake: Intake, clockwork: Clockwork) -> None:
        self._policy, self._intake, self._clockwork = policy, intake, clockwork
        self.baseline: Baseline | None = None
        self._settled_at: float | None = None
        self._recorded_at: float | None = None
        self._views: dict[float, FleetView] = {}
        self._looked_at: dict[float, int] = {}
        self._where = DriftPlace(Scope.UNKNOWN)

    def begin(self, champion: int, first_slot: int, end_slot: int, now: float) -> None:
        """Make the first champion's baseline of a history that was taken in: the slots ``[first_slot, end_slot)``."""
        self._remake(champion, first_slot, end_slot, now)

    def restore(self, baseline: Baseline | None, settled_at: float | None, recorded_at: float | None) -> None:
        """Go on where another process stopped."""
        self.baseline, self._settled_at, self._recorded_at = baseline, settled_at, recorded_at

    @property
    def settled_at(self) -> float | None:
        """When the present champion's baseline is due; None once it is made."""
        return self._settled_at

    @property
    def recorded_at(self) -> float | None:
        """When the record of its devices is due; None once it is made."""
        return self._recorded_at

    def promoted(self, champion: int, now: float) -> None:
        """A new champion: judge nothing until it has a record of its own."""
        clockwork = self._clockwork
        if self.baseline is not None:
            self.baseline = replace(self.baseline, version=champion)
        self._settled_at = now + clockwork.settle_s
        self._recorded_at = now + max(clockwork.record_s, clockwork.settle_s)
        self._views.clear()
        self._where = DriftPlace(Scope.UNKNOWN)

    def views(self, champion: int, now: float) -> tuple[FleetView, ...]:
        """The windows that are due and were not looked at, the shortest first; none while a new champion settles."""
        self._settle(champion, now)
        if self.baseline is None or self._settled_at is not None:
            return ()
        found = []
        for window in sorted(self._policy.windows, key=lambda one: one.length_s):
            stride = slots_of(window.stride_s, self._clockwork.slot_s)
            end = self._clockwork.end_slot(now)
            end -= end % stride
            if self._looked_at.get(window.length_s) == end:
                continue
            self._looked_at[window.length_s] = end
            found.append(self._look(self.baseline, window.length_s, end, now))
        return tuple(found)

    @property
    def judges(self) -> bool:
        """Whether there is a view to judge by."""
        shortest = min(window.length_s for window in self._policy.windows)
        return self.baseline is not None and self._settled_at is None and shortest in self._views

    def signals(self, monitor: MonitorState, facts: Facts) -> Signals | None:
        """What retraining may look at; None where nothing is to judge by."""
        if self.baseline is None or not self.judges:
            return None
        inputs = self._views.get(min(window.length_s for window in self._policy.windows))
        labels = self._views.get(self._policy.accuracy.window_s, inputs)
        if inputs is None or labels is None:
            return None
        return signals_of(replace(inputs, where=self._where), labels, self.baseline, monitor, facts)

    def _look(self, baseline: Baseline, length_s: float, end: int, now: float) -> FleetView:
        seen = view(
            self._intake.store,
            baseline,
            end,
            self._policy,
            window_s=length_s,
            now=now + self._clockwork.offset_s,
            refusals=self._intake.refusals,
        )
        self._views[length_s] = seen
        if seen.where.scope is not Scope.UNKNOWN:  # looked for once a day; it stands until the next look
            self._where = seen.where
        return seen

    def _settle(self, champion: int, now: float) -> None:
        """Make the champion's baseline once it has served long enough."""
        clockwork = self._clockwork
        end = clockwork.end_slot(now)
        if self._settled_at is not None and self._settled_at <= now:
            first = max(end - clockwork.input_slots, self._intake.store.oldest_slot, 0)
            if self._remake(champion, first, end, now):
                self._settled_at = None
        if self._recorded_at is not None and self._recorded_at <= now and self.baseline is not None:
            longest = slots_of(max(clockwork.record_s, clockwork.inputs_s), clockwork.slot_s)
            first = max(end - longest, self._intake.store.oldest_slot)
            longer = self._made(champion, first, end, now)
            self.baseline = replace(self.baseline, record=longer.record)
            self._recorded_at = None

    def _remake(self, champion: int, first: int, end: int, now: float) -> bool:
        """The baseline of the slots ``[first, end)``; a score that labels do not tell yet stays the last one's."""
        if end <= first:
            return False
        made, last = self._made(champion, first, end, now), self.baseline
        if last is not None and not math.isfinite(made.accuracy):
            made = replace(
                made, accuracy=last.accuracy, macro_f1=last.macro_f1, calibration_B2=last.calibration_B2
            )
        self.baseline = made
        return True

    def _made(self, champion: int, first: int, end: int, now: float) -> Baseline:
        instant = now + self._clockwork.offset_s
        return make_baseline(self._intake.store, first, end, self._policy, version=champion, now=instant)
