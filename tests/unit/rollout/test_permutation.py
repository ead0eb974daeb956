"""Permutation tests against enumeration, scipy and uniform p-values."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from fedretrain.rollout.permutation import sign_flip_p, two_sample_p


def _welch(a, b):
    return stats.ttest_ind(a, b, equal_var=False).statistic


@pytest.mark.parametrize("first", [3, 5])
def test_two_samples_against_every_relabelling(first):
    values = np.random.default_rng(3).gamma(1.0, size=8)
    a, b = values[:first], values[first:]
    every = []
    for chosen in combinations(range(8), first):
        rest = [i for i in range(8) if i not in chosen]
        every.append(_welch(values[list(chosen)], values[rest]))
    exact = np.mean(np.array(every) >= _welch(a, b) - 1e-9)
    p = two_sample_p(a, b, num_permutations=40_000, seed=5)
    assert abs(p - exact) < 4 * math.sqrt(exact * (1 - exact) / 40_000) + 1e-4


def test_sign_flips_against_every_flip():
    d = np.random.default_rng(4).normal(0.4, 1.0, 10)
    every = np.array([(np.array(signs) * d).sum() for signs in product((-1, 1), repeat=10)])
    exact = np.mean(every >= d.sum() - 1e-9)
    p = sign_flip_p(d, num_permutations=40_000, seed=6)
    assert abs(p - exact) < 4 * math.sqrt(exact * (1 - exact) / 40_000) + 1e-4


@pytest.mark.parametrize("small", [4, 30])
def test_p_values_are_uniform_for_skewed_devices(small):
    # 100 devices, most at 1 and a few far below, as shares of successes are.
    draws = np.random.default_rng(7)
    found = []
    for seed in range(400):
        x = 1.0 - draws.exponential(0.05, 100) ** 2
        found.append(two_sample_p(x[:small], x[small:], num_permutations=199, seed=seed))
    found = np.array(found)
    for level in (0.05, 0.2, 0.5):
        assert abs((found <= level).mean() - level) < 4 * math.sqrt(level * (1 - level) / 400)


def test_it_is_one_sided_and_never_zero():
    a, b = np.arange(10.0) + 100.0, np.arange(12.0)
    assert two_sample_p(a, b, num_permutations=999, seed=0) == 1 / 1000
    assert two_sample_p(b, a, num_permutations=999, seed=0) == 1.0
    assert sign_flip_p(a, num_permutations=499, seed=0) <= 3 / 500
    assert sign_flip_p(-a, num_permutations=499, seed=0) == 1.0


def test_the_seed_decides():
    x = np.random.default_rng(8).normal(size=60)
    first, again, other = (two_sample_p(x[:9], x[9:], num_permutations=500, seed=s) for s in (1, 1, 2))
    assert first == again != other


def test_constant_values_say_nothing():
    assert two_sample_p(np.ones(5), np.ones(30), num_permutations=99, seed=0) == 1.0
    assert sign_flip_p(np.zeros(5), num_permutations=99, seed=0) == 1.0
