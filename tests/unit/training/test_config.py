from __future__ import annotations

import dataclasses

import pytest
from omegaconf import OmegaConf

from fedretrain.core.errors import ConfigError, PrivacyError
from fedretrain.training.config import (
    ExampleDp,
    LocalTraining,
    LossKind,
    MethodConfig,
    MethodKind,
    OptimizerConfig,
    OptimizerKind,
)


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: OptimizerConfig(lr=0.0), "optimizer.lr"),
        (lambda: OptimizerConfig(lr=float("nan")), "optimizer.lr"),
        (lambda: OptimizerConfig(lr=float("inf")), "optimizer.lr"),
        (lambda: OptimizerConfig(momentum=1.0), "optimizer.momentum"),
        (lambda: OptimizerConfig(nesterov=True), "optimizer.nesterov"),
        (lambda: OptimizerConfig(kind=OptimizerKind.ADAM, momentum=0.9), "optimizer.momentum"),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), "optimizer.betas"),
        (lambda: OptimizerConfig(weight_decay=-1.0), "optimizer.weight_decay"),
        (lambda: ExampleDp(clip_norm=0.0), "example_dp.clip_norm"),
        (lambda: ExampleDp(noise_multiplier=-1.0), "example_dp.noise_multiplier"),
        (lambda: LocalTraining(batch_size=0), "training.batch_size"),
        (lambda: LocalTraining(epochs=0), "training.epochs"),
        (lambda: LocalTraining(prox_mu=-0.1), "training.prox_mu"),
        (lambda: LocalTraining(grad_clip_norm=-0.1), "training.grad_clip_norm"),
        (lambda: LocalTraining(class_weights=(1.0, 0.0)), "training.class_weights"),
        (lambda: LocalTraining(class_weights=()), "training.class_weights"),
        (lambda: LocalTraining(class_weights=(1.0,), loss=LossKind.MSE), "training.class_weights"),
        (lambda: MethodConfig(apfl_alpha=1.5), "personalization.apfl_alpha"),
        (lambda: MethodConfig(personal_epochs=0), "personalization.personal_epochs"),
        (lambda: MethodConfig(ditto_lambda=-1.0), "personalization.ditto_lambda"),
        (
            lambda: MethodConfig(kind=MethodKind.FEDPER, personal_patterns=()),
            "personalization.personal_patterns",
        ),
    ],
)
def test_an_impossible_value_is_one_line_that_names_the_field(make, where):
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.where == where
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "combination",
    [
        {"class_weights": (1.0, 2.0), "epochs": 0, "max_steps": 5},
        {"epochs": 1},
        {"epochs": 1, "max_steps": 5},
    ],
)
def test_example_dp_refuses_what_is_taken_un_noised_from_the_data(combination):
    with pytest.raises(PrivacyError):
        LocalTraining(example_dp=ExampleDp(), **combination)


def test_lists_and_names_from_a_file_become_tuples_and_enums():
    optimizer = OptimizerConfig(kind="adam", betas=[0.5, 0.6])
    assert optimizer.kind is OptimizerKind.ADAM
    assert optimizer.betas == (0.5, 0.6)
    assert MethodConfig(personal_patterns=["head.*"]).personal_patterns == ("head.*",)
    assert hash(LocalTraining(class_weights=[1, 2])) == hash(LocalTraining(class_weights=(1.0, 2.0)))


@pytest.mark.parametrize("schema", [OptimizerConfig, ExampleDp, LocalTraining, MethodConfig])
def test_omegaconf_holds_every_type(schema):
    composed = OmegaConf.structured(schema)
    assert set(composed) == {field.name for field in dataclasses.fields(schema)}
    assert OmegaConf.to_object(composed) == schema()
