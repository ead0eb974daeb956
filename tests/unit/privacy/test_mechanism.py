"""Clip (as the reducer does it, there is no other) and noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from fedretrain.coordinator.charging import CentralDp
from fedretrain.core.errors import PrivacyError
from fedretrain.core.params import Layout
from fedretrain.core.types import FailureKind
from fedretrain.privacy.mechanism import (
    Relation,
    SeededNoise,
    SystemNoise,
    Unit,
    lattice_gaussian,
    noise_stddev,
    sensitivity,
)
from tests.fakes import clipped_rows, reduced

SOURCES = [pytest.param(SeededNoise(7), id="seeded"), pytest.param(SystemNoise(), id="system")]


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(1, 40)),
        elements=st.floats(-(2.0**127), 2.0**127, width=32),
    ),
    st.floats(1e-3, 1e3),
)
@example(np.full((1, 16), 2.0**127, np.float32), 1.0)  # its norm is beyond float32
def test_no_clipped_row_exceeds_the_clip_norm_and_directions_stay(delta, clip_norm):
    clipped = clipped_rows(delta, clip_norm)
    assert np.all(np.linalg.norm(clipped, axis=1) <= clip_norm)
    for row, out in zip(delta.astype(np.float64), clipped, strict=True):
        norm = np.linalg.norm(row)
        expected = row * min(1.0, clip_norm / norm if norm else 1.0)
        np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6 * clip_norm)


def test_a_row_within_the_clip_norm_is_left_bit_for_bit():
    delta = np.array([[0.3, -0.4], [3.0, 4.0]], np.float32)
    assert np.array_equal(clipped_rows(delta, 1.0)[0], delta[0])
    result = reduced(delta, 1.0)
    assert [reduced(row[None], 1.0).partial.num_unclipped for row in delta] == [1, 0]
    assert result.partial.num_unclipped == 1
    np.testing.assert_allclose(result.oracle.norm, [0.5, 5.0], rtol=1e-7)


def test_the_input_is_not_changed():
    delta = np.full((2, 3), 9.0, np.float32)
    reduced(delta, 1.0)
    assert np.all(delta == 9.0)


def test_a_tree_is_clipped_as_one_vector():
    tree = {"a": np.full((2, 2), 3.0, np.float32), "scale": np.array(4.0, np.float64)}
    layout = Layout.of(tree)
    clipped = layout.unpack(clipped_rows(layout.pack(tree)[None], 1.0)[0])
    norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in clipped.values()))
    assert 1 - 1e-6 < norm <= 1.0
    assert clipped["scale"].shape == ()
    assert clipped["scale"].dtype == np.float32
    np.testing.assert_allclose(clipped["scale"] / clipped["a"][0, 0], 4 / 3, rtol=1e-6)


def test_an_integer_leaf_is_refused_by_name():
    with pytest.raises(TypeError, match="counter"):
        Layout.of({"counter": np.array(3)})


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, np.nan, np.inf])
def test_an_impossible_clip_norm_is_refused(clip_norm):
    """Before any round, and once more where a round's noise is made."""
    with pytest.raises(PrivacyError, match="clip norm"):
        CentralDp(1.0, clip_norm)
    with pytest.raises(PrivacyError, match="clip norm"):
        noise_stddev(clip_norm, 1.0)


def test_a_block_has_two_dimensions():
    result = reduced(np.ones(3, np.float32), 1.0)
    assert [failure.kind for failure in result.failures] == [FailureKind.MALFORMED] * 3
    assert all("expected (3, 3)" in failure.detail for failure in result.failures)
    assert not result.partial.state.value().any()


@pytest.mark.parametrize(
    ("relation", "unit", "factor"),
    [
        (Relation.ZERO_OUT, Unit.DEVICE, 1),
        (Relation.ZERO_OUT, Unit.PERSON, 1),
        (Relation.ADD_REMOVE, Unit.DEVICE, 1),
        (Relation.REPLACE_ONE, Unit.DEVICE, 2),
        (Relation.ZERO_OUT, Unit.RECORDING, 2),
        (Relation.ADD_REMOVE, Unit.RECORDING, 2),
    ],
)
def test_sensitivity(relation, unit, factor):
    assert sensitivity(0.5, relation, unit) == 0.5 * factor


def test_the_noise_on_the_sum_is_the_product():
    assert noise_stddev(0.25, 4.0) == 1.0
    with pytest.raises(PrivacyError, match="noise multiplier"):
        noise_stddev(1.0, 0.0)


@pytest.mark.parametrize("source", SOURCES)
def test_noise_is_gaussian(source):
    """Kolmogorov and Smirnov at a level that a sound source fails once in a million runs; moments likewise."""
    drawn = source.gaussian(100_001, 2.5)
    assert drawn.shape == (100_001,)
    assert stats.kstest(drawn, stats.norm(scale=2.5).cdf).pvalue > 1e-6
    standard = drawn / 2.5
    assert abs(standard.mean()) < 5 / np.sqrt(drawn.size)
    assert abs(standard.var() - 1) < 5 * np.sqrt(2 / drawn.size)
    assert abs(np.mean(standard**4) - 3) < 5 * np.sqrt(96 / drawn.size)
    assert abs(np.corrcoef(standard[:-1], standard[1:])[0, 1]) < 5 / np.sqrt(drawn.size)
    half = drawn.size // 2  # Box and Muller's two halves come from the same words
    assert abs(np.corrcoef(standard[:half], standard[half : 2 * half])[0, 1]) < 5 / np.sqrt(half)


@pytest.mark.parametrize("source", SOURCES)
def test_two_draws_differ(source):
    assert not np.array_equal(source.gaussian(8, 1.0), source.gaussian(8, 1.0))


def test_seeded_noise_repeats_and_system_noise_does_not():
    assert np.array_equal(SeededNoise(3).gaussian(9, 1.0), SeededNoise(3).gaussian(9, 1.0))
    assert not np.array_equal(SystemNoise().gaussian(9, 1.0), SystemNoise().gaussian(9, 1.0))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("stddev", [0.0, -1.0, np.nan, np.inf])
def test_noise_without_a_width_is_an_error(source, stddev):
    with pytest.raises(ValueError, match="no noise"):
        source.gaussian(3, stddev)


@pytest.mark.parametrize("steps", [1.0, 3.0, 40.0])
def test_lattice_noise_follows_the_rounded_gaussian(steps):
    drawn = lattice_gaussian(SeededNoise(5), 200_000, steps * 0.125, 0.125)
    assert drawn.dtype == np.int64
    values = np.arange(-int(2.5 * steps), int(2.5 * steps) + 1)
    edges = stats.norm(scale=steps).cdf(np.concatenate([values - 0.5, values[-1:] + 0.5]))
    expected = np.concatenate([[edges[0]], np.diff(edges), [1 - edges[-1]]]) * drawn.size
    seen = np.array(
        [np.sum(drawn < values[0]), *(np.sum(drawn == v) for v in values), np.sum(drawn > values[-1])]
    )
    assert stats.chisquare(seen, expected).pvalue > 1e-6


def test_rounding_the_noise_is_rounding_the_noisy_sum():
    """The identity on which the claim of exactness rests: S + round(X) = round(S + X) for integer S."""
    total = np.array([-(2**40), -3, 0, 5, 2**40], np.int64)
    noise = SeededNoise(1).gaussian(5, 1000.0)
    assert np.array_equal(total + np.rint(noise).astype(np.int64), np.rint(total + noise).astype(np.int64))


@pytest.mark.parametrize("step", [1.01, 2.0**-50])
def test_a_lattice_that_does_not_fit_the_noise_is_refused(step):
    with pytest.raises(PrivacyError, match="steps wide"):
        lattice_gaussian(SeededNoise(0), 1, 1.0, step)
