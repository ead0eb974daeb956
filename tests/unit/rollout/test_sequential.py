"""Error rates of the sequential tests by Monte-Carlo against their theory."""

import math

import numpy as np
import pytest

from fedretrain.rollout.sequential import (
    ConfidenceSequence,
    Moments,
    SafeTwoProportions,
    Sprt,
    pseudo_outcomes,
)
from fedretrain.rollout.verdict import Verdict

RUNS = 1500


def at_most(rate, limit, runs=RUNS):
    """Whether a rate is compatible with at most `limit`: three standard errors."""
    return rate <= limit + 3 * math.sqrt(limit * (1 - limit) / runs)


def _sprt_runs(mean):
    test = Sprt(null=0.0, alternative=0.5, spread=1.0, alpha=0.05, miss=0.1)
    draws = np.random.default_rng(11)
    ends = [test.update(test.init(), draws.normal(mean, 1.0, 400)) for _ in range(RUNS)]
    return test, ends, [test.verdict(state) for state in ends]


def test_sprt_at_the_null_fails_at_most_alpha():
    _, _, verdicts = _sprt_runs(0.0)
    assert at_most(np.mean([v is Verdict.FAIL for v in verdicts]), 0.05)
    assert Verdict.INCONCLUSIVE not in verdicts


def test_sprt_at_the_alternative_passes_at_most_miss_and_takes_as_long_as_wald_says():
    test, ends, verdicts = _sprt_runs(0.5)
    assert at_most(np.mean([v is Verdict.PASS for v in verdicts]), 0.1)
    # Wald's identity without the overshoot is a lower bound; the overshoot adds at most about 0.6 / drift each way.
    drift = 0.5**2 / 2
    expected = (0.9 * test.upper + 0.1 * test.lower) / drift
    assert expected * 0.9 < np.mean([s.num_devices for s in ends]) < expected * 1.35


def test_sprt_finds_a_limit_from_above_too():
    test = Sprt(null=0.9, alternative=0.8, spread=0.05, alpha=0.05, miss=0.05)
    assert test.verdict(test.update(test.init(), np.full(50, 0.78))) is Verdict.FAIL
    assert test.verdict(test.update(test.init(), np.full(50, 0.92))) is Verdict.PASS
    assert test.verdict(test.update(test.init(), np.full(50, 0.85))) is Verdict.INCONCLUSIVE


def test_blocks_are_the_same_as_one_by_one():
    draws = np.random.default_rng(12)
    x = draws.normal(0.3, 1.0, 60)
    sprt, sequence = Sprt(0.0, 0.5, 1.0, 0.01, 0.01), ConfidenceSequence()
    whole, single, moments = sprt.update(sprt.init(), x), sprt.init(), sequence.init()
    for value in x:
        single = sprt.update(single, np.array([value]))
        moments = sequence.update(moments, np.array([value]))
    assert single.num_devices == whole.num_devices
    assert single.log_ratio == pytest.approx(whole.log_ratio)
    at_once = sequence.update(sequence.init(), x)
    assert moments.mean == pytest.approx(at_once.mean)
    assert moments.squares == pytest.approx(at_once.squares)
    assert Moments().add(x).squares / 60 == pytest.approx(x.var())


def _paths(values_RN, sequence):
    """Lower bounds of many streams at every count from the burn-in on."""
    num = np.arange(1, values_RN.shape[1] + 1)
    mean = values_RN.cumsum(1) / num
    squares = (values_RN**2).cumsum(1) - num * mean**2
    lows = []
    for at in range(sequence.burn_in - 1, values_RN.shape[1], 10):
        rows = [
            sequence.bounds(Moments(at + 1, m, s))[0]
            for m, s in zip(mean[:, at], squares[:, at], strict=True)
        ]
        lows.append(rows)
    return np.array(lows).T


def test_the_confidence_sequence_fails_at_most_alpha_over_all_counts():
    # One stream per rollout, looked at every 10 devices from 50 to 1,500; skewed outcomes, a tenth of the devices exposed.
    sequence, runs = ConfidenceSequence(alpha=0.05, tightest_at=300), 500
    draws = np.random.default_rng(13)
    exposed = draws.random((runs, 1500)) < 0.3
    worse = draws.exponential(1.0, exposed.shape) - 1.0
    stream = pseudo_outcomes(worse.ravel(), exposed.ravel(), 0.3).reshape(exposed.shape)
    lows = _paths(stream, sequence)
    assert at_most((lows > 0.0).any(axis=1).mean(), 0.05, runs)


