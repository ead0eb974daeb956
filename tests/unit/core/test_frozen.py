"""Dataclasses with arrays as bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping  # noqa: TC003 - read at run time
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray  # noqa: TC002 - read at run time

from fedretrain.core.errors import DataError
from fedretrain.core.frozen import freeze, thaw
from fedretrain.monitoring.bins import fit_bins


@dataclass(frozen=True)
class Inner:
    values: NDArray[np.float64]
    name: str = "x"


@dataclass(frozen=True)
class Outer:
    by_number: Mapping[int, Inner]
    pair: tuple[float, ...]
    maybe: Inner | None
    flag: bool
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def _outer():
    inner = Inner(np.array([[1.5, math.nan], [-math.inf, -0.0]]), "ä")
    return Outer({3: inner, -1: Inner(np.zeros((0, 2)))}, (math.inf, 0.1), None, True, np.arange(4))


def test_everything_comes_back_bit_for_bit():
    before = _outer()
    after = thaw(Outer, freeze(before))
    assert (after.pair, after.maybe, after.flag) == (before.pair, None, True)
    assert list(after.by_number) == [-1, 3]
    for key, inner in before.by_number.items():
        assert after.by_number[key].values.tobytes() == inner.values.tobytes()
        assert after.by_number[key].values.shape == inner.values.shape
    assert after.counts.dtype == np.int64
    assert freeze(after) == freeze(before)


def test_what_is_read_may_be_written_to():
    read = thaw(Outer, freeze(_outer()))
    read.counts[0] = 5  # an array of its own, not a view of the bytes
    assert read.counts.tolist() == [5, 1, 2, 3]


def test_bins_come_back_with_their_digest():
    bins = fit_bins(np.random.default_rng(0).normal(size=(99, 2)), ("a", "b"))
    assert thaw(type(bins), freeze(bins)).digest == bins.digest


def test_what_cannot_be_kept_is_named():
    with pytest.raises(TypeError, match="object"):
        freeze(Inner(np.array([object()])))
    with pytest.raises(TypeError, match="set"):
        freeze(Inner(np.zeros(1), {1}))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"values": ["object", [1], ""]}',
        b'{"values": ["float64", [1000000000], ""]}',
        b'{"values": ["float64", [-1], ""]}',
        b'{"values": ["float64", [1], "AAAA"]}',
        b'{"values": ["float64", [0], ""], "more": 1}',
        b'{"values": 3}',
    ],
)
def test_other_bytes_are_refused(content):
    with pytest.raises(DataError, match="Inner"):
        thaw(Inner, content)


@given(st.data())
def test_a_damaged_byte_is_read_or_refused(data):
    content = bytearray(freeze(_outer()))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(thaw(Outer, bytes(content)), Outer)
    except DataError:
        return


def test_a_baseline_comes_back():
    from fedretrain.monitoring.baseline import Baseline
    from tests.unit.coordinator.test_watching import Fleet

    fleet = Fleet()
    fleet.report(0, 16)
    fleet.watching.begin(1, 0, 16, 16.0)
    before = fleet.watching.baseline
    after = thaw(Baseline, freeze(before), type(before.bins))
    assert freeze(after) == freeze(before)
    assert after.bins.digest == before.bins.digest
    assert list(after.nulls) == list(before.nulls)
