"""A head that is re-fitted without torch is the head that the torch reference re-fits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedretrain.core.errors import UnsupportedModelError
from fedretrain.core.ids import ClientId
from fedretrain.core.types import ClientData, Objective
from fedretrain.edge.head import Head, fit, refresh
from fedretrain.training.blend import blend
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
from fedretrain.training.keep import BlendConfig, Verdict
from fedretrain.training.methods.make import make_task
from fedretrain.training.models import mlp

FEATURES, HIDDEN, CLASSES, SEED = 6, 5, 3, 2**63 + 11
LOCALS = {
    "sgd": LocalTraining(batch_size=8),
    "momentum": LocalTraining(batch_size=8, optimizer=OptimizerConfig(momentum=0.9, weight_decay=0.01)),
    "nesterov": LocalTraining(batch_size=7, optimizer=OptimizerConfig(momentum=0.5, nesterov=True)),
    "adam": LocalTraining(
        batch_size=8, optimizer=OptimizerConfig(OptimizerKind.ADAM, lr=0.01, weight_decay=0.1)
    ),
    "clipped": LocalTraining(batch_size=4, grad_clip_norm=0.3, max_steps=11),
    "class_weights": LocalTraining(batch_size=8, class_weights=(1.0, 3.0, 0.5)),
    "shared_prox": LocalTraining(batch_size=8, prox_mu=0.5),
}


def case(local, num=45, rounds=5, kind=MethodKind.FEDPER):
    """The torch reference, and the same world as the agent sees it: features under the head."""
    model = mlp((FEATURES,), CLASSES, 3, hidden=(HIDDEN,))
    task = make_task(MethodConfig(kind=kind, personal_epochs=rounds), local, model)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num, FEATURES)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0.5)
    first = model.first_params()
    start = Head(first["head.weight"], first["head.bias"])
    with torch.no_grad():
        features = model.module[:-1](torch.from_numpy(x)).numpy()
    work = ClientWork(ClientId(0), ClientData(x, y), None, SEED)
    shared = {name: first[name] for name in task.shared.names}
    executor = EachExecutor(task, model, local)
    return executor, task, shared, work, start, ClientData(features, y)


@pytest.mark.parametrize("local", LOCALS.values(), ids=LOCALS)
def test_a_refit_equals_the_torch_reference(local):
    executor, task, shared, work, start, features = case(local)
    expected = executor.refit(shared, [work])[0]
    (phase,) = task.refit_phases()
    fitted = fit(start, features, local, phase, SEED)
    assert np.abs(expected - start.packed()).max() > 1e-2, "something was learnt"
    np.testing.assert_allclose(fitted.packed(), expected, atol=1e-5)


def test_the_head_packs_as_the_reference_does():
    _, task, _, _, start, _ = case(LOCALS["sgd"])
    tree = {"head.weight": start.weight, "head.bias": start.bias}
    assert (task.personal.pack(tree) == start.packed()).all()
    again = Head.unpack(start.packed(), HIDDEN)
    assert (again.weight == start.weight).all()
    assert (again.bias == start.bias).all()


def test_the_pull_is_the_gradient_of_the_proximal_term():
    local = LocalTraining(batch_size=45, epochs=1)
    _, task, _, _, start, features = case(local, rounds=12)
    (phase,) = task.refit_phases()
    fitted = fit(start, features, local, phase, SEED, prox_mu=0.7)
    head = nn.Linear(HIDDEN, CLASSES)
    anchor = [torch.from_numpy(start.weight.copy()), torch.from_numpy(start.bias.copy())]
    with torch.no_grad():
        head.weight.copy_(anchor[0])
        head.bias.copy_(anchor[1])
    optimizer = torch.optim.SGD(head.parameters(), lr=local.optimizer.lr)
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(torch.from_numpy(features.x)), torch.from_numpy(features.y))
        away = sum((p - a).square().sum() for p, a in zip(head.parameters(), anchor, strict=True))
        (loss + 0.35 * away).backward()
        optimizer.step()
    np.testing.assert_allclose(fitted.weight, head.weight.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(fitted.bias, head.bias.detach().numpy(), atol=1e-5)


def test_the_start_is_left_alone_and_no_examples_change_nothing():
    _, task, _, _, start, features = case(LOCALS["sgd"])
    before = start.packed().copy()
    (phase,) = task.refit_phases()
    fit(start, features, LOCALS["sgd"], phase, SEED)
    assert (start.packed() == before).all()
    none = ClientData(features.x[:0], features.y[:0])
    assert (fit(start, none, LOCALS["sgd"], phase, SEED).packed() == before).all()


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
@pytest.mark.parametrize("flip", [False, True])
def test_the_keep_rule_is_the_one_of_blend(tolerance, flip):
    local = LocalTraining(batch_size=8, optimizer=OptimizerConfig(lr=0.3))
    executor, task, shared, work, start, features = case(local, num=80, rounds=8)
    if flip:  # the newest labels contradict the older ones, so that a fit falls
        y = work.data.y.copy()
        y[60:] = start.logits(features.x[60:]).argmax(axis=1)
        work, features = replace(work, data=ClientData(work.data.x, y)), ClientData(features.x, y)
    config = BlendConfig(tolerance=tolerance)
    expected = blend(executor, shared, [work], Objective.CLASSIFICATION, config)
    (phase,) = task.refit_phases()
    result = refresh(start, features, local, phase, SEED, config)
    assert result.verdict is expected.verdicts[0]
    assert (result.verdict is Verdict.FELL) == (flip and tolerance == 0.0)
    assert (result.before, result.after) == (expected.before[0], expected.after[0])
    if result.verdict is Verdict.KEPT:
        np.testing.assert_allclose(result.head.packed(), expected.personal[0], atol=1e-5)
    else:
        assert result.head is start


def test_too_few_examples_are_not_fitted():
    _, task, _, _, start, features = case(LOCALS["sgd"], num=9)
    (phase,) = task.refit_phases()
    result = refresh(start, features, LOCALS["sgd"], phase, SEED, BlendConfig(min_holdout=5))
    assert (result.head, result.verdict) == (start, Verdict.TOO_FEW)
    assert math.isnan(result.before)


def test_a_head_that_ran_away_is_not_kept():
    local = LocalTraining(batch_size=8, optimizer=OptimizerConfig(lr=1e30, weight_decay=1e30))
    _, task, _, _, start, features = case(local)
    (phase,) = task.refit_phases()
    result = refresh(start, features, local, phase, SEED, BlendConfig())
    assert (result.head, result.verdict) == (start, Verdict.NONFINITE)


@pytest.mark.parametrize(
    ("local", "what"),
    [
        (LocalTraining(loss=LossKind.MSE), "the loss mse"),
        (LocalTraining(epochs=0, max_steps=3, example_dp=ExampleDp()), "example-level DP"),
    ],
)
def test_what_needs_torch_is_refused_by_name(local, what):
    _, task, _, _, start, features = case(LOCALS["sgd"])
    with pytest.raises(UnsupportedModelError, match=what):
        fit(start, features, local, task.refit_phases()[0], SEED)