def test_the_confidence_sequence_finds_harm_and_its_bounds_are_mirrored():
    sequence = ConfidenceSequence(alpha=0.05, tightest_at=300)
    draws = np.random.default_rng(14)
    exposed = draws.random(2000) < 0.5
    x = pseudo_outcomes(draws.normal(0.0, 0.5, 2000) + 0.2 * exposed, exposed, 0.5)
    low, high = sequence.bounds(sequence.update(sequence.init(), x))
    assert 0.0 < low < 0.2 < high
    mirrored = sequence.bounds(sequence.update(sequence.init(), -x))
    assert mirrored == pytest.approx((-high, -low))
    assert sequence.bounds(sequence.update(sequence.init(), x[:49])) == (-math.inf, math.inf)


def test_the_sequence_is_tightest_where_it_was_told():
    widths = {}
    for tightest in (100, 1000):
        sequence = ConfidenceSequence(alpha=0.05, tightest_at=tightest)
        widths[tightest] = [sequence.bounds(Moments(n, 0.0, float(n)))[1] for n in (100, 1000)]
    assert widths[100][0] < widths[1000][0]
    assert widths[1000][1] < widths[100][1]


def _wealth(draws, share_treated, share_control, blocks=150, sizes=(2, 6)):
    test = SafeTwoProportions(alpha=0.05)
    state = test.init()
    for _ in range(blocks):
        state = test.update(
            state, draws.random(sizes[0]) < share_treated, draws.random(sizes[1]) < share_control
        )
    return test, state


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_the_e_process_fails_at_most_alpha_at_any_time(share):
    draws = np.random.default_rng(15)
    runs = 400
    failed = [
        test.verdict(state) is Verdict.FAIL
        for test, state in (_wealth(draws, share, share) for _ in range(runs))
    ]
    assert at_most(np.mean(failed), 0.05, runs)


def test_an_e_value_is_worth_at_most_one_under_the_null():
    # Every outcome of one block, given any past: the exact expectation, for every common chance.
    test = SafeTwoProportions()
    past = test.update(test.init(), np.array([True, True, False]), np.array([False] * 8 + [True]))
    for share in (0.02, 0.3, 0.7, 0.99):
        total = 0.0
        for ones_k in range(3):
            for ones_l in range(5):
                chance = math.comb(2, ones_k) * math.comb(4, ones_l)
                chance *= share ** (ones_k + ones_l) * (1 - share) ** (6 - ones_k - ones_l)
                after = test.update(past, np.arange(2) < ones_k, np.arange(4) < ones_l)
                total += chance * math.exp(after.log_wealth - past.log_wealth)
        assert total <= 1.0 + 1e-12


def test_the_e_process_finds_harm_and_not_a_gain():
    draws = np.random.default_rng(16)
    test, harmed = _wealth(draws, 0.5, 0.1)
    assert test.verdict(harmed) is Verdict.FAIL
    test, gained = _wealth(draws, 0.1, 0.5)
    assert test.verdict(gained) is Verdict.INCONCLUSIVE
    assert gained.log_wealth <= 0.0 or gained.most < -math.log(0.05)


def test_a_block_with_one_arm_says_nothing():
    test = SafeTwoProportions()
    state = test.update(test.init(), np.ones(30, dtype=bool), np.zeros(0, dtype=bool))
    assert state.log_wealth == 0.0
    assert state.treated == (30, 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sprt(0.5, 0.5, 1.0, 0.05, 0.05),
        lambda: Sprt(0.5, 0.6, 0.0, 0.05, 0.05),
        lambda: Sprt(0.5, 0.6, 1.0, 0.6, 0.05),
        lambda: ConfidenceSequence(alpha=0.7),
        lambda: ConfidenceSequence(burn_in=1),
        lambda: SafeTwoProportions(alpha=0.0),
        lambda: SafeTwoProportions(prior=0.0),
    ],
)
def test_impossible_tests(make):
    with pytest.raises(ValueError):
        make()
