"""The statistics of the health checks, against definitions and by Monte-Carlo."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from fedretrain.edge.health_checks import ALPHA, BETS, ShareLimit, growth, log_mean_wealth, log_tail, wagered

MINUTES = np.arange(19) / 4


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


def test_growth_is_the_slope_and_four_steps_or_drops_are_none():
    line, places = 60.0 + 0.7 * MINUTES, np.arange(19)
    assert growth(MINUTES, line) == pytest.approx(0.7)
    for steps in combinations(range(1, 19), 4):
        stepped = sum(
            size * (places >= place) for size, place in zip((5.0, -4.0, 3.0, 9.0), steps, strict=True)
        )
        assert growth(MINUTES, line + stepped) == pytest.approx(0.7)


def test_a_sawtooth_is_its_ramp_wherever_its_drops_lie_and_a_leak_adds_to_it():
    for period in (2.0, 3.0, 7.0):
        for begin in np.arange(0.0, period, 0.1):
            ramp = 0.5 * ((MINUTES + begin) % period)
            assert growth(MINUTES, ramp) == pytest.approx(0.5)
            assert growth(MINUTES, ramp + 1.0 * MINUTES) == pytest.approx(1.5)


def test_growth_is_the_median_of_rises_over_half_a_minute():
    rng = np.random.default_rng(2)
    for _ in range(20):
        at, level = rng.uniform(0.2, 0.4, 19).cumsum(), rng.normal(size=19).cumsum()
        rises = sorted((level[i + 2] - level[i]) / (at[i + 2] - at[i]) for i in range(17))
        assert growth(at, level) == pytest.approx(rises[8])


def test_noise_of_readings_stays_far_below_the_limit():
    noise = np.random.default_rng(3).normal(0.0, 0.1, (100_000, 19, 3)).min(axis=-1)
    rates = growth(MINUTES, noise)
    assert np.abs(rates).max() < 0.45  # the limit is 0.6; 100,000 windows apart are a year and more
    assert rates.mean() == pytest.approx(0.0, abs=2e-3)


def test_many_windows_at_once_are_the_same_as_one_by_one():
    levels = np.random.default_rng(0).normal(size=(20, 19)).cumsum(axis=1)
    together = growth(MINUTES, levels)
    assert together.shape == (20,)
    assert together.tolist() == [float(growth(MINUTES, row)) for row in levels]


def test_one_odd_reading_never_looks_like_a_leak():
    for place in range(19):
        for size in (-30.0, 30.0):
            odd = [60.0 + size * (index == place) for index in range(19)]
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
