"""Quantile bins: edges, codes, schema limits, digest, and that one outlier does not blind them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.monitoring.bins import Bins, fit_bins
from fedretrain.monitoring.divergence import psi
from fedretrain.monitoring.histogram import count


def test_edges_are_quantiles_of_the_finite_baseline():
    rng = np.random.default_rng(0)
    x = rng.gamma(2.0, size=(5000, 2))
    x[::7, 0] = np.nan
    x[0, 1] = np.inf
    bins = fit_bins(x, ["a", "b"], num_bins=8)
    for f in range(2):
        column = x[np.isfinite(x[:, f]), f]
        np.testing.assert_array_equal(bins.edges_FE[f], np.quantile(column, np.linspace(0, 1, 9)))
        assert bins.edges_FE[f, 0] == column.min()
        assert bins.edges_FE[f, -1] == column.max()
    assert (bins.num_features, bins.num_cells) == (2, 11)


def test_the_baseline_fills_its_bins_evenly():
    x = np.random.default_rng(1).normal(size=(10_000, 3))
    counts = count(fit_bins(x, "abc"), x)
    assert np.all(np.abs(counts[:, 1:-2] - 1000) <= 1)
    assert np.all(counts[:, [0, -2, -1]] == 0)


def test_one_outlier_does_not_blind_quantile_bins_as_it_blinds_equal_widths():
    rng = np.random.default_rng(2)
    baseline, live = rng.normal(size=(10_000, 1)), rng.normal(1.0, size=(1_000, 1))
    baseline[0] = 1e6
    quantile = fit_bins(baseline, ["a"])
    equal = replace(quantile, edges_FE=np.linspace(baseline.min(), 1e6, 11)[None])
    assert psi(count(quantile, baseline), count(quantile, live))[0] > 0.8
    assert psi(count(equal, baseline), count(equal, live))[0] < 0.01


def test_codes_come_by_frequency_then_by_value():
    codes = np.array([5.0] * 3 + [2.0] * 3 + [9.0] * 7 + [1.0, np.nan])
    bins = fit_bins(codes[:, None], ["state"], num_bins=3, categorical=["state"])
    assert bins.categories == {"state": (9.0, 2.0, 5.0, 1.0)}
    assert np.all(np.isnan(bins.edges_FE))
    assert not bins.is_numeric[0]


def test_open_limits_of_the_schema():
    x = np.arange(12.0).reshape(6, 2)
    bins = fit_bins(x, ["a", "b"], low_F=[0.0, np.nan])
    np.testing.assert_array_equal(bins.low_F, [0.0, -np.inf])
    np.testing.assert_array_equal(bins.high_F, [np.inf, np.inf])


def test_equal_bins_share_a_digest_and_every_part_counts():
    x = np.random.default_rng(3).normal(size=(100, 2))
    x[:, 1] = np.arange(100) % 4
    bins = fit_bins(x, ["a", "b"], categorical=["b"])
    same = fit_bins(x.copy(), ["a", "b"], categorical=["b"])
    assert bins == same
    assert hash(bins) == hash(same)
    assert len(bins.digest) == 64
    others = [
        replace(bins, names=("A", "b")),
        replace(bins, edges_FE=bins.edges_FE + np.array([[1e-12], [0.0]])),
        replace(bins, low_F=np.array([-1.0, -np.inf])),
        replace(bins, high_F=np.array([np.inf, 9.0])),
        replace(bins, categories={"b": (1.0, 0.0, 2.0, 3.0)}),
        fit_bins(x, ["a", "b"]),
    ]
    digests = {bins.digest, *(other.digest for other in others)}
    assert len(digests) == 1 + len(others)
    assert bins != "bins"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"names": ("a", "a")}, "not unique"),
        ({"names": ("a",)}, "bins of 1 names"),
        ({"names": ()}, "bins of 0 names"),
        ({"categories": {"z": (1.0,)}}, "lack a categorical"),
        ({"edges_FE": np.array([[0.0, 2.0, 1.0], [0.0, 1.0, 2.0]])}, "do not ascend"),
        ({"edges_FE": np.array([[0.0, 1.0, np.inf], [0.0, 1.0, 2.0]])}, "do not ascend"),
        ({"low_F": np.zeros(3)}, "bins of 2 names"),
    ],
)
def test_bins_that_are_none_are_refused(change, words):
    good = {
        "names": ("a", "b"),
        "edges_FE": np.tile([0.0, 1.0, 2.0], (2, 1)),
        "low_F": np.full(2, -np.inf),
        "high_F": np.full(2, np.inf),
    }
    Bins(**good)
    with pytest.raises(DataError, match=words):
        Bins(**{**good, **change})


def test_a_baseline_that_cannot_be_binned_is_refused():
    x = np.zeros((4, 2))
    with pytest.raises(ConfigError, match="1 bins"):
        fit_bins(x, ["a", "b"], num_bins=1)
    with pytest.raises(DataError, match="for 3 names"):
        fit_bins(x, ["a", "b", "c"])
    with pytest.raises(DataError, match="'z'"):
        fit_bins(x, ["a", "b"], categorical=["z"])
    x[:, 1] = np.nan
    with pytest.raises(DataError, match=r"no value \[feature 'b'\] - leave the feature out"):
        fit_bins(x, ["a", "b"])
