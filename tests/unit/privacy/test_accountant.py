"""Epsilon from events, against dp-accounting, Opacus, numerical integration and published figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from fedretrain.core.errors import PrivacyError
from fedretrain.privacy.accountant import (
    ORDERS,
    WHOLE_ORDERS,
    AccountantKind,
    Spending,
    epsilon,
    gaussian_epsilon,
    poisson_rdp,
    sampled_rdp,
)
from fedretrain.privacy.event import EVERYBODY, Sampling
from fedretrain.privacy.mechanism import Relation, Unit

DELTA = 1e-5


def gaussian_delta(mu: float, eps: float) -> float:
    """arXiv:1805.06530, theorem 8: the definition that `gaussian_epsilon` inverts."""
    a, b = stats.norm.logcdf(mu / 2 - eps / mu), stats.norm.logcdf(-mu / 2 - eps / mu)
    return math.exp(a) - math.exp(eps + b)


class TestPublishedFigures:
    """N = 1000, 100 to a cohort, 100 rounds, z = 1, delta 1e-5."""

    def test_every_device_in_every_round(self, cohort_event):
        rounds = [cohort_event(EVERYBODY, sampling=Sampling.EVERYBODY)] * 100
        assert epsilon(rounds, DELTA, "rdp") == pytest.approx(96.1, abs=0.05)

    def test_each_device_ten_times(self, cohort_event):
        rounds = [cohort_event(np.arange(100) + 100 * (r % 10), round=r) for r in range(100)]
        assert epsilon(rounds, DELTA) == pytest.approx(17.9, abs=0.05)
        assert epsilon(rounds, DELTA, "rdp") == pytest.approx(19.05, abs=0.01)

    def test_replace_one_doubles_the_sensitivity_with_both_accountants(self, cohort_event):
        """dp-accounting left alone says 19.05 (RDP) and 46.21 (PLD) for this one event."""
        rounds = [cohort_event([1], relation=Relation.REPLACE_ONE)] * 10
        assert epsilon(rounds, DELTA) == pytest.approx(46.21, abs=0.01)
        assert epsilon(rounds, DELTA, "rdp") == pytest.approx(gaussian_rdp_epsilon(40.0), rel=1e-9)
        assert epsilon(rounds, DELTA, "rdp") > 46.21

    @pytest.mark.parametrize(("kind", "figure"), [("rdp", 7.90), ("pld", 7.05)])
    def test_poisson(self, poisson_event, kind, figure):
        assert epsilon([poisson_event()] * 100, DELTA, kind) == pytest.approx(figure, abs=0.005)

    @pytest.mark.parametrize(("replies", "figure"), [(0.7, 14.6), (0.5, 31.4), (0.3, 106)])
    def test_what_a_mean_over_those_who_answered_would_cost(self, poisson_event, replies, figure):
        assert epsilon([poisson_event(replies)] * 100, DELTA) == pytest.approx(figure, rel=0.005)

    def test_fixed_size_replace_one_by_dp_accounting(self):
        """83.9 is amplification *without replacement*, which we do not claim: here is where it comes from."""
        from dp_accounting import GaussianDpEvent, NeighboringRelation, SelfComposedDpEvent
        from dp_accounting.dp_event import SampledWithoutReplacementDpEvent
        from dp_accounting.rdp import RdpAccountant

        accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
        event = SampledWithoutReplacementDpEvent(1000, 100, GaussianDpEvent(0.5))
        accountant.compose(SelfComposedDpEvent(event, 100))
        assert accountant.get_epsilon(DELTA) == pytest.approx(83.9, abs=0.05)


def gaussian_rdp_epsilon(mu_squared: float) -> float:
    orders = np.array(ORDERS)
    values = orders * mu_squared / 2 + np.log1p(-1 / orders) - np.log(DELTA * orders) / (orders - 1)
    return float(values.min())


@pytest.mark.parametrize("mu", [0.05, 0.5, 1.0, 3.0, 10.0, 40.0])
def test_the_closed_form_inverts_its_definition(mu):
    assert gaussian_delta(mu, gaussian_epsilon(mu**2, DELTA)) == pytest.approx(DELTA, rel=1e-6)


@pytest.mark.parametrize("relation", [Relation.ZERO_OUT, Relation.REPLACE_ONE])
def test_unamplified_epsilon_is_that_of_dp_accountings_pld(cohort_event, relation):
    from dp_accounting import GaussianDpEvent, NeighboringRelation
    from dp_accounting.pld import PLDAccountant

    theirs = {
        Relation.ZERO_OUT: NeighboringRelation.REPLACE_SPECIAL,
        Relation.REPLACE_ONE: NeighboringRelation.REPLACE_ONE,
    }
    accountant = PLDAccountant(theirs[relation], value_discretization_interval=1e-3)
    for z in (1.0, 1.5, 4.0):
        accountant.compose(GaussianDpEvent(z))
    events = [cohort_event([3], z, relation=relation) for z in (1.0, 1.5, 4.0)]
    assert epsilon(events, DELTA) == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-4)


@pytest.mark.parametrize(("q", "z"), [(0.1, 1.0), (0.01, 0.7), (0.3, 2.0)])
@pytest.mark.parametrize(("order", "slack"), [(2.5, 0.07), (4.0, 1e-6), (10.5, 0.001), (17.0, 1e-6)])
def test_sampled_renyi_divergence_by_numerical_integration(q, z, order, slack):
    """arXiv:1908.10530: the larger of the two directions is E over N(0, z^2) of (1 - q + q L)^order.

    dp-accounting is exact at whole orders and an upper bound, a little loose, at fractional ones.
    """

    def integrand(x):
        base = stats.norm.logpdf(x, scale=z)
        ratio = np.logaddexp(np.log1p(-q), np.log(q) + (2 * x - 1) / (2 * z * z))
        return np.exp(base + order * ratio)

    value, _ = integrate.quad(integrand, -40 * z, 40 * z + order, limit=500, epsabs=0, epsrel=1e-10)
    exact = math.log(value) / (order - 1)
    assert exact * (1 - 1e-7) <= poisson_rdp(q, z)[ORDERS.index(order)] <= exact * (1 + slack)


@pytest.mark.parametrize(("q", "z"), [(0.1, 1.0), (0.001, 0.5), (0.5, 30.0), (1.0, 3.0), (0.9, 0.3)])
def test_the_fast_divergences_are_those_of_dp_accounting(q, z):
    np.testing.assert_allclose(sampled_rdp(q, z), poisson_rdp(q, z, WHOLE_ORDERS), rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize(("q", "z", "steps"), [(0.1, 1.0, 100), (0.01, 0.8, 1000), (1.0, 5.0, 30)])
def test_opacus_agrees(poisson_event, q, z, steps):
    from opacus.accountants.analysis import rdp as opacus_rdp

    orders = [*range(2, 64), 128, 256]
    theirs = opacus_rdp.compute_rdp(q=q, noise_multiplier=z, steps=steps, orders=orders)
    ours = Spending().charge(poisson_event(z, q), steps).rdp([float(o) for o in orders])
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    theirs_epsilon, _ = opacus_rdp.get_privacy_spent(
        orders=list(ORDERS), delta=DELTA, rdp=list(Spending().charge(poisson_event(z, q), steps).rdp())
    )
    assert epsilon([poisson_event(z, q)] * steps, DELTA, "rdp") == pytest.approx(theirs_epsilon, rel=1e-9)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"relation": Relation.REPLACE_ONE},
        {"unit": Unit.RECORDING},
        {"unit": Unit.PERSON},
        {"bit_noise_stddev": 3.0},
        {"relation": Relation.REPLACE_ONE, "bit_noise_stddev": 3.0, "bit_quantile": 0.8},
        {"sampling": Sampling.FIXED_SIZE},
        {"sampling": Sampling.POISSON, "sampling_fraction": 0.1},
        {"poisson": True},
        {"poisson": True, "bit_noise_stddev": 2.0},
        {"poisson": True, "unit": Unit.PERSON, "max_devices_per_unit": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("z", [0.4, 1.0, 6.0])
@pytest.mark.parametrize("rounds", [1, 30])
def test_rdp_is_never_below_pld(cohort_event, poisson_event, change, z, rounds):
    """The contract that accounting rests on, for every relation, unit and sampling that events may have."""
    change = dict(change)
    event = poisson_event(z, **change) if change.pop("poisson", False) else cohort_event([1, 2], z, **change)
    for delta in (1e-7, 1e-3):
        spent = Spending().charge(event, rounds)
        pld, rdp = (spent.epsilon(delta, kind) for kind in AccountantKind)
        assert 0 < pld <= rdp


@pytest.mark.parametrize(("z", "q", "rounds"), [(0.5, 0.05, 20), (1.0, 0.1, 100), (3.0, 0.3, 300)])
def test_the_coarser_pld_is_an_upper_bound_and_tight(poisson_event, z, q, rounds):
    """Our discretisation against dp-accounting's finest sensible one: never below, never 1e-4 above."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    fine = from_gaussian_mechanism(z, sampling_prob=q, value_discretization_interval=1e-4).self_compose(
        rounds
    )
    exact = fine.get_epsilon_for_delta(DELTA)
    assert exact * (1 - 1e-7) <= epsilon([poisson_event(z, q)] * rounds, DELTA) <= exact * (1 + 1e-4)


