"""Example-level DP in the reference executor: against plain per-example loops, and in distribution."""

from __future__ import annotations

import copy
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedretrain.core.errors import ConfigError, PrivacyError, UnsupportedModelError
from fedretrain.training import data, example_dp
from fedretrain.training.config import ExampleDp, LocalTraining, MethodConfig, MethodKind, OptimizerConfig
from fedretrain.training.each import EachExecutor
from fedretrain.training.example_cost import accounting
from fedretrain.training.executor import executor_for
from fedretrain.training.methods.make import make_task
from fedretrain.training.models import ModelBundle
from tests.training_cases import clients, model_case

BATCH = 6
QUIET = LocalTraining(
    batch_size=BATCH,
    epochs=0,
    max_steps=5,
    optimizer=OptimizerConfig(lr=0.3, momentum=0.5, weight_decay=0.01),
    prox_mu=0.2,
    example_dp=ExampleDp(noise_multiplier=0.0, clip_norm=0.4),
)


def deltas(case, local, work, kind=MethodKind.FEDAVG):
    task = make_task(MethodConfig(kind=kind), local, case.model)
    shared = {n: case.model.first_params()[n] for n in task.shared.names}
    return task, list(EachExecutor(task, case.model, local).train(shared, work))


def plain_dp_sgd(case, local, one, phase_name):
    """DP-SGD in words, one example at a time: Poisson batch, clip each gradient, sum, divide by the expected size."""
    phase = make_task(MethodConfig(), local, case.model).phases()[0]
    phase = replace(phase, name=phase_name)
    model = copy.deepcopy(case.model.module).train()
    base = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5, weight_decay=0.01)
    plan = data.plan(local, phase, np.array([len(one.data)]), np.array([one.seed], np.uint64))
    for row in plan.index_KSB[0]:
        sums = [torch.zeros_like(p) for p in model.parameters()]
        for i in row[row >= 0]:
            x, y = torch.as_tensor(one.data.x[i : i + 1]), torch.as_tensor(one.data.y[i : i + 1])
            grads = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
            norm = torch.sqrt(sum(g.square().sum() for g in grads))
            for total, g in zip(sums, grads, strict=True):
                total.add_(g * min(1.0, local.example_dp.clip_norm / float(norm)))
        for p, total, start in zip(model.parameters(), sums, base, strict=True):
            p.grad = total / local.batch_size + local.prox_mu * (p.detach() - start)
        optimizer.step()
    return {n: (p - b).detach().numpy() for (n, p), b in zip(model.named_parameters(), base, strict=True)}


@pytest.mark.parametrize("model", ["mlp", "cnn1d", "gru"])
def test_with_the_noise_off_it_equals_the_loop_over_examples(model):
    case = model_case(model)
    work = clients(case.shape, (4, 25))
    task, blocks = deltas(case, QUIET, work)
    for one, block in zip(work, blocks, strict=True):
        expected = plain_dp_sgd(case, QUIET, one, "shared")
        for name, leaf in task.shared.unpack(block.delta_KP[0]).items():
            np.testing.assert_allclose(leaf, expected[name], rtol=1e-3, atol=3e-6, err_msg=name)


def test_fedper_clips_shared_and_personal_gradients_jointly():
    case = model_case("mlp")
    work = clients(case.shape, (25,))
    local = replace(QUIET, prox_mu=0.0)
    task, blocks = deltas(case, local, work, MethodKind.FEDPER)
    # A joint step over all layers is FedAvg's step; only what is sent and what is kept differ.
    expected = plain_dp_sgd(case, local, work[0], "joint")
    for name, leaf in task.shared.unpack(blocks[0].delta_KP[0]).items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-3, atol=3e-6)
    for name, leaf in task.personal.unpack(blocks[0].personal_KQ[0]).items():
        first = case.model.first[name].numpy()
        np.testing.assert_allclose(leaf - first, expected[name], rtol=1e-3, atol=3e-6)


