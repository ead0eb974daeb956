"""The int64 fixed-point sum: scale, exactness, refusal instead of wrapping."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.aggregation import fixed_point
from fedretrain.aggregation.fixed_point import FixedPointSum, bits_for
from fedretrain.core.errors import ConfigError


def add(total: FixedPointSum, delta: np.ndarray, weight: np.ndarray | None = None) -> FixedPointSum:
    norm = np.linalg.norm(delta.astype(np.float64), axis=1)
    return total.add(delta, np.ones(len(delta)), norm, weight)


@pytest.mark.parametrize(("clip_norm", "bits"), [(1.0, 40), (2.0, 39), (1.0001, 39), (0.5, 41), (0.75, 40)])
def test_the_scale_follows_the_clip_norm(clip_norm: float, bits: int) -> None:
    assert bits_for(clip_norm) == bits


def test_values_are_truncated_toward_zero() -> None:
    step = FixedPointSum.zero(1, 1.0).step
    delta = np.array([[0.9, -0.9, 1.9, -1.9, 0.0]]) * step
    assert add(FixedPointSum.zero(5, 1.0), delta).total.tolist() == [0, 0, 1, -1, 0]


def test_a_large_block_is_summed_exactly_against_python_integers() -> None:
    rng = np.random.default_rng(0)
    delta = rng.uniform(-1, 1, (300, 40)).astype(np.float32)
    weight = rng.integers(1, 100_000, 300)
    total = add(FixedPointSum.zero(40, None, weighted=True), delta, weight)
    bits = total.bits
    wanted = [
        sum(int(np.trunc(np.float64(v) * int(w) * 2.0**bits)) for v, w in zip(column, weight, strict=True))
        for column in delta.T
    ]
    assert total.total.tolist() == wanted
    assert total.weight == weight.sum()
    assert total.bound >= np.abs(total.total).max()


def test_rows_too_large_for_one_exact_tile_are_summed_apart() -> None:
    """Three rows of almost 2**53 steps: their float64 sum would round, so they go through one by one."""
    delta = np.full((3, 2), 2.0**53 - 1)
    total = FixedPointSum(np.zeros(2, np.int64), bits=0).add(delta, np.ones(3), np.full(3, 2.0**53 - 1))
    assert total.total.tolist() == [3 * (2**53 - 1)] * 2


def test_sums_in_blocks_of_any_size_are_equal() -> None:
    delta = np.random.default_rng(1).normal(size=(100, 5000)).astype(np.float32)
    whole = add(FixedPointSum.zero(5000, None), delta)
    parts = FixedPointSum.zero(5000, None)
    for rows in np.array_split(np.arange(100), 7):
        parts = add(parts, delta[rows])
    assert whole.total.tobytes() == parts.total.tobytes()
    assert (whole.bound, whole.weight) == (parts.bound, parts.weight)


def test_a_sum_that_could_wrap_raises_instead() -> None:
    delta = np.array([[1.0]])
    total = FixedPointSum(np.zeros(1, np.int64), bits=60)
    for _ in range(3):
        total = add(total, delta)
    with pytest.raises(ConfigError, match="outgrows 64 bits"):
        add(add(total, delta), delta)
    half = FixedPointSum(np.zeros(1, np.int64), 60, bound=2**61 + 1)
    with pytest.raises(ConfigError, match="outgrows 64 bits"):
        _ = half + half


def test_four_million_clients_at_the_clip_norm_fit() -> None:
    shard = FixedPointSum(np.array([2**40 * 2**21]), 40, bound=2**61, weight=2**21)
    both = shard + shard
    assert (int(both.total[0]), both.weight) == (2**62, 2**22)
    assert both.value()[0] == 2.0**22


def test_sums_of_unlike_form_do_not_merge() -> None:
    with pytest.raises(ValueError, match="unlike form"):
        _ = FixedPointSum.zero(3, 1.0) + FixedPointSum.zero(3, 2.0)
    with pytest.raises(ValueError, match="unlike form"):
        _ = FixedPointSum.zero(3, 1.0) + FixedPointSum.zero(4, 1.0)


def test_tiles_do_not_change_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    delta = np.random.default_rng(2).normal(size=(37, 533)).astype(np.float32)
    whole = add(FixedPointSum.zero(533, None), delta).total.tobytes()
    monkeypatch.setattr(fixed_point, "_TILE_ELEMENTS", 320)
    monkeypatch.setattr(fixed_point, "_TILE_COLUMNS", 64)
    assert add(FixedPointSum.zero(533, None), delta).total.tobytes() == whole
