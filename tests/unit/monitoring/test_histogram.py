"""Counting against the slow, obvious way: bit for bit, whatever the precision, ties, infinities and missing values."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.core.errors import DataError
from fedretrain.monitoring import histogram
from fedretrain.monitoring.bins import Bins, fit_bins
from fedretrain.monitoring.histogram import cells_of, count, count_by, out_of_range


def slow_cell(bins: Bins, feature: int, value: float) -> int:
    """One value, one comparison at a time, in Python's own numbers."""
    name, value = bins.names[feature], float(value)
    if value != value:
        return bins.num_cells - 1
    if name in bins.categories:
        codes = bins.categories[name]
        place = codes.index(value) if value in codes else None
        return bins.num_cells - 2 if place is None else min(place, bins.num_cells - 3)
    edges = bins.edges_FE[feature].tolist()
    if value < edges[0]:
        return 0
    if value > edges[-1]:
        return bins.num_cells - 2
    return min(sum(edge <= value for edge in edges), len(edges) - 1)


def slow_cells(bins: Bins, x: np.ndarray) -> np.ndarray:
    return np.array([[slow_cell(bins, f, value) for f, value in enumerate(row)] for row in x])


def slow_count(bins: Bins, x: np.ndarray) -> np.ndarray:
    counts = np.zeros((bins.num_features, bins.num_cells), dtype=np.int64)
    for row in slow_cells(bins, x) if len(x) else ():
        counts[np.arange(bins.num_features), row] += 1
    return counts


def awkward(rows: int, dtype: type, seed: int = 0) -> tuple[Bins, np.ndarray]:
    """A baseline with ties, repeated edges, a constant and codes; live rows on edges, next to them, far out, missing."""
    rng = np.random.default_rng(seed)
    baseline = rng.normal(size=(2000, 6))
    baseline[:, 1] = np.round(baseline[:, 1])  # repeated edges
    baseline[:, 2] = 0.1  # all edges equal, and not a float32
    baseline[:, 3] *= 1e-40  # subnormal in float32
    baseline[:, 4] *= 1e39  # beyond float32
    baseline[:, 5] = rng.zipf(1.5, size=2000).clip(max=40)
    bins = fit_bins(baseline, list("abcdef"), categorical=["f"])
    edges = np.where(np.isnan(bins.edges_FE), np.arange(1, 12), bins.edges_FE)
    pick = rng.integers(0, edges.shape[1], (rows, 6))
    x = np.take_along_axis(edges.T, pick, axis=0) if rows else np.zeros((0, 6))
    x = np.where(rng.random(x.shape) < 0.3, np.nextafter(x, rng.choice([-np.inf, np.inf], x.shape)), x)
    x = np.where(rng.random(x.shape) < 0.3, rng.normal(size=x.shape), x)
    special = rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 0.1, 1.0, 77.0], x.shape)
    x = np.where(rng.random(x.shape) < 0.2, special, x)
    with np.errstate(over="ignore", under="ignore"):
        x = x.astype(dtype)
    if dtype is np.float32:  # float32 neighbours of an edge are the nearest that data can come
        x = np.where(rng.random(x.shape) < 0.2, np.nextafter(x, np.float32(np.inf)), x)
    return bins, x


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [0, 1, 127, 128, 129, 700, 2500])
def test_counts_and_cells_are_those_of_the_slow_way(dtype, rows):
    bins, x = awkward(rows, dtype, seed=rows)
    np.testing.assert_array_equal(count(bins, x), slow_count(bins, x))
    assert count(bins, x).dtype == np.int64
    cells = cells_of(bins, x)
    assert cells.dtype == np.int16
    assert cells.shape == x.shape
    if rows:
        np.testing.assert_array_equal(cells, slow_cells(bins, x))


