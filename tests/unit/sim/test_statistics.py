"""Intervals: against textbook values, and against their promised coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.results import Over
from sim.statistics import (
    FRACTION,
    estimate,
    mean_rows,
    over_devices,
    over_seeds,
    p10_rows,
    paired,
    worst_rows,
)


def test_t_interval_is_the_textbook_one():
    # scipy.stats.t.interval(0.95, 4, loc=mean, scale=sem) of these five values
    found = over_seeds([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.value == 3.0
    assert found.over is Over.SEEDS
    assert (found.low, found.high) == pytest.approx((1.036757, 4.963243), abs=1e-6)


def test_one_seed_has_no_interval_over_seeds():
    found = over_seeds([0.7])
    assert (found.value, found.low, found.high, found.over) == (0.7, None, None, Over.NOTHING)


def test_an_interval_of_accuracies_stays_within_zero_and_one():
    found = over_seeds([0.99, 0.9], FRACTION)
    assert found.high == 1.0
    assert found.low >= 0.0


def test_t_interval_covers_as_often_as_it_says():
    draws = np.random.default_rng(1).normal(10.0, 3.0, size=(2_000, 5))
    hits = sum(e.low <= 10.0 <= e.high for e in map(over_seeds, draws))
    assert abs(hits / 2_000 - 0.95) < 0.02


def test_bootstrap_covers_a_skewed_mean_of_twenty_devices():
    draws = np.random.default_rng(2).gamma(4.0, size=(200, 20))
    hits = sum(e.low <= 4.0 <= e.high for e in (over_devices(d, seed=i) for i, d in enumerate(draws)))
    assert hits / 200 > 0.90  # the plain percentile interval reaches about 0.91, the expanded one about 0.94


def test_bootstrap_repeats_with_its_seed_and_differs_with_another():
    values = np.random.default_rng(3).normal(size=30)
    assert over_devices(values, seed=5) == over_devices(values, seed=5)
    assert over_devices(values, seed=5) != over_devices(values, seed=6)


def test_bootstrap_of_many_devices_is_close_to_the_normal_interval():
    values = np.random.default_rng(4).normal(size=50_000)
    found = over_devices(values)
    assert found.high - found.low == pytest.approx(2 * 1.96 / math.sqrt(50_000), rel=0.1)


def test_batches_of_very_many_devices_agree_with_the_bootstrap_of_fewer():
    generator = np.random.default_rng(6)
    few, many = generator.gamma(4.0, size=9_999), generator.gamma(4.0, size=40_000)
    for statistic in (mean_rows, p10_rows(True)):
        wide, narrow = over_devices(few, statistic), over_devices(many, statistic)
        assert narrow.high - narrow.low == pytest.approx((wide.high - wide.low) / 2, rel=0.35)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_too_few_devices_have_no_interval(size):
    assert over_devices(np.ones(size)).low is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_makes_no_figure(bad):
    assert math.isnan(over_seeds([1.0, bad]).value)
    assert math.isnan(over_devices([1.0, bad, 2.0]).value)
    assert math.isnan(estimate([np.array([1.0, bad]), np.ones(2)], mean_rows).value)


def test_seeds_are_the_unit_where_there_are_several():
    per_seed = [np.array([0.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0]), np.array([])]
    found = estimate(per_seed, mean_rows)
    assert (found.num, found.over) == (2, Over.SEEDS)
    assert found.value == pytest.approx(5 / 6)


def test_pairing_removes_what_both_share():
    generator = np.random.default_rng(5)
    shared = generator.normal(0, 10, size=(4, 50))
    a, b = shared, shared + 0.5 + generator.normal(0, 0.01, size=(4, 50))
    found = paired(list(a), list(b))
    assert 0.49 < found.low < found.high < 0.51


def test_worst_and_p10_follow_the_direction_of_the_metric():
    values = np.arange(11.0)[None]
    assert p10_rows(True)(values)[0] == 1.0
    assert p10_rows(False)(values)[0] == 9.0
    assert worst_rows(True)(values)[0] == 0.0
    assert worst_rows(False)(values)[0] == 10.0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=5, max_size=40))
def test_a_bootstrap_interval_lies_within_the_values(values):
    found = over_devices(values)
    slack = 1e-6 * (1 + max(map(abs, values)))
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack
