from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fedretrain.core.errors import ConfigError
from fedretrain.training.config import LocalTraining, MethodConfig, MethodKind, OptimizerConfig
from fedretrain.training.each import EachExecutor
from fedretrain.training.executor import executor_for
from fedretrain.training.methods.make import make_task
from fedretrain.training.models import ModelBundle
from tests.training_cases import clients, model_case

LOCAL = LocalTraining(batch_size=4, epochs=2, optimizer=OptimizerConfig(lr=0.1))


def executor_of(module, local=LOCAL, kind=MethodKind.FEDAVG):
    model = ModelBundle.of(module)
    task = make_task(MethodConfig(kind=kind), local, model)
    return EachExecutor(task, model, local), task, model


def deltas(executor, shared, work):
    return np.concatenate([block.delta_KP for block in executor.train(shared, work)])


def dropout_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 4))


def test_dropout_is_seeded_by_client_and_step_and_leaves_the_global_state_alone():
    executor, _, model = executor_of(dropout_net())
    work, shared = clients((6,), (9, 9, 9)), model.first_params()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = deltas(executor, shared, work)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    np.testing.assert_array_equal(deltas(executor, shared, work[::-1])[::-1], first)
    again = deltas(executor, shared, [type(one)(one.client, one.data, None, one.seed + 1) for one in work])
    assert not np.array_equal(again, first)


def test_dropout_is_active_in_training_and_not_in_service():
    executor, _, model = executor_of(dropout_net())
    plain = copy.deepcopy(model.module).eval()
    work, shared = clients((6,), (9,)), model.first_params()
    served = executor.predict(shared, work, personalized=True)[0]
    with torch.no_grad():
        np.testing.assert_array_equal(served, plain(torch.as_tensor(work[0].data.x)).numpy())
    without, _, _ = executor_of(nn.Sequential(*[m for m in model.module if not isinstance(m, nn.Dropout)]))
    unmasked = {n.replace("3.", "2."): t for n, t in shared.items()}
    assert not np.allclose(deltas(executor, shared, work), deltas(without, unmasked, work))


def test_the_model_is_never_changed():
    case = model_case("batchnorm")
    before = {n: t.clone() for n, t in case.model.module.state_dict().items()}
    executor, task, _ = executor_of(case.model.module)
    shared = case.model.first_params()
    block = next(executor.train(shared, clients(case.shape, (10,))))
    for name, leaf in case.model.module.state_dict().items():
        assert torch.equal(leaf, before[name]), name
    moved = task.shared.unpack(block.delta_KP[0])
    assert (
        np.abs(moved["norm.running_mean"]).max() > 0
    )  # statistics are shared parameters, changed by training


def test_a_single_sample_that_batchnorm_cannot_train_on_is_one_line():
    case = model_case("batchnorm")
    executor, _, _ = executor_of(case.model.module)
    with pytest.raises(ConfigError, match="one sample cannot train BatchNorm"):
        list(executor.train(case.model.first_params(), clients(case.shape, (5,))))


class _Alias(nn.Module):
    """Two parameters whose gradients are one tensor, one that has none and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.linear = nn.Linear(6, 4, bias=False)
        self.a, self.b = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
        self.unused = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + (self.a + self.b) * self.frozen


def test_gradients_that_share_memory_are_clipped_once():
    clipped = LocalTraining(batch_size=40, epochs=1, grad_clip_norm=0.01, optimizer=OptimizerConfig(lr=1.0))
    executor, task, model = executor_of(_Alias(), clipped)
    delta = task.shared.unpack(deltas(executor, model.first_params(), clients((6,), (20,)))[0])
    np.testing.assert_array_equal(delta["a"], delta["b"])
    assert np.sqrt(sum(np.square(d).sum() for d in delta.values())) == pytest.approx(0.01, rel=1e-5)
    assert not delta["unused"].any()
    assert not delta["frozen"].any()


def test_tied_parameters_train_as_one():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(4)
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.second.weight = self.first.weight
            self.head = nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.second(torch.tanh(self.first(x))))

    executor, task, model = executor_of(
        Tied(), LocalTraining(batch_size=50, optimizer=OptimizerConfig(lr=0.1))
    )
    assert "second.weight" not in task.shared.names
    work = clients((6,), (20,))
    plain = Tied()
    torch.nn.functional.cross_entropy(
        plain(torch.as_tensor(work[0].data.x)), torch.as_tensor(work[0].data.y)
    ).backward()
    delta = task.shared.unpack(deltas(executor, model.first_params(), work)[0])
    np.testing.assert_allclose(delta["first.weight"], -0.1 * plain.first.weight.grad.numpy(), atol=1e-6)


def test_an_unknown_executor_is_refused():
    case = model_case("mlp")
    task = make_task(MethodConfig(), LOCAL, case.model)
    with pytest.raises(ConfigError, match="no executor 'fast'"):
        executor_for("fast", task, case.model, LOCAL)


def test_counters_of_the_model_do_not_carry_over_between_clients():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 4))
    executor, _, model = executor_of(module)  # without a momentum the counter weighs the statistics
    work, shared = clients((6,), (8,)), model.first_params()
    np.testing.assert_array_equal(deltas(executor, shared, work), deltas(executor, shared, work))
