"""The statistics of the health checks, against definitions and by Monte-Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedretrain.edge.health_checks import ALPHA, BETS, ShareLimit, growth, log_mean_wealth, log_tail, wagered

MINUTES = [index / 2 for index in range(11)]


@pytest.mark.parametrize(
    ("hits", "trials", "share"), [(10, 300, 0.0025), (40, 300, 0.03), (5, 5, 0.5), (3, 900, 0.01)]
)
def test_the_bound_is_never_below_the_chance_and_not_far_above(hits, trials, share):
    exact = stats.binom.logsf(hits - 1, trials, share)
    bound = log_tail(hits, trials, share)
    assert exact <= bound <= 0.0
    assert bound - exact < 4.0  # a factor of about fifty at most


def test_no_trials_are_no_evidence():
    assert log_tail(0, 0, 0.01) == 0.0
    assert not ShareLimit(0.01, 0.0025).breached([])
    assert not ShareLimit(0.01, 0.0025).breached([(0, 0)] * 10)


def test_a_share_needs_most_blocks_and_significance():
    limit = ShareLimit(0.01, 0.0025)
    assert limit.breached([(3, 30)] * 16 + [(0, 30)] * 4)
    assert not limit.breached([(30, 30)] * 15 + [(0, 30)] * 5), "bursts are not a fault"
    low = ShareLimit(0.01, 0.009)
    assert not low.breached([(1, 30)] * 16 + [(0, 30)] * 4), "sixteen slow ones in 600 may be chance"


def test_a_look_is_false_more_seldom_than_it_says():
    rng = np.random.default_rng(0)
    hits = rng.binomial(30, 0.03, (20_000, 20))
    limit = ShareLimit(0.06, 0.03)
    pooled = sum(log_tail(int(row.sum()), 600, 0.03) <= math.log(1e-3) for row in hits)
    assert pooled <= stats.binom.ppf(0.999, 20_000, 1e-3)
    assert not any(limit.breached([(int(h), 30) for h in row]) for row in hits[:2000])
    assert ALPHA * 1000 * 5760 < 0.5  # what a share at its allowed value costs, in 1,000 device-days


def test_growth_is_the_slope_and_two_steps_are_none():
    line = np.array([60.0 + 0.7 * minute for minute in MINUTES])
    places = np.arange(11)
    assert growth(MINUTES, line) == pytest.approx(0.7)
    for place in range(1, 11):
        for other in range(1, 11):
            stepped = 5.0 * (places >= place) + 3.0 * (places >= other)
            assert growth(MINUTES, stepped) == pytest.approx(0.0)
            assert growth(MINUTES, line + stepped) == pytest.approx(0.7)


def test_many_windows_at_once_are_the_same_as_one_by_one():
    levels = np.random.default_rng(0).normal(size=(20, 11)).cumsum(axis=1)
    together = growth(MINUTES, levels)
    assert together.shape == (20,)
    assert together.tolist() == [float(growth(MINUTES, row)) for row in levels]


def test_one_odd_reading_never_looks_like_a_leak():
    for place in range(11):
        for size in (-30.0, 30.0):
            odd = [60.0 + size * (index == place) for index in range(11)]
            assert growth(MINUTES, odd) <= 0.0


def test_wealth_is_a_supermartingale_at_the_floor_and_grows_below_it():
    start = (0.0,) * len(BETS)
    for floor in (0.3, 0.85):
        chance = stats.binom.pmf(np.arange(11), 10, floor)
        mean = sum(
            p * math.exp(log_mean_wealth(wagered(start, k / 10, floor)))
            for k, p in enumerate(chance.tolist())
        )
        assert mean == pytest.approx(1.0)
    assert log_mean_wealth(wagered(start, 0.4, 0.85)) > 0 > log_mean_wealth(wagered(start, 1.0, 0.85))


def test_the_accuracy_test_keeps_its_error_and_finds_a_fall():
    rng, alpha = np.random.default_rng(1), 0.05
    crossed, needed = 0, []
    for _ in range(400):
        wealth, ever = (0.0,) * len(BETS), False
        for right in rng.binomial(10, 0.85, 60):
            wealth = wagered(wealth, right / 10, 0.85)
            ever |= log_mean_wealth(wealth) >= -math.log(alpha)
        crossed += ever
        wealth = (0.0,) * len(BETS)
        for block, right in enumerate(rng.binomial(10, 0.65, 200)):
            wealth = wagered(wealth, right / 10, 0.85)
            if log_mean_wealth(wealth) >= -math.log(1e-4):
                needed.append(block + 1)
                break
    assert crossed <= stats.binom.ppf(0.999, 400, alpha)
    assert len(needed) == 400
    assert np.median(needed) < 30  # 300 labels at an alpha of one in ten thousand
