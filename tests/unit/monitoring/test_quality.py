"""Missing, outside and violating fractions from counts."""

from __future__ import annotations

import numpy as np

from fedretrain.monitoring.bins import fit_bins
from fedretrain.monitoring.histogram import count
from fedretrain.monitoring.quality import (
    count_violations,
    missing_fraction,
    outside_fraction,
    violation_fraction,
)


def case() -> tuple:
    rng = np.random.default_rng(0)
    baseline = np.stack([rng.uniform(0, 1, 200), rng.integers(0, 3, 200), rng.normal(size=200)], axis=1)
    bins = fit_bins(
        baseline,
        ["a", "code", "b"],
        low_F=[-1, -np.inf, -3],
        high_F=[2, np.inf, np.nan],
        categorical=["code"],
    )
    x = np.array(
        [
            [0.5, 0.0, 0.0],
            [-0.5, 7.0, -9.0],
            [3.0, 1.0, 0.1],
            [np.nan, 2.0, np.nan],
            [1.5, np.nan, np.nan],
        ]
    )
    return bins, x, count(bins, x)


def test_fractions_of_what_arrived():
    bins, _, counts = case()
    np.testing.assert_allclose(missing_fraction(counts), [0.2, 0.2, 0.4])
    np.testing.assert_allclose(outside_fraction(bins, counts), [3 / 4, 1 / 4, 1 / 3])


def test_violations_are_of_the_schema_not_of_the_baseline():
    bins, x, counts = case()
    violations = count_violations(bins, x)
    assert violations.tolist() == [1, 0, 1]
    assert violations.dtype == np.int64
    np.testing.assert_allclose(violation_fraction(violations, counts), [1 / 4, 0.0, 1 / 3])


def test_nothing_has_no_fraction_and_leading_axes_pass_through():
    bins, x, counts = case()
    many = np.stack([counts, np.zeros_like(counts)])
    for found in (
        missing_fraction(many),
        outside_fraction(bins, many),
        violation_fraction(np.stack([count_violations(bins, x), np.zeros(3, int)]), many),
    ):
        assert found.shape == (2, 3)
        assert np.all(np.isfinite(found[0]))
        assert np.all(np.isnan(found[1]))
