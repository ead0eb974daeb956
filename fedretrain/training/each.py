"""The reference executor: one client at a time, slow and obvious.

Rules of this file:
    * Never optimised. Every faster executor is tested against it, and it against plain PyTorch.
    * It serves any `nn.Module`: BatchNorm (its statistics are shared parameters, changed by the forward pass) and
      Dropout (its random state is seeded by client and step) included.
    * Padding is dropped, not masked: a batch holds the samples it has.
    * It alone draws example-level DP's noise and coins from the system's entropy (`secret`): what devices run.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.func import functional_call

from fedretrain.core.errors import ConfigError
from fedretrain.core.types import UpdateBlock
from fedretrain.training import data, example_dp
from fedretrain.training.losses import Loss, masked_mean
from fedretrain.training.task import Batch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from fedretrain.core.params import Layout, Params
    from fedretrain.training.config import LocalTraining
    from fedretrain.training.executor import ClientWork
    from fedretrain.training.models import ModelBundle
    from fedretrain.training.per_example import PerExampleGradients
    from fedretrain.training.phase import Phase
    from fedretrain.training.task import LocalTask, State, Tree


class EachExecutor:
    """Trains clients one after the other; see `executor.Executor`."""

    def __init__(
        self, task: LocalTask, model: ModelBundle, local: LocalTraining, *, secret: bool = False
    ) -> None:
        self._task, self._local, self._secret = task, local, secret
        self._training = copy.deepcopy(model.module).train()
        self._serving = copy.deepcopy(model.module).eval()
        self._engine = _Engine(self._training, local, secret=secret)

    def train(self, shared: Params, work: Sequence[ClientWork]) -> Iterator[UpdateBlock]:
        """One block for each client."""
        base = _tensors(shared)
        for one in work:
            state, loss = self._run(base, one, self._task.phases())
            delta, personal = self._task.final(state)
            yield UpdateBlock(
                clients=np.array([one.client], dtype=np.int64),
                delta_KP=_pack(self._task.shared, delta)[None],
                num_examples=np.array([len(one.data)], dtype=np.int64),
                loss=np.array([loss], dtype=np.float32),
                personal_KQ=_pack(self._task.personal, personal)[None],
            )

    def refit(self, shared: Params, work: Sequence[ClientWork]) -> NDArray[np.float32]:
        """Personal state alone, one client after the other."""
        base = _tensors(shared)
        fitted = np.empty((len(work), self._task.personal.size), dtype=np.float32)
        for row, one in zip(fitted, work, strict=True):
            state, _ = self._run(base, one, self._task.refit_phases())
            row[:] = _pack(self._task.personal, self._task.final(state)[1])
        return fitted

    def predict(
        self, shared: Params, work: Sequence[ClientWork], *, personalized: bool
    ) -> list[NDArray[np.float32]]:
        """One forward pass over each client's samples."""
        base = _tensors(shared)
        outputs = []
        for one in work:
            if personalized and one.personal is not None:
                personal = _tensors(self._task.personal.unpack(one.personal))
                params = self._task.model_params(base, personal)
            else:
                params = self._task.global_params(base)
            x = torch.from_numpy(np.ascontiguousarray(one.data.x))
            with torch.no_grad():
                outputs.append(functional_call(self._serving, params, (x,)).numpy())
        return outputs

    def _run(self, base: Tree, one: ClientWork, phases: Sequence[Phase]) -> tuple[State, float]:
        """All phases of one client: its last state, and its mean training loss over the samples seen."""
        personal = (
            self._task.first_personal(base)
            if one.personal is None
            else _tensors(self._task.personal.unpack(one.personal))
        )
        state = self._task.init(base, personal)
        seeds = np.array([one.seed], dtype=np.uint64)
        sizes = np.array([len(one.data)], dtype=np.int64)
        total, seen = 0.0, 0
        with torch.random.fork_rng(devices=[]):
            for phase in phases:
                plan = data.plan(self._local, phase, sizes, seeds, secret=self._secret)
                for index in range(int(plan.steps[0])):
                    chosen = plan.index_KSB[0, index]
                    batch = _batch(one, chosen[chosen >= 0])
                    self._engine.begin(seeds, phase, index)
                    loss = self._task.step(self._engine, state, batch, phase, index)
                    total, seen = total + float(loss) * len(batch.y), seen + len(batch.y)
        return state, total / seen if seen else float("nan")


