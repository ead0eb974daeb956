"""Late labels: the arrival curve under censoring, its drift, bias, and accuracy by prediction time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedretrain.core.errors import DataError
from fedretrain.monitoring.labels import (
    CurveDrift,
    accuracy,
    arrival_curve,
    completeness,
    curve_drift,
    device_accuracy,
    expected_completeness,
    label_bias,
    macro_f1,
    reweighted_accuracy,
)

EDGES = np.array([1.0, 2.0, 4.0, 8.0, 16.0])  # days, say: six bins
RUNS = 600


def arrivals(rng, predicted_S, age_S, mean_delay, lost=0.2):
    """Labels of each slot that came by now, by delay bin; predictions lie anywhere in slots of length 1."""
    counts = np.zeros((len(predicted_S), len(EDGES) + 1))
    for s, (num, age) in enumerate(zip(predicted_S, age_S, strict=True)):
        delay = np.where(rng.random(num) < lost, np.inf, rng.exponential(mean_delay, num))
        came = delay <= age + rng.random(num)
        counts[s] = np.bincount(np.searchsorted(EDGES, delay[came], side="right"), minlength=len(EDGES) + 1)
    return counts


def device_curves(rng, num_devices, mean_delay, scatter):
    """``[D, B]`` counts of devices that each have a pace of their own."""
    age_S = np.arange(12.0)[::-1]
    predicted = np.full((num_devices, 12), 8)
    paces = mean_delay * np.exp(scatter * rng.normal(size=num_devices))
    rows = [arrivals(rng, predicted[0], age_S, pace) for pace in paces]
    return arrival_curve(np.stack(rows), predicted, age_S, EDGES)


def test_without_censoring_the_curve_is_the_counted_share():
    counts = np.array([[5, 10, 0, 20, 5, 0], [0, 0, 0, 0, 0, 0]])
    curve = arrival_curve(counts, [100, 0], [1000.0, 999.0], EDGES)
    np.testing.assert_allclose(curve.fraction[:5], np.cumsum(counts[0, :5]) / 100)
    assert np.isnan(curve.fraction[5])  # nothing is ever older than the open bin
    np.testing.assert_allclose(
        curve.error[:5], np.sqrt(curve.fraction[:5] * (1 - curve.fraction[:5]) / 100), rtol=1e-12
    )


@given(st.integers(0, 2**32 - 1))
def test_it_is_the_product_limit_estimate(seed):
    """scipy's estimate on the same labels: a label in bin j came at j, one not yet known by then left at j - 1/2."""
    rng = np.random.default_rng(seed)
    predicted_S, age_S = rng.integers(1, 40, 6), np.sort(rng.integers(0, 20, 6).astype(float))
    counts = arrivals(rng, predicted_S, age_S, 4.0)
    came, left = [], []
    for s in range(6):
        passed = int((age_S[s] >= EDGES).sum())
        known = counts[s, :passed].astype(int)
        came += list(np.repeat(np.arange(passed), known))
        left += [passed - 0.5] * int(predicted_S[s] - known.sum())
    fraction = arrival_curve(counts, predicted_S, age_S, EDGES).fraction
    theirs = stats.ecdf(stats.CensoredData(came, right=left)).cdf.evaluate(np.arange(5))
    seen = ~np.isnan(fraction[:5])
    np.testing.assert_allclose(fraction[:5][seen], theirs[seen], atol=1e-12)


def test_young_predictions_do_not_bend_the_curve():
    """The true curve, with a fifth of the labels lost, within four standard errors; the plain share is far below."""
    rng = np.random.default_rng(0)
    age_S, predicted_S = np.arange(25.0)[::-1], np.full(25, 2000)
    counts = arrivals(rng, predicted_S, age_S, 6.0)
    curve = arrival_curve(counts, predicted_S, age_S, EDGES)
    truth = 0.8 * (1 - np.exp(-EDGES / 6.0))
    assert np.all(np.abs(curve.fraction[:5] - truth) < 4 * curve.error[:5])
    plain = np.cumsum(counts.sum(axis=0))[:5] / predicted_S.sum()
    assert plain[4] < truth[4] - 0.1


def test_a_label_more_than_predictions_is_refused():
    with pytest.raises(DataError, match="more labels than predictions"):
        arrival_curve(np.eye(6)[:1] * 3, [2], [5.0], EDGES)
    with pytest.raises(DataError, match="edges increase"):
        arrival_curve(np.zeros((1, 6)), [2], [5.0], EDGES[::-1])
    with pytest.raises(DataError, match="one fewer than the bins"):
        arrival_curve(np.zeros((1, 5)), [2], [5.0], EDGES)


