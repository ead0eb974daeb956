"""What devices say of their personal models: each device counts alike, and silence is no view."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedretrain.core.clock import DAY_S
from fedretrain.monitoring.baseline import make_baseline
from fedretrain.monitoring.config import MonitoringPolicy
from fedretrain.monitoring.intervals import device_share
from fedretrain.monitoring.personal import personal_view
from fedretrain.monitoring.ratios import ratio
from fedretrain.monitoring.reports import DISTANCE_EDGES, NUM_DISTANCE_BINS
from fedretrain.monitoring.view import view
from fedretrain.monitoring.windows import PersonalCounts
from tests.unit.monitoring.fleet_cases import SLOT_S, bins_of, personal_of, store_of, telemetry

BINS, DEVICES = bins_of(), 40


def counts(
    gap: list[tuple[float, int]], bases: list[tuple[int, int]], bins: list[tuple[int, int]]
) -> PersonalCounts:
    """Of some devices: (sum, count) of gaps, (asked, refused), (bin, count) of distances."""
    distance = np.zeros((len(gap), NUM_DISTANCE_BINS), np.int64)
    for device, (place, count) in enumerate(bins):
        distance[device, place] = count
    return PersonalCounts(distance, np.array(gap, np.float64), np.array(bases, np.int64))


def test_a_device_that_refits_often_counts_once() -> None:
    found = personal_view(
        counts(
            [(0.1, 1), (0.2, 1), (-90.0, 900), (0.0, 0)],
            [(1, 0), (3, 2), (0, 0), (2, 0)],
            [(4, 1), (4, 2), (9, 900), (0, 0)],
        ),
        0.95,
    )
    assert found is not None
    assert (found.num_devices, found.num_asked) == (3, 3)
    assert found.gap == pytest.approx((0.1 + 0.2 - 0.1) / 3)
    expected = ratio(np.array([[0.1, 1.0], [0.2, 1.0], [-0.1, 1.0]]), 0.95)
    assert (found.gap_low, found.gap_high) == pytest.approx((expected.low, expected.high))
    assert found.worse_fraction == pytest.approx(1 / 3)
    assert found.distance == (DISTANCE_EDGES[4], DISTANCE_EDGES[9])
    share = device_share([0, 1, 0], [1, 1, 1], 0.95)
    assert found.refused_fraction == pytest.approx(1 / 3)
    assert (found.refused_low, found.refused_high) == pytest.approx((float(share.low), float(share.high)))


def test_what_nobody_said_is_no_number_and_silence_no_view() -> None:
    nobody = [(0, 0)] * 2
    assert personal_view(counts([(0.0, 0)] * 2, nobody, nobody), 0.95) is None
    asked = personal_view(counts([(0.0, 0)] * 2, [(1, 1), (1, 0)], nobody), 0.95)
    assert asked is not None
    assert asked.refused_fraction == 0.5
    assert all(math.isnan(value) for value in (asked.gap, asked.worse_fraction, *asked.distance))
    compared = personal_view(counts([(0.1, 1)] * 2, nobody, nobody), 0.95)
    assert compared is not None
    assert compared.gap == pytest.approx(0.1)
    assert math.isnan(compared.refused_fraction)


def test_the_view_is_of_all_versions_and_of_its_own_window() -> None:
    rng, policy = np.random.default_rng(0), MonitoringPolicy()
    store = store_of(BINS, DEVICES)
    gap_D, distance_D, refused_D = (
        rng.normal(0.1, 0.05, DEVICES),
        rng.lognormal(-1.0, 0.5, DEVICES),
        np.arange(DEVICES) < 10,
    )
    for slot in range(24 * 15):
        reports = telemetry(BINS, slot, DEVICES, rng, rows=6)
        if slot == 24 * 10:  # those who refuse go on with what they had
            reports = personal_of(reports, gap_D, distance_D, refused_D)
            reports.version_K[10:] = 2
        store.add(reports)
    baseline = make_baseline(store, 0, 24 * 10, policy, version=1, now=24 * 10 * SLOT_S)
    week = view(store, baseline, 24 * 15, policy, window_s=7 * DAY_S).personal
    assert week is not None
    assert (week.num_devices, week.num_asked, week.refused_fraction) == (DEVICES, DEVICES, 0.25)
    assert week.gap == pytest.approx(gap_D.mean())
    assert (
        week.distance[0] / 10**0.25 <= np.quantile(distance_D, 0.5, method="inverted_cdf") <= week.distance[0]
    )
    assert view(store, baseline, 24 * 15, policy).personal is None  # nobody re-fitted on the last day
    assert view(store, baseline, 24 * 11, policy).personal is not None
