"""Alpha spending against published boundaries and against random walks."""

import math
from itertools import pairwise

import numpy as np
import pytest

from fedretrain.rollout.spending import Spending, levels, spent
from fedretrain.rollout.tails import normal_quantile

FIFTHS = (0.2, 0.4, 0.6, 0.8, 1.0)


@pytest.mark.parametrize(
    ("spending", "published"),
    [
        (Spending.OBRIEN_FLEMING, (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
        (Spending.POCOCK, (2.4380, 2.4268, 2.4101, 2.3966, 2.3859)),
    ],
)
def test_published_boundaries(spending, published):
    # Five equal looks at a one-sided 0.025 (Lan and DeMets; the same figures in common group-sequential software).
    found = [normal_quantile(level) for level in levels(spending, FIFTHS, 0.025)]
    assert found == pytest.approx(published, abs=2e-3)


@pytest.mark.parametrize("spending", list(Spending))
def test_spending_begins_at_nothing_ends_at_alpha_and_never_falls(spending):
    path = [spent(spending, f, 0.03) for f in np.linspace(0.0, 1.0, 101)]
    assert path[0] == 0.0
    assert path[-1] == pytest.approx(0.03)
    assert all(b >= a for a, b in pairwise(path))


@pytest.mark.parametrize("spending", list(Spending))
def test_a_random_walk_crosses_with_probability_alpha(spending):
    looks, alpha, runs = (0.1, 0.15, 0.4, 0.7, 1.0), 0.05, 100_000
    draws = np.random.default_rng(1)
    steps = np.sqrt(np.diff((0.0, *looks)))
    z = np.cumsum(draws.standard_normal((runs, len(looks))) * steps, axis=1) / np.sqrt(looks)
    bounds = [normal_quantile(level) for level in levels(spending, looks, alpha)]
    crossed = (z > bounds).any(axis=1).mean()
    assert abs(crossed - alpha) < 4 * math.sqrt(alpha * (1 - alpha) / runs)


@pytest.mark.parametrize("spending", list(Spending))
def test_effects_that_persist_only_make_it_safer(spending):
    # A share of the variance that no time removes: looks are correlated more than a walk's.
    looks, alpha, runs = FIFTHS, 0.05, 50_000
    draws = np.random.default_rng(2)
    steps = np.sqrt(np.diff((0.0, *looks)))
    walk = np.cumsum(draws.standard_normal((runs, 5)) * steps, axis=1) / looks
    z = (walk + draws.standard_normal((runs, 1))) / np.sqrt(1.0 / np.array(looks) + 1.0)
    bounds = [normal_quantile(level) for level in levels(spending, looks, alpha)]
    assert (z > bounds).any(axis=1).mean() < alpha + 3 * math.sqrt(alpha / runs)


@pytest.mark.parametrize("looks", [(), (0.5, 0.5), (0.5, 0.2), (0.0, 1.0), (0.5, 1.1)])
def test_impossible_looks(looks):
    with pytest.raises(ValueError, match="information fractions"):
        levels(Spending.POCOCK, looks, 0.05)


def test_impossible_alpha_and_fraction():
    with pytest.raises(ValueError, match="alpha"):
        levels(Spending.POCOCK, (1.0,), 0.7)
    with pytest.raises(ValueError, match="information fraction"):
        spent(Spending.POCOCK, 1.2, 0.05)