@pytest.mark.parametrize("kind", [MethodKind.FEDAVG, MethodKind.FEDPER])
def test_noise_has_the_standard_deviation_that_is_claimed(kind):
    case = model_case("mlp")
    work = clients(case.shape, (12,) * 30)
    dp = ExampleDp(noise_multiplier=1.7, clip_norm=0.4)
    plain = LocalTraining(
        batch_size=BATCH, epochs=0, max_steps=1, optimizer=OptimizerConfig(lr=1.0), example_dp=dp
    )
    _, noisy = deltas(case, plain, work, kind)
    task, quiet = deltas(case, replace(plain, example_dp=replace(dp, noise_multiplier=0.0)), work, kind)
    drawn = np.concatenate([(a.delta_KP - b.delta_KP)[0] for a, b in zip(noisy, quiet, strict=True)])
    kept = np.concatenate([(a.personal_KQ - b.personal_KQ)[0] for a, b in zip(noisy, quiet, strict=True)])
    assert (kept.size > 0) == (task.personal.size > 0)
    z = np.concatenate([drawn, kept]) / (1.7 * 0.4 / BATCH)  # a head is noised as the body is
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / z.size)
    # Kolmogorov and Smirnov's distance to the normal distribution, at a level of about 1e-4.
    ordered = np.sort(z)
    normal = 0.5 * (1 + torch.erf(torch.as_tensor(ordered) / np.sqrt(2))).numpy()
    assert np.abs(normal - np.arange(z.size) / z.size).max() < 2.2 / np.sqrt(z.size)


def test_noise_differs_between_steps_clients_and_phases():
    dp, tree = ExampleDp(), {"w": torch.zeros(50)}
    phase = make_task(MethodConfig(), QUIET, model_case("mlp").model).phases()[0]
    seeds = np.arange(2, dtype=np.uint64)
    drawn = [
        example_dp.noise(dp, example_dp.noise_seeds(seeds, p, i)[k], tree, ["w"], lead=0)["w"]
        for p in (phase, replace(phase, name="other"))
        for i in range(2)
        for k in range(2)
    ]
    assert len({tuple(d.tolist()) for d in drawn}) == 8
    stacked = example_dp.noise(
        dp, example_dp.noise_seeds(seeds, phase, 0), {"w": torch.zeros(2, 50)}, ["w"], lead=1
    )
    torch.testing.assert_close(stacked["w"][1], drawn[1])


def test_a_private_copy_is_trained_without_noise():
    # Ditto's personal model feeds nothing that leaves the device, so its gradients are not noised.
    case = model_case("mlp")
    work = clients(case.shape, (12,))
    states = []
    for multiplier in (0.0, 50.0):
        local = replace(QUIET, example_dp=ExampleDp(multiplier, 0.4))
        states.append(deltas(case, local, work, MethodKind.DITTO)[1][0].personal_KQ)
    np.testing.assert_array_equal(*states)


def test_clip_factors_are_zero_safe_and_never_exceed_the_clip():
    norms = torch.tensor([0.0, 0.3, 0.5, 2.0, 1e30])
    factors = example_dp.clip_factors(norms, 0.5)
    assert factors[:3].tolist() == [1.0, 1.0, 1.0]
    assert (norms * factors <= 0.5 * (1 + 1e-6)).all()


def test_accounting_charges_what_leaves_the_device():
    case = model_case("mlp")
    local = replace(QUIET, example_dp=ExampleDp(1.1, 0.4))
    sizes = np.array([60, 3, 0])
    charges = {}
    for kind in (MethodKind.FEDAVG, MethodKind.DITTO, MethodKind.APFL, MethodKind.FEDPER):
        task = make_task(MethodConfig(kind=kind), local, case.model)
        charges[kind] = accounting(local, task.phases(), sizes)
        refit = accounting(local, task.refit_phases(), sizes)
        # A fedper head feeds the next round's shared gradients, so its re-fit costs too.
        assert [c.steps for c in refit] == ([5, 5, 0] if kind is MethodKind.FEDPER else [0, 0, 0])
    for rows in charges.values():
        assert [c.sample_rate for c in rows] == [0.1, 1.0, 1.0]
        assert [c.steps for c in rows] == [5, 5, 0]
        assert {c.noise_multiplier for c in rows} == {1.1}


def test_accounting_without_noise_is_refused():
    phases = make_task(MethodConfig(), QUIET, model_case("mlp").model).phases()
    with pytest.raises(PrivacyError, match="noise is off"):
        accounting(QUIET, phases, np.array([5]))
    with pytest.raises(PrivacyError, match="noise is off"):
        accounting(LocalTraining(), phases, np.array([5]))


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x.transpose(1, 2))[0][:, -1])


