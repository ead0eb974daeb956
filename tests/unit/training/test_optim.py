from __future__ import annotations

import pytest
import torch

from fedretrain.training import optim
from fedretrain.training.config import OptimizerConfig, OptimizerKind

CONFIGS = {
    "sgd": OptimizerConfig(lr=0.1),
    "weight_decay": OptimizerConfig(lr=0.1, weight_decay=0.2),
    "momentum": OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=0.05),
    "nesterov": OptimizerConfig(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.05),
    "adam": OptimizerConfig(kind=OptimizerKind.ADAM, lr=0.02),
    "adam_decay": OptimizerConfig(
        kind=OptimizerKind.ADAM, lr=0.02, weight_decay=0.3, betas=(0.7, 0.9), eps=1e-3
    ),
}


def torch_optimizer(config, params):
    if config.kind is OptimizerKind.ADAM:
        return torch.optim.Adam(
            params, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
        )
    return torch.optim.SGD(
        params,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_torch_optim_over_ten_steps(name):
    config, rng = CONFIGS[name], torch.Generator().manual_seed(1)
    tree = {"w": torch.randn(3, 2, generator=rng), "scalar": torch.randn((), generator=rng)}
    reference = {n: t.clone().requires_grad_() for n, t in tree.items()}
    theirs = torch_optimizer(config, reference.values())
    state = optim.slots(config, tree, tree, "g")
    for index in range(10):
        grads = {n: torch.randn(t.shape, generator=rng) for n, t in tree.items()}
        for n, leaf in reference.items():
            leaf.grad = grads[n].clone()
        theirs.step()
        optim.update_(config, tree, grads, state, group="g", index=index)
    for n, leaf in tree.items():
        torch.testing.assert_close(leaf, reference[n].detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", CONFIGS)
def test_stacked_clients_and_views_of_them_step_as_single_ones(name):
    config, rng = CONFIGS[name], torch.Generator().manual_seed(2)
    stacked = {"w": torch.randn(4, 3, 2, generator=rng)}
    single = [{"w": row.clone()} for row in stacked["w"]]
    state = optim.slots(config, stacked, stacked, "g")
    states = [optim.slots(config, tree, tree, "g") for tree in single]
    for index, active in enumerate((4, 4, 2, 1)):  # clients with more steps to do come first
        grads = torch.randn(4, 3, 2, generator=rng)
        view = {n: t[:active] for n, t in stacked.items()}
        view_state = {kind: {n: t[:active] for n, t in tree.items()} for kind, tree in state.items()}
        optim.update_(config, view, {"w": grads[:active].clone()}, view_state, group="g", index=index)
        for k in range(active):
            optim.update_(config, single[k], {"w": grads[k].clone()}, states[k], group="g", index=index)
    for k, tree in enumerate(single):
        torch.testing.assert_close(stacked["w"][k], tree["w"])


def test_parameters_without_a_gradient_stay():
    tree = {"a": torch.ones(2), "b": torch.ones(2)}
    config = OptimizerConfig(lr=0.5, momentum=0.9)
    state = optim.slots(config, tree, ["a"], "g")
    assert set(state["g.momentum"]) == {"a"}
    optim.update_(config, tree, {"a": torch.ones(2)}, state, group="g", index=0)
    optim.update_(config, tree, {}, state, group="g", index=1)
    assert tree["a"].tolist() == [0.5, 0.5]
    assert tree["b"].tolist() == [1.0, 1.0]
