from __future__ import annotations

import numpy as np
import pytest
import torch

from fedretrain.core.errors import ConfigError, PrivacyError
from fedretrain.training.config import ExampleDp, LocalTraining, MethodConfig, MethodKind
from fedretrain.training.each import EachExecutor
from fedretrain.training.methods.apfl import ALPHA
from fedretrain.training.methods.common import PERSONAL
from fedretrain.training.methods.make import make_task
from tests.training_cases import clients, model_case

CASE = model_case("mlp")
LOCAL = LocalTraining(batch_size=4, epochs=2)
NUM_PARAMS = sum(t.numel() for t in CASE.model.first.values())
NUM_HEAD = sum(t.numel() for n, t in CASE.model.first.items() if n.startswith("head."))


def task_of(kind, local=LOCAL, **changes):
    return make_task(MethodConfig(kind=kind, **changes), local, CASE.model)


@pytest.mark.parametrize(
    ("kind", "shared", "personal"),
    [
        (MethodKind.FEDAVG, NUM_PARAMS, 0),
        (MethodKind.FINETUNE, NUM_PARAMS, NUM_PARAMS),
        (MethodKind.FEDPER, NUM_PARAMS - NUM_HEAD, NUM_HEAD),
        (MethodKind.FEDREP, NUM_PARAMS - NUM_HEAD, NUM_HEAD),
        (MethodKind.APFL, NUM_PARAMS, NUM_PARAMS + 1),
        (MethodKind.DITTO, NUM_PARAMS, NUM_PARAMS),
    ],
)
def test_what_is_sent_and_what_is_kept(kind, shared, personal):
    task = task_of(kind)
    assert (task.shared.size, task.personal.size) == (shared, personal)
    if kind in {MethodKind.FEDPER, MethodKind.FEDREP}:
        assert not set(task.shared.names) & set(task.personal.names)


@pytest.mark.parametrize("kind", [MethodKind.FINETUNE, MethodKind.APFL, MethodKind.DITTO])
def test_a_private_copy_never_influences_the_delta(kind):
    work, shared = clients(CASE.shape, (11,)), CASE.model.first_params()
    plain = next(EachExecutor(task_of(MethodKind.FEDAVG), CASE.model, LOCAL).train(shared, work)).delta_KP
    task = task_of(kind)
    state = np.linspace(-1, 1, task.personal.size).astype(np.float32)
    one = type(work[0])(work[0].client, work[0].data, state, work[0].seed)
    block = next(EachExecutor(task, CASE.model, LOCAL).train(shared, [one]))
    if kind is MethodKind.APFL:  # trained on other batches: its phase has another name
        other = next(EachExecutor(task, CASE.model, LOCAL).train(shared, work)).delta_KP
        np.testing.assert_array_equal(block.delta_KP, other)
    else:
        np.testing.assert_array_equal(block.delta_KP, plain)


def test_ditto_without_a_tie_is_training_alone_and_a_strong_tie_holds():
    work, shared = clients(CASE.shape, (16,)), CASE.model.first_params()
    away = []
    for strength in (0.0, 1.0, 15.0):
        task = task_of(MethodKind.DITTO, ditto_lambda=strength, personal_epochs=10)
        block = next(EachExecutor(task, CASE.model, LOCAL).train(shared, work))
        away.append(np.linalg.norm(block.personal_KQ[0] - task.shared.pack(shared)))
    assert away[0] > 2 * away[1] > 4 * away[2] > 0


def test_apfl_keeps_its_mixing_weight_between_0_and_1():
    work, shared = clients(CASE.shape, (16,)), CASE.model.first_params()
    task = task_of(MethodKind.APFL, apfl_alpha_lr=50.0, apfl_alpha=0.5)
    block = next(EachExecutor(task, CASE.model, LOCAL).train(shared, work))
    alpha = float(task.personal.unpack(block.personal_KQ[0])[ALPHA])
    assert 0.0 <= alpha <= 1.0
    fixed = task_of(MethodKind.APFL, apfl_alpha_lr=0.0, apfl_alpha=0.25)
    block = next(EachExecutor(fixed, CASE.model, LOCAL).train(shared, work))
    assert float(fixed.personal.unpack(block.personal_KQ[0])[ALPHA]) == 0.25


@pytest.mark.parametrize(("alpha", "own"), [(0.0, False), (1.0, True)])
def test_apfl_serves_the_blend(alpha, own):
    task = task_of(MethodKind.APFL)
    shared = {n: torch.zeros_like(t) for n, t in CASE.model.first.items()}
    personal = {**{n: torch.ones_like(t) for n, t in shared.items()}, ALPHA: torch.tensor(alpha)}
    assert all((leaf == float(own)).all() for leaf in task.model_params(shared, personal).values())


def test_fedper_serves_its_own_head_on_the_shared_body():
    task = task_of(MethodKind.FEDPER)
    shared = {n: torch.zeros(s) for n, s in zip(task.shared.names, task.shared.shapes, strict=True)}
    personal = {n: torch.ones(s) for n, s in zip(task.personal.names, task.personal.shapes, strict=True)}
    params = task.model_params(shared, personal)
    assert set(params) == set(CASE.model.first)
    assert all(leaf.any() == name.startswith("head.") for name, leaf in params.items())


def test_a_refit_never_moves_what_is_shared():
    for kind in MethodKind:
        assert all(phase.name == PERSONAL for phase in task_of(kind).refit_phases())


def test_a_misspelt_pattern_is_refused_when_the_task_is_made():
    with pytest.raises(ConfigError, match="matches no parameter"):
        task_of(MethodKind.FEDPER, personal_patterns=("heda.*",))


def test_step_counts_are_constant_under_example_dp():
    local = LocalTraining(batch_size=4, epochs=0, max_steps=7, example_dp=ExampleDp())
    for kind in set(MethodKind) - {MethodKind.FEDREP}:
        task = task_of(kind, local)
        assert {(p.epochs, p.max_steps) for p in (*task.phases(), *task.refit_phases())} == {(0, 7)}
    with pytest.raises(PrivacyError, match="fedrep"):
        task_of(MethodKind.FEDREP, local)
