"""Noise multipliers for a target epsilon."""

from __future__ import annotations

import pytest

from fedretrain.core.errors import PrivacyError
from fedretrain.privacy.accountant import AccountantKind, Spending
from fedretrain.privacy.calibrate import Schedule, participations_at_most, solve_noise_multiplier
from fedretrain.privacy.event import Sampling
from fedretrain.privacy.mechanism import Relation, Unit

DELTA = 1e-5
POISSON = Schedule(
    100, 100, Relation.ADD_REMOVE, sampling=Sampling.POISSON, sampling_fraction=0.1, amplified=True
)
ROTATING = Schedule(100, 10)


@pytest.mark.parametrize("kind", AccountantKind)
@pytest.mark.parametrize("target", [0.1, 2.0, 20.0])
@pytest.mark.parametrize(
    "schedule",
    [
        POISSON,
        ROTATING,
        Schedule(20, 20, Relation.REPLACE_ONE),
        Schedule(20, 4, unit=Unit.RECORDING, bit_noise_stddev=500.0),
    ],
    ids=["poisson", "rotating", "replace", "recording"],
)
def test_the_target_is_kept_and_not_by_much(schedule, target, kind):
    z = solve_noise_multiplier(target, DELTA, schedule, kind)
    assert schedule.epsilon(z, DELTA, kind) <= target
    assert schedule.epsilon(z * 0.997, DELTA, kind) > target


@pytest.mark.parametrize(("schedule", "epsilon", "z"), [(POISSON, 7.0467, 1.0), (ROTATING, 17.8567, 1.0)])
def test_known_values_are_inverted(schedule, epsilon, z):
    assert solve_noise_multiplier(epsilon, DELTA, schedule) == pytest.approx(z, rel=2e-3)


def test_pld_asks_for_less_noise_than_rdp():
    pld, rdp = (solve_noise_multiplier(4.0, DELTA, POISSON, kind) for kind in AccountantKind)
    assert pld < rdp < 1.2 * pld


def test_the_textbook_sigma_is_not_used_where_it_does_not_hold():
    """sigma = sqrt(2 ln(1.25 / delta)) / epsilon is proven for epsilon below 1 only; at 10 it is too little."""
    import math

    once = Schedule(1, 1)
    textbook = math.sqrt(2 * math.log(1.25 / DELTA)) / 30.0
    assert once.epsilon(textbook, DELTA) > 30.0
    assert once.epsilon(solve_noise_multiplier(30.0, DELTA, once), DELTA) <= 30.0


def test_what_was_spent_leaves_less(cohort_event):
    spent = Spending.of([ROTATING.event(3.0)] * 3)
    fresh, later = (solve_noise_multiplier(4.0, DELTA, ROTATING, spent=s) for s in (None, spent))
    assert later > fresh
    assert ROTATING.epsilon(later, DELTA, spent=spent) <= 4.0


@pytest.mark.parametrize(
    ("schedule", "target"),
    [(Schedule(10, 10, bit_noise_stddev=0.5), 1.0), (ROTATING, 0.0), (ROTATING, float("nan"))],
)
def test_what_cannot_be_had_is_refused(schedule, target):
    with pytest.raises(PrivacyError, match="epsilon"):
        solve_noise_multiplier(target, DELTA, schedule)


def test_a_spent_budget_is_refused():
    with pytest.raises(PrivacyError, match="cannot be had"):
        solve_noise_multiplier(2.0, DELTA, ROTATING, spent=Spending.of([ROTATING.event(0.5)]))


def test_an_empty_schedule_is_refused():
    with pytest.raises(PrivacyError, match="schedule"):
        Schedule(0, 1)


@pytest.mark.parametrize(("rounds", "apart", "most"), [(100, 10, 10), (101, 10, 11), (5, 0, 5), (3, 50, 1)])
def test_participations(rounds, apart, most):
    assert participations_at_most(rounds, apart) == most


def test_nobody_takes_part_more_often_than_there_are_rounds():
    assert Schedule(3, 50).epsilon(2.0, DELTA) == Schedule(3, 3).epsilon(2.0, DELTA)
    assert POISSON.charges == 100
