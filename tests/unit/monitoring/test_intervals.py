"""Intervals against scipy; their coverage and error rates with devices that differ, by Monte-Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedretrain.core.errors import DataError
from fedretrain.monitoring.intervals import (
    device_share,
    divide,
    share_above,
    student_quantile,
    student_sf,
    wilson,
)

RUNS = 2000


def devices(rng, num_devices, mean, correlation, events=200):
    """Hits and trials of devices whose own share varies: a beta distribution with that correlation."""
    strength = (1 - correlation) / correlation
    share_D = rng.beta(mean * strength, (1 - mean) * strength, num_devices)
    trials_D = rng.integers(events // 2, 2 * events, num_devices)
    return rng.binomial(trials_D, share_D), trials_D


def slack(rate, runs=RUNS):
    """Four standard deviations of a rate seen in `runs` runs."""
    return 4 * math.sqrt(rate * (1 - rate) / runs)


@given(st.floats(-40, 40), st.integers(1, 3000))
def test_students_tail_is_scipys(t, degrees):
    assert student_sf(t, degrees) == pytest.approx(stats.t.sf(t, degrees), abs=1e-7)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("degrees", [1, 2, 5, 30, 1000, 5000])
def test_students_quantile_is_scipys(confidence, degrees):
    assert student_quantile(confidence, degrees) == pytest.approx(
        stats.t.ppf(0.5 + confidence / 2, degrees), rel=1e-5
    )


@given(st.integers(0, 60), st.integers(1, 60), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilsons_interval_is_scipys(hits, more, confidence):
    trials = hits + more
    ours = wilson(hits, trials, confidence)
    theirs = stats.binomtest(hits, trials).proportion_ci(confidence, method="wilson")
    np.testing.assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], atol=1e-12)
    assert ours.estimate == hits / trials


@pytest.mark.parametrize("interval", [wilson, device_share])
def test_more_hits_than_trials_are_refused(interval):
    with pytest.raises(DataError, match="0 <= hits <= trials"):
        interval([3, 1], [2, 1])


def test_without_data_there_is_no_number():
    for interval in (wilson(0, 0), device_share([0, 0], [0, 0])):
        assert np.isnan(interval).all()
    assert np.isnan(divide(np.array(1.0), 0))
    assert share_above([0], [0], 0.1) == 1.0


def test_one_device_says_nothing_about_others():
    answer = device_share([90], [100])
    assert (float(answer.estimate), float(answer.low), float(answer.high)) == (0.9, 0.0, 1.0)
    assert share_above([90], [100], 0.1) == 1.0


def test_axes_are_judged_side_by_side():
    rng = np.random.default_rng(0)
    hits, trials = devices(rng, 12, 0.7, 0.1)
    other, more = devices(rng, 12, 0.3, 0.1)
    both = device_share(np.stack([hits, other], 1), np.stack([trials, more], 1))
    for k, alone in enumerate((device_share(hits, trials), device_share(other, more))):
        np.testing.assert_allclose([part[k] for part in both], alone)


def test_devices_that_agree_completely_count_one_trial_each():
    answer = device_share([50] * 8, [50] * 8)
    assert answer.estimate == 1.0
    assert 0.55 < answer.low < wilson(8, 8).low  # lower still: eight devices are few
    assert wilson(400, 400).low > 0.99
    inside = device_share([40] * 8, [50] * 8)  # the same share inside (0, 1): the devices do not differ
    assert wilson(320, 400).high < inside.high < 0.86


@pytest.mark.parametrize("num_devices", [8, 40])
@pytest.mark.parametrize("correlation", [0.02, 0.1])
def test_device_intervals_cover_and_event_intervals_do_not(num_devices, correlation):
    """Nominal 95 %: at least 93 % with the device as the unit; with events as the unit at most 80 %."""
    rng, covered, by_event = np.random.default_rng(1), 0, 0
    for _ in range(RUNS):
        hits, trials = devices(rng, num_devices, 0.85, correlation)
        ours, naive = device_share(hits, trials), wilson(hits.sum(), trials.sum())
        covered += ours.low <= 0.85 <= ours.high
        by_event += naive.low <= 0.85 <= naive.high
    assert covered / RUNS >= 0.93 - slack(0.93)
    assert by_event / RUNS < 0.8


@pytest.mark.parametrize(("num_devices", "alpha"), [(10, 0.05), (60, 0.05), (60, 0.01)])
def test_share_above_keeps_its_alpha_at_the_limit(num_devices, alpha):
    """Student's t on skewed shares is off by the order of skewness / sqrt(D): two points at D = 10."""
    rng = np.random.default_rng(2)
    alarms = sum(share_above(*devices(rng, num_devices, 0.2, 0.05), 0.2) <= alpha for _ in range(RUNS))
    assert alarms / RUNS <= alpha + slack(alpha)


def test_share_above_finds_what_is_above():
    rng = np.random.default_rng(3)
    found = sum(share_above(*devices(rng, 60, 0.3, 0.05), 0.2) <= 0.01 for _ in range(200))
    assert found >= 190


def test_share_above_of_identical_devices_is_no_certainty():
    """Five devices at the same share above the limit: evidence of five, not of infinitely many."""
    assert 1e-6 < share_above([30] * 5, [100] * 5, 0.1) < 0.2
    assert share_above([5] * 5, [100] * 5, 0.1) > 0.5
