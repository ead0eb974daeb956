"""Reports of simulated devices against counting one row after the other; late ones arrive whole."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fedretrain.monitoring.bins import fit_bins
from fedretrain.monitoring.histogram import cells_of
from fedretrain.monitoring.refusal import refuse
from fedretrain.monitoring.reports import DELAY_EDGES_S, LATENCY_KPI, delay_bin, distance_bin
from fedretrain.monitoring.store import FleetStore
from sim.lifetime.personal_log import PersonalLog
from sim.lifetime.serving import Outputs
from sim.lifetime.telemetry import Reporter
from tests.lifetime_cases import DAY, HOUR, arm_and_rows, small

OFFSET = 16 * DAY
NUM = 5


@pytest.fixture(scope="module")
def made():
    _, rows = arm_and_rows(small(NUM, 2, "labels=late", "drift=mixed"))
    draws = np.random.default_rng(0)
    share = draws.dirichlet(np.ones(6), len(rows)).astype(np.float32)
    outputs = Outputs.empty(len(rows))
    outputs.put(np.arange(len(rows)), np.log(share))
    outputs.put(np.arange(0, len(rows), 17), np.full((len(range(0, len(rows), 17)), 6), np.nan, np.float32))
    past = rows.x[: rows.between(-OFFSET, 0.0).stop]
    names = tuple(f"s{i}" for i in range(rows.x.shape[1]))
    bins = fit_bins(past, names, low_F=np.full(len(names), -2.0), high_F=np.full(len(names), 2.0))
    version = np.where(np.arange(len(rows)) % 2, 3, 2).astype(np.int32)
    reporter = Reporter(rows, bins, 6, HOUR, OFFSET, 1, lambda v: 0.001 * v)
    return rows, outputs, version, bins, reporter


def test_one_report_for_each_device_counts_its_rows(made):
    rows, outputs, version, bins, reporter = made
    which = rows.between(2 * HOUR, 5 * HOUR)
    found = reporter.report(which, outputs, version, 3, 5 * HOUR, PersonalLog(NUM))
    assert found.device_K.tolist() == sorted(set(rows.device[which].tolist()))
    assert set(found.slot_K.tolist()) == {3}
    assert set(found.sent_at_K.tolist()) == {5 * HOUR + OFFSET}
    for k, device in enumerate(found.device_K.tolist()):
        mine = np.arange(which.start, which.stop)[rows.device[which] == device]
        cells = cells_of(bins, rows.x[mine])
        for feature in range(bins.num_features):
            counted = np.bincount(cells[:, feature], minlength=bins.num_cells)
            np.testing.assert_array_equal(found.features_KFC[k, feature], counted)
        outside = (rows.x[mine] < -2.0) | (rows.x[mine] > 2.0)
        np.testing.assert_array_equal(found.violations_KF[k], outside.sum(axis=0))
        known = mine[outputs.label[mine] >= 0]
        assert Counter(outputs.label[known].tolist()) == Counter(
            np.repeat(np.arange(6), found.outputs_KM[k]).tolist()
        )
        for counts in (found.confidence_KB[k], found.entropy_KB[k], found.latency_KL[k]):
            assert counts.sum() == len(known)
        tenths = np.minimum((outputs.confidence[known] * 10).astype(int), 9)
        np.testing.assert_array_equal(found.confidence_KB[k], np.bincount(tenths, minlength=10))


def test_labels_are_counted_in_the_slot_and_for_the_version_of_the_prediction(made):
    rows, outputs, version, _, reporter = made
    which = rows.labelled_between(20 * HOUR, 30 * HOUR)
    found = reporter.labels(which, outputs, version, 500, 30 * HOUR)
    known = which[outputs.label[which] >= 0]
    assert 0 < len(known) < len(which)
    slot = ((rows.event_at[known] + OFFSET) // HOUR).astype(int)
    keys = Counter(zip(rows.device[known].tolist(), slot.tolist(), version[known].tolist(), strict=True))
    given = zip(found.device_K.tolist(), found.slot_K.tolist(), found.version_K.tolist(), strict=True)
    assert dict(zip(given, found.num_labelled.tolist(), strict=True)) == keys
    assert len(
        set(zip(found.device_K.tolist(), found.slot_K.tolist(), found.sequence_K.tolist(), strict=True))
    ) == len(found)
    confusion = np.zeros((6, 6), int)
    np.add.at(confusion, (rows.y[known], outputs.label[known]), 1)
    np.testing.assert_array_equal(found.confusion_KMM.sum(axis=0), confusion)
    right = outputs.label[known] == rows.y[known]
    assert found.calibration_KB2.sum(axis=(0, 1)).tolist() == [len(known), right.sum()]
    delays = np.bincount(
        delay_bin(rows.label_at[known] - rows.event_at[known]), minlength=len(DELAY_EDGES_S) + 1
    )
    np.testing.assert_array_equal(found.delay_KD.sum(axis=0), delays)


def test_nothing_of_an_honest_device_is_refused(made):
    rows, outputs, version, bins, reporter = made
    store = FleetStore(NUM, np.zeros(NUM, np.int64), bins, HOUR, 600, num_outputs=6, kpis=(LATENCY_KPI,))
    # One version for each device and slot, as the life's ticks have it.
    slot = ((rows.event_at + OFFSET) // HOUR).astype(int)
    version = (2 + (slot % 2)).astype(np.int32)
    log, everybody = PersonalLog(NUM), np.arange(NUM)
    for tick in range(40):
        now = (tick + 1) * HOUR
        log.asked(everybody, everybody == tick % 7)
        log.gained(everybody, np.where(everybody == 3, np.nan, -1.0))
        log.apart(everybody, np.full(NUM, np.inf))
        index = tick + round(OFFSET / HOUR)
        reports = reporter.report(rows.between(now - HOUR, now), outputs, version, index, now, log)
        labels = rows.labelled_between(now - HOUR, now)
        labels = labels[rows.event_at[labels] >= 0]
        for one, add in (
            (reports, store.add),
            (reporter.labels(labels, outputs, version, index, now), store.add_labels),
        ):
            taken, refused = refuse(one, store.known((2, 3)), now + OFFSET)
            assert refused == {}
            assert add(taken) == len(one)


def test_a_report_waits_until_its_device_is_online_and_comes_once(made):
    rows, outputs, version, _, maker = made
    reporter = Reporter(rows, maker._bins, 6, HOUR, OFFSET, 1, lambda _: 0.001)
    online = np.array([True, False, True, False, False])
    arrived = []
    for tick in range(4):
        made_now = reporter.report(
            rows.between(tick * HOUR, (tick + 1) * HOUR),
            outputs,
            version,
            tick,
            (tick + 1) * HOUR,
            PersonalLog(NUM),
        )
        arrived.append(reporter.deliver(made_now, online))
        assert set(arrived[-1].device_K.tolist()) == {0, 2}
    late = reporter.deliver(None, np.array([False, True, False, False, True]))
    assert Counter(zip(late.device_K.tolist(), late.slot_K.tolist(), strict=True)) == Counter(
        (device, slot) for device in (1, 4) for slot in range(4)
    )
    assert reporter.deliver(None, np.array([True, True, True, False, True])) is None
    assert set(reporter.deliver(None, np.ones(NUM, bool)).device_K.tolist()) == {3}


def test_a_slower_version_says_so(made):
    rows, outputs, version, _, reporter = made
    which = rows.between(0.0, DAY)
    slow, fast = (
        reporter.report(which, outputs, np.full_like(version, v), 0, DAY, PersonalLog(NUM)).latency_KL.sum(
            axis=0
        )
        for v in (20, 1)
    )
    bins = np.arange(len(slow))
    assert (slow @ bins) / slow.sum() > (fast @ bins) / fast.sum() + 3


def test_what_devices_tell_of_their_personal_models_is_reported_once(made):
    rows, outputs, version, _, reporter = made
    log = PersonalLog(NUM)
    log.asked(np.array([1, 4]), np.array([True, False]))
    log.gained(np.array([1, 4, 2]), np.array([0.25, -0.5, np.nan]))
    log.gained(np.array([4]), np.array([0.25]))
    log.apart(np.array([4]), np.array([0.5]))
    which = rows.between(0.0, 2 * HOUR)
    first, again = (reporter.report(which, outputs, version, slot, 2 * HOUR, log) for slot in (0, 1))
    assert first.device_K.tolist() == list(range(NUM))
    assert first.bases_K2.tolist() == [[0, 0], [1, 1], [0, 0], [0, 0], [1, 0]]
    assert first.gap_K2.tolist() == [[0, 0], [0.25, 1], [0, 0], [0, 0], [-0.25, 2]]
    assert first.distance_KP.sum(axis=1).tolist() == [0, 0, 0, 0, 1]
    assert first.distance_KP[4, distance_bin(np.array([0.5]))[0]] == 1
    for nothing in (again.bases_K2, again.gap_K2, again.distance_KP):
        assert not nothing.any()
