"""The batched executor: many clients' models, stacked, take every step together.

Shape letters: K clients of a block (a at a step: those that still have steps to do), S steps, B samples of a batch,
F model inputs, P shared parameters and Q personal state (packed), M samples of all clients of a block.

Rules of this file:
    * Clients are sorted by their number of samples, most first, and cut into blocks: at each step the active clients
      are a prefix of their block, so no step is masked or padded. Only a client's last batch is padded, inside the
      batch, with weight 0; padding never leaves the executor.
    * Losses of different clients share nothing, so the gradient of their sum is each client's own gradient.
    * Batches come from `data.plan` and methods from `methods`, as in `each`; results equal its to rounding.
    * Nothing here falls back to `each`: what cannot be batched is refused (`batchable`).
    * float32, in this process, on one thread (`memory`): parallelism comes from processes.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedretrain.core.types import UpdateBlock
from fedretrain.training import batchable, data
from fedretrain.training.batched_engine import ChainEngine, StackedEngine, VmapEngine
from fedretrain.training.blocks import BlockSamples, StepPlan
from fedretrain.training.memory import keep_freed_memory, one_thread
from fedretrain.training.methods.common import PackedTree

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from fedretrain.core.params import Layout, Params
    from fedretrain.training.config import LocalTraining
    from fedretrain.training.executor import ClientWork
    from fedretrain.training.models import ModelBundle
    from fedretrain.training.phase import Phase
    from fedretrain.training.task import LocalTask, State, Tree

_BLOCK_BYTES = 3_700_000  # stacked parameters of a block: they and their batch stay in a core's cache
_LEAST_CLIENTS, _MOST_CLIENTS = 16, 256
_PREDICT_ROWS = 8192


class BatchedExecutor:
    """Trains blocks of clients at once; see `executor.Executor`.

    Args:
        task: The method.
        model: The model that it was made for.
        local: How clients train.
        block_size: Clients in a block; 0: chosen by the model's size.

    Raises:
        UnsupportedModelError: If the model cannot be batched; it names the layer, and `each` runs it.
    """

    def __init__(
        self, task: LocalTask, model: ModelBundle, local: LocalTraining, *, block_size: int = 0
    ) -> None:
        module = copy.deepcopy(model.module).train()
        batchable.refuse_unbatchable(module)
        chain = batchable.stack(module)
        self._task, self._local = task, local
        self._engine: StackedEngine = (
            ChainEngine(chain, module, local) if chain is not None else VmapEngine(module, local)
        )
        self._block_size = block_size or _block_size(model)
        self._unchecked = chain is None
        self._model = model
        keep_freed_memory()

    def train(self, shared: Params, work: Sequence[ClientWork]) -> Iterator[UpdateBlock]:
        """Blocks of clients of like size, those with most samples first."""
        base = self._engine.arranged(_tensors(shared))
        self._check(work)
        for rows in self._blocks(work):
            with one_thread():
                update = self._train_block(base, [work[row] for row in rows])
            yield update

    def _train_block(self, base: Tree, block: Sequence[ClientWork]) -> UpdateBlock:
        samples = BlockSamples.of(block)
        state, loss = self._run(base, block, samples, self._task.phases())
        with torch.no_grad():
            delta, personal = self._task.final(state)
        return UpdateBlock(
            clients=np.array([one.client for one in block], dtype=np.int64),
            delta_KP=_pack(self._task.shared, delta, len(block)),
            num_examples=samples.sizes,
            loss=loss,
            personal_KQ=_pack(self._task.personal, personal, len(block)),
        )

    def refit(self, shared: Params, work: Sequence[ClientWork]) -> NDArray[np.float32]:
        """Personal state alone, block by block."""
        base = self._engine.arranged(_tensors(shared))
        self._check(work)
        fitted = np.empty((len(work), self._task.personal.size), dtype=np.float32)
        for rows in self._blocks(work):
            block = [work[row] for row in rows]
            with one_thread(), torch.no_grad():
                state, _ = self._run(base, block, BlockSamples.of(block), self._task.refit_phases())
                fitted[rows] = _pack(self._task.personal, self._task.final(state)[1], len(block))
        return fitted

    def predict(
        self, shared: Params, work: Sequence[ClientWork], *, personalized: bool
    ) -> list[NDArray[np.float32]]:
        """Block by block; each client's samples are padded to the block's most, and the padding is cut off."""
        base = _tensors(shared)
        self._check(work)
        outputs: list[NDArray[np.float32]] = [np.empty((0, 0), dtype=np.float32)] * len(work)
        personalized = personalized and self._task.personal.size > 0
        own = [row for row, one in enumerate(work) if personalized and one.personal is not None]
        own_set = set(own)
        rest = [row for row in range(len(work)) if row not in own_set]
        with one_thread(), torch.no_grad():
            self._predict_global(base, work, rest, outputs)
            for rows in self._blocks([work[row] for row in own]):
                self._predict_own(base, work, [own[row] for row in rows], outputs)
        return outputs

    def _predict_global(
        self, base: Tree, work: Sequence[ClientWork], rows: Sequence[int], outputs: list[NDArray[np.float32]]
    ) -> None:
        """Clients with the same model are one batch."""
        if not rows:
            return
        params = {n: leaf.unsqueeze(0) for n, leaf in self._task.global_params(base).items()}
        for start in range(0, len(rows), _PREDICT_ROWS):
            part = rows[start : start + _PREDICT_ROWS]
            samples = BlockSamples.of([work[row] for row in part])
            found = [
                self._engine.outputs(params, x.unsqueeze(0))[0] for x in torch.split(samples.x, _PREDICT_ROWS)
            ]
            together = torch.cat(found).numpy()
            for row, begin, size in zip(part, samples.offsets, samples.sizes, strict=True):
                outputs[row] = together[begin : begin + size]

    def _predict_own(
        self, base: Tree, work: Sequence[ClientWork], rows: Sequence[int], outputs: list[NDArray[np.float32]]
    ) -> None:
        block = [work[row] for row in rows]
        samples = BlockSamples.of(block)
        params = torch.func.vmap(lambda own: self._task.model_params(base, own))(self._personal(base, block))
        params = {name: leaf.contiguous() for name, leaf in params.items()}
        widest = int(samples.sizes.max(initial=0))
        chunk = max(1, _PREDICT_ROWS // len(block))
        found = [
            self._engine.outputs(params, samples.window(start, min(start + chunk, widest)))
            for start in range(0, max(widest, 1), chunk)
        ]
        together = torch.cat(found, dim=1).numpy()
        for at, (row, size) in enumerate(zip(rows, samples.sizes, strict=True)):
            outputs[row] = together[at, :size]

    def _blocks(self, work: Sequence[ClientWork]) -> Iterator[NDArray[np.int64]]:
        sizes = np.fromiter((len(one.data.y) for one in work), dtype=np.int64, count=len(work))
        order = np.argsort(-sizes, kind="stable")
        if len(order):
            # Blocks of equal size: a short last one would pay every operation's fixed cost for a few clients.
            yield from np.array_split(order, -(-len(order) // self._block_size))

    def _check(self, work: Sequence[ClientWork]) -> None:
        """Once, before any client is trained: can this model be traced on samples of this shape?"""
        if self._unchecked and work:
            shape = work[0].data.x.shape[1:]
            batchable.check_vmap(self._model, torch.zeros(2, *shape))
            self._unchecked = False

    def _personal(self, base: Tree, block: Sequence[ClientWork]) -> Tree:
        """Stacked personal state ``[K, ...]`` of every client; the first one where a client has none."""
        layout = self._task.personal
        if layout.size == 0:
            return {}
        packed = np.empty((len(block), layout.size), dtype=np.float32)
        for row, one in zip(packed, block, strict=True):
            if one.personal is not None:
                row[:] = one.personal
        if new := [at for at, one in enumerate(block) if one.personal is None]:
            first = self._task.first_personal(base)
            packed[new] = layout.pack({name: leaf.numpy() for name, leaf in first.items()})
        parts = torch.split(torch.from_numpy(packed), list(layout.sizes), dim=1)
        return {
            name: part.reshape(len(block), *shape)
            for name, part, shape in zip(layout.names, parts, layout.shapes, strict=True)
        }

    def _run(
        self, base: Tree, block: Sequence[ClientWork], samples: BlockSamples, phases: Sequence[Phase]
    ) -> tuple[State, NDArray[np.float32]]:
        """All phases of a block: its last state, and each client's mean loss over the samples that it saw."""
        seeds = np.fromiter((one.seed for one in block), dtype=np.uint64, count=len(block))
        stacked_base = {name: leaf.expand(len(block), *leaf.shape) for name, leaf in base.items()}
        total, seen = torch.zeros(len(block)), np.zeros(len(block), dtype=np.int64)
        with torch.no_grad():
            state = self._task.init(stacked_base, self._personal(base, block))
            for phase in phases:
                plan = StepPlan.of(data.plan(self._local, phase, samples.sizes, seeds), samples)
                self._run_phase(state, samples, plan, phase, seeds, total)
                seen += plan.counts_SK.sum(axis=0)
        with np.errstate(invalid="ignore"):
            mean = total.numpy() / seen
        return state, np.where(seen > 0, mean, np.nan).astype(np.float32)

    def _run_phase(
        self,
        state: State,
        samples: BlockSamples,
        plan: StepPlan,
        phase: Phase,
        seeds: NDArray[np.uint64],
        total: Tensor,
    ) -> None:
        views, viewed = state, len(samples.sizes)
        for index, active in enumerate(plan.active):
            if active != viewed:
                views, viewed = _prefix(state, active), active
            batch = plan.batch(index, samples)
            self._engine.begin(seeds[:active], phase, index, plan.share(index))
            loss = self._task.step(self._engine, views, batch, phase, index)
            total[:active] += loss * plan.counts(index)


def _prefix(state: State, active: int) -> State:
    return {group: {name: leaf[:active] for name, leaf in tree.items()} for group, tree in state.items()}


def _tensors(tree: Params) -> Tree:
    return {name: torch.from_numpy(np.array(leaf, dtype=np.float32)) for name, leaf in tree.items()}


def _pack(layout: Layout, tree: Tree, num_clients: int) -> NDArray[np.float32]:
    if layout.size == 0:
        return np.empty((num_clients, 0), dtype=np.float32)
    if isinstance(tree, PackedTree):
        return tree.packed.numpy()
    packed: NDArray[np.float32] = torch.cat(
        [tree[name].reshape(num_clients, -1) for name in layout.names], dim=1
    ).numpy()
    return packed


def _block_size(model: ModelBundle) -> int:
    size = sum(leaf.numel() for leaf in model.first.values()) * 4
    return max(_LEAST_CLIENTS, min(_MOST_CLIENTS, _BLOCK_BYTES // max(size, 1)))
