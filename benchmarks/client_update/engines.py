"""Our own engines on a job: `each`, `batched`, and one centralised pass over the same samples.

Rules of this file:
    * A measured round is everything that a simulated round does for its clients: the plan of batches, local training,
      and the sum of the updates (with DP through the coordinator's reducer: clip, fixed-point sum, noise).
    * The samples of a job lie in batch order; here they are put back, so that the executor's own plan restores it.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.client_update.job import Job, Problem, load, save_result
from benchmarks.measure import Reading, Tree
from benchmarks.peers.loop import accuracy, build
from fedretrain.core.ids import ClientId
from fedretrain.core.rng import seeds_for
from fedretrain.core.types import ClientData, MethodKind
from fedretrain.training import data, models
from fedretrain.training.config import LocalTraining, MethodConfig, OptimizerConfig
from fedretrain.training.executor import ClientWork, Executor
from fedretrain.training.methods.make import make_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fedretrain.core.params import Layout
    from fedretrain.core.types import UpdateBlock

_CENTRAL_BATCH = 256
_LEAST_SECONDS = 2.0  # short rounds are repeated until they add up to this much CPU time


def main(engine: str, folder: str) -> None:
    """Run a job and write its result."""
    torch.set_num_threads(1)
    tree = Tree()
    started = tree.read()
    job, problem = load(Path(folder))
    if engine == "central":
        readings = _repeat(job, tree, _central(job, problem))
        saved: dict[str, NDArray[Any]] = {}
        model = None
    else:
        rounds = Rounds(engine, job, problem)
        readings = _repeat(job, tree, rounds.run)
        saved = rounds.weights()
        model = rounds.model()
    ended = tree.read()
    result = {
        "cpu_s": [b.cpu_s - a.cpu_s for a, b in itertools.pairwise(readings)],
        "wall_s": [b.wall_s - a.wall_s for a, b in itertools.pairwise(readings)],
        "whole_cpu_s": ended.cpu_s,
        "whole_wall_s": ended.wall_s - started.wall_s,
        "peak_mib": tree.peak_mib(),
        "accuracy": None if model is None else accuracy(model, problem),
    }
    save_result(Path(folder), engine, result, saved)


def _repeat(job: Job, tree: Tree, run: Callable[[], None]) -> list[Reading]:
    """A warm-up round, then the job's rounds; more of them where they are short and all alike."""
    run()
    readings = [tree.read()]
    start = time.process_time()
    while len(readings) <= job.rounds or (not job.advance and time.process_time() - start < _LEAST_SECONDS):
        run()
        readings.append(tree.read())
    return readings


