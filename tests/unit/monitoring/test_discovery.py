"""False-discovery control against scipy, and the rate itself by Monte-Carlo."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedretrain.core.errors import ConfigError
from fedretrain.monitoring.discovery import benjamini_hochberg, benjamini_yekutieli


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("tests", [1, 7, 128])
def test_decisions_are_scipys(alpha, tests):
    rng = np.random.default_rng(tests)
    for _ in range(50):
        p = rng.random(tests) ** rng.choice([1, 4])
        for ours, method in ((benjamini_hochberg, "bh"), (benjamini_yekutieli, "by")):
            expected = stats.false_discovery_control(p, method=method) <= alpha
            np.testing.assert_array_equal(ours(p, alpha), expected)


def test_leading_axes_are_decisions_of_their_own():
    p = np.random.default_rng(0).random((4, 5, 30)) ** 4
    p[0, 0, :29] = np.nan
    p[3] = np.nan
    for control in (benjamini_hochberg, benjamini_yekutieli):
        expected = [[control(row, 0.1) for row in rows] for rows in p]
        np.testing.assert_array_equal(control(p, 0.1), expected)


def test_features_without_telemetry_are_not_tests():
    p = np.array([0.04, np.nan, np.nan, np.nan])
    assert benjamini_hochberg(p, 0.05).tolist() == [True, False, False, False]
    assert benjamini_yekutieli(p, 0.05).tolist() == [True, False, False, False]
    assert not benjamini_hochberg(np.full(3, np.nan), 0.05).any()
    assert benjamini_hochberg(np.zeros(0), 0.05).shape == (0,)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, np.nan])
def test_a_rate_that_is_none_is_refused(alpha):
    with pytest.raises(ConfigError, match="false-discovery rate"):
        benjamini_hochberg([0.1], alpha)


def test_the_false_discovery_rate_holds():
    """100 features, 20 of them shifted, 2,000 runs; BY with features that oppose each other."""
    rng, runs, alpha = np.random.default_rng(1), 2_000, 0.1
    z = rng.normal(size=(runs, 100))
    shared = rng.normal(size=(runs, 1)) * np.where(np.arange(100) % 2, 1.0, -1.0)
    for control, noise in ((benjamini_hochberg, z), (benjamini_yekutieli, 0.6 * z + 0.8 * shared)):
        p = stats.norm.sf(noise + np.where(np.arange(100) < 20, 3.0, 0.0))
        chosen = control(p, alpha)
        false = chosen[:, 20:].sum(1) / np.maximum(chosen.sum(1), 1)
        assert false.mean() < alpha + 4 * false.std() / np.sqrt(runs)
        assert chosen[:, :20].mean() > 0.2  # and it finds some
