from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.core.types import Objective
from fedretrain.training import metrics


def one_hot(classes, width=3):
    return np.eye(width, dtype=np.float32)[np.array(classes, dtype=np.int64)]


def plain_macro_f1(said, true):
    scores = []
    for c in sorted({*said, *true}):
        hits = sum(s == t == c for s, t in zip(said, true, strict=True))
        scores.append(2 * hits / (said.count(c) + true.count(c)))
    return sum(scores) / len(scores)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_classification_scores_equal_their_definitions(pairs):
    said, true = [p[0] for p in pairs], [p[1] for p in pairs]
    outputs, y = one_hot(said), np.array(true)
    assert metrics.accuracy(outputs, y) == pytest.approx(np.mean([s == t for s, t in pairs]))
    assert metrics.macro_f1(outputs, y) == pytest.approx(plain_macro_f1(said, true))


def test_a_majority_guess_scores_high_accuracy_and_low_f1():
    y = np.array([0] * 9 + [1])
    assert metrics.accuracy(one_hot([0] * 10), y) == 0.9
    assert metrics.macro_f1(one_hot([0] * 10), y) == pytest.approx((18 / 19) / 2)


def test_regression_scores():
    outputs, y = np.array([[1.0], [2.0], [6.0]], np.float32), np.array([1.0, 4.0, 4.0], np.float32)
    assert metrics.rmse(outputs, y) == pytest.approx(np.sqrt(8 / 3))
    assert metrics.mae(outputs, y) == pytest.approx(4 / 3)
    assert metrics.r2(outputs, y) == pytest.approx(1 - 8 / 6)
    assert np.isnan(metrics.r2(outputs, np.ones(3, np.float32)))


@pytest.mark.parametrize("objective", list(Objective))
def test_a_client_without_samples_scores_nan(objective):
    outputs = [np.zeros((0, 3 if objective is Objective.CLASSIFICATION else 1), np.float32)]
    y = [np.zeros(0, np.int64 if objective is Objective.CLASSIFICATION else np.float32)]
    for name, scores in metrics.client_scores(objective, outputs, y).items():
        assert np.isnan(scores).all(), name


def test_quality_grows_where_an_error_falls():
    y = np.zeros(2, np.float32)
    score = metrics.quality(Objective.REGRESSION)
    assert score(np.full((2, 1), 0.1, np.float32), y) > score(np.full((2, 1), 0.5, np.float32), y)
    assert metrics.higher_is_better("accuracy")
    assert not metrics.higher_is_better("rmse")
