"""The sketch counts distinct values within its stated error, whatever the precision or the order."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.monitoring.cardinality import NUM_REGISTERS, add, empty_sketch, estimate, merge


@pytest.mark.parametrize("registers", [64, 256, 1024])
@pytest.mark.parametrize("distinct", [5_000, 100_000])
def test_the_standard_error_is_as_the_paper_says(registers, distinct):
    """40 sketches: the root mean square error's own relative deviation is 1/sqrt(80), three of them allowed."""
    rng = np.random.default_rng(distinct)
    sketch = empty_sketch(40, num_registers=registers)
    for _ in range(4):
        sketch = add(sketch, rng.random((distinct // 4, 40)))
    errors = estimate(sketch) / distinct - 1.0
    assert np.sqrt(np.mean(errors**2)) < 1.04 / np.sqrt(registers) * (1 + 3 / np.sqrt(80))


@pytest.mark.parametrize("distinct", [0, 1, 2, 10, 40])
def test_few_values_are_counted_nearly_exactly(distinct):
    x = np.repeat(np.arange(distinct, dtype=float), 50)[:, None]
    found = estimate(add(empty_sketch(1), x))[0]
    # Linear counting: values share a register with a chance of about distinct / R each.
    assert abs(found - distinct) <= max(1.0, 0.1 * distinct)
    if not distinct:
        assert found == 0.0


def test_integers_do_not_collide_more_than_random_values():
    sketch = add(empty_sketch(1, num_registers=1024), np.arange(50_000.0)[:, None])
    assert abs(estimate(sketch)[0] / 50_000 - 1) < 3 * 1.04 / np.sqrt(1024)


def test_precision_and_signs_of_zero_are_one_value_and_missing_is_none():
    x = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
    x[:5, 0] = np.nan
    once = add(empty_sketch(2), x)
    np.testing.assert_array_equal(add(once, x.astype(np.float64)), once)
    zero = add(empty_sketch(1), np.array([[0.0]]))
    np.testing.assert_array_equal(add(zero, np.array([[-0.0], [np.nan]])), zero)
    assert not add(empty_sketch(1), np.full((4, 1), np.nan)).any()


def test_hashes_are_pinned():
    """Sketches of different versions must merge: this one may never change."""
    sketch = add(empty_sketch(1, num_registers=16), np.arange(40.0)[:, None])
    assert sketch[0].tolist() == [4, 1, 0, 2, 3, 2, 5, 5, 0, 3, 2, 9, 6, 4, 2, 1]


def test_ranks_stay_within_their_bits():
    sketch = add(empty_sketch(1, num_registers=16), np.random.default_rng(1).random((200_000, 1)))
    assert sketch.max() <= 54
    assert sketch.min() >= 1


def test_what_does_not_fit_is_refused():
    for registers in (8, 100, 4096):
        with pytest.raises(ConfigError, match="power of 2"):
            empty_sketch(1, num_registers=registers)
    with pytest.raises(DataError, match="2 sketches"):
        add(empty_sketch(2), np.zeros((3, 1)))
    with pytest.raises(DataError, match="do not merge"):
        merge(empty_sketch(2), empty_sketch(2, num_registers=NUM_REGISTERS // 2))
