"""Tails against scipy."""

import math

import pytest
from scipy import stats

from fedretrain.rollout.tails import normal_above, normal_quantile, student_above, student_quantile


@pytest.mark.parametrize("x", [-3.0, 0.0, 0.1, 2.6, 8.0])
def test_the_normal_tail(x):
    assert normal_above(x) == pytest.approx(stats.norm.sf(x), rel=1e-12)


@pytest.mark.parametrize("dof", [1.0, 1.5, 19.0, 400.3, 1e5, 2e6])
@pytest.mark.parametrize("t", [-3.0, -0.1, 0.0, 0.7, 2.6, 10.0])
def test_students_tail(t, dof):
    assert student_above(t, dof) == pytest.approx(stats.t.sf(t, dof), rel=1e-4 if dof > 1e6 else 1e-8)


@pytest.mark.parametrize("above", [1e-5, 0.003, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("dof", [2.0, 19.3, 5000.0, math.inf])
def test_quantiles(above, dof):
    assert student_quantile(above, dof) == pytest.approx(stats.t.isf(above, dof), rel=1e-6, abs=1e-9)
    assert normal_quantile(above) == pytest.approx(stats.norm.isf(above), rel=1e-8, abs=1e-12)


def by_bisection(tail, above):
    low, high = 0.0, 1.0
    while tail(high) > above:
        low, high = high, 2.0 * high
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if tail(middle) > above else (low, middle)
    return low


@pytest.mark.parametrize("above", [1e-30, 1e-9, 0.0007, 0.025, 0.3, 0.499, 0.5])
@pytest.mark.parametrize("dof", [0.3, 1.0, 2.5, 20.0, 999.0, 1e5, 1e6, math.inf])
def test_quantiles_are_those_of_bisection(above, dof):
    found = student_quantile(above, dof)
    # the tail itself is right to 1e-10 where a million degrees of freedom cancel: one root is as good as its neighbour
    assert found == pytest.approx(by_bisection(lambda t: student_above(t, dof), above), rel=1e-11, abs=1e-12)


@pytest.mark.parametrize("above", [0.0, 1.0, -0.1])
def test_no_quantile_outside_of_probabilities(above):
    with pytest.raises(ValueError, match="not a probability"):
        normal_quantile(above)
