"""Right and wrong by device and day, who is badly served, and what was injected: counted by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from sim.lifetime.config import LifetimeConfig
from sim.lifetime.oracle import Tally, Truth
from sim.sensors.config import DriftKind
from sim.sensors.events import DriftEvent

DAY = 86_400.0
HOURS = np.arange(24) * 3_600.0


def tally(num_devices=2, days=12, **more):
    return Tally(num_devices, LifetimeConfig(duration_s=days * DAY, **more))


def served(tallied, device, day, num_right, num=24):
    """A day of a device with so many right predictions."""
    rows = SimpleNamespace(
        device=np.full(num, device),
        event_at=day * DAY + HOURS[:num],
        y=np.zeros(num, dtype=np.int64),
    )
    outputs = SimpleNamespace(label=(np.arange(num) >= num_right).astype(np.int16))
    tallied.add(rows, slice(0, num), outputs)


def test_accuracy_is_of_rows_and_of_devices():
    counted = tally()
    served(counted, 0, 0, 24)
    served(counted, 1, 0, 6, num=12)
    served(counted, 0, 1, 12)
    assert counted.accuracy() == (24 + 6 + 12) / 60
    assert counted.accuracy(DAY) == 0.5
    assert counted.accuracy(0.0, DAY) == 30 / 36
    assert np.isnan(counted.accuracy(3 * DAY))
    rows, right = counted.part(0.0, DAY)
    assert rows.tolist() == [24, 12]
    assert right.tolist() == [24, 6]
    np.testing.assert_array_equal(counted.of_devices(0, 2), [36 / 48, 0.5])
    assert np.isnan(counted.of_devices(1, 2)[1])
    assert counted.worst_decile(0, 2) == 0.5
    assert np.isnan(counted.worst_decile(5, 6))


def test_rows_outside_of_the_life_count_nowhere():
    counted = tally(days=2)
    served(counted, 0, -1, 24)
    served(counted, 0, 2, 24)
    assert counted.rows_DS.sum() == 0


def test_the_worst_tenth_is_a_tenth_of_the_devices():
    counted = tally(num_devices=20)
    for device in range(20):
        served(counted, device, 0, device)
    assert counted.worst_decile(0, 1) == pytest.approx((0 + 1) / 2 / 24)


def test_a_device_is_badly_served_below_its_own_record_by_more_than_the_margin():
    counted = tally(num_devices=3, days=12, bad_margin=0.25)
    for day in range(7):
        served(counted, 0, day, 24)  # a record of 1
        served(counted, 1, day, 12)  # a record of a half
    for day in range(7, 12):
        served(counted, 0, day, 12)
        served(counted, 1, day, 12)
    assert not counted.badly_served(6).any()
    assert not counted.badly_served(7)[0]  # (24 + 24 + 12) / 72 is within the margin
    assert counted.badly_served(8).tolist() == [True, False, False]
    assert counted.badly_served(11).tolist() == [True, False, False]


def test_a_device_without_a_record_is_measured_by_the_fleet_and_few_rows_say_nothing():
    counted = tally(num_devices=2, days=12)
    for day in range(7):
        served(counted, 0, day, 24)
    served(counted, 1, 8, 0, num=7)
    assert not counted.badly_served(8)[1]
    served(counted, 1, 9, 0, num=1)
    assert counted.badly_served(9)[1]


def event(device, spec, onset, end=np.inf, kind=DriftKind.OFFSET):
    return DriftEvent(device, "s0", kind, onset, end, 1.0, spec)


def test_drift_is_grouped_by_what_injected_it_and_only_within_the_life():
    truth = Truth(
        [
            event(0, 1, 100.0),
            event(1, 1, 50.0, 150.0),
            event(1, 0, 20.0),
            event(2, 2, -5.0),  # before the life
            event(2, 3, 1_000.0),  # after it
            event(2, 4, 60.0, 60.0, DriftKind.RECALIBRATION),
        ],
        4,
        until_at=1_000.0,
    )
    assert [[e.spec for e in group] for group in truth.groups] == [[0], [1, 1]]
    assert truth.hit(truth.groups[1]).tolist() == [True, True, False, False]
    assert truth.active(120.0).tolist() == [0, 1, 2]
    assert truth.active(10.0).tolist() == [2]
    first, second = truth.records(7, ["a", "b"])
    assert (first.seed, first.kind, first.onset_at, first.num_devices) == (7, "a", 20.0, 1)
    assert (second.kind, second.onset_at, second.num_devices) == ("b", 50.0, 2)