def test_all_labelled_stays_all_labelled_and_nothing_seen_is_no_number():
    curve = arrival_curve(np.array([[10, 0, 0, 0, 0, 0]]), [10], [6.0], EDGES)
    np.testing.assert_array_equal(curve.fraction, np.ones(6))
    np.testing.assert_allclose(curve.within([0.0, 0.5, 1.0, 50.0]), [0.0, 0.5, 1.0, 1.0])
    assert np.isnan(arrival_curve(np.zeros((1, 6)), [10], [0.5], EDGES).within([3.0])).all()


def test_leading_axes_are_curves_of_their_own_and_their_counts_add_up():
    rng = np.random.default_rng(5)
    curves = device_curves(rng, 3, 4.0, 0.0)
    assert curves.fraction.shape == (3, 6)
    assert curves.within([1.0, 3.0]).shape == (3, 2)
    age_S, predicted = np.arange(8.0)[::-1], np.full((2, 8), 30)
    counts = np.stack([arrivals(rng, predicted[0], age_S, 4.0) for _ in range(2)])
    both = arrival_curve(counts.sum(0), predicted.sum(0), age_S, EDGES)
    each = arrival_curve(counts, predicted, age_S, EDGES)
    np.testing.assert_array_equal(each.labelled_B.sum(0), both.labelled_B)
    np.testing.assert_array_equal(each.at_risk_B.sum(0), both.at_risk_B)


def test_expected_completeness_is_what_comes_true():
    rng = np.random.default_rng(6)
    age_S, predicted_S = np.arange(30.0)[::-1], np.full(30, 3000)
    curve = arrival_curve(arrivals(rng, predicted_S, age_S, 5.0), predicted_S, age_S, EDGES)
    young = np.arange(6.0)[::-1]
    came = arrivals(rng, np.full(6, 20_000), young, 5.0).sum()
    expected = expected_completeness(curve, np.full((2, 6), [[1], [500]]), young + 0.5)
    assert expected[0] == pytest.approx(expected[1])
    assert expected[0] == pytest.approx(came / 120_000, abs=0.02)


@pytest.mark.parametrize("num_devices", [10, 60])
def test_the_drift_tests_alpha_holds_though_labels_of_a_device_come_together(num_devices):
    """Each device has its own pace. With devices as units 5 % alarms; with labels as units far more."""
    rng, alarms, by_label = np.random.default_rng(1), 0, 0
    runs = RUNS if num_devices == 10 else RUNS // 4
    for _ in range(runs):
        before, after = (device_curves(rng, num_devices, 5.0, 1.0) for _ in range(2))
        alarms += curve_drift(before, after).p_value <= 0.05
        o, y = (
            np.stack([getattr(c, n).sum(0) for c in (before, after)]) for n in ("labelled_B", "at_risk_B")
        )
        pace = np.divide(o.sum(0), y.sum(0), out=np.zeros(6), where=y.sum(0) > 0)
        share = np.divide(y[0], y.sum(0), out=np.zeros(6), where=y.sum(0) > 0)
        z = (o[1] - y[1] * pace).sum() / math.sqrt((y[1] * share * pace * (1 - pace)).sum())
        by_label += abs(z) > 1.96
    assert alarms / runs <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / runs)
    assert by_label / runs > 0.2


def test_with_a_device_for_each_label_it_is_scipys_log_rank_test():
    rng = np.random.default_rng(2)
    counts, samples = [], []
    for mean in (4.0, 5.0):
        delay, age = rng.exponential(mean, 800), rng.integers(1, 20, 800).astype(float)
        bins, passed = np.searchsorted(EDGES, delay, side="right"), (age[:, None] >= EDGES).sum(1)
        came = bins < passed
        counts.append((np.eye(6)[bins] * came[:, None], age))
        samples.append(stats.CensoredData(bins[came], right=passed[~came] - 0.5))
    curves = []
    for k, (delays, age) in enumerate(counts):  # each device is in one sample only
        rows = np.zeros((1600, 1, 6))
        predicted, ages = np.zeros((1600, 1)), np.zeros((1600, 1))
        rows[800 * k : 800 * k + 800, 0], predicted[800 * k : 800 * k + 800] = delays, 1
        ages[800 * k : 800 * k + 800, 0] = age
        parts = [arrival_curve(r, p, a, EDGES) for r, p, a in zip(rows, predicted, ages, strict=True)]
        curves.append(
            type(parts[0])(
                EDGES, np.stack([p.labelled_B for p in parts]), np.stack([p.at_risk_B for p in parts])
            )
        )
    theirs = stats.logrank(*samples)
    # The same score; their variance is about 0, ours about the scores' mean, which is z / sqrt(n) of their spread.
    ours = stats.norm.isf(curve_drift(*curves).p_value / 2)
    about_zero = ours / math.sqrt(1 + ours**2 / 1600)
    assert 2 * stats.norm.sf(about_zero) == pytest.approx(theirs.pvalue, rel=0.15)


