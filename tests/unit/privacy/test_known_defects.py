"""Where implementations of DP in federated learning went wrong: each defect that could occur here, by name.

Those of the round itself (an error reply that drops the round, the model clipped or replaced by noise) are tested
with the coordinator.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from fedretrain.core.errors import PrivacyError
from fedretrain.core.params import Layout
from fedretrain.core.types import FailureKind
from fedretrain.privacy.accountant import Spending, epsilon, gaussian_epsilon
from fedretrain.privacy.adaptive import AdaptiveClip
from fedretrain.privacy.calibrate import Schedule, solve_noise_multiplier
from fedretrain.privacy.claims import check_claims, scope_text
from fedretrain.privacy.event import EVERYBODY, PrivacyEvent, Sampling
from fedretrain.privacy.file_ledger import FileLedger
from fedretrain.privacy.mechanism import (
    Relation,
    SeededNoise,
    SystemNoise,
    lattice_gaussian,
    noise_stddev,
)
from tests.fakes import clipped_rows, reduced

DELTA = 1e-5


def test_noise_for_the_planned_cohort_and_a_mean_over_those_who_answered(poisson_event):
    with pytest.raises(PrivacyError, match="divide by the expected cohort"):
        check_claims(denominator="replied")
    # What it would have cost: 3 of 10 answer, the mean's sensitivity is C / 3, its noise z C / 10.
    assert epsilon([poisson_event(0.3)] * 100, DELTA) > 10 * epsilon([poisson_event(1.0)] * 100, DELTA)


def test_weights_by_data_size_under_noise_for_uniform_ones():
    with pytest.raises(PrivacyError, match="uniform weights"):
        check_claims(weights="examples")


def test_adaptive_clip_with_the_bit_inverted():
    clip = AdaptiveClip(1.0, bit_noise_stddev=1.0)
    quiet = SeededNoise(0)
    all_clipped = clip.release(0, 1000, 1000, quiet)
    none_clipped = clip.release(1000, 1000, 1000, quiet)
    assert clip.update(1.0, all_clipped) > 1.0 > clip.update(1.0, none_clipped)


def test_the_bit_is_one_where_the_update_was_not_clipped():
    delta = np.array([[0.1, 0.0], [9.0, 0.0], [np.nan, 0.0]], np.float32)
    assert [reduced(row[None], 1.0).partial.num_unclipped for row in delta] == [1, 0, 0]
    assert reduced(delta, 1.0).partial.num_unclipped == 1


def test_noise_from_the_clip_norm_of_the_next_round(cohort_event):
    clip = AdaptiveClip(4.0, bit_noise_stddev=1.0)
    this = clip.init()
    following = clip.update(this, 0.5)
    event = cohort_event([1], 2.0, clip_norm=this)
    assert event.noise_stddev == noise_stddev(this, 2.0) == 8.0 > noise_stddev(following, 2.0)


def test_zero_dimensional_parameters_are_clipped():
    tree = {"scale": np.array(50.0, np.float32)}
    layout = Layout.of(tree)
    clipped = layout.unpack(clipped_rows(layout.pack(tree)[None], 1.0)[0])
    assert 0.999 < clipped["scale"] <= 1.0


def test_integer_buffers_are_refused_by_name_and_integer_rows_are_clipped():
    with pytest.raises(TypeError, match="num_batches"):
        Layout.of({"w": np.ones(2, np.float32), "num_batches": np.array(7)})
    np.testing.assert_allclose(clipped_rows(np.array([[3, 4]]), 1.0), [[0.6, 0.8]], rtol=1e-6)


def test_noise_truncated_to_zero_on_integers():
    with pytest.raises(PrivacyError, match="steps wide"):
        lattice_gaussian(SeededNoise(0), 10, stddev=0.1, step=1.0)
    drawn = lattice_gaussian(SeededNoise(0), 10_000, stddev=1.0, step=1.0)
    assert np.var(drawn) == pytest.approx(1 + 1 / 12, rel=0.06)  # a rounded Gaussian is wider, never narrower


def test_a_zero_norm_update_divides_by_nothing():
    with np.errstate(all="raise"):
        assert np.array_equal(clipped_rows(np.zeros((2, 3), np.float32), 1.0), np.zeros((2, 3)))
        result = reduced(np.zeros((2, 3)), 1.0)
    assert np.array_equal(result.partial.state.value(), np.zeros(3))
    assert (result.partial.num_clients, result.partial.num_unclipped, result.failures) == (2, 2, ())


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_one_nan_poisons_nothing(poison):
    delta = np.array([[1.0, poison], [3.0, 4.0]], np.float32)
    result = reduced(delta, 1.0)
    assert [(f.client, f.kind) for f in result.failures] == [(0, FailureKind.NONFINITE)]
    assert result.clients.tolist() == [1]
    assert np.all(np.isfinite(result.partial.state.value()))
    clipped = clipped_rows(delta, 1.0)
    assert np.array_equal(clipped[0], [0.0, 0.0])
    assert np.linalg.norm(clipped[1]) == pytest.approx(1.0)
    assert np.array_equal(result.partial.state.value(), clipped[1]), "the other counts as if it were alone"


@pytest.mark.parametrize("size", [1, 10, 1000, 100_000])
def test_the_noise_scale_does_not_depend_on_how_many_tensors_or_parameters_there_are(size):
    """A peer divided it again for each tensor: 1e-2, 1e-4, 1e-6 ..."""
    stddev = noise_stddev(0.5, 2.0)
    draws = np.concatenate(
        [SeededNoise(seed).gaussian(size, stddev) for seed in range(max(1, 20_000 // size))]
    )
    assert draws.std() == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize("source", [SeededNoise(0), SystemNoise()])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_noise_function_returns_noise(source, size):
    drawn = source.gaussian(size, 1.0)
    assert drawn.shape == (size,)
    assert np.all(drawn != 0)


@pytest.mark.parametrize("clip_norm", [1.0, 2.0, 3.0, 0.5])
def test_the_clip_norm_is_not_taken_for_the_order_of_the_norm(clip_norm):
    row = np.full((1, 400), 1.0, np.float32)
    assert reduced(row, clip_norm).oracle.norm[0] == pytest.approx(20.0)
    assert np.linalg.norm(clipped_rows(row, clip_norm)) == pytest.approx(clip_norm)


def test_sampled_gaussians_are_not_accounted_by_a_mistaken_central_limit(poisson_event):
    """A peer's GDP mu had exp((1/z)^2 - 1) where the formula has exp(1/z^2) - 1: too little below z = 1.48.

    Ours uses no central limit, whose right form understates epsilon too.
    """
    z, q, rounds = 0.8, 0.1, 100
    right = q * math.sqrt(rounds * math.expm1(1 / z**2))
    wrong = q * math.sqrt(rounds * math.exp(1 / z**2 - 1))
    ours = epsilon([poisson_event(z, q)] * rounds, DELTA)
    assert ours > gaussian_epsilon(right**2, DELTA) > gaussian_epsilon(wrong**2, DELTA)


@pytest.mark.parametrize("aggregator", ["median", "trimmed_mean", "krum"])
def test_privacy_is_not_silently_ignored_by_another_aggregator(aggregator):
    with pytest.raises(PrivacyError, match=aggregator):
        check_claims(aggregator=aggregator)


@pytest.mark.parametrize("sampling", [Sampling.FIXED_SIZE, Sampling.MIN_SEPARATION, Sampling.EVERYBODY])
def test_fixed_or_cyclic_cohorts_are_not_accounted_as_poisson(poisson_event, sampling):
    with pytest.raises(PrivacyError, match="amplification claimed"):
        poisson_event(sampling=sampling)
    with pytest.raises(PrivacyError, match=r"amplification claimed|displaces"):
        check_claims(sampling=sampling, relation="add_remove", amplified=True)


def test_cyclic_cohorts_pay_in_full(cohort_event, poisson_event):
    cyclic = [cohort_event(np.arange(100) + 100 * (r % 10)) for r in range(100)]
    assert epsilon(cyclic, DELTA) > 2.5 * epsilon([poisson_event()] * 100, DELTA)


def test_the_textbook_sigma_is_not_used_above_epsilon_one():
    once = Schedule(1, 1)
    textbook = math.sqrt(2 * math.log(1.25 / DELTA)) / 30
    assert (
        once.epsilon(textbook, DELTA) > 30 >= once.epsilon(solve_noise_multiplier(30.0, DELTA, once), DELTA)
    )


def test_metrics_beside_a_private_model_are_named_as_outside_its_epsilon(cohort_event):
    assert "not telemetry" in scope_text(1.0, DELTA, [cohort_event([1])])


def test_an_accountant_survives_a_restart(tmp_path, cohort_event):
    with FileLedger(tmp_path / "l") as ledger:
        ledger.append(cohort_event([1]))
    with FileLedger(tmp_path / "l") as ledger:
        ledger.append(cohort_event([1], round=1))
        assert Spending.of(ledger.events()).most_charged == pytest.approx(2.0)


def test_replace_one_is_converted_before_an_accountant_is_asked(cohort_event):
    """dp-accounting's RDP accountant does not double the sensitivity under replace-one, its PLD accountant does."""
    replaced = [cohort_event([1], relation=Relation.REPLACE_ONE)] * 10
    halved = [cohort_event([1], 0.5)] * 10
    for kind in ("pld", "rdp"):
        assert epsilon(replaced, DELTA, kind) == epsilon(halved, DELTA, kind)


def test_everybody_in_every_round_is_charged_in_every_round(cohort_event):
    events = [cohort_event(EVERYBODY, sampling=Sampling.EVERYBODY, round=r) for r in range(100)]
    assert Spending.of(events).most_participations == 100


def test_an_event_says_enough_to_compute_epsilon_again(cohort_event):
    events = [cohort_event([1, 5], 0.9, clip_norm=0.3, bit_noise_stddev=2.0, round=r) for r in range(3)]
    again = [PrivacyEvent.from_dict(json.loads(json.dumps(e.to_dict()))) for e in events]
    assert epsilon(again, DELTA) == epsilon(events, DELTA)
