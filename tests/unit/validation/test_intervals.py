"""Student's t, sign flips and linearised estimates against scipy and against Monte-Carlo."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from fedretrain.validation.intervals import (
    jackknife,
    ratio,
    sign_flip_p,
    t_quantile,
    t_tail,
    tail_mean,
)


@pytest.mark.parametrize("df", [1.0, 2.0, 3.7, 10.0, 99.0, 4999.0])
def test_student_t_is_scipys(df):
    for t in (-8.0, -1.3, 0.0, 0.4, 2.0, 5.0, 30.0):
        assert t_tail(t, df) == pytest.approx(scipy.stats.t.sf(t, df), rel=1e-9, abs=1e-15)
    for alpha in (0.3, 0.05, 0.001, 1e-5):
        assert t_quantile(alpha, df) == pytest.approx(scipy.stats.t.isf(alpha, df), rel=1e-8)


def test_equal_weights_give_the_one_sample_t_test():
    x = np.random.default_rng(0).normal(0.3, 1.0, 15)
    found = ratio(x, np.ones(15))
    assert found.value == pytest.approx(x.mean())
    assert found.below(0.1) == pytest.approx(scipy.stats.ttest_1samp(x, 0.1, alternative="greater").pvalue)
    assert found.above(0.1) == pytest.approx(scipy.stats.ttest_1samp(x, 0.1, alternative="less").pvalue)
    low, high = found.interval(0.05)
    wanted = scipy.stats.ttest_1samp(x, 0.0).confidence_interval(0.9)
    assert (low, high) == pytest.approx((wanted.low, wanted.high))


def test_a_difference_of_two_groups_is_welch_s():
    rng = np.random.default_rng(1)
    x, member = rng.normal(size=40), np.arange(40) < 15
    found = ratio(x * member, member * 1.0) - ratio(x * ~member, ~member * 1.0)
    se = np.sqrt(x[member].var(ddof=1) / 15 + x[~member].var(ddof=1) / 25)
    # both groups' spreads get the smaller one's correction, 15/14 for 25/24: a little wide
    assert se <= found.stderr <= se * np.sqrt((15 / 14) / (25 / 24))
    assert found.value == pytest.approx(x[member].mean() - x[~member].mean())


def test_exact_sign_flips_count_every_pattern():
    x = np.array([1.0, -0.5, 2.0, 0.3, 0.7])
    sums = [np.dot(s, x) for s in itertools.product([-1, 1], repeat=5)]
    assert sign_flip_p(x, 0) == np.mean([s >= x.sum() - 1e-12 for s in sums])
    assert sign_flip_p(np.ones(4), 0) == 1 / 16
    assert sign_flip_p(np.zeros(4), 0) == 1.0


def test_drawn_sign_flips_agree_with_scipys_permutation_test():
    x = np.random.default_rng(2).normal(0.25, 1.0, 30)
    wanted = scipy.stats.permutation_test(
        (x,),
        np.sum,
        permutation_type="samples",
        n_resamples=20_000,
        alternative="greater",
        rng=np.random.default_rng(3),
    ).pvalue
    found = sign_flip_p(x, 7)
    # two binomial errors of shares near the p value: five standard deviations
    assert abs(found - wanted) < 5 * np.sqrt(wanted * (1 - wanted) * (1 / 4095 + 1 / 20_000))
    assert found == sign_flip_p(x, 7)


def test_sign_flips_weigh_units_as_the_ratio_does():
    total, weight = np.array([3.0, 1.0, -1.0, 8.0, 2.0]), np.array([10.0, 5.0, 5.0, 40.0, 20.0])
    found = ratio(total, weight)
    assert found.flips_below(0.05, 0) == sign_flip_p(total - 0.05 * weight, 0)
    assert found.flips_above(0.3, 0) == sign_flip_p(0.3 * weight - total, 0)
    assert ratio(np.ones(65), np.ones(65)).flips_below(0.0, 0) is None


def test_rows_without_an_event_leave_the_rule_of_three():
    found = ratio(np.zeros(50), np.ones(50), num_rows=1000)
    low, high = found.interval(0.05)
    assert high == -low >= 3.0 / 1000
    assert ratio(np.zeros(50), np.ones(50)).interval(0.05) == (0.0, 0.0)


def test_without_data_or_with_one_unit_nothing_is_known():
    none, one = ratio(np.zeros(3), np.zeros(3)), ratio(np.array([0.4]), np.array([2.0]))
    assert np.isnan(none.value)
    assert one.value == 0.2
    for found in (none, one, tail_mean(np.zeros(0), 0.1)):
        assert found.below(-9.0) == found.above(9.0) == 1.0
        assert found.interval(0.05) == (-np.inf, np.inf)
    assert none.flips_below(0.0, 0) is None


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x = np.random.default_rng(4).normal(size=25)
    found = jackknife(x.mean(), (x.sum() - x) / 24)
    assert found.stderr == pytest.approx(scipy.stats.sem(x))


def coverage(estimate, truth, *, runs=1500):
    """The share of 90 % intervals that hold the truth."""
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(runs):
        low, high = estimate(rng).interval(0.05)
        hits += low <= truth <= high
    return hits / runs


def test_the_ratio_s_interval_covers():
    def draw(rng):
        weight = rng.integers(5, 60, 40).astype(float)
        device = np.clip(rng.normal(0.7, 0.1, 40), 0, 1)
        return ratio(rng.binomial(weight.astype(int), device).astype(float), weight)

    # the binomial error of 1,500 runs is 0.8 points; linearisation costs about one at 40 devices
    assert 0.87 <= coverage(draw, 0.7) <= 0.93


def test_the_tail_mean_s_interval_covers():
    # the worst tenth of normal values has the mean -pdf(z) / 0.1
    truth = -scipy.stats.norm.pdf(scipy.stats.norm.ppf(0.1)) / 0.1
    assert 0.86 <= coverage(lambda rng: tail_mean(rng.normal(size=200), 0.1), truth) <= 0.96