def test_many_blocks_and_features_against_a_binary_search():
    """Large enough for several whole blocks and a rest; the slow way is the plain numpy one here."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(20_011, 37)).astype(np.float32)
    x[rng.random(x.shape) < 0.01] = np.nan
    bins = fit_bins(x[:500], [f"f{i}" for i in range(37)], num_bins=17)
    expected = np.empty((37, 20), dtype=np.int64)
    for f, edges in enumerate(bins.edges_FE):
        column = x[:, f].astype(np.float64)
        cell = np.searchsorted(edges[:-1], column, side="right") + (column > edges[-1])
        cell[np.isnan(column)] = 19
        expected[f] = np.bincount(cell, minlength=20)
    np.testing.assert_array_equal(count(bins, x), expected)
    np.testing.assert_array_equal(count(bins, np.asfortranarray(x)), expected)
    np.testing.assert_array_equal(count(bins, x[::-1]), expected)
    owner = rng.integers(0, 9, len(x))
    by_owner = count_by(bins, x, owner, 9)
    np.testing.assert_array_equal(by_owner.sum(axis=0), expected)
    np.testing.assert_array_equal(by_owner[4], count(bins, x[owner == 4]))


def test_owners_are_counted_in_chunks_of_any_length(monkeypatch):
    bins, x = awkward(1000, np.float32)
    owner = np.random.default_rng(7).integers(0, 3, len(x))
    whole = count_by(bins, x, owner, 3)
    monkeypatch.setattr(histogram, "_CHUNK", 1)  # twice as many values as counts: 78 rows at once
    np.testing.assert_array_equal(count_by(bins, x, owner, 3), whole)
    np.testing.assert_array_equal(whole[1], slow_count(bins, x[owner == 1]))


def test_the_most_bins_still_fit_a_byte():
    x = np.random.default_rng(6).normal(size=(3000, 2))
    bins = fit_bins(x, ["a", "b"], num_bins=250)
    x[::5, 0] = np.nan
    np.testing.assert_array_equal(count(bins, x), slow_count(bins, x))
    assert cells_of(bins, x).max() == 252


def test_integers_and_booleans_are_counted_as_numbers():
    x = np.arange(40).reshape(20, 2) % 7
    bins = fit_bins(x, ["a", "b"], num_bins=4)
    np.testing.assert_array_equal(count(bins, x), slow_count(bins, x))
    np.testing.assert_array_equal(count(bins, x > 3), slow_count(bins, (x > 3).astype(float)))


def test_an_edge_between_two_float32_values_splits_them():
    edge = 0.1  # float32(0.1) is above it, the next one down below
    above = np.float32(0.1)
    below = np.nextafter(above, np.float32(0))
    bins = Bins(("a",), np.array([[edge, edge, edge]]), np.array([-np.inf]), np.array([np.inf]))
    assert cells_of(bins, np.array([[below], [above]])).ravel().tolist() == [0, 3]
    assert cells_of(bins, np.array([[edge]])).ravel().tolist() == [2]


def test_codes_top_other_unseen_missing_and_padding():
    baseline = np.repeat([1.0, 2.0, 3.0, 4.0], [4, 3, 2, 1])[:, None]
    bins = fit_bins(baseline, ["state"], num_bins=2, categorical=["state"])
    live = np.array([1.0, 1.0, 2.0, 3.0, 4.0, 8.0, np.nan, np.inf])[:, None]
    assert count(bins, live)[0].tolist() == [2, 1, 2, 2, 1]
    padded = fit_bins(baseline[:7], ["state"], num_bins=5, categorical=["state"])
    assert count(padded, live)[0].tolist() == [2, 1, 0, 0, 0, 0, 4, 1]


def test_ranges_are_closed_exact_and_silent_about_missing_values():
    x = np.zeros((3, 2))
    bins = fit_bins(x, ["a", "b"], low_F=[0.1, -np.inf], high_F=[0.3, np.inf])
    above = np.float32(0.1)
    rows = np.array([above, np.nextafter(above, np.float32(0)), np.float32(0.3), np.nan, np.inf, -np.inf])
    rows = np.stack([rows, rows], axis=1).astype(np.float32)
    expected = [bool(float(v) < 0.1 or float(v) > 0.3) for v in rows[:, 0]]
    assert out_of_range(bins, rows)[:, 0].tolist() == expected == [False, True, True, False, True, True]
    assert not out_of_range(bins, rows)[:, 1].any()
    assert out_of_range(bins, np.array([[0.1, 0], [0.3, 0], [0.30000000000000004, 0]]))[:, 0].tolist() == [
        False,
        False,
        True,
    ]


def test_rows_that_do_not_fit_are_refused():
    bins = fit_bins(np.zeros((3, 2)), ["a", "b"])
    for function in (count, cells_of, out_of_range):
        with pytest.raises(DataError, match="2 features"):
            function(bins, np.zeros((3, 3)))
    for owner in (np.array([0, 1, 2]), np.array([0, -1, 1]), np.array([0, 1])):
        with pytest.raises(DataError, match="not all 0 to 1"):
            count_by(bins, np.zeros((3, 2)), owner, 2)
    assert count_by(bins, np.zeros((0, 2)), np.zeros(0, int), 2).sum() == 0
