"""The peer pfl-research 0.6: its `SimulatedBackend` in one process, in a virtual environment of its own.

Rules of this file:
    * A program as its documentation writes it: user datasets in memory, federated averaging, a model with `loss` and
      `metrics`; nothing is evaluated during the measured rounds.
    * Runs under `.venv-pfl`: imports nothing of ours that needs more than numpy, torch and psutil.

Called through `benchmarks.client_update.worker` with ``.venv-pfl/bin/python``.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy.gaussian_mechanism import GaussianMechanism
from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism

from benchmarks.client_update.job import Job, Problem, load, save_result
from benchmarks.measure import Reading, Tree, versions
from benchmarks.peers.loop import accuracy, build


class _Net(torch.nn.Module):
    """The job's model with the two methods that pfl asks for."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.model(x), y)

    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(self.model(x), y, reduction="sum")
        return {"loss": Weighted(loss.item(), len(y))}


class _Watch(TrainingProcessCallback):
    """Reads the clocks after each round; puts the first weights back unless told to advance."""

    def __init__(self, tree: Tree, model: _Net, weights: dict[str, torch.Tensor], *, advance: bool) -> None:
        self.readings: list[Reading] = []
        self.last: dict[str, torch.Tensor] = {}
        self._tree, self._net, self._weights, self._advance = tree, model, weights, advance

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        del aggregate_metrics, model, central_iteration
        self.readings.append(self._tree.read())
        self.last = {name: leaf.detach().clone() for name, leaf in self._net.model.state_dict().items()}
        if not self._advance:
            self._net.model.load_state_dict(self._weights)
        return False, Metrics()


def _federated(problem: Problem) -> FederatedDataset:
    users = []
    for k in range(problem.num_clients):
        x, y = problem.client(k)
        users.append(Dataset((torch.tensor(x), torch.tensor(y)), user_id=str(k)))
    turns = itertools.cycle(range(len(users)))  # each round asks every client once
    return FederatedDataset(lambda k: users[k], lambda: next(turns))


def _backend(job: Job, problem: Problem) -> SimulatedBackend:
    mechanism = []
    if job.clip_norm:
        gaussian = GaussianMechanism(job.clip_norm, job.noise_multiplier)
        mechanism = [CentrallyAppliedPrivacyMechanism(gaussian)]
    data = _federated(problem)
    return SimulatedBackend(training_data=data, val_data=data, postprocessors=mechanism)


def main(folder: str) -> None:
    """Run a job and write its result."""
    torch.set_num_threads(1)
    tree = Tree()
    started = tree.read()
    job, problem = load(Path(folder))
    net = _Net(build(job))
    weights = {name: torch.from_numpy(w.copy()) for name, w in problem.weights.items()}
    net.model.load_state_dict(weights)
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))
    watch = _Watch(tree, net, weights, advance=job.advance)
    rounds = job.rounds + 1
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds + 1,
            train_cohort_size=problem.num_clients,
            val_cohort_size=0,
        ),
        _backend(job, problem),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=job.lr, local_batch_size=job.batch_size),
        NNEvalHyperParams(local_batch_size=None),
        [watch],
    )
    ended = tree.read()
    net.model.load_state_dict(watch.last)
    pairs = list(zip(watch.readings, watch.readings[1:], strict=False))
    result = {
        "cpu_s": [b.cpu_s - a.cpu_s for a, b in pairs],
        "wall_s": [b.wall_s - a.wall_s for a, b in pairs],
        "whole_cpu_s": ended.cpu_s,
        "whole_wall_s": ended.wall_s - started.wall_s,
        "peak_mib": tree.peak_mib(),
        "accuracy": accuracy(net.model, problem),
        "versions": versions("pfl", "torch", "numpy"),
    }
    save_result(Path(folder), "pfl", result, {name: leaf.numpy() for name, leaf in watch.last.items()})
