"""The clockwork of monitors: what is looked at when, and which record a champion is measured by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedretrain.coordinator.signals import Facts
from fedretrain.coordinator.watching import NOWHERE, Clockwork, Watching
from fedretrain.monitoring.bins import fit_bins
from fedretrain.monitoring.config import (
    AccuracyRules,
    DriftRules,
    KpiRules,
    MonitoringPolicy,
    PlaceRules,
    Window,
)
from fedretrain.monitoring.intake import Intake
from fedretrain.monitoring.locate import DriftPlace, Scope
from fedretrain.monitoring.reports import NUM_CONFIDENCE_BINS, NUM_LATENCY_BINS, Reports
from fedretrain.monitoring.state import MonitorState, WindowStreaks
from fedretrain.monitoring.store import FleetStore

DEVICES, FEATURES, OUTPUTS = 6, 2, 3
POLICY = MonitoringPolicy(
    windows=(Window(4.0, 1.0), Window(8.0, 4.0)),
    accuracy=AccuracyRules(window_s=4.0),
    place=PlaceRules(window_s=8.0),
    kpi_rules=KpiRules(window_s=4.0),
    drift=DriftRules(windows_s=(4.0,)),
    confidence_window_s=4.0,
)


ONE, TWO = MonitorState(1), MonitorState(2)
TIMES = {"settle_s": 12.0, "record_s": 24.0, "inputs_s": 24.0}


class Fleet:
    """A store that is fed by hand: each device reports ten rows for each slot."""

    def __init__(self, seed=0, num_devices=DEVICES, num_groups=1, **times):
        self.bins = fit_bins(np.random.default_rng(seed).normal(size=(500, FEATURES)), ("a", "b"))
        self.clockwork = Clockwork(1.0, **times)
        keep = self.clockwork.keep_slots(POLICY)
        store = FleetStore(
            num_devices,
            np.arange(num_devices) % num_groups,
            self.bins,
            1.0,
            keep,
            num_outputs=OUTPUTS,
            chunk_slots=4,
        )
        self.intake = Intake(store, 0.0, 1e9)
        self.watching = Watching(POLICY, self.intake, self.clockwork)
        self.before = None

    def report(self, first, end, version=1, cell=1, num_devices=DEVICES):
        for slot in range(first, end):
            features = np.zeros((num_devices, FEATURES, self.bins.num_cells), np.int32)
            features[:, :, cell] = 10
            self.intake.receive(
                Reports(
                    device_K=np.arange(num_devices),
                    slot_K=np.full(num_devices, slot),
                    version_K=np.full(num_devices, version),
                    sequence_K=np.zeros(num_devices, np.int64),
                    sent_at_K=np.full(num_devices, slot + 1.0),
                    bins=self.bins.digest,
                    features_KFC=features,
                    violations_KF=np.zeros((num_devices, FEATURES), np.int32),
                    outputs_KM=np.tile(np.array([10, 0, 0], np.int32), (num_devices, 1)),
                    confidence_KB=np.full((num_devices, NUM_CONFIDENCE_BINS), 1, np.int32),
                    entropy_KB=np.full((num_devices, NUM_CONFIDENCE_BINS), 1, np.int32),
                    latency_KL=np.zeros((num_devices, NUM_LATENCY_BINS), np.int32),
                ),
                (1, 2),
                slot + 1.0,
            )


def drifting(where=NOWHERE, *, drifted=False, pace_changed=False):
    """A fleet whose inputs moved at once in slot 32; version 2 became champion in slot 64, device 0 is in quarantine."""
    fleet = Fleet(**TIMES)
    fleet.report(0, 32)
    fleet.watching.begin(1, 0, 32, 32.0)
    fleet.before, fleet.watching.kept = fleet.watching.baseline, replace(fleet.watching.kept, where=where)
    fleet.report(32, 64, cell=2)
    inputs = {4.0: WindowStreaks(drifted=drifted)}
    kept_out = frozenset({0})
    monitor = MonitorState(1, inputs=inputs, quarantined=kept_out, pace_changed=pace_changed)
    fleet.watching.promoted(2, 64.0, monitor)
    fleet.report(64, 72, cell=2, version=2)
    return fleet


def test_nothing_is_looked_at_without_a_baseline():
    fleet = Fleet()
    fleet.report(0, 4)
    assert fleet.watching.views(ONE, 4.0) == ()
    assert not fleet.watching.judges
    assert fleet.watching.signals(ONE, Facts(0, DEVICES)) is None


def test_each_window_is_looked_at_at_its_strides_and_once():
    fleet = Fleet()
    fleet.report(0, 16)
    fleet.watching.begin(1, 0, 16, 16.0)
    assert [len(fleet.watching.views(ONE, now)) for now in (16.0, 16.0, 16.5, 17.0, 18.0)] == [2, 0, 0, 1, 1]
    assert len(fleet.watching.views(ONE, 23.0)) == 2  # a look that was missed is made up at its own end
    assert len(fleet.watching.views(ONE, 24.0)) == 2


def test_a_slot_is_looked_at_after_the_grace():
    fleet = Fleet(grace_s=0.5)
    fleet.report(0, 16)
    fleet.watching.begin(1, 0, 16, 16.0)
    assert fleet.clockwork.end_slot(16.4) == 15
    assert [len(fleet.watching.views(ONE, now)) for now in (16.4, 16.6, 17.4, 17.6)] == [2, 2, 0, 1]


def test_a_new_champion_settles_and_has_its_own_record():
    fleet = Fleet(settle_s=3.0, record_s=6.0)
    fleet.report(0, 16)
    fleet.watching.begin(1, 0, 16, 16.0)
    before = fleet.watching.baseline
    fleet.watching.promoted(2, 16.0, ONE)
    assert fleet.watching.baseline.version == 2
    fleet.report(16, 19, version=2)
    settling = fleet.watching.views(TWO, 18.0)
    assert [view.window_s for view in settling] == [4.0, 8.0]
    assert all(view.serving is None and np.isfinite(view.psi_F).all() for view in settling)
    assert not fleet.watching.judges
    assert fleet.watching.signals(TWO, Facts(0, DEVICES)) is None
    assert fleet.watching.kept.settled_at == 19.0
    settled = fleet.watching.views(TWO, 19.0)
    assert [view.window_s for view in settled] == [4.0, 8.0]  # both anew: those before were of inputs alone
    assert [view.serving is not None for view in settled] == [
        True,
        False,
    ]  # it had not served in the longer one
    assert fleet.watching.judges
    assert fleet.watching.kept.settled_at is None
    assert fleet.watching.baseline.outputs_M.tolist() == [3 * DEVICES * 10, 0, 0]
    assert fleet.watching.baseline.features_GFC is before.features_GFC
    assert fleet.watching.kept.recorded_at == 22.0
    fleet.report(19, 22, version=2)
    fleet.watching.views(TWO, 22.0)
    assert fleet.watching.kept.recorded_at is None


def test_the_first_champion_of_a_fleet_without_history_settles_too():
    fleet = Fleet(settle_s=3.0)
    fleet.watching.promoted(1, 0.0, ONE)
    assert fleet.watching.views(ONE, 2.0) == ()
    fleet.report(0, 3)
    assert fleet.watching.views(ONE, 3.0)
    assert fleet.watching.baseline.version == 1


def test_a_fleet_that_is_silent_while_its_champion_settles_is_waited_for():
    fleet = Fleet(settle_s=3.0)
    fleet.watching.promoted(1, 0.0, ONE)
    assert fleet.watching.views(ONE, 5.0) == ()
    assert fleet.watching.kept.settled_at == 3.0
    fleet.report(5, 7)
    assert fleet.watching.views(ONE, 7.0)
    assert fleet.watching.baseline.outputs_M.sum() == 2 * DEVICES * 10


@pytest.mark.parametrize("told", [{"drifted": True}, {"where": DriftPlace(Scope.CLUSTER)}])
def test_where_inputs_have_moved_the_record_is_of_the_time_before_the_promotion(told):
    fleet, other = drifting(**told), drifting(**told)
    assert fleet.watching.kept.inputs_slot == 64
    assert fleet.watching.kept.where is NOWHERE
    assert fleet.watching.baseline.features_FC[:, 2].tolist() == [DEVICES * 10 * 24] * FEATURES
    record = fleet.watching.baseline.record
    assert (record.features_DFC[1:, :, 1] == 0).all()
    assert (record.features_DFC[0, :, 1] > 0).all()  # in quarantine: as it was when it was well
    # Another process goes on with what was kept, and looks at the same windows.
    other.watching = Watching(POLICY, other.intake, other.clockwork, fleet.watching.kept)
    for one in (fleet, other):
        assert one.watching.views(TWO, 67.0) == ()  # part of what they would be held against
        assert [view.window_s for view in one.watching.views(TWO, 68.0)] == [4.0]
        (shortest, longest) = one.watching.views(TWO, 72.0)
        assert (shortest.window_s, longest.window_s) == (4.0, 8.0)
        assert shortest.psi_F.max() < 0.01
        assert one.watching.kept.where.num_judged == DEVICES


@pytest.mark.parametrize("told", [{}, {"where": DriftPlace(Scope.DEVICE, (0,))}])
def test_where_they_have_not_it_stays(told):
    fleet = drifting(**told)
    assert fleet.watching.kept.inputs_slot is None
    assert fleet.watching.baseline.features_GFC is fleet.before.features_GFC
    assert fleet.watching.baseline.record is fleet.before.record
    assert fleet.watching.views(TWO, 67.0)[0].psi_F.min() > 1.0


@pytest.mark.parametrize("drifted", [True, False])
@pytest.mark.parametrize("pace_changed", [True, False])
def test_the_pace_of_labels_is_recorded_anew_where_it_has_changed(drifted, pace_changed):
    fleet = drifting(drifted=drifted, pace_changed=pace_changed)
    after = fleet.watching.baseline
    assert (after.arrivals_D is fleet.before.arrivals_D) != pace_changed
    assert (after.record is fleet.before.record) != drifted
    assert fleet.watching.kept.inputs_slot == (64 if drifted else None)


def test_a_record_of_devices_that_is_made_later_keeps_those_in_quarantine():
    fleet = drifting()
    before = fleet.watching.baseline.record
    fleet.report(72, 88, cell=2, version=2)
    fleet.watching.views(MonitorState(2, quarantined=frozenset({0})), 88.0)
    after = fleet.watching.baseline.record
    assert fleet.watching.kept.recorded_at is None
    assert np.array_equal(after.features_DFC[0], before.features_DFC[0])
    assert (after.features_DFC[1:, :, 1] == 0).all()


def test_rows_of_a_device_that_is_kept_out_enter_no_view_from_the_slot_under_way_on():
    fleet = Fleet(**TIMES)
    fleet.report(0, 32)
    fleet.watching.begin(1, 0, 32, 32.0)
    fleet.watching.keep_out(frozenset({0}), 32.5)
    kept = fleet.watching.kept
    fleet.watching.keep_out(frozenset({0}), 33.5)
    assert fleet.watching.kept is kept  # nothing new is nothing to write down
    fleet.report(32, 40)
    (short, *_) = fleet.watching.views(MonitorState(1, quarantined=frozenset({0})), 40.0)
    assert (short.num_devices, short.num_rows) == (DEVICES - 1, 4 * 10 * (DEVICES - 1))
    fleet.watching.keep_out(frozenset(), 40.0)
    fleet.report(40, 48)
    (short, *_) = fleet.watching.views(ONE, 48.0)
    assert (short.num_devices, short.num_rows) == (DEVICES, 4 * 10 * DEVICES)
    # Another process that goes on from what was kept counts the same rows the same way.
    other = Fleet(**TIMES)
    Watching(POLICY, other.intake, other.clockwork, fleet.watching.kept)
    other.report(0, 48)
    assert other.intake.store.digest() == fleet.intake.store.digest()


@pytest.mark.parametrize("num_groups", [1, 2])
def test_a_fleet_that_has_grown_is_watched_on(num_groups):
    fleet, grown = drifting(), Fleet(num_devices=2 * DEVICES, num_groups=num_groups, **TIMES)
    grown.report(64, 72, cell=2, version=2, num_devices=2 * DEVICES)
    grown.watching = Watching(POLICY, grown.intake, grown.clockwork, fleet.watching.kept)
    before, after = (one.watching.views(TWO, 72.0) for one in (fleet, grown))
    for old, new in zip(before, after, strict=True):
        assert np.array_equal(new.p_F, old.p_F, equal_nan=True)
        assert new.psi_GF.shape == (num_groups, FEATURES)
        assert np.isnan(new.psi_GF).all() == (num_groups > 1)  # nobody knows which group is which
    assert grown.watching.kept.where.scope is fleet.watching.kept.where.scope is Scope.FLEET
    assert grown.watching.kept.where.num_judged == DEVICES  # the new ones have no record
    grown.report(72, 88, cell=2, version=2, num_devices=2 * DEVICES)
    grown.watching.views(TWO, 88.0)
    assert grown.watching.kept.recorded_at is None
    assert (grown.watching.baseline.record.features_DFC[:, :, 2] > 0).all()


def test_a_champion_that_counts_on_other_bins_begins_a_new_record():
    fleet = drifting(drifted=True)
    other = Fleet(3, **TIMES)
    other.watching = Watching(POLICY, other.intake, other.clockwork, fleet.watching.kept)
    other.report(64, 88, version=2)
    assert other.watching.views(TWO, 72.0) == ()
    assert other.watching.views(TWO, 88.0)
    assert other.watching.baseline.bins.digest == other.bins.digest
    assert other.watching.kept.recorded_at is None
    assert other.watching.baseline.record.features_DFC[0, 0].sum() > 0


@pytest.mark.parametrize("bad", [{"slot_s": 0.0}, {"slot_s": 1.0, "settle_s": -1.0}])
def test_impossible_times_are_refused(bad):
    with pytest.raises(Exception, match="watching"):
        Clockwork(**bad)


def test_what_a_long_stage_of_a_rollout_needs_is_kept():
    assert Clockwork(1.0).keep_slots(POLICY) == 20
    assert Clockwork(1.0, trial_s=90.0).keep_slots(POLICY) == 91
