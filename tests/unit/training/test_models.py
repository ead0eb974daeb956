from __future__ import annotations

import pytest
import torch
from torch import nn

from fedretrain.core.errors import ConfigError
from fedretrain.training.contract import check_model
from fedretrain.training.models import ModelBundle, cnn1d, from_path, gru, mlp

BUILDERS = {
    "mlp": (lambda seed: mlp((3, 16), 4, seed, hidden=(8, 6)), (3, 16), 4),
    "mlp_linear": (lambda seed: mlp((5,), 1, seed, hidden=()), (5,), 1),
    "cnn1d": (lambda seed: cnn1d((3, 16), 4, seed, channels=(8, 8), groups=4), (3, 16), 4),
    "cnn1d_strided": (lambda seed: cnn1d((3, 16), 4, seed, channels=(8, 16), stride=2), (3, 16), 4),
    "gru": (lambda seed: gru((3, 9), 1, seed, hidden=6, num_layers=2), (3, 9), 1),
    "user": (lambda seed: from_path("tests.training_cases:BatchNormNet", (6,), 4, seed), (6,), 4),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_shipped_models_keep_the_contract(name):
    check_model(*BUILDERS[name])


@pytest.mark.parametrize("name", BUILDERS)
def test_building_leaves_the_global_random_state_alone(name):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    BUILDERS[name][0](5)
    assert torch.equal(torch.rand(3), expected)


def test_the_head_is_named_head():
    for name in ("mlp", "cnn1d", "gru"):
        assert {"head.weight", "head.bias"} <= set(BUILDERS[name][0](0).first)


def test_buffers_are_parameters_if_float_and_persistent_and_never_trained():
    model = from_path("tests.training_cases:BatchNormNet", (6,), 4, 0)
    assert {"norm.running_mean", "norm.running_var"} <= set(model.first)
    assert "norm.num_batches_tracked" not in model.first
    assert "norm.running_mean" not in model.trainable


def test_frozen_parameters_are_not_trainable():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(requires_grad=False)
    assert ModelBundle.of(module).trainable == ("1.weight", "1.bias")
    module[1].requires_grad_(requires_grad=False)
    with pytest.raises(ConfigError, match="no parameter to train"):
        ModelBundle.of(module)


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("no.such.module:Net", "cannot import"),
        ("tests.training_cases:Missing", "cannot import"),
        ("tests.training_cases", "names no model factory"),
        ("tests.training_cases:NUM_CLASSES", "names no model factory"),
        ("builtins:dict", "failed"),
        ("builtins:range", "failed|not an nn.Module"),
        ("builtins:slice", "not an nn.Module"),
    ],
)
def test_a_path_that_leads_nowhere_is_one_line(path, what):
    with pytest.raises(ConfigError, match=what) as caught:
        from_path(path, (6,), 4, 0)
    assert caught.value.where == path


def test_our_own_factories_come_by_path_too():
    model = from_path("fedretrain.training.models:mlp", (5,), 3, 7, hidden=(4,))
    assert torch.equal(model.first["head.weight"], mlp((5,), 3, 7, hidden=(4,)).first["head.weight"])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="cnn1d needs signals"):
        cnn1d((5,), 3, 0)
    with pytest.raises(ConfigError, match="gru needs signals"):
        gru((5,), 3, 0)
    with pytest.raises(ConfigError, match="8 groups do not divide 12"):
        cnn1d((3, 16), 3, 0, channels=(12,))


class _Bad(nn.Module):
    """A model that breaks one clause of the contract."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.linear, self.spare = fault, nn.Linear(6, 4), nn.Linear(1, 1)
        if fault == "fixed":
            for parameter in self.parameters():
                nn.init.ones_(parameter)
        if fault != "spare":
            del self.spare

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.linear(x)
        if self.fault == "mixes":
            return out - out.mean(0) if len(x) else out
        if self.fault == "shape":
            return out[:, :3]
        if self.fault == "nan":
            return out / 0 * 0
        if self.fault == "type":
            return out.double()
        return out.reshape(3, -1, 4) if self.fault == "fails" else out


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("mixes", "depends on the other samples"),
        ("shape", "shape"),
        ("nan", "not finite"),
        ("type", "float64"),
        ("spare", "spare.weight takes no part"),
        ("fixed", "do not depend on the seed"),
        ("fails", "fails|shape"),
    ],
)
def test_the_contract_names_each_fault(fault, what):
    def build(seed: int) -> ModelBundle:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ModelBundle.of(_Bad(fault))

    with pytest.raises(ConfigError, match=what):
        check_model(build, (6,), 4)


def test_the_contract_names_a_model_that_cannot_travel_and_one_without_a_seed():
    def local_class(seed: int) -> ModelBundle:
        class Local(nn.Linear):
            pass

        torch.manual_seed(seed)
        return ModelBundle.of(Local(6, 4))

    with pytest.raises(ConfigError, match="cannot be sent to a worker"):
        check_model(local_class, (6,), 4)
    with pytest.raises(ConfigError, match="not determined by the seed"):
        check_model(lambda _: ModelBundle.of(nn.Linear(6, 4)), (6,), 4)