class Rounds:
    """Rounds of one executor.

    Args:
        engine: ``"each"`` or ``"batched"``.
        job: What to do.
        problem: On what.
    """

    def __init__(self, engine: str, job: Job, problem: Problem) -> None:
        self._job = job
        local = LocalTraining(batch_size=job.batch_size, optimizer=OptimizerConfig(lr=job.lr))
        kind = MethodKind.FEDPER if job.personal else MethodKind.FEDAVG
        method = MethodConfig(kind=kind, personal_patterns=job.personal or ("head.*",))
        self._bundle = getattr(models, job.model)(job.input_shape, job.num_outputs, 0, **job.model_options)
        for name, leaf in self._bundle.first.items():
            leaf.copy_(torch.from_numpy(problem.weights[name]))
        self._task = make_task(method, local, self._bundle)
        self._executor = self._executor_named(engine, local)
        self._layout: Layout = self._task.shared
        self._first = {name: problem.weights[name] for name in self._layout.names}
        self._base = dict(self._first)
        self._work = _work(problem, local, self._task.phases()[0])
        self._personal: dict[int, NDArray[np.float32]] = {}
        self._mean = np.zeros(self._layout.size)
        self._weighted = np.zeros(self._layout.size)

    def _executor_named(self, engine: str, local: LocalTraining) -> Executor:
        if engine == "each":
            from fedretrain.training.each import EachExecutor

            return EachExecutor(self._task, self._bundle, local)
        from fedretrain.training.batched import BatchedExecutor

        return BatchedExecutor(self._task, self._bundle, local, block_size=self._job.block_size)

    def run(self) -> None:
        """One round; from the first weights unless the job advances."""
        base = self._base if self._job.advance else self._first
        blocks = self._executor.train(base, self._work)
        if self._job.clip_norm:
            self._mean = self._private_mean(blocks)
        else:
            self._add_up(blocks)
        if self._job.advance:
            moved = self._layout.unpack(self._mean.astype(np.float32))
            self._base = {name: leaf + moved[name] for name, leaf in self._base.items()}

    def _add_up(self, blocks: Any) -> None:
        mean, weighted, examples, clients = 0.0, 0.0, 0, 0
        block: UpdateBlock
        for block in blocks:
            ones = np.ones(len(block), dtype=np.float32)
            both = np.stack([ones, block.num_examples.astype(np.float32)]) @ block.delta_KP
            mean, weighted = mean + both[0].astype(np.float64), weighted + both[1].astype(np.float64)
            examples, clients = examples + int(block.num_examples.sum()), clients + len(block)
            if self._job.personal:
                self._personal |= dict(zip(block.clients.tolist(), block.personal_KQ, strict=True))
        self._mean, self._weighted = np.asarray(mean) / clients, np.asarray(weighted) / examples

    def _private_mean(self, blocks: Any) -> NDArray[np.float64]:
        from fedretrain.aggregation.aggregator import FixedDenominatorMean
        from fedretrain.coordinator.ports import RoundSpec
        from fedretrain.coordinator.reduce import Reducer
        from fedretrain.privacy.mechanism import SeededNoise

        mean = FixedDenominatorMean(len(self._work))
        spec = RoundSpec(0, self._first, 0, 0, 0.0, mean, clip_norm=self._job.clip_norm)
        reducer = Reducer(spec, np.array([one.client for one in self._work]))
        for block in blocks:
            reducer.add(block)
        state = reducer.result().partial.state
        stddev = self._job.noise_multiplier * self._job.clip_norm
        noise = SeededNoise(0).gaussian(self._layout.size, stddev)
        return mean.release(state) + noise / len(self._work)

    def weights(self) -> dict[str, NDArray[Any]]:
        """The last round's aggregates: the mean over clients, and over examples (prefix ``weighted/``)."""
        if self._job.advance:
            return dict(self._base)
        found: dict[str, NDArray[Any]] = {}
        for prefix, step in (("", self._mean), ("weighted/", self._weighted)):
            moved = self._layout.unpack(step.astype(np.float32))
            found |= {prefix + name: leaf + moved[name] for name, leaf in self._first.items()}
        return found

    def model(self) -> torch.nn.Module | None:
        """The last global model, where the whole model is shared."""
        if self._job.personal:
            return None
        model = build(self._job)
        weights = self.weights()
        model.load_state_dict({name: torch.from_numpy(weights[name]) for name in self._layout.names})
        return model


def _work(problem: Problem, local: LocalTraining, phase: Any) -> list[ClientWork]:
    """Every client's samples in an order from which the executors' plan gives the job's batches."""
    seeds = seeds_for(0, 0, np.arange(problem.num_clients), "benchmark")
    sizes = np.diff(problem.offsets)
    plan = data.plan(local, phase, sizes, seeds)
    work = []
    for k in range(problem.num_clients):
        order = plan.index_KSB[k].reshape(-1)
        order = order[order >= 0]
        x, y = problem.client(k)
        own_x, own_y = np.empty_like(x), np.empty_like(y)
        own_x[order], own_y[order] = x, y
        work.append(
            ClientWork(ClientId(k), ClientData(np.array(own_x), np.array(own_y)), None, int(seeds[k]))
        )
    return work


def _central(job: Job, problem: Problem) -> Callable[[], None]:
    """One pass over all samples of all clients, a plain torch loop with batches of 256."""
    model = build(job)
    model.load_state_dict({name: torch.from_numpy(w.copy()) for name, w in problem.weights.items()})
    optimizer = torch.optim.SGD(model.parameters(), lr=job.lr)
    x, y = torch.tensor(np.array(problem.x)), torch.tensor(np.array(problem.y))

    def run() -> None:
        for start in range(0, len(y), _CENTRAL_BATCH):
            rows = slice(start, start + _CENTRAL_BATCH)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[rows]), y[rows])
            torch.autograd.backward(loss)
            optimizer.step()

    return run