def test_pld_bounds_delta_by_monte_carlo(poisson_event):
    """E[(1 - e^(epsilon - L))+] over the sampled loss of 3 rounds: the definition, without any accountant."""
    z, q, rounds = 0.8, 0.2, 3
    rng = np.random.default_rng(0)
    delta = 1e-2
    claimed = epsilon([poisson_event(z, q)] * rounds, delta)
    inside = rng.random((400_000, rounds)) < q
    x = rng.normal(0, z, inside.shape) + inside
    loss = np.log1p(q * np.expm1((2 * x - 1) / (2 * z * z))).sum(axis=1)
    share = np.maximum(0, -np.expm1(claimed - loss))
    error = share.std() / np.sqrt(share.size)
    assert share.mean() == pytest.approx(delta, abs=5 * error)


class TestUnits:
    """Who is charged for what."""

    def test_the_most_charged_unit_counts(self, cohort_event):
        events = [cohort_event([1, 2]), cohort_event([2, 3]), cohort_event([2, 9], 2.0)]
        spent = Spending.of(events)
        assert spent.most_charged == pytest.approx(1 + 1 + 0.25)
        assert spent.most_participations == 3
        mu, rounds = spent.of_units(np.array([9, 1, 2, 5, 10**12]))
        assert mu.tolist() == [0.25, 1.0, 2.25, 0.0, 0.0]
        assert rounds.tolist() == [1, 1, 3, 0, 0]

    def test_order_of_events_does_not_matter(self, cohort_event):
        events = [cohort_event([5, 2]), cohort_event([1, 9], 2.0), cohort_event([9, 3])]
        a, b = Spending.of(events), Spending.of(events[::-1])
        assert np.array_equal(a.ids, b.ids)
        np.testing.assert_allclose(a.mu_squared, b.mu_squared)

    def test_two_devices_of_a_person_move_the_sum_twice_as_far(self, cohort_event):
        two = cohort_event([7, 7, 8], unit=Unit.PERSON, max_devices_per_unit=2)
        assert Spending.of([two]).most_charged == pytest.approx(4.0)
        shared = cohort_event([7, 8], unit=Unit.PERSON)
        assert Spending.of([shared]).most_charged == pytest.approx(1.0)

    def test_a_person_whose_devices_toss_coins_of_their_own(self, poisson_event):
        """Monte-Carlo of the sampled loss with Binomial(2, q) devices in the sum: the claim covers it."""
        z, q, delta, k = 1.0, 0.2, 1e-2, 2
        claimed = epsilon([poisson_event(z, q, unit=Unit.PERSON, max_devices_per_unit=k)], delta)
        rng = np.random.default_rng(0)
        present = rng.binomial(k, q, 400_000)
        x = rng.normal(0, z, present.size) + present
        weights = np.array([math.comb(k, s) * q**s * (1 - q) ** (k - s) for s in range(k + 1)])
        shifts = np.arange(k + 1)
        ratio = np.exp((2 * x[:, None] * shifts - shifts**2) / (2 * z * z)) @ weights
        share = np.maximum(0, 1 - np.exp(claimed) / ratio)
        assert share.mean() + 5 * share.std() / np.sqrt(share.size) < delta
        wrong = epsilon([poisson_event(z, q)], delta)  # as if a person were one device
        assert np.maximum(0, 1 - np.exp(wrong) / ratio).mean() > delta

    def test_what_a_person_with_several_devices_is_charged(self, poisson_event, cohort_event):
        """k devices: at most k times the shift, with the probability that any of the k coins shows heads."""
        three = poisson_event(3.0, 0.1, unit=Unit.PERSON, max_devices_per_unit=3)
        assert epsilon([three], DELTA) == pytest.approx(epsilon([poisson_event(1.0, 1 - 0.9**3)], DELTA))
        everybody = cohort_event(
            EVERYBODY, sampling=Sampling.EVERYBODY, unit=Unit.PERSON, max_devices_per_unit=3
        )
        assert Spending.of([everybody]).most_charged == pytest.approx(9.0)

    def test_with_a_coin_of_one_there_is_nothing_to_amplify(self, poisson_event):
        full = epsilon([poisson_event(2.0, 1.0, unit=Unit.PERSON, max_devices_per_unit=2)], DELTA)
        assert full == pytest.approx(gaussian_epsilon(1.0, DELTA), rel=1e-3)

    def test_a_recording_costs_twice_the_shift_of_a_device(self, cohort_event):
        assert epsilon([cohort_event([1], 2.0, unit=Unit.RECORDING)], DELTA) == pytest.approx(
            epsilon([cohort_event([1], 1.0)], DELTA)
        )

    def test_a_repeated_attempt_is_another_participation(self, cohort_event):
        once = [cohort_event([1])]
        assert epsilon([*once, cohort_event([1], attempt=1)], DELTA) > epsilon(once, DELTA)

    def test_unamplified_poisson_charges_the_cohort_only(self, cohort_event):
        events = [
            cohort_event([r], sampling=Sampling.POISSON, sampling_fraction=0.1, round=r) for r in range(50)
        ]
        assert epsilon(events, DELTA) == pytest.approx(gaussian_epsilon(1.0, DELTA))

    def test_amplified_rounds_and_full_ones_add_up(self, poisson_event):
        full = poisson_event(2.0, sampling=Sampling.EVERYBODY, amplified=False)
        mixed = epsilon([poisson_event()] * 20 + [full], DELTA)
        assert mixed > epsilon([poisson_event()] * 20, DELTA)
        assert mixed <= epsilon([poisson_event()] * 20 + [full], DELTA, "rdp")

    def test_mixed_claims_are_refused(self, cohort_event):
        for other in ({"relation": Relation.REPLACE_ONE}, {"unit": Unit.PERSON}):
            with pytest.raises(PrivacyError, match="another population"):
                epsilon([cohort_event([1]), cohort_event([1], **other)], DELTA)


