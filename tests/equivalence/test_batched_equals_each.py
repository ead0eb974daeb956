"""The batched executor equals the reference to float32 rounding: the third rung of the equivalence ladder."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from fedretrain.core.types import ClientData
from fedretrain.training import models, stacked_signal
from fedretrain.training.batched import BatchedExecutor
from fedretrain.training.batched_engine import ChainEngine, VmapEngine
from fedretrain.training.config import (
    ExampleDp,
    LocalTraining,
    LossKind,
    MethodConfig,
    MethodKind,
    OptimizerConfig,
    OptimizerKind,
)
from fedretrain.training.each import EachExecutor
from fedretrain.training.executor import ClientWork
from fedretrain.training.methods.make import make_task

RAGGED = (7, 23, 10, 0, 31, 10, 1)


class TwoPaths(nn.Module):
    """A model with code of its own: runs under vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.side, self.head = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 4)
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(x)) * self.gain + self.side(x))


def bundle(module: nn.Module) -> models.ModelBundle:
    torch.manual_seed(3)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return models.ModelBundle.of(module)


MODELS = {
    "mlp": ((8,), models.mlp((8,), 4, 0, hidden=(16, 12))),
    "cnn": ((3, 20), models.cnn1d((3, 20), 4, 0, channels=(8, 16))),
    "cnn strided": ((3, 17), models.cnn1d((3, 17), 4, 0, channels=(8, 16), stride=2, kernel_size=4)),
    "gru": ((3, 9), models.gru((3, 9), 4, 0, hidden=8, num_layers=2)),
    "norms": (
        (5,),
        bundle(
            nn.Sequential(
                nn.Linear(5, 12, bias=False), nn.LayerNorm(12, elementwise_affine=False), nn.ReLU(),
                nn.GroupNorm(3, 12), nn.Tanh(), nn.Sequential(nn.LayerNorm(12), nn.Dropout(0.0)), nn.Linear(12, 4),
            )
        ),
    ),
    "pooled": (
        (2, 16),
        bundle(
            nn.Sequential(
                nn.Conv1d(2, 6, 3, bias=False), nn.GroupNorm(2, 6, affine=False), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(),
                nn.LayerNorm(42), nn.Linear(42, 4),
            )
        ),
    ),
    "vmapped": ((5,), bundle(TwoPaths())),
    "vmapped conv2d": ((1, 6, 6), bundle(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)))),
}  # fmt: skip
SMOOTH = (
    (8,),
    bundle(
        nn.Sequential(
            OrderedDict(
                first=nn.Linear(8, 16),
                bend=nn.Tanh(),
                second=nn.Linear(16, 12),
                again=nn.Tanh(),
                head=nn.Linear(12, 4),
            )
        )
    ),
)


def work_of(shape: tuple[int, ...], sizes: tuple[int, ...], *, regression: bool = False, seed: int = 0):
    random = np.random.default_rng(seed)
    work = []
    for client, size in enumerate(sizes):
        x = random.normal(size=(size, *shape)).astype(np.float32)
        y = random.normal(size=size).astype(np.float32) if regression else random.integers(0, 4, size)
        work.append(ClientWork(100 + client, ClientData(x, y), None, int(random.integers(0, 2**63))))
    return work


def by_client(blocks):
    found = {}
    for block in blocks:
        for row, client in enumerate(block.clients.tolist()):
            assert client not in found
            found[client] = (
                block.delta_KP[row], block.personal_KQ[row], float(block.loss[row]), int(block.num_examples[row])
            )  # fmt: skip
    return found


def assert_equal(model, local, method, work, *, block_size, atol=3e-5):
    task = make_task(method, local, model)
    base = {name: leaf for name, leaf in model.first_params().items() if name in task.shared.names}
    each = EachExecutor(task, model, local)
    batched = BatchedExecutor(task, model, local, block_size=block_size)
    expected, found = by_client(each.train(base, work)), by_client(batched.train(base, work))
    assert expected.keys() == found.keys()
    for client, (delta, personal, loss, examples) in expected.items():
        np.testing.assert_allclose(found[client][0], delta, atol=atol, rtol=1e-4)
        np.testing.assert_allclose(found[client][1], personal, atol=atol, rtol=1e-4)
        np.testing.assert_allclose(found[client][2], loss, atol=atol, rtol=1e-4)
        assert found[client][3] == examples
    return each, batched, base, {client: row[1] for client, row in expected.items()}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_alike(name):
    shape, model = MODELS[name]
    local = LocalTraining(batch_size=10, epochs=2, optimizer=OptimizerConfig(lr=0.2))
    assert_equal(model, local, MethodConfig(), work_of(shape, RAGGED), block_size=3)


@pytest.mark.parametrize("name", ["cnn", "cnn strided", "pooled"])
def test_large_convolutions_run_client_by_client(monkeypatch, name):
    monkeypatch.setattr(stacked_signal, "_LARGE_FLOP", 0.0)
    shape, model = MODELS[name]
    local = LocalTraining(epochs=2, optimizer=OptimizerConfig(lr=0.1))
    for method in (MethodConfig(), MethodConfig(kind=MethodKind.DITTO)):
        assert_equal(model, local, method, work_of(shape, RAGGED), block_size=3)


def test_hand_batched_and_vmapped_models_are_what_they_claim():
    local = LocalTraining()
    for name, (_, model) in MODELS.items():
        engine = BatchedExecutor(make_task(MethodConfig(), local, model), model, local)._engine
        assert isinstance(engine, VmapEngine if "vmapped" in name else ChainEngine), name


TRAININGS = {
    "plain": LocalTraining(optimizer=OptimizerConfig(lr=0.1)),
    "adam": LocalTraining(optimizer=OptimizerConfig(kind=OptimizerKind.ADAM, lr=0.01, weight_decay=0.01)),
    "everything": LocalTraining(
        epochs=2,
        max_steps=4,
        optimizer=OptimizerConfig(momentum=0.9, nesterov=True, weight_decay=0.01),
        prox_mu=0.1,
        grad_clip_norm=0.5,
        class_weights=(1.0, 2.0, 3.0, 0.5),
    ),
}


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("kind", MethodKind)
@pytest.mark.parametrize("name", ["mlp", "vmapped"])
def test_every_method_trains_refits_and_predicts_alike(name, kind, training):
    shape, model = MODELS[name]
    work, local = work_of(shape, RAGGED), TRAININGS[training]
    method = MethodConfig(kind=kind, personal_patterns=("head.*",))
    each, batched, base, personal = assert_equal(model, local, method, work, block_size=4)
    again = [
        one if one.client == 102 else ClientWork(one.client, one.data, personal[one.client], one.seed)
        for one in work
    ]  # one device still has no personal state
    np.testing.assert_allclose(batched.refit(base, again), each.refit(base, again), atol=3e-5, rtol=1e-4)
    for personalized in (False, True):
        expected = each.predict(base, again, personalized=personalized)
        found = batched.predict(base, again, personalized=personalized)
        assert [len(rows) for rows in found] == list(RAGGED)
        for rows, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(rows, wanted, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("loss", [LossKind.MSE, LossKind.HUBER])
def test_regression(loss):
    model = models.mlp((8,), 1, 0, hidden=(6,))
    local = LocalTraining(loss=loss, huber_delta=0.5, optimizer=OptimizerConfig(lr=0.05))
    assert_equal(model, local, MethodConfig(), work_of((8,), RAGGED, regression=True), block_size=4)


def test_many_classes_take_the_other_layout():
    model = models.mlp((8,), 100, 0, hidden=(6,))
    assert_equal(model, LocalTraining(), MethodConfig(), work_of((8,), RAGGED), block_size=4)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 24), min_size=1, max_size=8),
    block_size=st.integers(1, 9),
    batch_size=st.integers(1, 9),
    epochs=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
@example(sizes=[8, 24, 5, 22, 12, 24, 24, 18], block_size=1, batch_size=5, epochs=1, seed=211)
def test_ragged_sizes_and_block_sizes(sizes, block_size, batch_size, epochs, seed):
    """On a smooth model: at a kink, rounding decides which side a row is on, and the two sides' gradients differ."""
    shape, model = SMOOTH
    local = LocalTraining(batch_size=batch_size, epochs=epochs)
    method = MethodConfig(kind=MethodKind.FEDPER)
    assert_equal(model, local, method, work_of(shape, tuple(sizes), seed=seed), block_size=block_size)


@settings(max_examples=10, deadline=None)
@given(cut=st.integers(0, 7), order=st.permutations(range(7)))
def test_partitions_and_order_of_the_cohort_change_nothing(cut, order):
    shape, model = MODELS["mlp"]
    local = LocalTraining()
    task = make_task(MethodConfig(), local, model)
    executor, work = BatchedExecutor(task, model, local, block_size=3), work_of(shape, RAGGED)
    whole = by_client(executor.train(model.first_params(), work))
    parts = [work[i] for i in order[:cut]], [work[i] for i in order[cut:]]
    apart = {k: v for part in parts for k, v in by_client(executor.train(model.first_params(), part)).items()}
    assert whole.keys() == apart.keys()
    for client, row in whole.items():
        np.testing.assert_allclose(apart[client][0], row[0], atol=1e-6)


@pytest.mark.parametrize("noise_multiplier", [0.0, 1.0])
@pytest.mark.parametrize(
    ("name", "kind"), [("mlp", "fedper"), ("cnn strided", "fedavg"), ("gru", "fedavg"), ("norms", "ditto")]
)
def test_example_level_dp(name, kind, noise_multiplier):
    """With the noise off: Opacus's clipped sums. With it on: the same seeded draws, so equal too."""
    shape, model = MODELS[name]
    local = LocalTraining(
        batch_size=5, epochs=0, max_steps=3, example_dp=ExampleDp(noise_multiplier, clip_norm=0.3)
    )
    assert_equal(
        model,
        local,
        MethodConfig(kind=MethodKind(kind), personal_max_steps=2),
        work_of(shape, RAGGED),
        block_size=4,
    )
