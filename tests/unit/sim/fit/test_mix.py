"""Which classes devices see, against truth drawn here, independently of the simulator."""

from __future__ import annotations

import numpy as np
import pytest

from sim.fit.mix import concentration, favourites


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_the_concentration_of_a_dirichlet_multinomial_is_found(alpha):
    draws = np.random.default_rng(8)
    counts = np.array([draws.multinomial(80, draws.dirichlet(np.full(5, alpha))) for _ in range(600)])
    assert concentration(counts.astype(float)) == pytest.approx(alpha, rel=0.1)


def test_the_share_of_favourite_classes_is_found():
    draws = np.random.default_rng(9)
    counts = np.zeros((800, 6))
    for row in counts:
        two = draws.integers(0, 6, 2)
        for _ in range(40):
            row[draws.choice(two) if draws.random() < 0.4 else draws.integers(0, 6)] += 1
    assert favourites(counts) == pytest.approx(0.4, abs=0.04)
