"""Means, median and trimmed mean against plain formulas; what is refused with differential privacy."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.aggregation.aggregator import (
    Aggregator,
    ExampleWeightedMean,
    FixedDenominatorMean,
    Updates,
    require_private,
)
from fedretrain.aggregation.robust import CoordinateMedian, TrimmedMean
from fedretrain.core.errors import ConfigError, PrivacyError

DELTA = np.random.default_rng(0).normal(size=(7, 11)).astype(np.float32)
EXAMPLES = np.array([1, 5, 10, 50, 100, 500, 1000])


def updates(delta: np.ndarray = DELTA, examples: np.ndarray = EXAMPLES, factor: float = 1.0) -> Updates:
    norm = np.linalg.norm(delta.astype(np.float64), axis=1)
    return Updates(delta, np.full(len(delta), factor), norm, examples)


def aggregate(aggregator: Aggregator, block: Updates) -> np.ndarray:
    state = aggregator.init(block.delta_KP.shape[1], None)
    return aggregator.release(aggregator.accumulate(state, block))


def test_the_fixed_mean_divides_by_its_constant() -> None:
    np.testing.assert_allclose(aggregate(FixedDenominatorMean(10), updates()), DELTA.sum(0) / 10, atol=1e-7)


def test_the_weighted_mean_weighs_by_examples() -> None:
    wanted = np.average(DELTA, axis=0, weights=EXAMPLES)
    np.testing.assert_allclose(aggregate(ExampleWeightedMean(), updates()), wanted, atol=1e-7)


def test_a_claimed_number_of_examples_is_capped() -> None:
    wanted = np.average(DELTA, axis=0, weights=np.minimum(EXAMPLES, 100))
    np.testing.assert_allclose(aggregate(ExampleWeightedMean(100), updates()), wanted, atol=1e-7)


def test_factors_shrink_rows() -> None:
    for aggregator in (FixedDenominatorMean(7), ExampleWeightedMean(), CoordinateMedian(), TrimmedMean()):
        half = aggregate(aggregator, updates(factor=0.5))
        np.testing.assert_allclose(half, aggregate(aggregator, updates()) / 2, atol=1e-7)


@pytest.mark.parametrize("count", [1, 2, 6, 7])
def test_the_median_is_numpys(count: int) -> None:
    got = aggregate(CoordinateMedian(), updates(DELTA[:count], EXAMPLES[:count]))
    np.testing.assert_allclose(got, np.median(DELTA[:count].astype(np.float64), axis=0))


def test_the_trimmed_mean_is_scipys() -> None:
    from scipy.stats import trim_mean

    for fraction in (0.0, 0.1, 0.3, 0.49):
        got = aggregate(TrimmedMean(trim_fraction=fraction), updates())
        np.testing.assert_allclose(got, trim_mean(DELTA.astype(np.float64), fraction, axis=0), atol=1e-12)


@pytest.mark.parametrize("aggregator", [CoordinateMedian(), TrimmedMean(trim_fraction=0.3)])
def test_a_minority_of_liars_cannot_move_a_robust_aggregate_far(aggregator: Aggregator) -> None:
    lies = DELTA.copy()
    lies[:2] = 1e6
    assert np.abs(aggregate(aggregator, updates(lies))).max() <= np.abs(DELTA).max()


def test_the_bounded_list_says_so() -> None:
    aggregator = CoordinateMedian(max_clients=6)
    assert aggregator.max_cohort == 6
    with pytest.raises(ConfigError, match="keeps every update and is bounded to 6"):
        aggregate(aggregator, updates())


def test_means_take_any_cohort() -> None:
    assert FixedDenominatorMean(3).max_cohort is None
    assert ExampleWeightedMean().max_cohort is None


def test_with_dp_only_the_fixed_mean_is_taken() -> None:
    mean = FixedDenominatorMean(3)
    assert require_private(mean) is mean
    with pytest.raises(PrivacyError, match=r"ExampleWeightedMean .* weight is not bounded by the clip norm"):
        require_private(ExampleWeightedMean())
    for robust in (CoordinateMedian(), TrimmedMean()):
        with pytest.raises(PrivacyError, match="how far one client can move its result"):
            require_private(robust)


def test_a_subclass_that_could_weigh_as_it_likes_is_no_fixed_mean() -> None:
    class Heavier(FixedDenominatorMean):
        pass

    with pytest.raises(PrivacyError, match="Heavier"):
        require_private(Heavier(3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedDenominatorMean(0),
        lambda: FixedDenominatorMean(float("nan")),
        lambda: ExampleWeightedMean(0),
        lambda: TrimmedMean(trim_fraction=0.5),
        lambda: TrimmedMean(trim_fraction=-0.1),
    ],
)
def test_impossible_settings_are_refused(make: object) -> None:
    with pytest.raises(ConfigError, match="give"):
        make()  # type: ignore[operator]


def test_noise_is_added_in_lattice_steps() -> None:
    aggregator = FixedDenominatorMean(4)
    state = aggregator.accumulate(aggregator.init(11, 100.0), updates())
    noise = np.arange(11) * 1000
    got = aggregator.release_noised(state, noise)
    np.testing.assert_array_equal(got, (state.total + noise) * state.step / 4)
    with pytest.raises(ValueError, match="noise of shape"):
        aggregator.release_noised(state, noise[:1])
    with pytest.raises(ValueError, match="float64"):
        aggregator.release_noised(state, noise.astype(np.float64))  # type: ignore[arg-type]
