"""CUPED against least squares, and what it may never do: move the effect."""

import math

import numpy as np
import pytest

from fedretrain.rollout.adjust import adjust
from fedretrain.rollout.metrics import DeviceMeans


def arm(value, before, start=0):
    value = np.asarray(value, dtype=float)
    return DeviceMeans(
        np.arange(start, start + len(value)), value, np.ones(len(value)), np.asarray(before, dtype=float)
    )


def drawn(draws, num, effect=0.0, noise=0.3):
    before = draws.normal(size=num)
    return arm(0.8 * before + noise * draws.normal(size=num) + effect, before)


def test_the_coefficient_is_that_of_least_squares_with_an_intercept_per_arm():
    draws = np.random.default_rng(0)
    a, b = drawn(draws, 20, effect=5.0), drawn(draws, 70)
    design = np.zeros((90, 3))
    design[:20, 0], design[20:, 1] = 1.0, 1.0
    design[:, 2] = np.concatenate([a.before_K, b.before_K])
    expected = np.linalg.lstsq(design, np.concatenate([a.value_K, b.value_K]), rcond=None)[0]
    found = adjust(a, b)
    assert found.coefficient == pytest.approx(expected[2])
    assert found.treated_K.mean() - found.control_L.mean() == pytest.approx(expected[0] - expected[1])


def test_variance_falls_and_the_effect_stays():
    draws = np.random.default_rng(1)
    gaps, raw = [], []
    for _ in range(400):
        a, b = drawn(draws, 20, effect=0.5), drawn(draws, 80)
        found = adjust(a, b)
        gaps.append(found.treated_K.mean() - found.control_L.mean())
        raw.append(a.value_K.mean() - b.value_K.mean())
    assert abs(np.mean(gaps) - 0.5) < 4 * np.std(gaps) / math.sqrt(400)
    # 0.3 of noise against sqrt(0.8**2 + 0.3**2) without the adjustment.
    assert np.std(gaps) / np.std(raw) == pytest.approx(0.3 / math.hypot(0.8, 0.3), rel=0.2)


def test_devices_without_a_record_keep_their_values():
    draws = np.random.default_rng(2)
    a, b = drawn(draws, 20), drawn(draws, 70)
    a.before_K[3] = np.nan
    found = adjust(a, b)
    assert found.treated_K[3] == a.value_K[3]
    assert found.num_before == 89
    assert np.isfinite(found.treated_K).all()


@pytest.mark.parametrize("before", [np.nan, 0.7])
def test_no_record_or_no_spread_in_it_adjusts_nothing(before):
    draws = np.random.default_rng(3)
    a, b = (arm(draws.normal(size=20), np.full(20, before)) for _ in range(2))
    found = adjust(a, b)
    assert found.coefficient == 0.0
    assert np.array_equal(found.treated_K, a.value_K)
    assert np.array_equal(found.control_L, b.value_K)
