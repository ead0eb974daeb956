"""What answers: the rules, and the line between a sender's mistake and a model's."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.core.errors import DataError
from fedretrain.edge.serving import RAW, Rules, Served, score
from tests.slot_cases import ROWS, serve


@pytest.fixture
def served(tmp_path):
    from fedretrain.artifacts.package import open_package

    server = serve(tmp_path, 1)
    return Served.of(open_package(server.store, server.versions[0]))


def test_the_rules_answer_what_they_were_told_most_often():
    answers = Rules({2: 3, 0: 1}).answer(2)
    assert answers.label.tolist() == [2, 2]
    assert answers.confidence.tolist() == [0.75, 0.75]
    assert 0 < answers.entropy[0] < 1
    assert Rules({1: 2, 0: 2}).answer(1).label[0] == 0  # of equals the first, always


def test_rules_that_were_told_nothing_abstain():
    answers = Rules().answer(1)
    assert (answers.label[0], answers.confidence[0], answers.entropy[0]) == (-1, 0.0, 1.0)


def test_a_model_answers_as_its_predictor_does(served):
    scored = score(ROWS, served, Rules())
    assert scored.version == served.digest
    assert np.array_equal(scored.answers.label, served.predictor(ROWS).label)


def test_a_senders_mistake_is_no_fault_of_the_model(served):
    with pytest.raises(DataError, match="shape"):
        score(ROWS[:, :3], served, Rules())


@pytest.mark.parametrize("fault", [DataError("no"), ValueError("no"), MemoryError()])
def test_a_model_that_raises_is_replaced_by_the_rules(served, fault):
    def predict(_):
        raise fault

    object.__setattr__(served.predictor, "model", type("Broken", (), {"predict": staticmethod(predict)}))
    scored = score(ROWS, served, Rules({1: 1}))
    assert (scored.failed, scored.version, scored.answers.label[0]) == (True, "", 1)


def test_outputs_that_are_not_finite_are_a_fault(served):
    nan = staticmethod(lambda x: np.full((len(x), 3), np.nan, np.float32))
    object.__setattr__(served.predictor, "model", type("Nan", (), {"predict": nan}))
    assert score(ROWS, served, Rules()).failed


def test_in_safe_mode_the_model_prepares_inputs_and_says_nothing(served):
    scored = score(ROWS, served, Rules({0: 1}), by_rules=True)
    assert (scored.version, scored.failed) == ("", False)
    assert np.array_equal(scored.inputs, served.predictor.pipeline.apply(ROWS))


def test_before_any_model_samples_are_kept_raw():
    scored = score(np.array([[1.0, np.nan]]), None, Rules())
    assert (scored.preprocessing, scored.inputs.tolist()) == (RAW, [[1.0, 0.0]])
    with pytest.raises(DataError, match="samples"):
        score(np.array(["x"]), None, Rules())
