"""The streaming reducer: what it refuses, that nobody else suffers, and that its memory does not grow."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from fedretrain.aggregation.aggregator import Aggregator, ExampleWeightedMean, FixedDenominatorMean
from fedretrain.aggregation.robust import CoordinateMedian
from fedretrain.coordinator.ports import RoundSpec, ShardResult
from fedretrain.coordinator.reduce import MAX_NORM, Reducer
from fedretrain.core.ids import ClientId
from fedretrain.core.types import ClientFailure, FailureKind
from tests.fakes import block_of

GOOD = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
IDS = np.array([3, 1, 4, 15])


def spec_of(size: int = 6, clip_norm: float | None = 1.0, aggregator: Aggregator | None = None) -> RoundSpec:
    base = {"w": np.zeros(size, np.float32)}
    return RoundSpec(0, base, 0, 1, 0.0, aggregator or FixedDenominatorMean(1), clip_norm)


def total_of(result: ShardResult) -> np.ndarray:
    return result.partial.state.value()


def clipped(delta: np.ndarray, clip_norm: float) -> np.ndarray:
    wide = delta.astype(np.float64)
    norm = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide * np.minimum(1.0, clip_norm / np.maximum(norm, 1e-30))


def reduce(
    delta: np.ndarray, clip_norm: float | None = 1.0, examples: np.ndarray | None = None
) -> ShardResult:
    reducer = Reducer(spec_of(delta.shape[1], clip_norm))
    reducer.add(block_of(np.arange(len(delta)), delta, examples))
    return reducer.result()


def test_the_sum_is_that_of_clipped_updates() -> None:
    reducer = Reducer(spec_of(clip_norm=1.5), IDS)
    reducer.add(block_of(IDS[:3], GOOD[:3]))
    reducer.add(block_of(IDS[3:], GOOD[3:]))
    result = reducer.result(bytes_down=5, bytes_up=6, busy_s=0.5)
    np.testing.assert_allclose(total_of(result), clipped(GOOD, 1.5).sum(0), rtol=1e-6)
    assert result.clients.tolist() == [1, 3, 4, 15]
    assert result.partial.num_clients == 4
    assert result.partial.num_unclipped == int((np.linalg.norm(GOOD, axis=1) <= 1.5).sum())
    assert (result.bytes_down, result.bytes_up, result.busy_s, result.failures) == (5, 6, 0.5, ())
    assert result.oracle.clients.tolist() == [1, 3, 4, 15]
    np.testing.assert_allclose(result.oracle.norm[0], np.linalg.norm(GOOD[1]), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_one_nan_update_does_not_poison(bad: float, clip_norm: float | None) -> None:
    delta = GOOD.copy()
    delta[2, 5] = bad
    result = reduce(delta, clip_norm)
    alone = reduce(GOOD[[0, 1, 3]], clip_norm)
    assert total_of(result).tobytes() == total_of(alone).tobytes()
    assert [(f.client, f.kind) for f in result.failures] == [(2, FailureKind.NONFINITE)]
    assert result.clients.tolist() == [0, 1, 3]


def test_zero_norm_update() -> None:
    result = reduce(np.zeros((2, 6), np.float32))
    assert total_of(result).tolist() == [0.0] * 6
    assert (result.partial.num_clients, result.partial.num_unclipped) == (2, 2)


def test_integer_buffers() -> None:
    """Integers are read as numbers and clipped as such: no exception, and no rounding to zero."""
    delta = np.array([[3, 4, 0, 0, 0, 0]], dtype=np.int64)
    np.testing.assert_allclose(total_of(reduce(delta, 1.0)), [0.6, 0.8, 0, 0, 0, 0], rtol=1e-6)


def test_0d_parameters_are_clipped() -> None:
    base = {"scale": np.zeros((), np.float32), "w": np.zeros(2, np.float32)}
    spec = RoundSpec(0, base, 0, 1, 0.0, FixedDenominatorMean(1), 1.0)
    reducer = Reducer(spec)
    reducer.add(block_of(np.array([0]), np.array([[100.0, 0.0, 0.0]], np.float32)))
    np.testing.assert_allclose(total_of(reducer.result()), [1.0, 0.0, 0.0], rtol=1e-6)


def test_the_clip_is_one_euclidean_norm_over_all_parameters() -> None:
    """Not one for each tensor, and the clip norm is not taken for the order of the norm."""
    delta = np.ones((1, 100), np.float32)
    np.testing.assert_allclose(total_of(reduce(delta, 1.0)), np.full(100, 0.1), rtol=1e-6)
    np.testing.assert_allclose(total_of(reduce(delta, 2.0)), np.full(100, 0.2), rtol=1e-6)


def test_model_is_not_clipped_instead_of_update() -> None:
    """A huge base and a small update: the update passes as it is."""
    base = {"w": np.full(6, 1e6, np.float32)}
    reducer = Reducer(RoundSpec(0, base, 0, 1, 0.0, FixedDenominatorMean(1), 100.0))
    reducer.add(block_of(IDS, GOOD))
    np.testing.assert_allclose(total_of(reducer.result()), GOOD.sum(0), atol=1e-6)


def test_duplicates_are_refused_within_and_across_blocks() -> None:
    reducer = Reducer(spec_of())
    reducer.add(block_of(np.array([3, 3]), GOOD[:2]))
    reducer.add(block_of(np.array([3, 4]), GOOD[2:]))
    result = reducer.result()
    assert (result.num_duplicates, result.clients.tolist()) == (2, [3, 4])
    np.testing.assert_allclose(total_of(result), clipped(GOOD[[0, 3]], 1.0).sum(0), rtol=1e-5)


def test_strangers_are_refused() -> None:
    reducer = Reducer(spec_of(), IDS[:3])
    reducer.add(block_of(IDS, GOOD))
    result = reducer.result()
    assert result.failures == (ClientFailure(ClientId(15), FailureKind.MALFORMED, "not in the cohort"),)
    assert 15 not in result.clients


@pytest.mark.parametrize(
    "delta",
    [np.zeros((4, 5), np.float32), np.zeros(6, np.float32), np.full((4, 6), "x"), np.zeros((4, 6), complex)],
)
def test_malformed_blocks_are_failures(delta: np.ndarray) -> None:
    reducer = Reducer(spec_of())
    reducer.add(block_of(IDS, delta))
    reducer.add(block_of(np.array([8]), GOOD[:1]))
    result = reducer.result()
    assert {(f.client, f.kind) for f in result.failures} == {(c, FailureKind.MALFORMED) for c in IDS.tolist()}
    assert result.clients.tolist() == [8]


def test_a_client_without_examples_has_no_update() -> None:
    result = reduce(GOOD, examples=np.array([5, 0, -3, 2]))
    assert [f.kind for f in result.failures] == [FailureKind.NO_DATA] * 2
    assert result.clients.tolist() == [0, 3]


def test_without_a_clip_norm_a_diverged_update_is_refused_and_nobody_suffers() -> None:
    delta = GOOD.copy()
    delta[0] = 2 * MAX_NORM
    result = reduce(delta, None)
    assert [(f.client, f.kind) for f in result.failures] == [(0, FailureKind.NONFINITE)]
    np.testing.assert_allclose(total_of(result), GOOD[1:].sum(0), atol=1e-6)
    assert reduce(delta, 1.0).clients.tolist() == [0, 1, 2, 3]


def test_the_weighted_mean_goes_through_the_same_reducer() -> None:
    examples = np.array([1, 10, 100, 1000])
    spec = spec_of(clip_norm=None, aggregator=ExampleWeightedMean())
    reducer = Reducer(spec)
    reducer.add(block_of(IDS, GOOD, examples))
    got = spec.aggregator.release(reducer.result().partial.state)
    np.testing.assert_allclose(got, np.average(GOOD, axis=0, weights=examples), atol=1e-7)


def test_a_robust_aggregator_gets_the_same_sanitised_updates() -> None:
    delta = GOOD.copy()
    delta[1, 0] = np.nan
    spec = spec_of(clip_norm=None, aggregator=CoordinateMedian())
    reducer = Reducer(spec)
    reducer.add(block_of(IDS, delta))
    got = spec.aggregator.release(reducer.result().partial.state)
    np.testing.assert_allclose(got, np.median(GOOD[[0, 2, 3]].astype(float), axis=0))


def test_without_an_oracle_nothing_of_single_clients_is_kept() -> None:
    reducer = Reducer(spec_of(), IDS, keep_oracle=False)
    reducer.add(block_of(IDS, GOOD))
    assert len(reducer.result().oracle.clients) == 0


def test_the_block_is_left_as_it_was() -> None:
    block = block_of(IDS, GOOD.copy())
    Reducer(spec_of(clip_norm=0.01)).add(block)
    np.testing.assert_array_equal(block.delta_KP, GOOD)


def test_memory_does_not_grow_with_the_cohort() -> None:
    size, block = 20_000, np.random.default_rng(0).normal(size=(10, 20_000)).astype(np.float32)

    def peak(num_clients: int) -> int:
        tracemalloc.start()
        reducer = Reducer(spec_of(size), keep_oracle=False)
        for first in range(0, num_clients, 10):
            reducer.add(block_of(np.arange(first, first + 10), block))
        reducer.result()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(10)  # first use: import caches
    assert (
        peak(1000) < peak(10) + 200 * 1000
    )  # 200 bytes per client for refusing duplicates; an update is 80,000
