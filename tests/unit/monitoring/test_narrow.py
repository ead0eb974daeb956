"""Sums that are kept narrowly are those that are kept as int64 throughout."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.monitoring.narrow import NarrowRing
from fedretrain.monitoring.rings import ByKey, sum_pieces

SLOTS, PLANE, DEVICES, COLUMNS = 12, 3, 4, 2
_VALUES = st.sampled_from([0, 1, -1, 100, 127, 128, -128, -129, 2**15, -(2**15) - 1, 2**31, 2**32 - 1, 2**40])
_ROWS = st.lists(
    st.tuples(st.integers(0, SLOTS - 1), st.integers(0, DEVICES - 1), _VALUES, _VALUES),
    min_size=1,
    max_size=8,
)
_STEPS = st.lists(_ROWS | st.integers(0, SLOTS // PLANE - 1), max_size=8)


def _digest(ring):
    return hashlib.sha256(b"".join(ring.content())).hexdigest()


def _new():
    return NarrowRing(SLOTS, PLANE, DEVICES, COLUMNS), np.zeros((SLOTS, DEVICES, COLUMNS), dtype=np.int64)


def _step(ring, plain_SDN, step):
    """Count some rows, or forget a plane, in both."""
    if isinstance(step, int):
        at = slice(step * PLANE, (step + 1) * PLANE)
        ring.clear(at)
        plain_SDN[at] = 0
        return
    slot_K, device_K, *value_NK = (np.array(column, dtype=np.int64) for column in zip(*step, strict=True))
    rows_KN = np.stack(value_NK, axis=1)
    ring.add(ByKey.of(slot_K * DEVICES + device_K), rows_KN)
    np.add.at(plain_SDN, (slot_K, device_K), rows_KN)


@given(_STEPS)
def test_everything_is_read_as_from_a_plain_array(steps):
    ring, plain_SDN = _new()
    for step in steps:
        _step(ring, plain_SDN, step)
    for pieces in ([slice(0, SLOTS)], [slice(7, 12), slice(0, 2)], [slice(4, 5)], []):
        np.testing.assert_array_equal(ring.sum(pieces), sum_pieces(plain_SDN, pieces))
    slot_K, device_K = np.divmod(np.arange(SLOTS * DEVICES), DEVICES)
    np.testing.assert_array_equal(ring.at(slot_K + 5 * SLOTS, device_K), plain_SDN[slot_K, device_K])


@given(_STEPS, st.randoms(use_true_random=False))
def test_the_digest_is_that_of_the_sums_alone(steps, draw):
    """Not of the order in which they came, nor of how wide a plane once was."""
    rows = [row for step in steps if not isinstance(step, int) for row in step]
    ring, plain_SDN = _new()
    for row in rows:
        _step(ring, plain_SDN, [row])
    draw.shuffle(rows)
    other, _ = _new()
    if rows:
        _step(other, plain_SDN, [*rows, (0, 0, 2**40, 0), (0, 0, -(2**40), 0)])
    assert _digest(other) == _digest(ring)
    _step(other, plain_SDN, [(1, 1, 1, 0)])
    assert _digest(other) != _digest(ring)


@pytest.mark.parametrize(("largest", "width"), [(127, 1), (128, 2), (-(2**15), 2), (2**15, 4), (2**31, 8)])
def test_a_plane_is_as_wide_as_its_largest_sum(largest, width):
    ring, plain_SDN = _new()
    assert ring.num_bytes == 0
    _step(ring, plain_SDN, [(0, 0, 1, 1)])
    narrow = PLANE * DEVICES * COLUMNS
    assert ring.num_bytes == narrow
    _step(ring, plain_SDN, [(PLANE, 2, largest, 0)])
    assert ring.num_bytes == narrow + width * narrow  # the other plane stays as it is
    _step(ring, plain_SDN, 1)
    assert ring.num_bytes == narrow
