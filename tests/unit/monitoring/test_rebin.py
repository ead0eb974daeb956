"""Quantile bins from counts on finer bins: as those of the values themselves, to a fine bin's width."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.core.errors import DataError
from fedretrain.monitoring.bins import fit_bins
from fedretrain.monitoring.histogram import count
from fedretrain.monitoring.rebin import even_bins, quantile_bins

LOW, HIGH = np.array([-4.0, 0.0]), np.array([4.0, 10.0])
FINE = even_bins(LOW, HIGH, ("a", "b"), 100)
WIDTH_F = (HIGH - LOW) / 100


@given(st.integers(0, 10_000), st.integers(20, 3000), st.integers(2, 20))
def test_edges_are_the_quantiles_of_the_values_to_a_fine_bins_width(seed, num, num_bins):
    draw = np.random.default_rng(seed)
    x_NF = np.column_stack([draw.normal(size=num).clip(-4, 4), 10 * draw.beta(0.3, 2.0, size=num)])
    found = quantile_bins(FINE, count(FINE, x_NF), num_bins)
    assert (np.diff(found.edges_FE, axis=1) >= 0).all()
    for position in range(2):
        # An edge and the values' quantile have as many values below them, to a fine bin.
        for share, edge in zip(np.linspace(0, 1, num_bins + 1), found.edges_FE[position], strict=True):
            low, high = (
                np.quantile(x_NF[:, position], share, method="lower"),
                np.quantile(x_NF[:, position], share, method="higher"),
            )
            assert low - WIDTH_F[position] - 1e-9 <= edge <= high + WIDTH_F[position] + 1e-9


def test_of_many_values_they_are_as_good_as_bins_of_the_values():
    x_NF = np.column_stack(
        [np.random.default_rng(1).normal(size=50_000).clip(-4, 4), np.linspace(0, 10, 50_000)]
    )
    found, wanted = quantile_bins(FINE, count(FINE, x_NF)), fit_bins(x_NF, ("a", "b"))
    assert (np.abs(found.edges_FE - wanted.edges_FE) <= WIDTH_F[:, None]).all()
    share_FC = count(found, x_NF)[:, 1:-2] / len(x_NF)
    np.testing.assert_allclose(share_FC, 0.1, atol=0.01)


def test_what_lies_beyond_the_fine_bins_leaves_the_outer_edges_where_they_were():
    counts = np.zeros((2, FINE.num_cells), dtype=np.int64)
    counts[:, 0], counts[:, -2], counts[:, 50], counts[:, -1] = (
        30,
        30,
        40,
        999,
    )  # under, over, inside, missing
    found = quantile_bins(FINE, counts)
    assert (found.edges_FE[:, 0] == LOW).all()
    assert (found.edges_FE[:, -1] == HIGH).all()
    assert (found.edges_FE[:, 5] >= FINE.edges_FE[:, 49]).all()
    assert (found.edges_FE[:, 5] <= FINE.edges_FE[:, 50]).all()


def test_what_cannot_be_is_named():
    nothing = np.zeros((2, FINE.num_cells), dtype=np.int64)
    with pytest.raises(DataError, match="no value of 'a'"):
        quantile_bins(FINE, nothing)
    with pytest.raises(DataError, match="other bins"):
        quantile_bins(FINE, nothing[:, 1:])
    with pytest.raises(DataError, match="no range of 'b'"):
        even_bins(LOW, np.array([4.0, np.inf]), ("a", "b"), 10)
    codes = fit_bins(np.array([[1.0], [2.0]]), ("code",), categorical=("code",))
    with pytest.raises(DataError, match="'code' is categorical"):
        quantile_bins(codes, np.zeros((1, codes.num_cells), dtype=np.int64))
