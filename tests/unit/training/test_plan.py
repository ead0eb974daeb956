"""A training plan is plain data, and the same for everybody."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.core.errors import ConfigError
from fedretrain.training.config import LocalTraining, MethodConfig, MethodKind, OptimizerConfig
from fedretrain.training.plan import ModelName, TrainingPlan

PLANS = {
    "mlp": TrainingPlan(ModelName.MLP, (4,), 3, 5, {"hidden": (8,)}, MethodConfig(MethodKind.FEDPER)),
    "cnn1d": TrainingPlan(
        ModelName.CNN1D, (2, 32), 3, training=LocalTraining(optimizer=OptimizerConfig(lr=0.5))
    ),
    "gru": TrainingPlan(ModelName.GRU, (2, 32), 1, executor="batched"),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_comes_back_from_its_text(name: str) -> None:
    plan = PLANS[name]
    again = TrainingPlan.from_text(plan.to_text())
    assert again.to_text() == plan.to_text()
    first, other = plan.make().first_shared(), again.make().first_shared()
    assert set(first) == set(other) == set(plan.make().task.shared.names)
    assert all(np.array_equal(first[leaf], other[leaf]) for leaf in first)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no readable training plan"),
        ("[]", "a group of keys was expected"),
        ('{"model":"os:system","input_shape":[4],"num_outputs":3}', "not one of mlp, cnn1d, gru"),
        ('{"model":"mlp","input_shape":[4],"num_outputs":3,"run":"x"}', "no key 'run'"),
        ('{"model":"mlp"}', "input_shape"),
    ],
)
def test_a_text_that_is_no_plan_is_refused(text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        TrainingPlan.from_text(text)


def test_options_of_another_model_are_refused() -> None:
    plan = TrainingPlan(ModelName.MLP, (4,), 3, options={"kernel": 3})
    with pytest.raises(ConfigError, match="does not take these options"):
        _ = plan.make().model
