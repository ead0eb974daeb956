"""Models: three of our own, and any `nn.Module` by import path.

Rules of this file:
    * A factory is called as ``factory(input_shape, num_outputs, seed, **hyperparameters)`` and gives a module; the
      first parameters depend on the arguments alone, never on the global random state.
    * Our own are `nn.Sequential` of plain leaf modules, the last one named ``head``, so that they can be
      batched by hand and partitioned by name.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fedretrain.core.errors import ConfigError
from fedretrain.training.layers import LinearGru, MeanOverTime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fedretrain.core.params import Params


@dataclass(frozen=True)
class ModelBundle:
    """A module and its first parameters.

    Attributes:
        module: Called through `torch.func.functional_call`, never changed.
        first: Parameters and persistent float buffers by name, float32.
    """

    module: nn.Module
    first: dict[str, Tensor]

    @classmethod
    def of(cls, module: nn.Module) -> ModelBundle:
        """The bundle of a module, with its present parameters as the first ones.

        Raises:
            ConfigError: If nothing of the module can be trained.
        """
        module = module.float()
        kept = module.state_dict(keep_vars=True)  # a tied parameter appears under each of its names
        named: dict[str, Tensor] = dict(module.named_parameters())
        named |= {n: b for n, b in module.named_buffers() if n in kept and b.is_floating_point()}
        bundle = cls(module, {name: leaf.detach().clone() for name, leaf in named.items()})
        if not bundle.trainable:
            raise ConfigError(f"the model {type(module).__name__} has no parameter to train", where="model")
        return bundle

    @cached_property
    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters that are differentiated."""
        return tuple(n for n, p in self.module.named_parameters() if p.requires_grad)

    def starting(self, params: Params) -> ModelBundle:
        """The same model with other first parameters: a warm start.

        Args:
            params: By name; what is not named stays.

        Raises:
            ConfigError: If one is not the model's, or has another shape.
        """
        for name, leaf in params.items():
            if name not in self.first or tuple(self.first[name].shape) != np.shape(leaf):
                raise ConfigError(
                    f"{name} does not fit the model",
                    where="model",
                    fix="start from weights of the same model",
                )
        fresh = {name: torch.from_numpy(np.array(leaf, dtype=np.float32)) for name, leaf in params.items()}
        return ModelBundle(self.module, {**self.first, **fresh})

    def first_params(self) -> Params:
        """The first parameters as numpy arrays."""
        return {name: leaf.numpy().copy() for name, leaf in self.first.items()}


def mlp(
    input_shape: Sequence[int], num_outputs: int, seed: int, *, hidden: Sequence[int] = (64,)
) -> ModelBundle:
    """A multi-layer perceptron over all inputs.

    Args:
        input_shape: F, or (C, T): flattened.
        num_outputs: Classes, or 1 for a value.
        seed: Of the first parameters.
        hidden: Width of each hidden layer.
    """
    _check_widths("hidden", hidden)
    widths = [_product(input_shape), *hidden]

    def build() -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for i, (before, after) in enumerate(pairwise(widths)):
            layers[f"linear{i}"], layers[f"relu{i}"] = nn.Linear(before, after), nn.ReLU()
        layers["head"] = nn.Linear(widths[-1], num_outputs)
        return nn.Sequential(layers)

    return _seeded(build, seed)


def cnn1d(
    input_shape: Sequence[int],
    num_outputs: int,
    seed: int,
    *,
    channels: Sequence[int] = (32, 64),
    kernel_size: int = 5,
    stride: int = 1,
    groups: int = 8,
) -> ModelBundle:
    """A 1D-CNN with GroupNorm over signals (C, T), then the mean over time.

    Args:
        input_shape: (C, T).
        num_outputs: Classes, or 1 for a value.
        seed: Of the first parameters.
        channels: Width of each convolution.
        kernel_size: Samples that a filter sees.
        stride: Of every convolution: 2 halves the time axis at each.
        groups: Of GroupNorm; must divide every width.
    """
    num_channels = _signal_shape(input_shape, "cnn1d")[0]
    _check_widths("channels", channels)
    _check_widths("kernel_size, stride, groups", (kernel_size, stride, groups))
    if bad := [width for width in channels if width % groups]:
        raise ConfigError(f"{groups} groups do not divide {bad[0]} channels", where="model.groups")
    widths = [num_channels, *channels]

    def build() -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (before, after) in enumerate(pairwise(widths)):
            layers[f"conv{i}"] = nn.Conv1d(
                before, after, kernel_size, stride=stride, padding=kernel_size // 2
            )
            layers[f"norm{i}"], layers[f"relu{i}"] = nn.GroupNorm(groups, after), nn.ReLU()
        layers["pool"] = MeanOverTime()
        layers["head"] = nn.Linear(widths[-1], num_outputs)
        return nn.Sequential(layers)

    return _seeded(build, seed)


