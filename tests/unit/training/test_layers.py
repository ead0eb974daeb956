from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from fedretrain.training.layers import LinearGru, MeanOverTime

X = torch.randn(4, 3, 7, generator=torch.Generator().manual_seed(1))


def pair(hidden=5):
    torch.manual_seed(2)
    ours, theirs = LinearGru(3, hidden, sequence=True), nn.GRU(3, hidden, batch_first=True)
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(theirs, f"{name}_l0").copy_(getattr(ours, name))
    return ours, theirs


def test_linear_gru_equals_torch_forward():
    ours, theirs = pair()
    states, last = theirs(X.transpose(1, 2))
    torch.testing.assert_close(ours(X), states.transpose(1, 2))
    ours.sequence = False
    torch.testing.assert_close(ours(X), last[0])


def test_linear_gru_equals_torch_gradients():
    ours, theirs = pair()
    a, b = X.clone().requires_grad_(), X.clone().requires_grad_()
    weight = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(3))
    (ours(a) * weight).sum().backward()
    (theirs(b.transpose(1, 2))[0].transpose(1, 2) * weight).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        torch.testing.assert_close(getattr(ours, name).grad, getattr(theirs, f"{name}_l0").grad)


@pytest.mark.parametrize("sequence", [True, False])
def test_linear_gru_has_a_batching_rule(sequence):
    cells = [LinearGru(3, 5, sequence=sequence) for _ in range(3)]
    params, _ = stack_module_state(cells)
    xs = torch.randn(3, 4, 3, 7)
    together = vmap(lambda p, x: functional_call(cells[0], p, (x,)))(params, xs)
    for cell, x, out in zip(cells, xs, together, strict=True):
        torch.testing.assert_close(out, cell(x))


def test_linear_gru_serves_no_samples():
    assert LinearGru(3, 5)(X[:0]).shape == (0, 5)


def test_mean_over_time():
    torch.testing.assert_close(MeanOverTime()(X), X.mean(2))
