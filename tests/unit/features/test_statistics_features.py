"""Window statistics against plain numpy on one window at a time."""

import itertools

import numpy as np
import pytest

from fedretrain.core import rng
from fedretrain.core.errors import ConfigError
from fedretrain.features import statistics

X = rng.generator(3).normal(size=(5, 40, 3)).astype(np.float32)
ORACLES = {
    "mean": lambda w: [c.mean() for c in w.T],
    "std": lambda w: [c.std() for c in w.T],
    "min": lambda w: [c.min() for c in w.T],
    "max": lambda w: [c.max() for c in w.T],
    "median": lambda w: [np.median(c) for c in w.T],
    "energy": lambda w: [(c**2).mean() for c in w.T],
    "rms": lambda w: [np.sqrt((c**2).mean()) for c in w.T],
    "jerk": lambda w: [np.mean([abs(b - a) for a, b in itertools.pairwise(c)]) for c in w.T],
    "quantiles": lambda w: [np.quantile(c, q) for q in statistics.QUANTILES for c in w.T],
    "zero_crossings": lambda w: [
        np.mean([(a > c.mean()) != (b > c.mean()) for a, b in itertools.pairwise(c)]) for c in w.T
    ],
    "correlations": lambda w: [
        np.corrcoef(w[:, i], w[:, j])[0, 1] for i in range(3) for j in range(i + 1, 3)
    ],
    "skewness": lambda w: [((c - c.mean()) ** 3).mean() / c.std() ** 3 for c in w.T],
}


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_each_statistic_equals_its_plain_form(name):
    expected = np.array([ORACLES[name](window) for window in X.astype(np.float64)])
    np.testing.assert_allclose(statistics.compute(X, [name]), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", sorted(statistics.FUNCTIONS))
def test_names_count_values_and_no_rows_keep_the_width(name):
    width = statistics.compute(X, [name]).shape[1]
    assert len(statistics.names_of(name, ["a", "b", "c"])) == width
    assert statistics.compute(X[:0], [name]).shape == (0, width)


@pytest.mark.parametrize("name", sorted(statistics.FUNCTIONS))
def test_constant_windows_give_finite_values(name):
    assert np.isfinite(statistics.compute(np.full((2, 40, 3), 7.0, np.float32), [name])).all()


def test_bands_hold_all_power_but_the_mean():
    bands = statistics.compute(X, ["bands"]).reshape(5, statistics.NUM_BANDS, 3)
    even = X.shape[1] % 2 == 0
    variance = X.var(axis=1)
    # The Nyquist bin of an even length is counted twice by the one-sided scaling: bounded by that bin.
    assert even
    assert np.all(np.square(bands).sum(axis=1) >= variance * 0.999)
    assert np.all(np.square(bands).sum(axis=1) <= variance * 1.3)


def test_a_pure_tone_lies_in_one_band():
    t = np.arange(200) / 50.0
    tone = np.sin(2 * np.pi * 2.0 * t)[None, :, None].astype(np.float32)  # bin 8
    bands = statistics.compute(tone, ["bands"])[0]
    edges = statistics.band_edges(200)
    home = int(np.searchsorted(edges, 8, side="right")) - 1
    assert bands[home] == pytest.approx(np.sqrt(0.5), rel=1e-3)
    assert np.delete(bands, home).max() < 1e-3


@pytest.mark.parametrize("length", [2, 3, 5, 8, 16, 200, 501])
def test_band_edges_rise_and_end_at_the_nyquist_bin(length):
    edges = statistics.band_edges(length)
    assert edges[0] == 1
    assert edges[-1] == length // 2 + 1
    assert np.all(np.diff(edges) >= 0)


def test_autocorrelation_of_a_period_is_one():
    t = np.arange(400)
    tone = np.sin(2 * np.pi * t / 20)[None, :, None].astype(
        np.float32
    )  # lags 20, 40, 80, 160 are whole periods
    assert statistics.compute(tone, ["autocorrelation"]) == pytest.approx(1.0, abs=0.02)


def test_unknown_statistics_are_refused_by_name():
    with pytest.raises(ConfigError, match="'kurtosis'"):
        statistics.check(["mean", "kurtosis"])
