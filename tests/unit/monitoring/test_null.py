"""The empirical null: leave-one-out by hand, seasons, silence, and rows that depend on each other."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.monitoring.bins import fit_bins
from fedretrain.monitoring.discovery import benjamini_hochberg
from fedretrain.monitoring.divergence import psi, psi_p_value
from fedretrain.monitoring.histogram import count_by
from fedretrain.monitoring.null import fit_null, p_value, pooled_p_value


def slots(num: int = 40, features: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 20, (num, features, 6))


@pytest.mark.parametrize(("length", "stride"), [(4, 4), (4, 1), (7, 3), (20, 5)])
def test_each_window_is_compared_with_the_rest_only(length, stride):
    counts = slots()
    null = fit_null(counts, length, stride)
    expected = []
    for start in range(0, 40 - length + 1, stride):
        inside = np.zeros(40, dtype=bool)
        inside[start : start + length] = True
        expected.append(psi(counts[~inside].sum(0), counts[inside].sum(0)))
    np.testing.assert_allclose(null.psi_WF, np.sort(expected, axis=0), rtol=1e-12)
    assert null.window_slots == length


def test_p_values_count_the_windows_beyond():
    null = fit_null(slots(), 4, 2)
    windows = len(null.psi_WF)
    live = np.stack([null.psi_WF[5], np.full(3, 99.0), np.zeros(3), np.array([np.nan, 0.01, 99.0])])
    p = p_value(null, live)
    np.testing.assert_allclose(p[0], (1 + windows - 5) / (windows + 1))
    np.testing.assert_allclose(p[1], 1 / (windows + 1))
    np.testing.assert_allclose(p[2], 1.0)
    assert np.isnan(p[3, 0])
    assert np.all(np.isfinite(p[3, 1:]))


def test_a_season_is_judged_by_its_own_windows():
    counts = slots()
    counts[20:, :, 0] += 60  # the second half is another season
    season = np.repeat([0, 1], 20)
    null = fit_null(counts, 4, 1, season)
    plain = fit_null(counts, 4, 1)
    ends = np.arange(3, 40)
    assert np.bincount(null.season_W).tolist() == np.bincount(season[ends]).tolist()
    np.testing.assert_allclose(np.sort(null.psi_WF, axis=0), plain.psi_WF)
    live = np.full(3, 0.5)
    parts = [(null.of_season(s) >= live).sum(0) for s in (0, 1)]
    for s in (0, 1):
        np.testing.assert_allclose(p_value(null, live, s), (1 + parts[s]) / (len(null.of_season(s)) + 1))
    np.testing.assert_allclose(p_value(null, live), p_value(plain, live))
    with pytest.raises(DataError, match="season 2"):
        p_value(null, live, 2)


def test_windows_without_rows_are_no_evidence():
    counts = slots()
    counts[8:16, 1] = 0  # one feature silent for two windows
    counts[:, 2] = 0  # one always
    null = fit_null(counts, 4, 4)
    assert np.isnan(null.psi_WF).sum(axis=0).tolist() == [0, 2, 10]
    np.testing.assert_allclose(p_value(null, np.array([99.0, 99.0, 99.0])), [1 / 11, 1 / 9, 1.0])
    pooled = pooled_p_value(null, np.array([99.0, 99.0, 99.0]))
    np.testing.assert_allclose(pooled, [1 / 19, 1 / 19, 1.0])


def test_what_cannot_be_windowed_is_refused():
    for length, stride in ((0, 1), (21, 1), (4, 0)):
        with pytest.raises(ConfigError, match="two windows long"):
            fit_null(slots(), length, stride)
    null = fit_null(slots(), 4, 4)
    for judge in (p_value, pooled_p_value):
        with pytest.raises(DataError, match="3 features"):
            judge(null, np.zeros(2))


def weather(runs: int, hours: int, seed: int, persistence: float = 0.98) -> np.ndarray:
    """``[hours, runs]`` first-order autoregressive series of unit variance: an hour resembles the one before."""
    rng = np.random.default_rng(seed)
    series = np.empty((hours, runs))
    series[0] = rng.normal(size=runs)
    for hour in range(1, hours):
        series[hour] = persistence * series[hour - 1] + np.sqrt(1 - persistence**2) * rng.normal(size=runs)
    return series


def test_dependent_rows_break_chi_square_but_not_the_empirical_null():
    """60 sensors, a year of hours as baseline, the next year's weeks judged: nothing has changed."""
    sensors, week, year = 60, 168, 52 * 168
    x = weather(sensors, 2 * year, seed=4)
    bins = fit_bins(x[:year], [f"s{i}" for i in range(sensors)])
    counts = count_by(bins, x[:year], np.arange(year) // 24, 364)
    baseline = counts.sum(axis=0)
    live = count_by(bins, x[year:], np.arange(year) // week, 52)
    null = fit_null(counts, 7, 1)
    p = p_value(null, psi(baseline, live))
    assert np.mean(psi_p_value(baseline, live) < 0.001) > 0.9
    # 60 sensors x 52 nearly independent weeks: a standard error of 0.4 %; the null itself has 52 weeks for each sensor.
    assert abs(np.mean(p <= 0.05) - 0.05) < 0.02


def test_pooling_features_finds_one_that_drifts_alone():
    """One of 100 features, 51 windows: its own null cannot go below 1/52, the pooled one can."""
    rng = np.random.default_rng(5)
    counts = rng.multinomial(200, np.full(8, 1 / 8), (153, 100))
    null, baseline = fit_null(counts, 3, 3), counts.sum(axis=0)
    live = rng.multinomial(600, np.full(8, 1 / 8), (100,))
    live[7] = rng.multinomial(600, np.r_[0.25, np.full(7, 0.75 / 7)])
    found = psi(baseline, live)
    assert not benjamini_hochberg(p_value(null, found), 0.05).any()
    assert np.flatnonzero(benjamini_hochberg(pooled_p_value(null, found), 0.05)).tolist() == [7]


def test_pooled_p_values_are_uniform_where_nulls_differ_by_scale():
    rng = np.random.default_rng(6)
    counts = rng.multinomial(100, np.full(8, 1 / 8), (153, 40))
    counts[:, ::2] = rng.multinomial(20, np.full(8, 1 / 8), (153, 20))  # half of them with fewer rows
    null, baseline = fit_null(counts, 3, 3), counts.sum(axis=0)
    live = rng.multinomial(300, np.full(8, 1 / 8), (200, 40))
    live[:, ::2] = rng.multinomial(60, np.full(8, 1 / 8), (200, 20))
    p = pooled_p_value(null, psi(baseline, live))
    for level in (0.01, 0.05, 0.5):
        assert abs(np.mean(p <= level) - level) < 4 * np.sqrt(level / 2040) + 0.01


def test_a_feature_that_never_moves_stays_out_of_the_pool():
    counts = slots()
    counts[:, 0] = [5, 0, 0, 0, 0, 0]
    null = fit_null(counts, 4, 4)
    pooled = pooled_p_value(null, np.array([0.0, 99.0, 99.0]))
    np.testing.assert_allclose(pooled, [1.0, 1 / 21, 1 / 21])