class _Engine:
    """`task.Engine` for one client: parameters have their own shapes."""

    lead = 0

    def __init__(self, module: torch.nn.Module, local: LocalTraining, *, secret: bool) -> None:
        self._secret = secret
        self._module, self._dp, self._batch_size = module, local.example_dp, local.batch_size
        self._loss = Loss.of(local)
        self._constants = {n: b for n, b in module.named_buffers() if not b.is_floating_point()}
        self._noise_seed = np.zeros((), dtype=np.uint64)
        self._per_example: PerExampleGradients | None = None
        if self._dp is not None:
            from fedretrain.training.per_example import PerExampleGradients

            self._per_example = PerExampleGradients(module, self._loss)

    def begin(self, seeds: NDArray[np.uint64], phase: Phase, index: int) -> None:
        """Seed one step's noise and the module's own randomness (Dropout)."""
        self._noise_seed = example_dp.noise_seeds(seeds, phase, index)[0]
        torch.manual_seed(int(data.client_seeds(seeds, f"dropout/{phase.name}", index)[0] >> np.uint64(1)))

    def grads(
        self, params: Tree, batch: Batch, trainable: Collection[str], *, personal: bool = False
    ) -> tuple[Tree, Tensor]:
        """By autograd, or with example-level DP by per-example gradients."""
        if self._per_example is not None and not personal:
            return self._private_grads(self._per_example, params, batch, trainable)
        if len(batch.y) == 0:  # a Poisson batch may be empty
            return {name: torch.zeros_like(params[name]) for name in trainable}, torch.zeros(())
        leaves = {name: params[name].detach().requires_grad_() for name in trainable}
        loss = masked_mean(
            self._loss.per_sample(self._forward({**params, **leaves}, batch.x), batch.y), batch.weight
        )
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        grads = {
            name: torch.zeros_like(leaf)
            if grad is None
            else grad.clone(memory_format=torch.contiguous_format)
            for (name, leaf), grad in zip(leaves.items(), found, strict=True)
        }
        return grads, loss.detach()

    def _forward(self, params: Tree, x: Tensor) -> Tensor:
        constants = {name: buffer.clone() for name, buffer in self._constants.items()}
        try:
            outputs: Tensor = functional_call(self._module, {**params, **constants}, (x,))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConfigError(
                f"a batch of one sample cannot train BatchNorm: {error}",
                where="training.batch_size",
                fix="use a model with GroupNorm, or batches that leave no single sample over",
            ) from error
        return outputs

    def _private_grads(
        self, per_example: PerExampleGradients, params: Tree, batch: Batch, trainable: Collection[str]
    ) -> tuple[Tree, Tensor]:
        assert self._dp is not None
        sums, loss = per_example.clipped_sums(params, batch, trainable, self._dp.clip_norm)
        if self._dp.noise_multiplier > 0 and self._secret:
            sums = example_dp.noised_secretly(self._dp, sums)
        elif self._dp.noise_multiplier > 0:
            drawn = example_dp.noise(self._dp, self._noise_seed, params, trainable, lead=0)
            sums = {name: leaf + drawn[name] for name, leaf in sums.items()}
        return {name: leaf / self._batch_size for name, leaf in sums.items()}, loss

    def descend_(
        self, params: Tree, batch: Batch, trainable: Collection[str], lr: float, *, personal: bool = False
    ) -> Tensor | None:
        """Never fused: the reference takes the gradient and the optimizer one after the other."""
        del params, batch, trainable, lr, personal
        return None

    def dot(self, a: Tree, b: Tree) -> Tensor:
        """The inner product over all parameters."""
        return torch.stack([(a[name] * b[name]).sum() for name in a]).sum() if a else torch.zeros(())

    def scale_(self, tree: Tree, factor: Tensor) -> None:
        """Multiply every parameter."""
        for leaf in tree.values():
            leaf.mul_(factor)


def _tensors(tree: Params) -> Tree:
    return {name: torch.from_numpy(np.array(leaf, dtype=np.float32)) for name, leaf in tree.items()}


def _pack(layout: Layout, tree: Tree) -> NDArray[np.float32]:
    return layout.pack({name: leaf.detach().numpy() for name, leaf in tree.items()})


def _batch(one: ClientWork, chosen: NDArray[np.int64]) -> Batch:
    return Batch(
        x=torch.from_numpy(one.data.x[chosen]),
        y=torch.from_numpy(one.data.y[chosen]),
        weight=torch.ones(len(chosen)),
    )
