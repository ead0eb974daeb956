"""What the batched executor refuses, and what it does at its edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedretrain.core.errors import UnsupportedModelError
from fedretrain.core.types import ClientData
from fedretrain.training import batchable, batched, models
from fedretrain.training.batched import BatchedExecutor
from fedretrain.training.config import LocalTraining, MethodConfig, MethodKind
from fedretrain.training.each import EachExecutor
from fedretrain.training.executor import ClientWork
from fedretrain.training.methods.make import make_task


class Branches(nn.Module):
    """Code that depends on the data: vmap cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        y = self.linear(x)
        return y if float(y.detach().sum()) > 0 else -y


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.cell(x.transpose(1, 2))[0][:, -1])


def executor(module, *, block_size=0, kind=MethodKind.FEDAVG):
    model = models.ModelBundle.of(module)
    local = LocalTraining(batch_size=3)
    task = make_task(MethodConfig(kind=kind), local, model)
    return BatchedExecutor(task, model, local, block_size=block_size), EachExecutor(task, model, local), model


def clients(sizes, shape=(4,)):
    random = np.random.default_rng(0)
    return [
        ClientWork(k, ClientData(random.normal(size=(n, *shape)).astype(np.float32), random.integers(0, 2, n)), None, k)
        for k, n in enumerate(sizes)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), "1 (BatchNorm1d)"),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2)), "1 (Dropout)"),
        (Recurrent(), "cell (GRU)"),
    ],
)
def test_layers_that_cannot_be_batched_are_named_with_who_runs_them(module, name):
    with pytest.raises(UnsupportedModelError) as refused:
        executor(module)
    assert name in str(refused.value)
    assert "executor=each" in str(refused.value)


def test_a_model_that_cannot_be_traced_is_refused_before_anything_is_trained():
    ours, reference, model = executor(Branches())
    with pytest.raises(UnsupportedModelError, match=r"Branches.*executor=each"):
        next(ours.train(model.first_params(), clients([5, 6])))
    assert len(list(reference.train(model.first_params(), clients([5, 6])))) == 2


def test_a_layer_used_twice_or_tied_is_not_stacked_by_hand():
    twice = nn.Linear(4, 4)
    assert batchable.stack(nn.Sequential(twice, nn.ReLU(), twice)) is None
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    assert batchable.stack(tied) is None


def test_a_subclass_may_compute_something_else_and_is_not_stacked_by_hand():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    assert batchable.stack(nn.Sequential(Doubled(4, 2))) is None


def test_a_hook_is_not_lost():
    hooked = nn.Sequential(nn.Linear(4, 2))
    hooked[0].register_forward_hook(lambda _module, _inputs, output: output * 2)
    assert batchable.stack(hooked) is None


def test_clients_come_most_samples_first_in_blocks_of_the_given_size():
    ours, _, model = executor(nn.Sequential(nn.Linear(4, 2)), block_size=2)
    blocks = list(ours.train(model.first_params(), clients([3, 9, 0, 9, 5])))
    assert [block.clients.tolist() for block in blocks] == [[1, 3], [4, 0], [2]]
    assert [block.num_examples.tolist() for block in blocks] == [[9, 9], [5, 3], [0]]


def test_a_client_without_samples_moves_nothing_and_has_no_loss():
    ours, _, model = executor(nn.Sequential(nn.Linear(4, 2)))
    (block,) = ours.train(model.first_params(), clients([0, 0]))
    assert not block.delta_KP.any()
    assert np.isnan(block.loss).all()


def test_an_empty_cohort_gives_nothing():
    ours, _, model = executor(nn.Sequential(nn.Linear(4, 2)))
    assert list(ours.train(model.first_params(), [])) == []
    assert ours.predict(model.first_params(), [], personalized=True) == []


def test_a_block_is_its_receivers_own():
    """Later blocks must not write into the memory of earlier ones."""
    ours, _, model = executor(nn.Sequential(nn.Linear(4, 2)), block_size=1)
    blocks = list(ours.train(model.first_params(), clients([9, 9, 9])))
    copies = [block.delta_KP.copy() for block in blocks]
    list(ours.train(model.first_params(), clients([9, 9, 9])))
    for block, copy in zip(blocks, copies, strict=True):
        np.testing.assert_array_equal(block.delta_KP, copy)


def test_samples_and_base_are_left_as_they_were():
    ours, _, model = executor(nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    base, work = model.first_params(), clients([9, 4])
    before = {name: leaf.copy() for name, leaf in base.items()}, work[0].data.x.copy()
    list(ours.train(base, work))
    np.testing.assert_array_equal(work[0].data.x, before[1])
    for name, leaf in base.items():
        np.testing.assert_array_equal(leaf, before[0][name])


@pytest.mark.parametrize("personalized", [False, True])
def test_predictions_in_small_portions(monkeypatch, personalized):
    monkeypatch.setattr(batched, "_PREDICT_ROWS", 4)
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    ours, reference, model = executor(module, block_size=3, kind=MethodKind.FINETUNE)
    base = model.first_params()
    personal = np.random.default_rng(1).normal(size=sum(p.size for p in base.values())).astype(np.float32)
    work = [ClientWork(w.client, w.data, personal * (1 + w.client), w.seed) for w in clients([7, 0, 1, 12])]
    found = ours.predict(base, work, personalized=personalized)
    expected = reference.predict(base, work, personalized=personalized)
    for rows, wanted in zip(found, expected, strict=True):
        assert rows.shape == wanted.shape
        np.testing.assert_allclose(rows, wanted, atol=1e-5)


def test_frozen_parameters_stay():
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    module[0].weight.requires_grad_(requires_grad=False)
    ours, _, model = executor(module)
    (block,) = ours.train(model.first_params(), clients([9]))
    task_layout = ours._task.shared
    delta = task_layout.unpack(block.delta_KP[0])
    assert not delta["0.weight"].any()
    assert delta["0.bias"].any()


def test_the_global_random_state_is_left_alone():
    ours, _, model = executor(nn.Sequential(nn.Linear(4, 2)))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(ours.train(model.first_params(), clients([9, 4])))
    assert torch.equal(torch.rand(3), expected)
