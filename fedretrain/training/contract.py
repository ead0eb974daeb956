"""The contract that a user's own model must keep, as functions to run on it.

Rules of this file:
    * Every check names what is wrong in one line (`ConfigError`), so that the same code serves a test suite and a
      command line.
    * Checks use random inputs of the declared shape; no data set is needed.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import torch
from torch.func import functional_call

from fedretrain.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from fedretrain.training.models import ModelBundle

_SAMPLES = 6


def check_model(build: Callable[[int], ModelBundle], input_shape: Sequence[int], num_outputs: int) -> None:
    """Run every check on a model.

    Args:
        build: From a seed to the model, for example ``lambda seed: from_path("my.models:Net", (6, 64), 4, seed)``.
        input_shape: Of one sample.
        num_outputs: Classes, or 1 for a value.

    Raises:
        ConfigError: At the first clause that the model breaks.
    """
    model = build(0)
    x = torch.randn(_SAMPLES, *input_shape, generator=torch.Generator().manual_seed(0))
    check_picklable(model)
    check_seeded(build)
    check_outputs(model, x, num_outputs)
    check_samples_apart(model, x)
    check_trainable(model, x)


def check_seeded(build: Callable[[int], ModelBundle]) -> None:
    """The first parameters depend on the seed, and on nothing else."""
    first, again, other = build(0).first, build(0).first, build(1).first
    _demand(list(first) == list(again), "two builds of the model name their parameters differently")
    for name, leaf in first.items():
        _demand(torch.equal(leaf, again[name]), f"the first value of {name} is not determined by the seed")
    moved = any(not torch.equal(leaf, other[name]) for name, leaf in first.items())
    _demand(moved, "the first parameters do not depend on the seed")


def check_outputs(model: ModelBundle, x: Tensor, num_outputs: int) -> None:
    """Outputs are finite float32 of shape [N, num_outputs], without samples too."""
    for samples in (x, x[:1], x[:0]):
        outputs = _serve(model, samples)
        expected = (len(samples), num_outputs)
        _demand(
            tuple(outputs.shape) == expected,
            f"the model's outputs have shape {tuple(outputs.shape)}, not {expected}",
        )
        _demand(outputs.dtype == torch.float32, f"the model's outputs are {outputs.dtype}, not float32")
        _demand(bool(torch.isfinite(outputs).all()), "the model's first outputs are not finite")


def check_samples_apart(model: ModelBundle, x: Tensor) -> None:
    """In service, a sample's output does not depend on the others in its batch."""
    together, alone = _serve(model, x), _serve(model, x[:1])
    _demand(
        torch.allclose(together[:1], alone, atol=1e-5, rtol=1e-4),
        "a sample's output depends on the other samples of its batch, in evaluation mode",
    )


def check_trainable(model: ModelBundle, x: Tensor) -> None:
    """Every trainable parameter takes part in the outputs, and the gradients are finite."""
    leaves = {name: model.first[name].clone().requires_grad_() for name in model.trainable}
    module = pickle.loads(pickle.dumps(model.module)).eval()  # noqa: S301 - its own bytes, made here
    outputs = functional_call(module, {**model.first, **leaves}, (x,))
    grads = torch.autograd.grad(outputs.square().sum(), list(leaves.values()), allow_unused=True)
    for name, grad in zip(leaves, grads, strict=True):
        _demand(grad is not None, f"the parameter {name} takes no part in the outputs")
        assert grad is not None
        _demand(bool(torch.isfinite(grad).all()), f"the gradient of {name} is not finite")


def check_picklable(model: ModelBundle) -> None:
    """Workers in other processes receive the model by pickle."""
    try:
        pickle.dumps(model)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"the model cannot be sent to a worker: {error}",
            where="model",
            fix="define its classes at the top of a module",
        ) from error


def _serve(model: ModelBundle, x: Tensor) -> Tensor:
    training = model.module.training
    try:
        with torch.no_grad():
            outputs: Tensor = functional_call(model.module.eval(), dict(model.first), (x,))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(
            f"the model fails on {len(x)} samples of shape {tuple(x.shape[1:])}: {error}", where="model"
        ) from error
    finally:
        model.module.train(training)
    return outputs


def _demand(holds: bool, what: str) -> None:
    if not holds:
        raise ConfigError(what, where="model")
