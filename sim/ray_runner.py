"""A cohort sharded over Ray actors, each returning one partial sum; an address takes it to a cluster.

Rules of this file:
    * A device always goes to the same actor, so its data stay there (``device % actors``).
    * Training is a pure function of what is sent, so a killed actor's call is repeated on a fresh one, with the same
      result; what cannot be repeated costs its devices as LOST, never a wrong aggregate.
    * Personal states travel with the call and come back with the answer: an actor keeps nothing that matters.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import ConfigError, FedretrainError
from fedretrain.core.ids import ClientId
from fedretrain.core.types import ClientFailure, FailureKind
from sim.evaluation import Evaluation
from sim.local_runner import cut_deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from fedretrain.coordinator.ports import RoundSpec, ShardResult
    from fedretrain.core.params import Params
    from sim.arm import Arm
    from sim.personal_store import PersonalStore, Rows
    from sim.schema import Config, RunnerConfig
    from sim.worker import Trained

    Ids = NDArray[np.int64]

_RETRIES = 2
_REACH_S = 5.0  # that a cluster's head may take to answer


class ShardActor:
    """Plays the devices of one shard in its own process; each call names the arm that it is about."""

    def __init__(self) -> None:
        import torch

        from sim.arm import Arms

        torch.set_num_threads(1)  # clients are small: processes share the cores
        self._arms = Arms()

    def pid(self) -> int:
        """The process, for tests that kill it."""
        return os.getpid()

    def peak_memory_bytes(self) -> int:
        """Peak resident memory of this worker."""
        from sim.describe import own_peak_bytes

        return own_peak_bytes()

    def reply_times(self, config: Config, seed: int, spec: RoundSpec, devices: Ids) -> NDArray[np.float64]:
        """See `Worker.reply_times`."""
        from sim.worker import Worker

        return Worker(self._arms.get(config, seed)).reply_times(spec, devices)

    def train(self, config: Config, seed: int, spec: RoundSpec, devices: Ids, personal: Rows) -> Trained:
        """See `Worker.train`."""
        from sim.worker import Worker

        return Worker(self._arms.get(config, seed)).train(spec, devices, personal)

    def evaluate(
        self, config: Config, seed: int, shared: Params, devices: Ids, personal: Rows, round_: int, at: float
    ) -> Evaluation:
        """See `evaluation.evaluate`."""
        from sim.evaluation import evaluate

        return evaluate(self._arms.get(config, seed), shared, devices, personal, round_=round_, at=at)


@dataclass(frozen=True)
class RayPool:
    """The actors that every arm of a run shares.

    Attributes:
        actors: Handles.
    """

    actors: tuple[Any, ...]

    @classmethod
    def start(cls, config: RunnerConfig) -> RayPool:
        """Join or start Ray, and start the actors, which come up while the caller goes on.

        Raises:
            ConfigError: If the cluster cannot be joined.
        """
        import ray

        start_ray(config)
        cpus = float(ray.cluster_resources().get("CPU", 1))
        count = config.num_workers or max(1, int(cpus))
        # Any number of actors fits on any machine: each claims a share of the CPUs, at most half a one.
        share = int(1000 * min(0.5, cpus / count)) / 1000
        actor = ray.remote(ShardActor).options(num_cpus=share, max_restarts=-1, max_task_retries=_RETRIES)
        return cls(tuple(actor.remote() for _ in range(count)))

    def runner(self, arm: Arm, store: PersonalStore) -> RayRunner:
        """A runner on these actors."""
        return RayRunner(arm, store, self)

    def peak_memory_bytes(self) -> list[int]:
        """Peak resident memory of each worker."""
        import ray

        found: list[int] = ray.get([actor.peak_memory_bytes.remote() for actor in self.actors])
        return found

    def stop(self) -> None:
        """End the actors; Ray itself stays for others of this process."""
        import ray

        if ray.is_initialized():
            for actor in self.actors:
                ray.kill(actor)


def start_ray(config: RunnerConfig) -> None:
    """Join the configured cluster, or start Ray here; once for each process. Quiet, and without telemetry.

    Raises:
        ConfigError: If the cluster cannot be joined.
    """
    # Ray reads these when it is imported or starts its processes; its workers run one thread each by themselves.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return
    try:
        _reach(config.address)
        ray.init(
            address=config.address or None,
            include_dashboard=None if config.address else False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot join Ray: {error}", where="runner.address", fix="start it with `ray start --head`"
        ) from error


def _reach(address: str) -> None:
    """Fail in seconds where nothing answers at ``HOST:PORT``; Ray itself tries for minutes.

    Raises:
        OSError: If nothing answers.
    """
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S):
            pass


class RayRunner:
    """Trains cohorts on a pool of actors; see `local_runner.SimulatedRunner`.

    Args:
        arm: Its configuration and seed are what the actors build theirs from.
        store: The devices' personal states.
        pool: The actors.
    """

    def __init__(self, arm: Arm, store: PersonalStore, pool: RayPool) -> None:
        import ray

        self._store, self._actors = store, pool.actors
        self._config, self._seed = ray.put(arm.config), arm.seed

    def run(self, spec: RoundSpec, cohort: Ids) -> Iterator[ShardResult]:
        """One shard per actor, as they come in."""
        import ray

        sent = ray.put(spec)
        if spec.stop_after is not None:
            times = dict(
                self._call(
                    lambda actor, devices: actor.reply_times.remote(*self._head, sent, devices), cohort
                )
            )
            joined = np.concatenate(
                [t for t in times.values() if not isinstance(t, Exception)] or [np.zeros(0)]
            )
            sent = ray.put(cut_deadline(spec, joined))

        def train(actor: Any, devices: Ids) -> Any:
            return actor.train.remote(*self._head, sent, devices, self._store.get(devices.tolist()))

        for index, answer in self._call(train, cohort):
            if isinstance(answer, Exception):
                yield _lost(spec, self._shards(cohort)[index], answer)
                continue
            self._store.stage(answer.devices, answer.personal_KQ)
            yield answer.shard

    def evaluate(self, shared: Params, devices: Ids, *, round_: int, at: float) -> Evaluation:
        """Devices scored where their data are."""
        import ray

        sent = ray.put(shared)

        def score(actor: Any, part: Ids) -> Any:
            rows = self._store.get(part.tolist())
            return actor.evaluate.remote(*self._head, sent, part, rows, round_, at)

        parts = []
        for _, answer in self._call(score, devices):
            if isinstance(answer, Exception):
                raise FedretrainError(f"an evaluation worker died: {answer}") from answer
            parts.append(answer)
        return Evaluation.join(parts)

    def close(self) -> None:
        """The pool is the run's, not the arm's: nothing to free."""

    @property
    def _head(self) -> tuple[Any, int]:
        return self._config, self._seed

    def _shards(self, devices: Ids) -> list[Ids]:
        count = len(self._actors)
        return [devices[devices % count == index] for index in range(count)]

    def _call(self, call: Callable[[Any, Ids], Any], devices: Ids) -> Iterator[tuple[int, Any]]:
        """Each shard's answer as it comes, or the exception of a worker that could not be replaced."""
        import ray

        shards = self._shards(devices)
        waiting = {
            call(actor, shard): index
            for index, (actor, shard) in enumerate(zip(self._actors, shards, strict=True))
            if len(shard)
        }
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            index = waiting.pop(ready)
            try:
                yield index, ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                # What a person can mend reaches them as it is; a defect keeps its own traceback.
                raise error.cause if isinstance(error.cause, FedretrainError) else error from None
            except ray.exceptions.RayError as error:
                yield index, error


def _lost(spec: RoundSpec, devices: Ids, error: Exception) -> ShardResult:
    """The result of a shard whose worker died and could not be replaced."""
    from fedretrain.coordinator.reduce import Reducer

    reducer = Reducer(spec, devices)
    detail = type(error).__name__
    reducer.fail(ClientFailure(ClientId(d), FailureKind.LOST, detail) for d in devices.tolist())
    return reducer.result()