def gru(
    input_shape: Sequence[int], num_outputs: int, seed: int, *, hidden: int = 32, num_layers: int = 1
) -> ModelBundle:
    """A recurrent network over signals (C, T); the last hidden state feeds the head.

    Args:
        input_shape: (C, T).
        num_outputs: Classes, or 1 for a value.
        seed: Of the first parameters.
        hidden: Width of the hidden state.
        num_layers: Recurrent layers.
    """
    num_channels = _signal_shape(input_shape, "gru")[0]
    _check_widths("hidden, num_layers", (hidden, num_layers))

    def build() -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(num_layers):
            layers[f"gru{i}"] = LinearGru(
                num_channels if i == 0 else hidden, hidden, sequence=i < num_layers - 1
            )
        layers["head"] = nn.Linear(hidden, num_outputs)
        return nn.Sequential(layers)

    return _seeded(build, seed)


def from_path(
    path: str, input_shape: Sequence[int], num_outputs: int, seed: int, **hyperparameters: Any
) -> ModelBundle:
    """A user's model by import path.

    Args:
        path: ``"package.module:factory"``; the factory takes ``(input_shape, num_outputs, **hyperparameters)``
            (a class will do) and gives an `nn.Module`.
        input_shape: Of one sample.
        num_outputs: Classes, or 1 for a value.
        seed: Of the first parameters: torch's random state is seeded with it while the factory runs.
        hyperparameters: Passed on.

    Raises:
        ConfigError: If the path does not lead to a factory, or the factory fails or gives something else.
    """
    factory = _imported(path)
    if getattr(factory, "__module__", "") == __name__:
        bundle = factory(input_shape, num_outputs, seed, **hyperparameters)
        return bundle if isinstance(bundle, ModelBundle) else ModelBundle.of(bundle)

    def build() -> nn.Module:
        try:
            built = factory(tuple(input_shape), num_outputs, **hyperparameters)
        except TypeError as error:
            raise ConfigError(f"the model factory failed: {error}", where=path) from error
        if not isinstance(built, nn.Module):
            raise ConfigError(f"the factory gave a {type(built).__name__}, not an nn.Module", where=path)
        return built

    return _seeded(build, seed)


def _imported(path: str) -> Callable[..., Any]:
    module_name, _, name = path.partition(":")
    fix = 'give "package.module:factory"'
    try:
        factory = getattr(importlib.import_module(module_name), name) if name else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"cannot import the model: {error}", where=path, fix=fix) from error
    if not callable(factory):
        raise ConfigError("the path names no model factory", where=path, fix=fix)
    return factory


def _seeded(build: Callable[[], nn.Module], seed: int) -> ModelBundle:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        return ModelBundle.of(build())


def _check_widths(name: str, values: Sequence[int]) -> None:
    """Refuse sizes that are no whole numbers of at least 1."""
    whole = not isinstance(values, (str, int)) and all(type(value) is int and value >= 1 for value in values)
    if not whole:
        raise ConfigError(
            f"{values!r} is not possible",
            where=f"model: {name}",
            fix="give whole numbers of at least 1",
        )


def _product(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= int(size)
    return total


def _signal_shape(shape: Sequence[int], model: str) -> tuple[int, int]:
    if len(shape) != 2:
        raise ConfigError(
            f"{model} needs signals of shape (channels, time), not {tuple(shape)}",
            where="model",
            fix="use the mlp for tables, or a pipeline that keeps the time axis",
        )
    return int(shape[0]), int(shape[1])
