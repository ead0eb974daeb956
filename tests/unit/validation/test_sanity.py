"""Sanity vectors: a wrong decision, a changed output, NaN and a second run that differs are all found."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fedretrain.core.errors import DataError
from fedretrain.validation.sanity import check_sanity, count_nonfinite, make_vectors

INPUTS = np.random.default_rng(0).normal(size=(12, 3))
WEIGHTS = np.random.default_rng(1).normal(size=(3, 4))


def model(weights=WEIGHTS):
    def predict(x):
        return x @ weights

    return predict


def test_the_model_that_made_the_vectors_passes_them():
    vectors = make_vectors(model(), INPUTS)
    found = check_sanity(model(), vectors)
    assert found.ok
    assert (found.num_vectors, found.largest_error, found.digest) == (12, 0.0, vectors.digest)


def test_rounding_within_the_tolerance_passes_and_beyond_it_does_not():
    vectors = make_vectors(model(), INPUTS, tolerance=1e-3)
    assert check_sanity(model(WEIGHTS + 1e-5), vectors).ok
    off = check_sanity(model(WEIGHTS + 1e-2), vectors)
    assert off.num_off > 0
    assert off.largest_error > 1e-3
    assert not off.ok


def test_other_decisions_are_counted():
    vectors = make_vectors(model(), INPUTS)
    found = check_sanity(model(-WEIGHTS), vectors)
    wanted = np.sum((INPUTS @ WEIGHTS).argmax(axis=1) != (INPUTS @ -WEIGHTS).argmax(axis=1))
    assert found.num_wrong == wanted > 0
    assert not found.ok


def test_nan_weights_give_nonfinite_outputs():
    broken = WEIGHTS.copy()
    broken[1, 2] = np.nan
    found = check_sanity(model(broken), make_vectors(model(), INPUTS))
    assert found.num_nonfinite == 12
    assert not found.ok
    assert count_nonfinite({"a": broken, "b": np.array([np.inf, 1.0]), "c": np.arange(3)}) == 2


def test_a_model_that_answers_otherwise_the_second_time_fails():
    runs = itertools.count()
    vectors = make_vectors(model(), INPUTS)
    found = check_sanity(lambda x: x @ WEIGHTS + 1e-12 * next(runs), vectors)
    assert not found.repeatable
    assert not found.ok
    assert found.num_off == 0


def test_a_model_that_changes_its_inputs_is_run_on_fresh_ones():
    def greedy(x):
        out = x @ WEIGHTS
        x[:] = 0.0
        return out

    assert check_sanity(greedy, make_vectors(model(), INPUTS)).ok


def test_vectors_without_a_clear_decision_or_a_number_are_refused():
    with pytest.raises(DataError, match="closer than twice the tolerance"):
        make_vectors(model(), np.zeros((2, 3)))
    with pytest.raises(DataError, match="no finite number"):
        make_vectors(model(WEIGHTS * np.nan), INPUTS)
    with pytest.raises(DataError, match="outputs of the shape"):
        check_sanity(model(WEIGHTS[:, :3]), make_vectors(model(), INPUTS))


def test_a_regression_has_vectors_too():
    vectors = make_vectors(lambda x: x.sum(axis=1), INPUTS)
    assert check_sanity(lambda x: x.sum(axis=1), vectors).ok
    assert check_sanity(lambda x: x.sum(axis=1) + 1.0, vectors).num_off == 12


def test_the_digest_follows_the_content():
    digests = {
        make_vectors(model(), INPUTS).digest,
        make_vectors(model(), INPUTS, tolerance=1e-5).digest,
        make_vectors(model(WEIGHTS + 0.1), INPUTS).digest,
        make_vectors(model(), INPUTS[:5]).digest,
    }
    assert len(digests) == 4
