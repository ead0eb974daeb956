"""A step, ramp or stretch in a daily series, against least squares by numpy over every onset and end."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sim.fit.courses import course

PRIOR = 0.02  # variance of the baseline's error


def series(draws, changed, days=40, noise=0.1):
    error = draws.normal(0.0, np.sqrt(PRIOR))
    return np.asarray(changed, dtype=float) + error + noise * draws.standard_normal(days)


def stretch(days, first, until, size):
    shape = np.zeros(days)
    shape[first:until] = size
    return shape


def by_hand(value, variance):
    """Onset and end (None: it stays) of the best stretch or step, each of at least two days, what ends of five and followed by two."""
    num = len(value)
    found = []
    for first, until in itertools.combinations(range(num + 1), 2):
        if until - first < (2 if until == num else 5) or num - 2 < until < num:
            continue
        rows = np.column_stack([stretch(num, first, until, 1.0), np.ones(num)]) / np.sqrt(variance)[:, None]
        design = np.vstack([rows, [0.0, 1.0 / np.sqrt(PRIOR)]])
        target = np.append(value / np.sqrt(variance), 0.0)
        answer = np.linalg.lstsq(design, target, rcond=None)[0]
        cost = float(((target - design @ answer) ** 2).sum())
        found.append(
            (cost + (12.0 if until < num else 0.0), first, until if until < num else None, answer[0])
        )
    return min(found)


@pytest.mark.parametrize("seed", range(6))
def test_a_stretch_is_the_one_that_least_squares_finds(seed):
    draws = np.random.default_rng(seed)
    variance = draws.uniform(0.005, 0.02, 40)
    value = series(draws, stretch(40, 11, 25, 1.0))
    found = course(value, variance, PRIOR)
    _, first, until, size = by_hand(value, variance)
    assert (found.lasts, found.first, found.until) == (0, first, until)
    assert found.size == pytest.approx(size)
    assert (first, until) == (11, 25)


def test_what_stays_has_no_end():
    draws = np.random.default_rng(20)
    found = [course(series(draws, stretch(40, 20, 40, 0.5)), np.full(40, 0.01), PRIOR) for _ in range(200)]
    ended = sum(one.until is not None for one in found)
    assert ended <= 6, "a chance end costs 2 ln 365: some hundredths of those that stay"
    assert np.median([one.first for one in found]) == 20


def test_a_ramp_may_end_too():
    ramp = np.clip((np.arange(60) - 9) / 13.0, 0.0, 1.0) * (np.arange(60) < 40)
    found = course(series(np.random.default_rng(3), ramp, days=60, noise=0.05), np.full(60, 0.0025), PRIOR)
    assert found.lasts == 13
    assert found.until == 40
    assert found.size == pytest.approx(1.0, abs=0.1)


def test_days_without_telemetry_keep_their_place():
    value = series(np.random.default_rng(4), stretch(40, 12, 24, 2.0))
    value[[3, 12, 30, 31]] = np.nan
    found = course(value, np.full(40, 0.01), PRIOR)
    assert (found.first, found.until) == (13, 24)


def test_what_is_over_again_lasted_five_days():
    draws = np.random.default_rng(5)
    weekends = [course(series(draws, stretch(40, 12, 14, 0.5)), np.full(40, 0.01), PRIOR) for _ in range(20)]
    ended = [one for one in weekends if one.until is not None]
    assert ended
    assert all(one.until - one.first >= 5 for one in ended)


def test_too_few_days_are_none():
    assert course(np.full(5, np.nan), np.ones(5), PRIOR) is None
    assert course(np.array([1.0, np.nan]), np.ones(2), PRIOR) is None
