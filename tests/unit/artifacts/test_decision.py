"""From outputs to decisions: a softmax, calibrated, weighted; outputs that are not finite decide nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.artifacts.decision import NOT_FINITE, Calibration, Decision, class_probabilities, decide
from fedretrain.core.errors import DataError
from fedretrain.core.types import Objective

LOGITS = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)


def test_probabilities_are_a_softmax_and_not_finite_outputs_have_none():
    logits = np.array([[0.0, 0.0], [1e30, -1e30], [np.nan, 1.0], [np.inf, 1.0]], np.float32)
    found = class_probabilities(logits)
    np.testing.assert_array_equal(found[:2], [[0.5, 0.5], [1.0, 0.0]])
    assert np.isnan(found[2:]).all()


def test_label_confidence_and_entropy_by_hand():
    answers = decide(np.log(np.array([[0.2, 0.8], [0.5, 0.5], [np.nan, 1.0]], np.float32)))
    assert answers.label.tolist() == [1, 0, NOT_FINITE]
    np.testing.assert_allclose(answers.confidence, [0.8, 0.5, 0.0], rtol=1e-6)
    expected = -(0.2 * np.log2(0.2) + 0.8 * np.log2(0.8))
    np.testing.assert_allclose(answers.entropy, [expected, 1.0, 1.0], rtol=1e-6)


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_threshold_decides_at_its_probability(threshold, probability):
    logits = np.array([[0.0, np.log(probability / (1 - probability))]], np.float32)
    share = float(class_probabilities(logits)[0, 1])
    answers = decide(logits, Decision.threshold(threshold))
    if abs(share - threshold) > 1e-6:
        assert int(answers.label[0]) == (share > threshold)
        decided = share if share > threshold else 1 - share
        assert answers.confidence[0] == pytest.approx(decided, abs=1e-6)


def test_weights_of_one_change_nothing_and_a_large_one_wins():
    plain = decide(LOGITS)
    np.testing.assert_array_equal(decide(LOGITS, Decision((1.0,) * 4)).label, plain.label)
    assert (decide(LOGITS, Decision((1.0, 1.0, 1e6, 1.0))).label == 2).all()


def test_a_temperature_changes_confidence_and_no_decision():
    cooler = decide(Calibration(0.5).apply(LOGITS))
    plain = decide(LOGITS)
    np.testing.assert_array_equal(cooler.label, plain.label)
    assert (cooler.confidence < plain.confidence).all()
    assert (cooler.entropy > plain.entropy).all()


def test_no_calibration_leaves_the_very_array_and_offsets_add():
    assert Calibration().apply(LOGITS) is LOGITS
    np.testing.assert_allclose(
        Calibration(2.0, (1.0, 0.0, 0.0, -1.0)).apply(LOGITS), LOGITS * 2 + np.array([1, 0, 0, -1]), rtol=1e-6
    )


def test_a_regression_answers_its_value():
    answers = decide(np.array([[1.5], [np.nan]], np.float32), objective=Objective.REGRESSION)
    np.testing.assert_array_equal(answers.label, np.array([1.5, np.nan], np.float32))
    assert np.isnan(answers.confidence).all()
    assert np.isnan(answers.entropy).all()


@pytest.mark.parametrize("value", [0.0, -1.0, np.inf, np.nan])
def test_what_cannot_be_is_refused(value):
    with pytest.raises(DataError, match="scale"):
        Calibration(value)
    with pytest.raises(DataError, match="weight"):
        Decision((1.0, value))
    with pytest.raises(DataError, match="between 0 and 1"):
        Decision.threshold(value)