@pytest.mark.parametrize(
    ("module", "layer"),
    [
        (model_case("batchnorm").model.module, r"norm \(BatchNorm1d\)"),
        (_Recurrent(), r"rnn \(GRU\)"),
        (nn.Sequential(nn.Linear(6, 6), nn.MultiheadAttention(6, 2)), r"1 \(MultiheadAttention\)"),
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.InstanceNorm1d(4, track_running_stats=True)), "InstanceNorm"),
    ],
)
def test_layers_that_cannot_be_served_are_refused_by_name(module, layer):
    model = ModelBundle.of(module)
    task = make_task(MethodConfig(), QUIET, model)
    with pytest.raises(UnsupportedModelError, match=layer):
        EachExecutor(task, model, QUIET)


@pytest.fixture
def entropy_of(monkeypatch):
    """The operating system's entropy, but the same in every run."""
    drawn = np.random.default_rng(5)
    monkeypatch.setattr(os, "urandom", drawn.bytes)


def secretly(case, local, work, kind=MethodKind.FEDAVG):
    task = make_task(MethodConfig(kind=kind), local, case.model)
    shared = {n: case.model.first_params()[n] for n in task.shared.names}
    return list(EachExecutor(task, case.model, local, secret=True).train(shared, work))


@pytest.mark.parametrize("kind", [MethodKind.FEDAVG, MethodKind.FEDPER])
def test_secret_noise_has_the_standard_deviation_that_is_claimed(kind, entropy_of):
    case = model_case("mlp")
    work = clients(case.shape, (BATCH,) * 30)  # every example in every batch, so that noise alone differs
    dp = ExampleDp(noise_multiplier=1.7, clip_norm=0.4)
    local = LocalTraining(
        batch_size=BATCH, epochs=0, max_steps=1, optimizer=OptimizerConfig(lr=1.0), example_dp=dp
    )
    noisy = secretly(case, local, work, kind)
    _, quiet = deltas(case, replace(local, example_dp=replace(dp, noise_multiplier=0.0)), work, kind)
    drawn = np.concatenate(
        [
            np.concatenate([(a.delta_KP - b.delta_KP)[0], (a.personal_KQ - b.personal_KQ)[0]])
            for a, b in zip(noisy, quiet, strict=True)
        ]
    )
    z = drawn / (1.7 * 0.4 / BATCH)
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / z.size)
    ordered = np.sort(z)
    normal = 0.5 * (1 + torch.erf(torch.as_tensor(ordered) / np.sqrt(2))).numpy()
    assert np.abs(normal - np.arange(z.size) / z.size).max() < 2.2 / np.sqrt(z.size)


def test_who_knows_the_seeds_knows_neither_noise_nor_coins():
    case = model_case("mlp")
    work = clients(case.shape, (60,))
    local = replace(QUIET, example_dp=ExampleDp(1.0, 0.4))
    one, other = secretly(case, local, work), secretly(case, local, work)
    assert not np.array_equal(one[0].delta_KP, other[0].delta_KP)
    sizes, seeds = np.array([200]), np.array([7], dtype=np.uint64)
    phase = make_task(MethodConfig(), local, case.model).phases()[0]
    plans = [data.plan(local, phase, sizes, seeds, secret=True).index_KSB.tolist() for _ in range(2)]
    assert plans[0] != plans[1]


def test_secret_coins_fall_as_often_as_is_charged(entropy_of):
    local = replace(QUIET, max_steps=4000)
    phase = make_task(MethodConfig(), local, model_case("mlp").model).phases()[0]
    seeds = np.array([7], dtype=np.uint64)
    plan = data.plan(local, phase, np.array([20]), seeds, secret=True)
    joined = np.bincount(plan.index_KSB[plan.index_KSB >= 0], minlength=20)
    rate = BATCH / 20
    assert np.abs(joined - 4000 * rate).max() < 5 * np.sqrt(4000 * rate * (1 - rate))


def test_secretly_noised_sums_lie_on_a_lattice_that_the_data_do_not_choose():
    dp = ExampleDp(noise_multiplier=1.3, clip_norm=0.5)
    step = 2.0 ** (np.floor(np.log2(1.3 * 0.5)) - 15)
    for value in (0.0, 1e-7, 0.3333333, 2.0 / 3.0):
        noised = example_dp.noised_secretly(dp, {"w": torch.full((500,), value)})["w"].double().numpy()
        assert np.array_equal(np.rint(noised / step) * step, noised)


def test_the_batched_executor_cannot_draw_secretly():
    case = model_case("mlp")
    local = replace(QUIET, example_dp=ExampleDp(1.0, 0.4))
    task = make_task(MethodConfig(), local, case.model)
    with pytest.raises(ConfigError, match="use each"):
        executor_for("batched", task, case.model, local, secret=True)
    assert executor_for("each", task, case.model, local, secret=True)
