"""The audit: mechanism and accountant agree, and a broken mechanism is caught."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedretrain.core.rng import generator
from fedretrain.privacy.accountant import epsilon
from fedretrain.privacy.audit import guess, one_run_audit, threshold_audit
from fedretrain.privacy.mechanism import SeededNoise, lattice_gaussian, noise_stddev
from tests.fakes import clipped_rows

DELTA, Z, CLIP, STEP = 1e-5, 0.8, 0.5, 2.0**-24


def _scores(num_runs, *, canary, noise_share, seed, participations=1):
    """What `num_runs` runs release along the canary's direction; the canary is far longer than the clip norm."""
    clipped = clipped_rows(np.full((1, 1), 100.0 if canary else 0.0, np.float32), CLIP)[0, 0]
    total = int(np.trunc(clipped / STEP)) * participations
    stddev = noise_stddev(CLIP, Z) * noise_share * math.sqrt(participations)
    return (total + lattice_gaussian(SeededNoise(seed), num_runs, stddev, STEP)) * STEP


@pytest.mark.parametrize("participations", [1, 4])
def test_the_mechanism_never_tells_more_than_claimed(cohort_event, participations):
    claimed = epsilon([cohort_event([1], Z)] * participations, DELTA)
    for seed in range(3):
        inside, outside = (
            _scores(200_000, canary=c, noise_share=1.0, seed=2 * seed + c, participations=participations)
            for c in (True, False)
        )
        bound = threshold_audit(inside, outside, DELTA, confidence=0.999)
        assert 0.3 * claimed < bound <= claimed


def test_a_mechanism_with_a_third_of_its_noise_is_caught(cohort_event):
    claimed = epsilon([cohort_event([1], Z)], DELTA)
    inside, outside = (_scores(200_000, canary=c, noise_share=1 / 3, seed=10 + c) for c in (True, False))
    assert threshold_audit(inside, outside, DELTA, confidence=0.999) > claimed


def test_a_mechanism_that_does_not_clip_is_caught(cohort_event):
    claimed = epsilon([cohort_event([1], Z)], DELTA)
    noise = lattice_gaussian(SeededNoise(1), 40_000, noise_stddev(CLIP, Z), STEP) * STEP
    assert threshold_audit(noise[:20_000] + 100.0, noise[20_000:], DELTA) > claimed


def test_scores_that_say_nothing_give_zero():
    scores = generator(0).standard_normal(4000)
    assert threshold_audit(scores[:2000], scores[2000:], DELTA) < 0.3


def _one_run(noise_share, seed, num_canaries=20_000, num_each=300):
    """One release with a canary in each coordinate, in or out by a fair coin, and the auditor's guesses."""
    coins = generator(seed).random(num_canaries) < 0.5
    clipped = float(clipped_rows(np.full((1, 1), 9.0, np.float32), CLIP)[0, 0])
    total = np.trunc(coins * clipped / STEP).astype(np.int64)
    noise = lattice_gaussian(SeededNoise(seed + 1), num_canaries, noise_stddev(CLIP, Z) * noise_share, STEP)
    said_in, said_out = guess((total + noise) * STEP, num_each)
    correct = int(coins[said_in].sum() + (~coins[said_out]).sum())
    return one_run_audit(num_canaries, 2 * num_each, correct, DELTA)


def test_one_run_never_tells_more_than_claimed_and_something(cohort_event):
    claimed = epsilon([cohort_event([1], Z)], DELTA)
    assert all(0.3 * claimed < _one_run(1.0, seed) <= claimed for seed in range(5))


def test_one_run_catches_a_third_of_the_noise(cohort_event):
    weak = 4.0  # a small claim, so that 600 guesses can refute it
    claimed = epsilon([cohort_event([1], Z * weak)], DELTA)
    assert _one_run(weak, 1) <= claimed
    assert _one_run(weak / 3, 1) > claimed


@pytest.mark.parametrize(("guesses", "true_epsilon"), [(200, 0.5), (1000, 2.0)])
def test_one_run_audit_covers_randomised_response(guesses, true_epsilon):
    """Randomised response attains the bound: the audit may exceed its epsilon in 5 % of the runs, no more."""
    rng = generator(7)
    right = rng.binomial(guesses, math.exp(true_epsilon) / (1 + math.exp(true_epsilon)), 400)
    bounds = np.array([one_run_audit(guesses, guesses, int(v), 0.0) for v in right])
    assert np.mean(bounds > true_epsilon) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert np.mean(bounds) > 0.5 * true_epsilon


def test_no_better_than_chance_is_zero():
    assert one_run_audit(100, 100, 50, 0.0) == 0.0