def test_nothing_spent_is_epsilon_zero():
    assert epsilon([], DELTA) == 0.0


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0])
def test_delta_outside_its_range(cohort_event, delta):
    with pytest.raises(ValueError, match="delta"):
        epsilon([cohort_event([1])], delta)


def test_a_round_costs_milliseconds(poisson_event, cohort_event):
    """Epsilon after every round: 200 rounds, RDP well under 10 ms each and PLD without a rebuild each time."""
    import time

    spent, started = Spending(), time.process_time()
    for r in range(200):
        spent = spent.charge(poisson_event(round=r))
        spent.epsilon(DELTA, AccountantKind.RDP)
    assert (time.process_time() - started) / 200 < 0.01
    spent, started = Spending(), time.process_time()
    for r in range(20):
        spent = spent.charge(cohort_event(np.arange(10_000) + 500 * r))
        spent.epsilon(DELTA)
    assert (time.process_time() - started) / 20 < 0.1


def test_no_library_is_imported_before_it_is_needed():
    import subprocess
    import sys

    program = (
        "import sys, fedretrain.privacy.accountant, fedretrain.privacy.budget, fedretrain.privacy.calibrate,"
        "fedretrain.privacy.audit, fedretrain.privacy.example, fedretrain.privacy.file_ledger;"
        "sys.exit(any(m in sys.modules for m in ('dp_accounting', 'scipy', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