def test_slower_labels_are_found_and_the_surplus_says_which_way():
    rng = np.random.default_rng(3)
    fast, slow = device_curves(rng, 80, 3.0, 0.5), device_curves(rng, 80, 8.0, 0.5)
    slower, faster = curve_drift(fast, slow), curve_drift(slow, fast)
    assert slower.p_value < 1e-6
    assert slower.surplus < -0.1 < 0.1 < faster.surplus


def test_too_little_is_no_number_and_no_drift_is_one():
    rng = np.random.default_rng(4)
    alone = curve_drift(device_curves(rng, 1, 3.0, 0.0), device_curves(rng, 1, 30.0, 0.0))
    assert alone.surplus < 0
    assert math.isnan(alone.p_value)
    assert alone.num_devices == 1
    many, empty = (
        device_curves(rng, 4, 3.0, 0.0),
        arrival_curve(np.zeros((4, 1, 6)), np.zeros((4, 1)), [0.0], EDGES),
    )
    for before, after in ((empty, empty), (many, empty), (empty, many)):
        found = curve_drift(before, after)
        assert (math.isnan(found.surplus), math.isnan(found.p_value), found.num_devices) == (True, True, 0)
    assert curve_drift(many, many) == CurveDrift(pytest.approx(0.0, abs=1e-12), 1.0, 4)


def test_a_bin_that_only_one_sample_has_reached_says_nothing():
    old = arrival_curve(np.array([[[5, 2, 1, 1, 0, 0]]] * 6), np.full((6, 1), 10), [20.0], EDGES)
    young = arrival_curve(np.array([[[5, 2, 0, 0, 0, 0]]] * 6), np.full((6, 1), 10), [2.0], EDGES)
    assert curve_drift(old, young) == CurveDrift(0.0, 1.0, 6)


CONFUSION = np.array([[50, 10, 0], [5, 80, 5], [0, 0, 0]])  # true by predicted


def test_accuracy_and_macro_f1_of_a_confusion_matrix():
    assert accuracy(CONFUSION) == pytest.approx(130 / 150)
    f1 = [100 / (60 + 55), 160 / (90 + 90), 0.0]  # the third was predicted and never right
    assert macro_f1(CONFUSION) == pytest.approx(np.mean(f1))
    assert macro_f1(CONFUSION[:2, :2]) == pytest.approx(np.mean([100 / 115, 160 / 175]))
    absent = np.zeros((3, 3))
    absent[:2, :2] = CONFUSION[:2, :2]
    assert macro_f1(absent) == macro_f1(CONFUSION[:2, :2])  # a class nobody met is left out
    assert np.isnan([accuracy(np.zeros((3, 3))), macro_f1(np.zeros((3, 3)))]).all()


@given(st.integers(0, 2**32 - 1))
def test_macro_f1_is_the_mean_of_precision_and_recalls_harmonic_means(seed):
    rng = np.random.default_rng(seed)
    stack = rng.integers(0, 4, (3, 4, 4))
    for matrix, ours in zip(stack, macro_f1(stack), strict=True):
        scores = []
        for c in range(4):
            hit, true, said = matrix[c, c], matrix[c].sum(), matrix[:, c].sum()
            if true + said:
                scores.append(stats.hmean([hit / said, hit / true]) if hit else 0.0)
        assert ours == pytest.approx(np.mean(scores)) if scores else np.isnan(ours)


def test_a_late_label_corrects_its_own_slot():
    slots = np.stack([CONFUSION, CONFUSION])
    late = slots.copy()
    late[0, 0, 1] += 30
    assert accuracy(late)[0] < accuracy(slots)[0]
    assert accuracy(late)[1] == accuracy(slots)[1]


def test_accuracy_over_devices_has_the_fleets_value_and_the_devices_spread():
    same = device_accuracy(np.stack([CONFUSION] * 10))
    mixed = device_accuracy(np.stack([CONFUSION] * 5 + [CONFUSION[[1, 0, 2]]] * 5))
    assert same.estimate == pytest.approx(accuracy(CONFUSION))
    assert mixed.high - mixed.low > 3 * (same.high - same.low)


def test_bias_by_predicted_class_and_its_cure():
    """Class 0 is labelled four times as often; within a class labels are missing at random."""
    predicted = np.array([1000, 1000])
    labelled = np.array([[360, 50], [40, 50]])  # right 90 % and 50 %
    bias = label_bias(predicted, labelled)
    np.testing.assert_allclose(bias.share_M, [0.4, 0.1])
    np.testing.assert_allclose(bias.relative_M, [1.6, 0.4])
    assert accuracy(labelled) == pytest.approx(0.82)
    assert reweighted_accuracy(labelled, predicted) == pytest.approx(0.7)
    assert completeness(labelled.sum(), predicted.sum()) == 0.25
    assert np.isnan(reweighted_accuracy(labelled * [1, 0], predicted))
    np.testing.assert_allclose(label_bias(predicted, labelled * [1, 0]).share_M, [0.4, 0.0])
    assert np.isnan(label_bias(np.array([10, 0]), np.zeros((2, 2))).share_M[1])
