"""The coordinator's monitors in the simulation: telemetry taken in, windows looked at when they are due.

Rules of this file:
    * Slots are counted from the beginning of the baseline, so that none is negative.
    * A new champion is watched against its own record: for `settle_s` after its promotion nothing is judged, then its
      baseline is made from what it served. Its inputs are no work of its own: they may be those of a longer time.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.coordinator.signals import Facts, signals_of
from fedretrain.monitoring.baseline import Baseline, make_baseline, slots_of
from fedretrain.monitoring.bins import fit_bins
from fedretrain.monitoring.intake import Intake
from fedretrain.monitoring.locate import DriftPlace, Scope
from fedretrain.monitoring.store import FleetStore
from fedretrain.monitoring.view import FleetView, view
from sim.lifetime.telemetry import Reporter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.coordinator.cycle import CycleState
    from fedretrain.monitoring.bins import Bins
    from fedretrain.monitoring.config import MonitoringPolicy
    from fedretrain.retraining.signals import Signals
    from sim.lifetime.campaigns import Campaigns
    from sim.lifetime.loop import Living

    Ids = NDArray[np.int64]

_KEEP = 2.5  # longest windows that are kept: late data, and the window before
_REPORT_BYTES = 4


class Watch:
    """Takes telemetry in and makes views.

    Args:
        living: The life.
        policy: What to watch.
        group: ``[D]`` the group of each device.
    """

    def __init__(self, living: Living, policy: MonitoringPolicy, group: Ids) -> None:
        self._living, self._policy = living, policy
        self._slot_s = living.life.tick_s
        self._before = slots_of(living.life.baseline_s, self._slot_s) if living.life.baseline_s else 0
        self._offset_s = self._before * self._slot_s
        bins = self._bins()
        longest = max(window.length_s for window in policy.windows)
        self._inputs = slots_of(max(living.life.settle_s, living.life.inputs_s), self._slot_s)
        keep = max(slots_of(_KEEP * longest, self._slot_s), self._before, self._inputs)
        day = max(1, slots_of(policy.place.window_s, self._slot_s))
        self._store = FleetStore(
            living.fleet.num_devices,
            group,
            bins,
            self._slot_s,
            keep,
            num_outputs=living.fleet.num_outputs,
            chunk_slots=day,
        )
        self._intake = Intake(self._store, policy.label_wait_s, policy.clock_tolerance_s)
        self._reporter = Reporter(
            living.rows,
            bins,
            living.fleet.num_outputs,
            self._slot_s,
            self._offset_s,
            living.seed_of("latency"),
            living.latency_of,
        )
        self.baseline: Baseline | None = None
        self._settled_at = self._recorded_at = 0.0
        self._views: dict[float, FleetView] = {}
        self._where = DriftPlace(Scope.UNKNOWN)
        self.num_features = bins.num_features
        self.num_labels = 0
        self.bytes_up = 0

    def _bins(self) -> Bins:
        """Pinned bins of the whole history."""
        rows = self._living.rows
        history = rows.between(-math.inf, 0.0)
        x = rows.x[history].reshape(history.stop - history.start, -1)
        return fit_bins(x, _names(self._living), num_bins=self._policy.num_bins)

    def begin(self, champion: int) -> None:
        """Take in the history that the first champion is measured by, and make its baseline."""
        living = self._living
        everybody = np.ones(living.fleet.num_devices, dtype=np.bool_)
        for slot in range(self._before):
            start_at = slot * self._slot_s - self._offset_s
            self.observe(
                living.rows.between(start_at, start_at + self._slot_s),
                start_at,
                start_at + self._slot_s,
                everybody,
                (champion,),
            )
        self._remake(champion, 0, self._before, 0.0)

    def observe(
        self, which: slice, start_at: float, now: float, online: NDArray[np.bool_], released: tuple[int, ...]
    ) -> None:
        """The telemetry of a slot and the labels that came in it."""
        living, serving, reporter = self._living, self._living.serving, self._reporter
        slot = round((start_at + self._offset_s) / self._slot_s)
        made = None
        if which.stop > which.start:
            made = reporter.report(which, serving.outputs, serving.row_version, slot, now)
        reports = reporter.deliver(made, online)
        clock = now + self._offset_s
        if reports is not None:
            self._intake.receive(reports, released, clock)
            self.bytes_up += reports.features_KFC.size * _REPORT_BYTES
        arrived = living.rows.labelled_between(start_at, now)
        arrived = arrived[living.rows.event_at[arrived] >= -self._offset_s]
        if len(arrived):
            self._intake.receive(
                reporter.labels(arrived, serving.outputs, serving.row_version, slot, now), released, clock
            )
            self.num_labels += len(arrived)
        elif reports is not None:
            self._intake.retry(released, clock)

    def views(self, champion: int, now: float) -> tuple[FleetView, ...]:
        """The windows that are due at `now`, the shortest first; none while a new champion settles."""
        self._settle(champion, now)
        if self.baseline is None or now < self._settled_at:
            return ()
        end = round((now + self._offset_s) / self._slot_s)
        found = []
        for window in sorted(self._policy.windows, key=lambda one: one.length_s):
            if end % slots_of(window.stride_s, self._slot_s):
                continue
            if now - self._settled_at < 0:
                continue
            seen = view(
                self._store,
                self.baseline,
                end,
                self._policy,
                window_s=window.length_s,
                now=now + self._offset_s,
                refusals=self._intake.refusals,
            )
            self._views[window.length_s] = seen
            if seen.where.scope is not Scope.UNKNOWN:  # looked for once a day; it stands until the next look
                self._where = seen.where
            found.append(seen)
        return tuple(found)

    def signals(self, state: CycleState, campaigns: Campaigns, now: float) -> Signals | None:
        """What retraining may look at, at each stride of the shortest window."""
        inputs = self._views.get(min(window.length_s for window in self._policy.windows))
        labels = self._views.get(self._policy.accuracy.window_s, inputs)
        if inputs is None or labels is None or self.baseline is None or now < self._settled_at:
            return None
        facts = Facts(
            num_labels=self.num_labels,
            num_devices=self._living.fleet.num_devices,
            num_pool_rows=0 if campaigns.pool is None else campaigns.pool.num_rows(now),
            labels_leave_devices=campaigns.pool is not None,
            remaining_epsilon=campaigns.remaining_epsilon(),
            campaign_epsilon=campaigns.campaign_epsilon(self._living.life.retrain_rounds),
            can_personalize=self._living.arm.task.personal.size > 0,
        )
        return signals_of(replace(inputs, where=self._where), labels, self.baseline, state.monitor, facts)

    def promoted(self, champion: int, now: float) -> None:
        """A new champion: judge nothing until it has a record of its own."""
        assert self.baseline is not None
        self.baseline = replace(self.baseline, version=champion)
        self._settled_at = now + self._living.life.settle_s
        self._recorded_at = now + max(self._living.life.record_s, self._living.life.settle_s)
        self._views.clear()
        self._where = DriftPlace(Scope.UNKNOWN)

    def _settle(self, champion: int, now: float) -> None:
        """Make the champion's baseline once it has served long enough."""
        tick_s = self._slot_s
        if self._settled_at and now - tick_s < self._settled_at <= now:
            end = round((now + self._offset_s) / tick_s)
            self._remake(champion, max(end - self._inputs, 0), end, now)
        if self._recorded_at and now - tick_s < self._recorded_at <= now and self.baseline is not None:
            end = round((now + self._offset_s) / tick_s)
            longest_s = max(self._living.life.record_s, self._living.life.inputs_s)
            first = max(end - slots_of(longest_s, tick_s), self._store.oldest_slot)
            clock = now + self._offset_s
            longer = make_baseline(self._store, first, end, self._policy, version=champion, now=clock)
            self.baseline = replace(self.baseline, record=longer.record)

    def _remake(self, champion: int, first: int, end: int, now: float) -> None:
        """The baseline of the slots ``[first, end)``; a score that labels do not tell yet stays the last one's."""
        if end <= first:
            return
        made = make_baseline(
            self._store, first, end, self._policy, version=champion, now=now + self._offset_s
        )
        last = self.baseline
        if last is not None and not math.isfinite(made.accuracy):
            made = replace(
                made, accuracy=last.accuracy, macro_f1=last.macro_f1, calibration_B2=last.calibration_B2
            )
        self.baseline = made


def _names(living: Living) -> tuple[str, ...]:
    """Names of the flattened model inputs."""
    fleet = living.fleet
    size = int(np.prod(living.rows.x.shape[1:]))
    names = fleet.pipeline.feature_names(fleet.schema)
    return names if len(names) == size else tuple(f"input {i}" for i in range(size))
