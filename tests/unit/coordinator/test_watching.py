"""The clockwork of monitors: what is looked at when, and which record a champion is measured by."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.coordinator.signals import Facts
from fedretrain.coordinator.watching import Clockwork, Watching
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
from fedretrain.monitoring.recipes import MonitorState
from fedretrain.monitoring.reports import NUM_CONFIDENCE_BINS, NUM_LATENCY_BINS, Reports
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


class Fleet:
    """A store that is fed by hand: each device reports ten rows for each slot."""

    def __init__(self, **times):
        self.bins = fit_bins(np.random.default_rng(0).normal(size=(500, FEATURES)), ("a", "b"))
        self.clockwork = Clockwork(1.0, **times)
        keep = self.clockwork.keep_slots(POLICY)
        store = FleetStore(
            DEVICES, np.zeros(DEVICES, np.int64), self.bins, 1.0, keep, num_outputs=OUTPUTS, chunk_slots=4
        )
        self.intake = Intake(store, 0.0, 1e9)
        self.watching = Watching(POLICY, self.intake, self.clockwork)

    def report(self, first, end, version=1):
        for slot in range(first, end):
            features = np.zeros((DEVICES, FEATURES, self.bins.num_cells), np.int32)
            features[:, :, 1] = 10
            self.intake.receive(
                Reports(
                    device_K=np.arange(DEVICES),
                    slot_K=np.full(DEVICES, slot),
                    version_K=np.full(DEVICES, version),
                    sequence_K=np.zeros(DEVICES, np.int64),
                    sent_at_K=np.full(DEVICES, slot + 1.0),
                    bins=self.bins.digest,
                    features_KFC=features,
                    violations_KF=np.zeros((DEVICES, FEATURES), np.int32),
                    outputs_KM=np.tile(np.array([10, 0, 0], np.int32), (DEVICES, 1)),
                    confidence_KB=np.full((DEVICES, NUM_CONFIDENCE_BINS), 1, np.int32),
                    entropy_KB=np.full((DEVICES, NUM_CONFIDENCE_BINS), 1, np.int32),
                    latency_KL=np.zeros((DEVICES, NUM_LATENCY_BINS), np.int32),
                ),
                (1, 2),
                slot + 1.0,
            )


def test_nothing_is_looked_at_without_a_baseline():
    fleet = Fleet()
    fleet.report(0, 4)
    assert fleet.watching.views(1, 4.0) == ()
    assert not fleet.watching.judges
    assert fleet.watching.signals(MonitorState(1), Facts(0, DEVICES)) is None


def test_each_window_is_looked_at_at_its_strides_and_once():
    fleet = Fleet()
    fleet.report(0, 16)
    fleet.watching.begin(1, 0, 16, 16.0)
    assert [len(fleet.watching.views(1, now)) for now in (16.0, 16.0, 16.5, 17.0, 18.0)] == [2, 0, 0, 1, 1]
    assert len(fleet.watching.views(1, 23.0)) == 2  # a look that was missed is made up at its own end
    assert len(fleet.watching.views(1, 24.0)) == 2


def test_a_slot_is_looked_at_after_the_grace():
    fleet = Fleet(grace_s=0.5)
    fleet.report(0, 16)
    fleet.watching.begin(1, 0, 16, 16.0)
    assert fleet.clockwork.end_slot(16.4) == 15
    assert [len(fleet.watching.views(1, now)) for now in (16.4, 16.6, 17.4, 17.6)] == [2, 2, 0, 1]


def test_a_new_champion_settles_and_has_its_own_record():
    fleet = Fleet(settle_s=3.0, record_s=6.0)
    fleet.report(0, 16)
    fleet.watching.begin(1, 0, 16, 16.0)
    fleet.watching.promoted(2, 16.0)
    assert fleet.watching.baseline.version == 2
    fleet.report(16, 19, version=2)
    assert fleet.watching.views(2, 18.0) == ()
    assert fleet.watching.settled_at == 19.0
    assert len(fleet.watching.views(2, 19.0)) >= 1
    assert fleet.watching.settled_at is None
    assert fleet.watching.baseline.outputs_M.tolist() == [3 * DEVICES * 10, 0, 0]
    assert fleet.watching.recorded_at == 22.0
    fleet.report(19, 22, version=2)
    fleet.watching.views(2, 22.0)
    assert fleet.watching.recorded_at is None


def test_the_first_champion_of_a_fleet_without_history_settles_too():
    fleet = Fleet(settle_s=3.0)
    fleet.watching.promoted(1, 0.0)
    assert fleet.watching.views(1, 2.0) == ()
    fleet.report(0, 3)
    assert fleet.watching.views(1, 3.0)
    assert fleet.watching.baseline.version == 1


def test_another_process_goes_on():
    fleet, other = Fleet(settle_s=3.0), Fleet(settle_s=3.0)
    for one in (fleet, other):
        one.report(0, 16)
    fleet.watching.begin(1, 0, 16, 16.0)
    watching = fleet.watching
    other.watching.restore(watching.baseline, watching.settled_at, watching.recorded_at)
    assert [view.at for view in other.watching.views(1, 16.0)] == [
        view.at for view in watching.views(1, 16.0)
    ]


@pytest.mark.parametrize("bad", [{"slot_s": 0.0}, {"slot_s": 1.0, "settle_s": -1.0}])
def test_impossible_times_are_refused(bad):
    with pytest.raises(Exception, match="watching"):
        Clockwork(**bad)
