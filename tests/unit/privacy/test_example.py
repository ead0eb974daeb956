"""Example-level epsilon of devices."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.core.errors import PrivacyError
from fedretrain.privacy.accountant import WHOLE_ORDERS, AccountantKind
from fedretrain.privacy.example import ExampleBudget, ExampleCharge, ExampleDp, example_scope_text

DP = ExampleDp(noise_multiplier=1.1, clip_norm=1.0, expected_batch=10, delta=1e-4)


def test_opacus_agrees():
    from opacus.accountants import RDPAccountant

    examples, steps = np.array([200, 1000, 200]), np.array([100, 400, 0])
    ours = DP.epsilons(examples, steps)
    for count, taken, value in zip(examples[:2], steps[:2], ours[:2], strict=True):
        accountant = RDPAccountant()
        accountant.history = [(DP.noise_multiplier, DP.expected_batch / count, int(taken))]
        assert value == pytest.approx(accountant.get_epsilon(DP.delta), rel=0.02)
    assert ours[2] == 0.0


def test_pld_is_tighter():
    examples, steps = np.array([500]), np.array([200])
    assert 0 < DP.epsilons(examples, steps, AccountantKind.PLD)[0] <= DP.epsilons(examples, steps)[0]


def test_epsilon_grows_with_steps_and_falls_with_examples():
    by_steps = DP.epsilons(np.array([300, 300, 300]), np.array([10, 100, 1000]))
    by_examples = DP.epsilons(np.array([30, 300, 3000]), np.array([100, 100, 100]))
    assert np.all(np.diff(by_steps) > 0)
    assert np.all(np.diff(by_examples) < 0)


def test_a_device_with_fewer_examples_than_a_batch_is_not_amplified():
    assert DP.sampling_rate([3, 10, 40]).tolist() == [1.0, 1.0, 0.25]


def test_delta_must_be_below_one_over_the_examples():
    with pytest.raises(PrivacyError, match="largest device"):
        DP.epsilons(np.array([20_000]), np.array([1]))
    assert DP.epsilons(np.array([20_000]), np.array([0]))[0] == 0.0


def test_impossible_settings_are_refused():
    with pytest.raises(PrivacyError, match="cannot be run"):
        ExampleDp(0.0, 1.0, 10)


def test_the_scope_is_said():
    assert "one training example" in example_scope_text(2.0, 1e-5)


@pytest.mark.parametrize("kind", list(AccountantKind))
def test_what_a_device_did_with_fewer_and_with_more_examples_adds_up(kind):
    examples, steps, device = np.array([40, 200, 200]), np.array([10, 50, 50]), np.array([0, 0, 1])
    both, later = DP.epsilons(examples, steps, kind, device)
    assert later == DP.epsilons(examples[1:2], steps[1:2], kind)[0]
    as_if_always_few = DP.epsilons(np.array([40]), np.array([60]), kind)[0]
    assert later < both < as_if_always_few


def charge(**changes):
    values = {
        "campaign": "c",
        "round": 0,
        "num_examples": 200,
        "num_steps": 30,
        "sample_rate": 0.05,
        "noise_multiplier": 1.1,
        "clip_norm": 1.0,
        "at": 0.0,
    }
    return ExampleCharge(**(values | changes))


def test_charges_of_one_kind_cost_what_a_devices_steps_cost():
    budget = ExampleBudget(delta=1e-5)
    dp = ExampleDp(1.1, 1.0, 10, 1e-5)
    found = budget.spent([charge(), charge(round=1)])
    assert found == pytest.approx(dp.epsilons(np.array([200]), np.array([60]))[0], rel=1e-12)
    assert budget.spent([]) == 0.0


def test_charges_of_several_kinds_cost_at_least_what_opacus_says():
    from opacus.accountants import RDPAccountant

    charges = [charge(), charge(sample_rate=0.2, noise_multiplier=2.0, num_steps=7), charge(num_steps=3)]
    theirs = RDPAccountant()
    for one in charges:
        for _ in range(one.num_steps):
            theirs.step(noise_multiplier=one.noise_multiplier, sample_rate=one.sample_rate)
    wanted = theirs.get_epsilon(1e-5, alphas=[float(a) for a in WHOLE_ORDERS if a <= 63])
    found = ExampleBudget(delta=1e-5).spent(charges)
    assert found == pytest.approx(wanted, rel=0.02)
    assert ExampleBudget(delta=1e-5).spent(reversed(charges)) == found


def test_a_budget_refuses_what_would_exceed_it_and_a_delta_that_is_too_large():
    free = ExampleBudget(0.0, 1e-5)
    first = free.after([], charge())
    assert ExampleBudget(first, 1e-5).after([], charge()) == first
    with pytest.raises(PrivacyError, match="budget of this device is spent"):
        ExampleBudget(first, 1e-5).after([charge()], charge())
    with pytest.raises(PrivacyError, match="not below 1/200"):
        ExampleBudget(0.0, 0.005).after([], charge())


@pytest.mark.parametrize(
    "wrong", [{"num_examples": 0}, {"sample_rate": 0.0}, {"sample_rate": 1.5}, {"noise_multiplier": 0.0}]
)
def test_what_is_no_charge_is_refused(wrong):
    with pytest.raises(PrivacyError, match="no charge"):
        charge(**wrong)


@pytest.mark.parametrize(("epsilon", "delta"), [(-1.0, 1e-5), (float("inf"), 1e-5), (1.0, 0.0), (1.0, 1.0)])
def test_what_is_no_budget_is_refused(epsilon, delta):
    with pytest.raises(PrivacyError, match="epsilon"):
        ExampleBudget(epsilon, delta)
