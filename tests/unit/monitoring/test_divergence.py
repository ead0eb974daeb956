"""Divergences against scipy, and PSI's null against Monte-Carlo and chi-square theory."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats
from scipy.spatial.distance import jensenshannon

from fedretrain.monitoring.divergence import js, kl, psi, psi_bias, psi_p_value, psi_unbiased
from fedretrain.monitoring.gamma import upper_gamma


def smoothed(counts: np.ndarray) -> np.ndarray:
    return (counts + 0.5) / (counts + 0.5).sum(axis=-1, keepdims=True)


def pairs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 50, (20, 13)) + np.eye(1, 13, dtype=int), rng.integers(1, 2000, (20, 13))


def test_divergences_are_scipys_on_smoothed_shares():
    baseline, live = pairs()
    p, q = smoothed(baseline), smoothed(live)
    np.testing.assert_allclose(kl(baseline, live), stats.entropy(q, p, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(
        psi(baseline, live), stats.entropy(q, p, axis=-1) + stats.entropy(p, q, axis=-1), rtol=1e-12
    )
    np.testing.assert_allclose(js(baseline, live), jensenshannon(p, q, axis=-1) ** 2, rtol=1e-9)


def test_leading_axes_broadcast():
    baseline, live = pairs()
    many = np.stack([live, live * 3, live[::-1]])
    for function in (psi, kl, js, psi_bias, psi_unbiased, psi_p_value):
        found = function(baseline, many)
        assert found.shape == (3, 20)
        np.testing.assert_allclose(found[2], function(baseline, live[::-1]), rtol=1e-12)


def test_cells_that_nobody_has_seen_change_nothing():
    baseline, live = pairs()
    padding = np.zeros((20, 4), dtype=int)
    for function in (psi, kl, js, psi_bias, psi_unbiased, psi_p_value):
        padded = function(np.hstack([baseline, padding]), np.hstack([live, padding]))
        np.testing.assert_allclose(padded, function(baseline, live), rtol=1e-12)


def test_without_rows_there_is_no_divergence():
    some, none = np.array([3, 4, 0]), np.zeros(3, dtype=int)
    for function in (psi, kl, js, psi_bias, psi_unbiased, psi_p_value):
        for pair in ((some, none), (none, some), (none, none)):
            assert np.isnan(function(*pair))


def test_one_cell_only_is_no_shift():
    constant = np.array([0, 40, 0])
    assert psi(constant, 2 * constant) == psi_bias(constant, constant) == 0.0
    assert psi_p_value(constant, 2 * constant) == 1.0


@pytest.mark.parametrize(("n", "m"), [(10_000, 1_000), (2_000, 2_000), (50_000, 400)])
def test_the_mean_psi_of_equal_distributions_is_as_theory_says(n, m):
    """(B-1)(1/n + 1/m): within four standard errors, and the terms of order B/m and B/n that theory drops."""
    rng, bins, runs = np.random.default_rng(1), 10, 20_000
    shares = np.full(bins, 1 / bins)
    baseline, live = rng.multinomial(n, shares, runs), rng.multinomial(m, shares, runs)
    found = psi(baseline, live)
    theory = (bins - 1) * (1 / n + 1 / m)
    error = np.sqrt(2 * (bins - 1)) * (1 / n + 1 / m) / np.sqrt(runs)
    assert abs(found.mean() - theory) < 4 * error + theory * bins * (1 / n + 1 / m)
    np.testing.assert_allclose(psi_bias(baseline, live), theory)
    unbiased = psi_unbiased(baseline, live).mean()
    assert abs(unbiased) < 4 * error + theory * bins * (1 / n + 1 / m)


def test_small_windows_exceed_the_common_limit_by_chance():
    """50 rows: PSI > 0.2 without any shift, somewhat less often than chi-square says (smoothing pulls); its p-value knows."""
    rng, runs = np.random.default_rng(2), 20_000
    shares = np.full(10, 0.1)
    baseline, live = rng.multinomial(10_000, shares, runs), rng.multinomial(50, shares, runs)
    assert 0.25 < np.mean(psi(baseline, live) > 0.2) < stats.chi2.sf(0.2 / (1 / 10_000 + 1 / 50), 9)
    for level in (0.01, 0.05):
        p = psi_p_value(baseline, live)
        assert np.mean(p < level) < level + 4 * np.sqrt(level / runs)


def test_p_values_are_uniform_for_independent_rows():
    """Kolmogorov's distance below its 0.1 % point."""
    rng, runs = np.random.default_rng(3), 4_000
    baseline = rng.multinomial(20_000, np.full(10, 0.1), runs)
    live = rng.multinomial(5_000, np.full(10, 0.1), runs)
    distance = stats.kstest(psi_p_value(baseline, live), "uniform").statistic
    assert distance < 1.95 / np.sqrt(runs)


def test_p_values_are_scipys_chi_square_tail():
    baseline, live = pairs()
    statistic = psi(baseline, live) / (1 / baseline.sum(-1) + 1 / live.sum(-1))
    expected = stats.chi2.sf(statistic, (psi_bias(baseline, live) > 0) * 12)
    np.testing.assert_allclose(psi_p_value(baseline, live), expected, rtol=1e-10, atol=1e-290)


def test_the_incomplete_gamma_function_is_scipys():
    a, x = np.meshgrid(np.r_[np.arange(0.5, 20, 0.5), 60.0, 200.0], np.r_[0.0, np.geomspace(1e-6, 600, 200)])
    np.testing.assert_allclose(upper_gamma(a, x), special.gammaincc(a, x), rtol=2e-12, atol=1e-290)
    np.testing.assert_allclose(upper_gamma(a, a + 1.0), special.gammaincc(a, a + 1.0), rtol=1e-12)


def test_the_incomplete_gamma_function_at_its_ends():
    assert upper_gamma(0.0, 0.0) == 1.0  # no degree of freedom: a point mass at 0
    assert upper_gamma(0.0, 1.0) == 0.0
    assert upper_gamma(3.0, 0.0) == 1.0
    assert upper_gamma(3.0, np.inf) == 0.0
    assert np.isnan(upper_gamma(3.0, np.nan))
    assert upper_gamma(np.zeros((0, 2)), 1.0).shape == (0, 2)
