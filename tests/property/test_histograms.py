"""Histograms add up: over any split, order and owner; sketches merge the same way; false discoveries are monotone."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedretrain.monitoring import cardinality
from fedretrain.monitoring.bins import Bins, fit_bins
from fedretrain.monitoring.discovery import benjamini_hochberg, benjamini_yekutieli
from fedretrain.monitoring.divergence import js, kl, psi
from fedretrain.monitoring.histogram import cells_of, count, count_by, out_of_range

FINITE = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 0.1, np.nan, np.inf, -np.inf]), st.floats(-3, 3))


@st.composite
def binned(draw: st.DrawFn) -> tuple[Bins, np.ndarray]:
    """Bins on any finite edges, ties included, and rows on and off their edges in either precision."""
    features, num_bins = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    edges = np.sort(draw(arrays(np.float64, (features, num_bins + 1), elements=FINITE)), axis=1)
    width = draw(st.sampled_from([np.float32, np.float64]))
    value = st.one_of(st.floats(), st.sampled_from(edges.ravel().tolist()))
    x = draw(arrays(np.float64, (draw(st.integers(0, 300)), features), elements=value))
    with np.errstate(over="ignore", under="ignore"):
        x = x.astype(width)
    open_F = np.full(features, np.inf)
    return Bins(tuple("abcd"[:features]), edges, -open_F, open_F), x


def by_search(bins: Bins, x: np.ndarray) -> np.ndarray:
    """The cells by a binary search for each feature, in float64."""
    cells = np.empty(x.shape, dtype=np.int64)
    for f, edges in enumerate(bins.edges_FE):
        column = x[:, f].astype(np.float64)
        cells[:, f] = np.searchsorted(edges[:-1], column, side="right") + (column > edges[-1])
        cells[np.isnan(column), f] = bins.num_cells - 1
    return cells


@settings(deadline=None)
@given(binned())
def test_fast_counts_are_the_slow_ones_bit_for_bit(case: tuple[Bins, np.ndarray]) -> None:
    bins, x = case
    cells = by_search(bins, x)
    np.testing.assert_array_equal(cells_of(bins, x), cells)
    expected = np.stack([np.bincount(column, minlength=bins.num_cells) for column in cells.T])
    np.testing.assert_array_equal(count(bins, x), expected)
    assert np.all(count(bins, x).sum(axis=1) == len(x))


@settings(deadline=None)
@given(binned(), st.data())
def test_counts_of_any_owners_in_any_order_add_up(case: tuple[Bins, np.ndarray], data: st.DataObject) -> None:
    bins, x = case
    owners = data.draw(st.integers(1, 5))
    owner = data.draw(arrays(np.int64, len(x), elements=st.integers(0, owners - 1)))
    parts = count_by(bins, x, owner, owners)
    np.testing.assert_array_equal(parts, [count(bins, x[owner == k]) for k in range(owners)])
    order = np.array(data.draw(st.permutations(range(len(x)))), dtype=np.int64)
    np.testing.assert_array_equal(count_by(bins, x[order], owner[order], owners), parts)


@settings(deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(1, 60), st.integers(1, 3)), elements=VALUES))
def test_the_baseline_lies_inside_its_own_bins(x: np.ndarray) -> None:
    x[0] = 0.5  # one value at least
    bins = fit_bins(x, "abc"[: x.shape[1]], low_F=np.full(x.shape[1], -3.0), high_F=np.full(x.shape[1], 3.0))
    finite = np.where(np.isfinite(x), x, np.nan)
    assert not count(bins, finite)[:, [0, -2]].any()
    assert not out_of_range(bins, finite).any()


@settings(deadline=None)
@given(
    arrays(np.int64, (3, 7), elements=st.integers(0, 1000)),
    arrays(np.int64, (3, 7), elements=st.integers(0, 1000)),
)
def test_divergences_are_positive_and_bounded(a: np.ndarray, b: np.ndarray) -> None:
    a[:, 0] += 1
    b[:, 0] += 1
    assert np.all(psi(a, b) >= 0)
    assert np.all(kl(a, b) >= -1e-12)
    assert np.all((js(a, b) >= -1e-12) & (js(a, b) <= np.log(2)))
    np.testing.assert_allclose(psi(a, b), kl(a, b) + kl(b, a), atol=1e-9)
    np.testing.assert_allclose(psi(a, b), psi(b, a), atol=1e-9)
    np.testing.assert_array_equal(psi(a, a), 0.0)


@settings(deadline=None)
@given(
    arrays(np.float64, st.tuples(st.integers(0, 50), st.just(2)), elements=VALUES),
    arrays(np.float64, st.tuples(st.integers(0, 50), st.just(2)), elements=VALUES),
)
def test_sketches_merge_as_sets_do(a: np.ndarray, b: np.ndarray) -> None:
    empty = cardinality.empty_sketch(2, num_registers=16)
    of_a, of_b = cardinality.add(empty, a), cardinality.add(empty, b)
    both = cardinality.merge(of_a, of_b)
    np.testing.assert_array_equal(both, cardinality.add(empty, np.concatenate([a, b])))
    np.testing.assert_array_equal(both, cardinality.merge(of_b, of_a))
    np.testing.assert_array_equal(both, cardinality.merge(both, of_a))
    np.testing.assert_array_equal(both, cardinality.add(of_a, b[::-1]))
    np.testing.assert_array_equal(cardinality.merge(of_a, empty), of_a)
    assert not empty.any()


@settings(deadline=None)
@given(arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1)), st.floats(0.01, 0.5), st.data())
def test_discoveries_grow_with_alpha_and_never_leave_a_smaller_p_behind(
    p: np.ndarray, alpha: float, data: st.DataObject
) -> None:
    chosen = benjamini_hochberg(p, alpha)
    assert np.all(p[chosen].max(initial=0.0) <= p[~chosen].min(initial=1.0))
    assert np.all(chosen <= benjamini_hochberg(p, min(0.99, 1.5 * alpha)))
    assert np.all(benjamini_yekutieli(p, alpha) <= chosen)
    order = np.array(data.draw(st.permutations(range(len(p)))))
    np.testing.assert_array_equal(benjamini_hochberg(p[order], alpha), chosen[order])
    np.testing.assert_array_equal(
        benjamini_hochberg(np.append(p, np.nan), alpha), np.append(chosen, np.False_)
    )
