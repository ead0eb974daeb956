"""Which models may be batched, how, and why not.

Rules of this file:
    * `stack` gives hand-batched rules for an `nn.Sequential` (nested ones too) of leaf layers that `stacked` and
      `stacked_signal` know; any other model that torch.func.vmap can trace runs under it (several times slower, exact).
    * Everything else is an `UnsupportedModelError` that names the layer and the executor that does run it. Never a
      silent fallback.
    * Equality with `each` is the condition: a layer that mixes the samples of a batch, or draws random numbers,
      cannot be batched and still equal the loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedretrain.core.errors import UnsupportedModelError
from fedretrain.training import layers, stacked, stacked_signal
from fedretrain.training.stacked_gru import LinearGru

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedretrain.training.models import ModelBundle
    from fedretrain.training.stacked import Chain, Rule

# Parameter-free, every sample apart: run by autograd of the layer alone, on [K * B, ...].
_LOCAL = (
    nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.LeakyReLU, nn.Softplus, nn.Hardtanh, nn.ReLU6,
    nn.Hardswish, nn.Hardsigmoid, nn.Mish, nn.Softsign, nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveMaxPool1d, nn.Unflatten,
)  # fmt: skip
_NO_RULE = (nn.GRU, nn.LSTM, nn.RNN)


def refuse_unbatchable(module: nn.Module) -> None:
    """Refuse layers that cannot be batched and equal the loop.

    Raises:
        UnsupportedModelError: Naming the layer, the reason and the executor that runs it.
    """
    for name, layer in module.named_modules():
        if reason := _reason_against(layer):
            raise refusal(f"the layer {name or 'itself'} ({type(layer).__name__})", reason)


def refusal(subject: str, reason: str) -> UnsupportedModelError:
    """The one line for a model that the batched executor does not run."""
    return UnsupportedModelError(
        f"{subject} cannot be batched: {reason}",
        where="executor=batched",
        fix="set runner.executor=each, which runs it, or change the layer",
    )


def stack(module: nn.Module) -> Chain | None:
    """Hand-batched rules of a model, or None if it has a layer or a shape of code without any."""
    everything = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    if len(list(module.parameters())) != len(everything) or _has_hooks(module):  # tied, or a layer used twice
        return None
    rules: list[Rule] = []
    for prefix, leaf in _leaves("", module):
        if isinstance(leaf, nn.Identity) or (isinstance(leaf, nn.Dropout) and leaf.p == 0):
            continue
        rule = _rule(prefix, leaf)
        if rule is None:
            return None
        rules.append(rule)
    assert sorted(name for rule in rules for name in rule.names) == sorted(everything)
    return stacked.Chain(tuple(rules))


def check_vmap(model: ModelBundle, x: Tensor) -> None:
    """Try a vmapped forward and backward pass of two clients on one sample shape.

    Args:
        model: The model.
        x: ``[B, *F]`` any samples.

    Raises:
        UnsupportedModelError: If the model cannot be traced.
    """
    stacked_params = {n: p.expand(2, *p.shape).clone().requires_grad_() for n, p in model.first.items()}
    try:
        with torch.enable_grad():
            y = vmapped(model.module)(stacked_params, torch.stack([x, x]))
            y.sum().backward()
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise refusal(
            f"the model {type(model.module).__name__}", f"torch.func.vmap says {reason!r}"
        ) from error


def vmapped(module: nn.Module):  # type: ignore[no-untyped-def] # noqa: ANN201 - torch.func types nothing
    """The module as a function of stacked parameters and samples ``[K, B, *F]``."""

    def call(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, params, (x,))

    return torch.func.vmap(call)


def _reason_against(layer: nn.Module) -> str:
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - torch names no public base
        return "its statistics mix the samples of a batch and change as it runs"
    if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:  # noqa: SLF001
        return "its random draws would differ from those of a client trained alone"
    if isinstance(layer, _NO_RULE):
        return "torch has no batching rule for it (training.layers.LinearGru, the model gru, has one)"
    return ""


def _has_hooks(module: nn.Module) -> bool:
    return any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks  # noqa: SLF001
        for m in module.modules()
    )


def _leaves(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if type(module) is nn.Sequential:
        for name, child in module._modules.items():  # noqa: SLF001 - children() leaves out a layer used twice
            assert child is not None
            yield from _leaves(f"{prefix}{name}.", child)
    else:
        yield prefix, module


def _rule(prefix: str, layer: nn.Module) -> Rule | None:  # noqa: PLR0911 - a table
    """The rule of one leaf; exact types, since a subclass may compute something else."""
    kind = type(layer)
    names = {own: f"{prefix}{own}" for own, p in layer.named_parameters(recurse=False) if p is not None}
    weight, bias = names.get("weight"), names.get("bias")
    if kind is nn.Linear and weight:
        return stacked.Linear(weight, bias)
    if kind is nn.ReLU:
        return stacked.ReLU()
    if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1):
        return stacked.Flatten()
    if kind is layers.MeanOverTime:
        return stacked.MeanOverTime()
    if isinstance(layer, nn.Conv1d) and kind is nn.Conv1d and weight and _is_plain(layer):
        return stacked_signal.Conv1d(weight, bias, layer.stride[0], int(layer.padding[0]))
    if isinstance(layer, nn.GroupNorm) and kind is nn.GroupNorm:
        return stacked_signal.GroupNorm(weight, bias, layer.num_groups, layer.eps)
    if isinstance(layer, nn.LayerNorm) and kind is nn.LayerNorm:
        return stacked_signal.LayerNorm(weight, bias, tuple(layer.normalized_shape), layer.eps)
    if isinstance(layer, layers.LinearGru) and kind is layers.LinearGru:
        return LinearGru.of(prefix, sequence=layer.sequence)
    return stacked.Local(layer) if kind in _LOCAL else None


def _is_plain(layer: nn.Conv1d) -> bool:
    return (
        layer.groups == 1
        and layer.dilation == (1,)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )
