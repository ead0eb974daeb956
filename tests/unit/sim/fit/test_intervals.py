"""Intervals of what was fitted."""

from __future__ import annotations

import numpy as np
import pytest

from sim.fit.fidelity import Compared
from sim.fit.fitted import share_interval


@pytest.mark.parametrize(("hits", "num"), [(0, 20), (3, 40), (40, 40)])
def test_the_interval_of_a_share_is_scipys(hits, num):
    from scipy.stats import binomtest

    exact = binomtest(hits, num).proportion_ci(0.95, "exact")
    assert share_interval(hits, num) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize(("observed", "low", "inside"), [(np.inf, 3.0, True), (2.0, 1.0, False)])
def test_most_labels_that_never_come_are_predicted_by_most_that_never_come(observed, low, inside):
    one = Compared("label delay", np.inf, observed, low, observed, "h").widened(2.0)
    assert one.inside is inside
    assert not np.isnan([one.low, one.high]).any()
