"""The peer Flower: its own simulation (`run_simulation` on Ray) of an ordinary client app.

Rules of this file:
    * A client app as Flower's documentation writes it: load the weights, a plain torch loop, send the weights back.
      Nothing is slowed down; each worker keeps its copy of the data and of the model between messages.
    * Rounds are told apart inside the strategy, so Ray's start and the first (warm-up) round are not counted.

Called through `benchmarks.client_update.worker` (Ray's workers must be able to import this module by name).
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from flwr.simulation import run_simulation

from benchmarks.client_update.job import Job, Problem, load, save_result
from benchmarks.measure import Reading, Tree, cores
from benchmarks.peers.loop import accuracy, build, train_client


@lru_cache(maxsize=1)
def _loaded(folder: str) -> tuple[Job, Problem, torch.nn.Module]:
    torch.set_num_threads(1)
    job, problem = load(Path(folder))
    return job, problem, build(job)


def _client_app(folder: str) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        job, problem, model = _loaded(folder)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        # Rounds that all do the same work start from the first personal layers each time.
        if job.personal and job.advance and "personal" in context.state:
            model.load_state_dict(context.state["personal"].to_torch_state_dict(), strict=False)
        x, y = problem.client(int(context.node_config["partition-id"]))
        loss = train_client(model, x, y, job)
        state = model.state_dict()
        if job.personal:
            kept = {name: leaf for name, leaf in state.items() if name.startswith("head.")}
            context.state["personal"] = ArrayRecord(kept)
            state = {
                **state,
                **message.content["arrays"].to_torch_state_dict(),
                **{name: leaf for name, leaf in state.items() if name not in kept},
            }
        metrics = MetricRecord({"loss": loss, "num-examples": len(y)})
        return Message(RecordDict({"arrays": ArrayRecord(state), "metrics": metrics}), reply_to=message)

    return app


class _Watched(FedAvg):
    """FedAvg that reads the process tree's clocks after each round."""

    def __init__(self, tree: Tree, first: ArrayRecord, num_clients: int, *, advance: bool) -> None:
        super().__init__(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=num_clients,
            min_available_nodes=num_clients,
        )
        self.readings: list[Reading] = []
        self.last: ArrayRecord | None = None
        self._tree, self._first, self._advance = tree, first, advance

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """FedAvg's own aggregate; the next round starts from the first weights again unless told to advance."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.last = arrays
        self.readings.append(self._tree.read())
        return (arrays if self._advance else self._first), metrics


def main(folder: str) -> None:
    """Run a job and write its result."""
    torch.set_num_threads(1)
    job, problem, model = _loaded(folder)
    model.load_state_dict({name: torch.from_numpy(w) for name, w in problem.weights.items()})
    first, tree = ArrayRecord(model.state_dict()), Tree()
    started = tree.read()
    watched = _Watched(tree, first, problem.num_clients, advance=job.advance)
    strategy: Any = watched
    if job.clip_norm:
        strategy = DifferentialPrivacyServerSideFixedClipping(
            watched, job.noise_multiplier, job.clip_norm, problem.num_clients
        )
    server_app = ServerApp()

    @server_app.main()
    def run(grid: Grid, context: Context) -> None:  # noqa: ARG001
        strategy.start(grid=grid, initial_arrays=first, num_rounds=job.rounds + 1)

    run_simulation(
        server_app,
        _client_app(folder),
        num_supernodes=problem.num_clients,
        backend_config={
            "init_args": {"num_cpus": cores(), "include_dashboard": False, "log_to_driver": False},
            "client_resources": {"num_cpus": 1},
        },
    )
    ended = tree.read()
    assert watched.last is not None
    state = watched.last.to_torch_state_dict()
    model.load_state_dict(state)
    result = {
        "cpu_s": [b.cpu_s - a.cpu_s for a, b in zip(watched.readings, watched.readings[1:], strict=False)],
        "wall_s": [b.wall_s - a.wall_s for a, b in zip(watched.readings, watched.readings[1:], strict=False)],
        "whole_cpu_s": ended.cpu_s,
        "whole_wall_s": ended.wall_s - started.wall_s,
        "peak_mib": tree.peak_mib(),
        "accuracy": accuracy(model, problem),
    }
    save_result(Path(folder), "flower", result, {name: leaf.numpy() for name, leaf in state.items()})
