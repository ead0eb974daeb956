"""Predictions without labels: shares, entropy and quantiles from counts, against the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.monitoring.predictions import (
    class_shares,
    entropy_fraction,
    low_share,
    mean_bounds,
    output_skew,
    quantile_bounds,
    unit_bins,
)
from fedretrain.monitoring.reports import LATENCY_EDGES_S, NUM_LATENCY_BINS, latency_bin


def test_unit_bins_are_equal_and_closed_at_one():
    values = [0.0, 0.0999, 0.1, 0.55, 0.9999, 1.0]
    assert unit_bins(values).tolist() == [0, 0, 1, 5, 9, 9]
    assert unit_bins([[0.49], [0.5]], num_bins=2).tolist() == [[0], [1]]


@pytest.mark.parametrize("bad", [np.nan, -0.01, 1.01, np.inf])
def test_what_is_no_probability_is_refused(bad):
    with pytest.raises(DataError, match=r"NaN or outside \[0, 1\]"):
        unit_bins([0.5, bad])


def test_entropy_is_scipys_as_a_share_of_its_maximum():
    p = np.random.default_rng(0).dirichlet(np.full(6, 0.3), 200)
    p[0], p[1] = [1, 0, 0, 0, 0, 0], np.full(6, 1 / 6)
    share = entropy_fraction(p)
    np.testing.assert_allclose(share, stats.entropy(p, base=6, axis=-1), atol=1e-12)
    assert (share[0], share[1]) == (0.0, pytest.approx(1.0))


def test_skew_is_the_psi_of_the_classes():
    baseline, live = np.array([500, 300, 200]), np.array([[480, 310, 210], [100, 300, 600], [0, 0, 0]])
    skew = output_skew(baseline, live)
    p, q = (baseline + 0.5) / 1001.5, (live[1] + 0.5) / 1001.5
    assert skew[1] == pytest.approx(((q - p) * np.log(q / p)).sum())
    assert skew[0] < 0.01 < 0.2 < skew[1]
    assert np.isnan(skew[2])
    np.testing.assert_allclose(class_shares(live)[0], [0.48, 0.31, 0.21])
    assert np.isnan(class_shares(live)[2]).all()


def test_low_confidence_share_at_edges_only():
    counts = np.array([[0, 0, 0, 0, 0, 2, 1, 1, 2, 4], np.zeros(10)])
    share = low_share(counts, 0.6)
    assert share[0] == 0.2
    assert np.isnan(share[1])
    assert low_share(counts, 0.0)[0] == 0.0
    assert low_share(counts, 1.0)[0] == 1.0
    with pytest.raises(ConfigError, match=r"0\.65 is not an edge of 10 equal bins"):
        low_share(counts, 0.65)
    for k in range(11):  # 0.3 * 10 is not 3 in binary
        assert low_share(np.ones(10), k / 10) == pytest.approx(k / 10)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_mean_is_inside_its_bounds(values):
    counts = np.bincount(unit_bins(values), minlength=10)
    bounds = mean_bounds(counts)
    assert bounds.low - 1e-9 <= np.mean(values) <= bounds.high + 1e-9
    assert bounds.high - bounds.low == pytest.approx(0.1)


@given(
    st.lists(st.floats(1e-6, 100), min_size=1, max_size=80),
    st.sampled_from([0.01, 0.5, 0.9, 0.95, 0.99, 1.0]),
)
def test_a_quantile_is_inside_its_bounds_and_they_are_one_bin_apart(values, q):
    counts = np.bincount(latency_bin(np.array(values)), minlength=NUM_LATENCY_BINS)
    bounds = quantile_bounds(counts, LATENCY_EDGES_S, q)
    assert bounds.low <= np.quantile(values, q, method="inverted_cdf") <= bounds.high
    if bounds.low > 0 and np.isfinite(bounds.high):
        assert bounds.high / bounds.low == pytest.approx(10 ** (1 / 4))  # four bins a decade


def test_quantiles_of_many_devices_add_up():
    rng = np.random.default_rng(1)
    values = [rng.lognormal(-6, 1, n) for n in (400, 5, 0)]
    counts = np.stack([np.bincount(latency_bin(v), minlength=NUM_LATENCY_BINS) for v in values])
    each, fleet = (
        quantile_bounds(counts, LATENCY_EDGES_S, 0.95),
        quantile_bounds(counts.sum(0), LATENCY_EDGES_S, 0.95),
    )
    assert fleet.low <= np.quantile(np.concatenate(values), 0.95, method="inverted_cdf") <= fleet.high
    assert np.isnan(each.low[2])
    assert np.isfinite(each.high[:2]).all()


def test_a_quantile_on_other_edges_is_refused():
    with pytest.raises(DataError, match="26 bins have one fewer inner edges, got 26"):
        quantile_bounds(np.zeros(26), np.arange(1, 27), 0.5)
