"""Monitors over time: windows looked at when they are due, and the record that each champion is measured by.

Rules of this file:
    * What a new champion does is watched against its own record: for `settle_s` after its promotion its predictions and
      labels are not judged, then that part of its baseline is made from what it served.
    * Inputs are no work of a champion: its predecessor's record of them stays, and they are judged all the while. Where they
      have moved, the new one was made for what they are now, and the record is made from the time before its promotion.
      The pace of labels likewise. A champion that counts on other bins begins a new record, and nothing is judged until it has one.
    * A device that is quarantined keeps the record of the time when it was well, and what it measures meanwhile enters no view of the fleet and no
      baseline; only where drift lives is still asked of it, for that is its way back (`monitoring.aside`).
    * A window is looked at once, at its own end, however often and however late it is asked for.
    * Instants come as arguments: the simulator's clock is virtual, the server's is the wall's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedretrain.coordinator.signals import signals_of
from fedretrain.core.checks import not_negative, positive
from fedretrain.monitoring.aside import after
from fedretrain.monitoring.baseline import make_baseline, slots_of
from fedretrain.monitoring.locate import DriftPlace, Scope
from fedretrain.monitoring.view import view

if TYPE_CHECKING:
    from fedretrain.coordinator.signals import Facts
    from fedretrain.monitoring.aside import KeptOut
    from fedretrain.monitoring.baseline import Baseline
    from fedretrain.monitoring.config import MonitoringPolicy
    from fedretrain.monitoring.intake import Intake
    from fedretrain.monitoring.locate import DeviceRecord
    from fedretrain.monitoring.state import MonitorState
    from fedretrain.monitoring.view import FleetView
    from fedretrain.retraining.signals import Signals

NOWHERE = DriftPlace(Scope.UNKNOWN)
"""Drift was not looked for yet."""

_KEEP = 2.5  # longest windows that are kept: late data, and the window before


@dataclass(frozen=True)
class Clockwork:
    """How time is cut.

    Attributes:
        slot_s: Length of a slot.
        settle_s: After a promotion what the champion does is not judged for so long; then that part of the baseline is made.
        record_s: How devices are is taken anew so long after a promotion; no sooner than `settle_s` in effect.
        inputs_s: How long the record of inputs is; no shorter than `settle_s` in effect.
        offset_s: Added to an instant before slots are counted.
        grace_s: A slot is looked at so long after its end: reports take a while.
        trial_s: A rollout's longest stage: its evidence grows from its beginning on, so that long nothing of it is forgotten.
    """

    slot_s: float
    settle_s: float = 0.0
    record_s: float = 0.0
    inputs_s: float = 0.0
    offset_s: float = 0.0
    grace_s: float = 0.0
    trial_s: float = 0.0

    def __post_init__(self) -> None:
        positive("watching.slot_s", self.slot_s)
        for key in ("settle_s", "record_s", "inputs_s", "offset_s", "grace_s", "trial_s"):
            not_negative(f"watching.{key}", getattr(self, key))

    def end_slot(self, now: float) -> int:
        """The first slot that is not over, or not old enough to be looked at."""
        return math.floor((now + self.offset_s - self.grace_s) / self.slot_s + 1e-9)

    def slot_of(self, now: float) -> int:
        """The slot that is under way."""
        return math.floor((now + self.offset_s) / self.slot_s + 1e-9)

    @property
    def input_slots(self) -> int:
        """Slots of the record of inputs."""
        return slots_of(max(self.settle_s, self.inputs_s), self.slot_s)

    def keep_slots(self, policy: MonitoringPolicy) -> int:
        """Slots that a store must keep."""
        longest = max(window.length_s for window in policy.windows)
        trial = math.ceil(self.trial_s / self.slot_s) + 1  # and the one that is under way
        return max(slots_of(_KEEP * longest, self.slot_s), self.input_slots, trial)


@dataclass(frozen=True, eq=False)
class Kept:
    """What another process needs to go on. Replaced, never changed: another object is another record.

    Attributes:
        baseline: The champion's; None before there is one.
        settled_at: When the present champion's own part of it is due; None once it is made.
        recorded_at: When the record of its devices is due; None once it is made.
        inputs_slot: Windows that begin before it are part of the record of inputs, and not held against it; None: there are
            none.
        where: Where drift was at the last look for it since the promotion.
        stays: Who is, or lately was, kept out, and when.
    """

    baseline: Baseline | None = None
    settled_at: float | None = None
    recorded_at: float | None = None
    inputs_slot: int | None = None
    where: DriftPlace = NOWHERE
    stays: tuple[KeptOut, ...] = ()


class Watching:
    """The monitors of a population. Mutable.

    Args:
        policy: What is watched.
        intake: Where reports are taken in; its store is what is looked at.
        clockwork: How time is cut.
        kept: What another process kept; nothing in the first one.
    """

    def __init__(
        self, policy: MonitoringPolicy, intake: Intake, clockwork: Clockwork, kept: Kept | None = None
    ) -> None:
        self._policy, self._intake, self._clockwork = policy, intake, clockwork
        self.kept = kept or Kept()
        if self.kept.baseline is not None:  # the fleet may have grown
            room = self.kept.baseline.with_room(intake.store.num_devices)
            self.kept = replace(self.kept, baseline=room)
        intake.store.keep_out(self.kept.stays)
        self._views: dict[float, FleetView] = {}
        self._looked_at: dict[float, int] = {}

    @property
    def baseline(self) -> Baseline | None:
        """The champion's; None before there is one."""
        return self.kept.baseline

    def keep_out(self, devices: frozenset[int], now: float) -> None:
        """Who is kept out from now on: the slot that is under way is the first of theirs that is not the fleet's."""
        store = self._intake.store
        stays = after(self.kept.stays, devices, self._clockwork.slot_of(now), store.oldest_slot)
        if stays != self.kept.stays:
            self.kept = replace(self.kept, stays=stays)
            store.keep_out(stays)

    def begin(self, champion: int, first_slot: int, end_slot: int, now: float) -> None:
        """Make the first champion's baseline of a history that was taken in: the slots ``[first_slot, end_slot)``."""
        made = self._made(champion, first_slot, end_slot, now)
        if made is not None:
            self.kept = replace(self.kept, baseline=made)

    def promoted(self, champion: int, now: float, monitor: MonitorState) -> None:
        """A new champion.

        Args:
            champion: Its version.
            now: The instant.
            monitor: What was held for true of the one before it.
        """
        clockwork, last = self._clockwork, self.kept
        if last.baseline is not None:
            last = replace(last, baseline=replace(last.baseline, version=champion))
        self.kept = replace(
            self._moved(last, champion, now, monitor),
            settled_at=now + clockwork.settle_s,
            recorded_at=now + max(clockwork.record_s, clockwork.settle_s),
            where=NOWHERE,
        )
        self._views.clear()

    def views(self, monitor: MonitorState, now: float) -> tuple[FleetView, ...]:
        """The windows that are due and were not looked at, the shortest first; of inputs alone while a champion settles.

        Args:
            monitor: What is held for true of the present champion.
            now: The instant.
        """
        self._settle(monitor, now)
        baseline = self.kept.baseline
        if baseline is None or not self._counts_on(baseline):
            return ()
        found = []
        for window in sorted(self._policy.windows, key=lambda one: one.length_s):
            slot_s = self._clockwork.slot_s
            end = self._clockwork.end_slot(now)
            end -= end % slots_of(window.stride_s, slot_s)
            if self._looked_at.get(window.length_s) == end:
                continue
            first = end - slots_of(window.length_s, slot_s)
            if self.kept.inputs_slot is not None and first < self.kept.inputs_slot:
                continue  # part of what it would be held against
            self._looked_at[window.length_s] = end
            found.append(self._look(baseline, window.length_s, end, now))
        return tuple(found)

    @property
    def judges(self) -> bool:
        """Whether there is a view to judge a champion by."""
        shortest = min(window.length_s for window in self._policy.windows)
        return self.kept.baseline is not None and self.kept.settled_at is None and shortest in self._views

    def signals(self, monitor: MonitorState, facts: Facts) -> Signals | None:
        """What retraining may look at; None where nothing is to judge by."""
        if self.kept.baseline is None or not self.judges:
            return None
        inputs = self._views.get(min(window.length_s for window in self._policy.windows))
        labels = self._views.get(self._policy.accuracy.window_s, inputs)
        if inputs is None or labels is None:
            return None
        return signals_of(replace(inputs, where=self.kept.where), labels, self.kept.baseline, monitor, facts)

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
        if self.kept.settled_at is not None:
            seen = replace(seen, serving=None)
        self._views[length_s] = seen
        if seen.where.scope is not Scope.UNKNOWN:  # looked for once a day; it stands until the next look
            self.kept = replace(self.kept, where=seen.where)
        return seen

    def _settle(self, monitor: MonitorState, now: float) -> None:
        """Make the champion's own part of its baseline, and later a record of devices, once there is enough of either."""
        clockwork, end = self._clockwork, self._clockwork.end_slot(now)
        settled_at, recorded_at = self.kept.settled_at, self.kept.recorded_at
        if settled_at is not None and settled_at <= now:
            made = self._made(monitor.version, end - clockwork.input_slots, end, now)
            if made is not None:
                self.kept = replace(self.kept, baseline=self._beside(made), settled_at=None)
                self._views.clear()  # those of inputs alone
                self._looked_at.clear()
        if recorded_at is not None and recorded_at <= now and self.kept.baseline is not None:
            longest = slots_of(max(clockwork.record_s, clockwork.inputs_s), clockwork.slot_s)
            made, last = self._made(monitor.version, end - longest, end, now), self.kept.baseline
            if made is not None and self._counts_on(last):
                record = _record(made.record, last.record, monitor)
                self.kept = replace(self.kept, baseline=replace(last, record=record), recorded_at=None)

    def _moved(self, last: Kept, champion: int, now: float, monitor: MonitorState) -> Kept:
        """What is kept, with inputs, and the pace of labels, as they lately were where they have changed."""
        baseline, end = last.baseline, self._clockwork.end_slot(now)
        if baseline is None or not self._counts_on(baseline):
            return last
        moved = monitor.drifted or last.where.scope in (Scope.CLUSTER, Scope.FLEET)
        if not (moved or monitor.pace_changed):
            return last
        made = self._made(champion, end - self._clockwork.input_slots, end, now)
        if made is None:
            return last
        lately = baseline
        if moved:
            lately = replace(made, record=_record(made.record, baseline.record, monitor))
        pace = made if monitor.pace_changed else baseline
        baseline = baseline.with_inputs_of(replace(lately, arrivals_D=pace.arrivals_D))
        return replace(last, baseline=baseline, inputs_slot=end if moved else last.inputs_slot)

    def _beside(self, made: Baseline) -> Baseline:
        """What a champion did, beside the record of inputs; a score that labels do not tell yet stays the last one's.

        The first champion's inputs are of the same time as what it did; so are those of one with other bins.
        """
        last = self.kept.baseline
        if last is None:
            return made
        if self._counts_on(last):
            made = made.with_inputs_of(last)
        if math.isfinite(made.accuracy):
            return made
        return replace(
            made, accuracy=last.accuracy, macro_f1=last.macro_f1, calibration_B2=last.calibration_B2
        )

    def _counts_on(self, baseline: Baseline) -> bool:
        """Whether a baseline counts on the bins that reports come in now."""
        return baseline.bins.digest == self._intake.store.bins.digest

    def _made(self, champion: int, first: int, end: int, now: float) -> Baseline | None:
        """A baseline of the slots ``[first, end)``, as far as they are kept; None if nobody reported in them."""
        store = self._intake.store
        first = max(first, store.oldest_slot, 0)
        if end <= first or not store.window(end, end - first).num_rows:
            return None
        instant = now + self._clockwork.offset_s
        return make_baseline(store, first, end, self._policy, version=champion, now=instant)


def _record(
    newer: DeviceRecord | None, older: DeviceRecord | None, monitor: MonitorState
) -> DeviceRecord | None:
    """How devices are: as lately, but those in quarantine as they were before."""
    if newer is None or older is None:
        return newer or older
    return newer.keeping(older, monitor.quarantined)
