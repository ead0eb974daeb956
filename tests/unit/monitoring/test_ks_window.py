"""The Kolmogorov-Smirnov window against scipy and river; its error rate against its own alpha."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedretrain.monitoring.detectors import Level
from fedretrain.monitoring.ks_window import KsWindow, ks_critical, ks_p_value, ks_statistic
from tests.unit.monitoring.river_cases import STREAMS, drifts_as_river, needs_river


@pytest.mark.parametrize(("num_a", "num_b"), [(1, 1), (3, 5), (30, 70), (30, 30), (7, 200), (64, 48)])
def test_statistic_and_exact_p_value_are_scipys(num_a, num_b):
    rng = np.random.default_rng(num_a)
    for shift in (0.0, 0.2, 0.5, 2.0):
        a, b = rng.random(num_a) + shift, rng.random(num_b)
        theirs = stats.ks_2samp(a, b, method="exact")
        distance = int(ks_statistic(np.concatenate([b, a])[None], num_a)[0])
        assert distance / (num_a * num_b) == pytest.approx(theirs.statistic, abs=1e-12)
        assert ks_p_value(distance, num_a, num_b) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_ties_count_once_they_are_complete():
    rng = np.random.default_rng(9)
    for _ in range(50):
        a, b = rng.integers(0, 4, 12).astype(float), rng.integers(0, 5, 20).astype(float)
        theirs = stats.ks_2samp(a, b, method="exact").statistic
        assert ks_statistic(np.concatenate([b, a])[None], 12)[0] == round(theirs * 240)
    assert ks_statistic(np.zeros((1, 32)), 12)[0] == 0


@pytest.mark.parametrize("alpha", [0.2, 0.01, 1e-4])
def test_the_critical_distance_is_the_smallest_that_is_significant(alpha):
    critical = ks_critical(12, 20, alpha)
    assert ks_p_value(critical, 12, 20) <= alpha < ks_p_value(critical - 1, 12, 20)


def test_complete_separation_may_not_be_significant():
    """Two samples of three are completely apart, either way round, in 2 of 20 orders."""
    assert ks_p_value(9, 3, 3) == pytest.approx(2 / math.comb(6, 3))
    assert ks_critical(3, 3, 0.09) is None
    assert 6 < ks_critical(3, 3, 0.11) <= 9  # of two samples of three it is a multiple of 3


@needs_river
@pytest.mark.parametrize("stream", ["normal", "ramp", "heavy"])
@pytest.mark.parametrize(("recent", "alpha"), [(30, 0.005), (50, 1e-4)])
def test_it_drifts_where_rivers_does(stream, recent, alpha):
    """With as many older values as new ones river's random sample of the older ones is all of them."""
    from river import drift

    ours = KsWindow(2 * recent, recent, alpha, alpha)
    theirs = drift.KSWIN(alpha=alpha, window_size=2 * recent, stat_size=recent, seed=1)
    assert drifts_as_river(ours, theirs, STREAMS[stream]()[:2400]) >= 1


def test_one_tests_false_alarms_are_its_alpha():
    """4,000 streams reach their first test together: a binomial number of them, within four standard deviations."""
    detector, num = KsWindow(alpha=0.02, warning_alpha=0.1), 4000
    rng, state = np.random.default_rng(7), detector.init_many(num)
    for _ in range(detector.window):
        state, level_K = detector.update_many(state, rng.normal(size=num))
    for level, alpha in ((2, detector.alpha), (1, detector.warning_alpha)):
        exact = ks_p_value(ks_critical(30, 70, alpha), 30, 70)
        assert exact <= alpha
        share = np.mean(level_K >= level)
        assert abs(share - exact) < 4 * math.sqrt(exact * (1 - exact) / num)


def test_it_sees_a_change_of_spread_that_leaves_the_mean():
    values = np.random.default_rng(1).normal(size=600) * np.where(np.arange(600) < 300, 1.0, 8.0)
    detector = KsWindow()
    state, drifts = detector.init(), []
    for t, value in enumerate(values):
        state, level = detector.update(state, float(value))
        if level is Level.DRIFT:
            drifts.append(t)
    assert drifts
    assert 300 < drifts[0] < 350


def test_after_a_drift_the_new_values_stay():
    detector = KsWindow(window=60, recent=20)
    values = np.concatenate([np.random.default_rng(0).normal(size=60), np.full(40, 9.0)])
    state = detector.init()
    for value in values:
        state, level = detector.update(state, float(value))
        if level is Level.DRIFT:
            break
    assert state.count_K[0] == 20
    assert state.values_KW[0, -1] == 9.0
