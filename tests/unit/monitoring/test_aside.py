"""Devices that are kept out: their rows enter no view of the fleet, by the time of the slot, and they are still watched themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedretrain.monitoring.aside import KeptOut, absent, after, left_out
from fedretrain.monitoring.baseline import make_baseline
from fedretrain.monitoring.config import MonitoringPolicy
from fedretrain.monitoring.view import view
from tests.unit.monitoring.fleet_cases import SLOT_S, bins_of, labels_for, store_of, telemetry

DEVICES, BINS = 6, bins_of()
BROKEN = 2


def test_stays_begin_end_and_are_forgotten():
    stays = after((), {3, 1}, 10, 0)
    assert stays == (KeptOut(1, 10), KeptOut(3, 10))
    assert after(stays, {1, 3}, 12, 0) == stays
    again = after(after(stays, {3}, 15, 0), {1, 3}, 20, 0)
    assert again == (KeptOut(1, 10, 15), KeptOut(3, 10), KeptOut(1, 20))
    assert after(again, {1, 3}, 30, 15) == (KeptOut(3, 10), KeptOut(1, 20))
    assert after((KeptOut(1, 10),), set(), 10, 0) == ()  # let in before a slot was over


def test_rows_belong_to_their_slot_and_windows_to_whom_was_there_all_the_while():
    stays = (KeptOut(1, 10, 15), KeptOut(3, 12))
    device, slot = np.array([1, 1, 1, 3, 3, 0]), np.array([9, 10, 15, 11, 99, 12])
    assert left_out(stays, device, slot).tolist() == [False, True, False, False, True, False]
    assert absent(stays, 0, 10).tolist() == []
    assert absent(stays, 14, 16).tolist() == [1, 3]
    assert absent(stays, 15, 16).tolist() == [3]


def _filled(stays=(), only=None, order=1):
    """A day of rows and labels, in which one device's labels are all wrong."""
    store = store_of(BINS, DEVICES)
    store.keep_out(stays)
    devices = np.arange(DEVICES) if only is None else np.array(only)
    for slot in range(24)[::order]:
        made = telemetry(BINS, slot, DEVICES, np.random.default_rng(slot))
        labels = labels_for(made, 0.9, np.random.default_rng(100 + slot))
        confusion = labels.confusion_KMM.copy()
        confusion[BROKEN] = confusion[BROKEN][::-1]
        labels = replace(labels, confusion_KMM=confusion)
        store.add(made.take(devices))
        store.add_labels(labels.take(devices))
    return store


WELL = [device for device in range(DEVICES) if device != BROKEN]


def _same(one, other):
    for name in ("features_GFC", "violations_GF", "distinct_GFR"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert one.served.keys() == other.served.keys()
    for version, served in one.served.items():
        for name, value in vars(served).items():
            theirs = getattr(other.served[version], name)
            pairs = (
                [(value, theirs)] if isinstance(value, np.ndarray) else [(value[k], theirs[k]) for k in value]
            )
            for mine, its in pairs:
                np.testing.assert_array_equal(mine, its, err_msg=name)


@pytest.mark.parametrize("order", [1, -1])
def test_a_fleet_without_a_device_is_what_its_window_says_while_it_is_kept_out(order):
    kept_out, without = _filled((KeptOut(BROKEN, 0),), order=order), _filled(only=WELL)
    _same(kept_out.window(24, 24), without.window(24, 24))
    np.testing.assert_array_equal(kept_out.window(24, 24).reported_D, without.window(24, 24).reported_D)
    for one, other in zip(kept_out.slots(0, 24), without.slots(0, 24), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(kept_out.label_slots(0, 24, 1), without.label_slots(0, 24, 1), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(kept_out.label_chunks(0, 24), without.label_chunks(0, 24), strict=True):
        np.testing.assert_array_equal(one, other)
    # Its own rows are there: that is how it is seen to be well again.
    assert kept_out.devices(24, 24).features_DFC[BROKEN].sum() > 0


def test_what_a_device_measured_before_and_after_its_stay_counts():
    some, everybody = _filled((KeptOut(BROKEN, 8, 16),)), _filled()
    _same(some.window(8, 8), everybody.window(8, 8))
    _same(some.window(24, 8), everybody.window(24, 8))
    whole, without = some.window(24, 24), _filled(only=WELL).window(24, 24)
    # Rows of the fleet leave out eight hours of it, and what is told by device leaves it out of the window.
    lost = everybody.window(16, 8).features_GFC.sum() - _filled(only=WELL).window(16, 8).features_GFC.sum()
    assert everybody.window(24, 24).features_GFC.sum() - whole.features_GFC.sum() == lost > 0
    np.testing.assert_array_equal(whole.served[1].correct_D, without.served[1].correct_D)


def test_a_view_of_the_fleet_does_not_see_a_broken_device_that_is_kept_out():
    policy = MonitoringPolicy()
    stores = [_filled(), _filled((KeptOut(BROKEN, 0),)), _filled(only=WELL)]
    baseline = make_baseline(_filled(only=WELL), 0, 24, policy, version=1, now=24 * SLOT_S)
    everybody, kept_out, without = (view(one, baseline, 24, policy) for one in stores)
    assert kept_out.accuracy == without.accuracy > everybody.accuracy + 0.05
    assert kept_out.num_devices == without.num_devices == DEVICES - 1
    assert kept_out.num_rows == without.num_rows < everybody.num_rows
    np.testing.assert_array_equal(kept_out.psi_F, without.psi_F)
