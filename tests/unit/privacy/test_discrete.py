"""The exact discrete Gaussian, and the rounded Gaussian held against it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from fedretrain.core.rng import generator
from fedretrain.privacy.discrete import ExactNoise, discrete_gaussian
from fedretrain.privacy.mechanism import SeededNoise, lattice_gaussian


def _randbelow(seed):
    rng = generator(seed)

    def below(bound):
        return int(rng.integers(bound)) if bound < 2**62 else int.from_bytes(rng.bytes(64), "little") % bound

    return below


def _chi_square(drawn, weights, values):
    seen = np.array([np.sum(drawn == v) for v in values[1:-1]])
    seen = np.concatenate([[np.sum(drawn <= values[0])], seen, [np.sum(drawn >= values[-1])]])
    return stats.chisquare(seen, weights * drawn.size).pvalue


@pytest.mark.parametrize("sigma", [Fraction(1, 2), Fraction(2), Fraction(37, 10)])
def test_draws_follow_the_discrete_gaussian(sigma):
    drawn = discrete_gaussian(12_000, sigma, _randbelow(1))
    wide = np.arange(-80, 81)
    weight = np.exp(-(wide**2) / (2 * float(sigma) ** 2))
    weight /= weight.sum()
    edge = max(1, int(2 * sigma))
    values = np.arange(-edge, edge + 1)
    inner = weight[np.isin(wide, values[1:-1])]
    tail = (1 - inner.sum()) / 2
    assert _chi_square(drawn, np.array([tail, *inner, tail]), values) > 1e-6


def test_the_rounded_gaussian_is_as_wide_as_the_exact_one():
    exact = ExactNoise(_randbelow(2)).lattice(4_000, 2.0**20)
    rounded = lattice_gaussian(SeededNoise(3), 4_000, 1.0, 2.0**-20)
    assert stats.ks_2samp(exact, rounded).pvalue > 1e-6
    assert stats.kstest(exact / 2.0**20, stats.norm.cdf).pvalue > 1e-6


def test_it_serves_as_a_noise_source():
    source = ExactNoise(_randbelow(4))
    assert stats.kstest(source.gaussian(2_000, 3.0), stats.norm(scale=3.0).cdf).pvalue > 1e-6
    drawn = lattice_gaussian(source, 2_000, 5.0, 0.5)
    assert drawn.dtype == np.int64
    assert np.std(drawn) == pytest.approx(10.0, rel=0.08)


def test_production_entropy_is_the_default():
    assert not np.array_equal(ExactNoise().lattice(20, 1e6), ExactNoise().lattice(20, 1e6))


def test_sigma_is_positive():
    with pytest.raises(ValueError, match="not positive"):
        discrete_gaussian(1, Fraction(0), _randbelow(0))
