"""Adaptive clipping with the centred bit."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedretrain.core.errors import PrivacyError
from fedretrain.core.rng import generator
from fedretrain.privacy.accountant import epsilon
from fedretrain.privacy.adaptive import (
    AdaptiveClip,
    bit_sensitivity,
    delta_noise_multiplier,
    total_noise_multiplier,
)
from fedretrain.privacy.mechanism import Relation, SeededNoise, Unit

EXPECTED = 1000
NORMS = np.exp(generator(1).standard_normal(100_000) * 0.8)  # lognormal: median 1


def _train(clip, replies, rounds=250, seed=0, quantile=None):
    """The clip norms of a campaign in which a share `replies` of each cohort answers."""
    rng, noise = generator(seed), SeededNoise(seed + 1)
    norms = [clip.init()]
    for _ in range(rounds):
        updates = rng.choice(NORMS, int(replies * EXPECTED))
        unclipped = int(np.sum(updates <= norms[-1]))
        norms.append(clip.update(norms[-1], clip.release(unclipped, len(updates), EXPECTED, noise)))
    return np.array(norms)


@pytest.mark.parametrize("replies", [1.0, 0.7, 0.3])
@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("initial", [0.05, 20.0])
def test_the_norm_converges_to_its_quantile_at_any_share_of_replies(replies, quantile, initial):
    clip = AdaptiveClip(initial, bit_noise_stddev=EXPECTED / 20, quantile=quantile)
    settled = _train(clip, replies, rounds=600)[-200:]
    assert np.mean(np.searchsorted(np.sort(NORMS), settled)) / NORMS.size == pytest.approx(quantile, abs=0.03)


def test_the_uncentred_bit_diverges_at_30_percent_replies():
    """The defect that centring cures, by the same update rule: (sum of b)/n - gamma instead of sum(b - gamma)/n."""
    clip = AdaptiveClip(1.0, bit_noise_stddev=EXPECTED / 20)
    rng, norm = generator(0), 1.0
    for _ in range(250):
        updates = rng.choice(NORMS, 300)
        norm = clip.update(norm, np.sum(updates <= norm) / EXPECTED - clip.quantile)
    assert norm > 1000 * np.median(NORMS)
    assert _train(clip, 0.3)[-1] < 3 * np.median(NORMS)


def test_nobody_answering_leaves_the_norm_where_it_was_but_for_noise():
    clip = AdaptiveClip(1.0, bit_noise_stddev=EXPECTED / 20)
    noise = SeededNoise(3)
    released = [clip.release(0, 0, EXPECTED, noise) for _ in range(4000)]
    assert np.mean(released) == pytest.approx(0, abs=5 * 0.05 / math.sqrt(4000))
    assert np.std(released) == pytest.approx(0.05, rel=0.06)


def test_the_direction():
    clip = AdaptiveClip(1.0, bit_noise_stddev=1.0)
    assert clip.update(1.0, 0.5) < 1.0 < clip.update(1.0, -0.5)
    assert clip.update(1.0, 0.5) == pytest.approx(math.exp(-0.1))


def test_bounds_hold():
    clip = AdaptiveClip(1.0, bit_noise_stddev=1.0, learning_rate=50.0, lowest=0.5, highest=2.0)
    assert clip.update(1.0, 1.0) == 0.5
    assert clip.update(1.0, -1.0) == 2.0


@pytest.mark.parametrize("replied", [10, 300, 1000])
def test_what_is_released_is_the_centred_mean(replied):
    class Silence:
        def gaussian(self, size, stddev):
            return np.zeros(size)

    clip = AdaptiveClip(1.0, bit_noise_stddev=1.0, quantile=0.3)
    released = clip.release(replied // 2, replied, EXPECTED, Silence())
    assert released == pytest.approx((replied // 2 - 0.3 * replied) / EXPECTED, abs=1e-6)


def test_more_unclipped_than_replies_is_a_defect():
    with pytest.raises(ValueError, match="unclipped"):
        AdaptiveClip(1.0, bit_noise_stddev=1.0).release(3, 2, 10, SeededNoise(0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"initial": 0.0},
        {"quantile": 1.0},
        {"bit_noise_stddev": 0.0},
        {"learning_rate": -1.0},
        {"lowest": 2.0},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(PrivacyError, match="cannot be run"):
        AdaptiveClip(**{"initial": 1.0, "bit_noise_stddev": 1.0, **wrong})


@pytest.mark.parametrize("gamma", [0.2, 0.5, 0.9])
def test_the_bits_sensitivity_by_enumeration(gamma):
    values = (1 - gamma, -gamma)
    removed = max(abs(v) for v in values)
    replaced = max(abs(a - b) for a in values for b in values)
    assert bit_sensitivity(gamma, Relation.ZERO_OUT) == bit_sensitivity(gamma, Relation.ADD_REMOVE) == removed
    assert bit_sensitivity(gamma, Relation.REPLACE_ONE) == pytest.approx(replaced)
    assert bit_sensitivity(gamma, Relation.ZERO_OUT, Unit.RECORDING) == pytest.approx(replaced)


class TestJointCharge:
    """Updates and bit are one Gaussian mechanism."""

    @pytest.mark.parametrize("relation", [Relation.ZERO_OUT, Relation.REPLACE_ONE])
    @pytest.mark.parametrize("gamma", [0.5, 0.7])
    def test_together_they_cost_what_was_asked(self, cohort_event, relation, gamma):
        total, bit = 1.2, 4.0
        z = delta_noise_multiplier(total, bit, gamma, relation)
        assert z > total
        alone = cohort_event([1], total, relation=relation)
        joint = cohort_event([1], z, relation=relation, bit_noise_stddev=bit, bit_quantile=gamma)
        assert joint.mu_squared == pytest.approx(alone.mu_squared)
        assert epsilon([joint] * 7, 1e-5) == pytest.approx(epsilon([alone] * 7, 1e-5))

    @pytest.mark.parametrize("relation", list(Relation))
    @pytest.mark.parametrize("gamma", [0.5, 0.8])
    def test_the_total_of_an_updates_noise_is_what_that_noise_was_made_from(self, relation, gamma):
        z = delta_noise_multiplier(1.2, 4.0, gamma, relation)
        assert total_noise_multiplier(z, 4.0, gamma, relation) == pytest.approx(1.2)

    def test_the_papers_formula_at_the_median(self):
        z, sigma_b = 0.8, 5.0
        expected = (z**-2 - (2 * sigma_b) ** -2) ** -0.5
        assert delta_noise_multiplier(z, sigma_b, 0.5, Relation.ZERO_OUT) == pytest.approx(expected)

    def test_by_monte_carlo_the_joint_loss_has_the_claimed_moments(self, cohort_event):
        """The loss of (update sum, bit sum) between worlds with and without one device is N(mu^2/2, mu^2)."""
        event = cohort_event([1], 1.5, clip_norm=2.0, bit_noise_stddev=0.9, bit_quantile=0.7)
        rng, size = generator(4), 400_000
        update = rng.normal(0, event.noise_stddev, (size, 3))
        bit = rng.normal(0, event.bit_noise_stddev, size)
        shift, bit_shift = np.array([2.0, 0.0, 0.0]), -0.7  # an update of norm C that was clipped
        loss = (np.sum((update + shift) ** 2, axis=1) - np.sum(update**2, axis=1)) / (
            2 * event.noise_stddev**2
        )
        loss += ((bit + bit_shift) ** 2 - bit**2) / (2 * event.bit_noise_stddev**2)
        assert loss.mean() == pytest.approx(event.mu_squared / 2, abs=5 * loss.std() / math.sqrt(size))
        assert loss.var() == pytest.approx(event.mu_squared, rel=0.02)

    def test_a_bit_that_costs_more_than_everything_is_refused(self):
        with pytest.raises(PrivacyError, match="bit"):
            delta_noise_multiplier(1.0, 0.4, 0.5, Relation.ZERO_OUT)
