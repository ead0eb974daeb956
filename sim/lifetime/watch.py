"""The coordinator's monitors in the simulation: telemetry taken in; windows and baselines are `coordinator.watching`'s.

Rules of this file:
    * Slots are counted from the beginning of the baseline, so that none is negative.
    * What a candidate scores in shadow is reported as what is served is, and counted apart.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.coordinator.signals import Facts
from fedretrain.coordinator.trial import Trial
from fedretrain.coordinator.watching import Clockwork, Watching
from fedretrain.monitoring.baseline import slots_of
from fedretrain.monitoring.bins import fit_bins
from fedretrain.monitoring.intake import Intake
from fedretrain.monitoring.reports import LATENCY_KPI
from fedretrain.monitoring.store import FleetStore
from sim.lifetime.telemetry import Reporter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.coordinator.cycle import CycleState
    from fedretrain.coordinator.policy import Policy
    from fedretrain.monitoring.baseline import Baseline
    from fedretrain.monitoring.bins import Bins
    from fedretrain.monitoring.state import MonitorState
    from fedretrain.monitoring.view import FleetView
    from fedretrain.retraining.signals import Signals
    from sim.lifetime.campaigns import Campaigns
    from sim.lifetime.loop import Living

    Ids = NDArray[np.int64]

_REPORT_BYTES = 4


class Watch:
    """Takes telemetry in and makes views.

    Args:
        living: The life.
        policy: What to watch.
        group: ``[D]`` the group of each device.
    """

    def __init__(self, living: Living, policy: Policy, group: Ids) -> None:
        self._living, self._policy = living, policy.monitoring
        self._slot_s = living.life.tick_s
        self._before = slots_of(living.life.baseline_s, self._slot_s) if living.life.baseline_s else 0
        self._offset_s = self._before * self._slot_s
        bins = self._bins()
        clockwork = self._clockwork(policy)
        day = max(1, slots_of(self._policy.place.window_s, self._slot_s))

        def intake() -> Intake:
            store = FleetStore(
                living.fleet.num_devices,
                group,
                bins,
                self._slot_s,
                max(clockwork.keep_slots(self._policy), self._before),
                num_outputs=living.fleet.num_outputs,
                kpis=(LATENCY_KPI,),
                chunk_slots=day,
            )
            return Intake(store, self._policy.label_wait_s, self._policy.clock_tolerance_s)

        def reporter() -> Reporter:
            return Reporter(
                living.rows,
                bins,
                living.fleet.num_outputs,
                self._slot_s,
                self._offset_s,
                living.seed_of("latency"),
                living.latency_of,
            )

        self._intake, self._reporter = intake(), reporter()
        self._shadowed, self._shadow_reporter = intake(), reporter()
        self._scored = np.full(len(living.rows), -1, dtype=np.int32)  # by which candidate in shadow
        self.trial = Trial(self._intake.store, self._shadowed.store, clockwork)
        self._watching = Watching(self._policy, self._intake, clockwork)
        self.num_features = bins.num_features
        self.num_labels = 0
        self.bytes_up = 0

    def _clockwork(self, policy: Policy) -> Clockwork:
        life = self._living.life
        return Clockwork(
            self._slot_s,
            life.settle_s,
            life.record_s,
            life.inputs_s,
            self._offset_s,
            trial_s=policy.rollout.longest_stage_s,
        )

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
        self._watching.begin(champion, 0, self._before, 0.0)

    def observe(
        self, which: slice, start_at: float, now: float, online: NDArray[np.bool_], released: tuple[int, ...]
    ) -> None:
        """The telemetry of a slot and the labels that came in it."""
        living, serving, reporter = self._living, self._living.serving, self._reporter
        slot = round((start_at + self._offset_s) / self._slot_s)
        made = None
        if which.stop > which.start:
            made = reporter.report(which, serving.outputs, serving.row_version, slot, now, serving.told)
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

    def observe_shadow(
        self,
        which: Ids,
        candidate: int,
        start_at: float,
        now: float,
        online: NDArray[np.bool_],
        released: tuple[int, ...],
    ) -> None:
        """What a candidate scored in a slot, rows ``[n]``, and the labels that came of what was scored before."""
        outputs, reporter = self._living.serving.candidate_outputs, self._shadow_reporter
        slot = round((start_at + self._offset_s) / self._slot_s)
        made = None
        if len(which):
            self._scored[which] = candidate
            made = reporter.report(which, outputs, self._scored, slot, now)
        reports, clock = reporter.deliver(made, online), now + self._offset_s
        if reports is not None:
            self._shadowed.receive(reports, released, clock)
        arrived = self._living.rows.labelled_between(start_at, now)
        arrived = arrived[self._scored[arrived] >= 0]
        if len(arrived):
            labels = reporter.labels(arrived, outputs, self._scored, slot, now)
            self._shadowed.receive(labels, released, clock)
        elif reports is not None:
            self._shadowed.retry(released, clock)

    @property
    def baseline(self) -> Baseline | None:
        """The champion's; None before there is one."""
        return self._watching.baseline

    def views(self, state: CycleState, now: float) -> tuple[FleetView, ...]:
        """The windows that are due at `now`, without the devices that are kept out."""
        self._watching.keep_out(state.kept_devices, now)
        return self._watching.views(state.monitor, now)

    def signals(self, state: CycleState, campaigns: Campaigns, now: float) -> Signals | None:
        """What retraining may look at, at each stride of the shortest window."""
        if not self._watching.judges:
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
        return self._watching.signals(state.monitor, facts)

    def promoted(self, champion: int, now: float, monitor: MonitorState) -> None:
        """A new champion settles; `monitor` is what was held for true of the one before it."""
        self._watching.promoted(champion, now, monitor)


def _names(living: Living) -> tuple[str, ...]:
    """Names of the flattened model inputs."""
    fleet = living.fleet
    size = int(np.prod(living.rows.x.shape[1:]))
    names = fleet.pipeline.feature_names(fleet.schema)
    return names if len(names) == size else tuple(f"input {i}" for i in range(size))
