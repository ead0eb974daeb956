"""The cohort in this process: the runner that every other is compared with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedretrain.coordinator.ports import CohortRunner
from sim.evaluation import evaluate
from sim.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fedretrain.coordinator.ports import RoundSpec, ShardResult
    from fedretrain.core.params import Params
    from sim.arm import Arm
    from sim.evaluation import Evaluation
    from sim.personal_store import PersonalStore


def cut_deadline(spec: RoundSpec, reply_after_s: NDArray[np.float64]) -> RoundSpec:
    """The round with its deadline moved to the reply after which nobody is waited for (over-selection).

    Args:
        spec: The round.
        reply_after_s: ``[K]`` when each asked device would reply, in seconds from the start; inf if never.
    """
    in_time = np.sort(reply_after_s[reply_after_s <= spec.deadline_s])
    if spec.stop_after is None or len(in_time) <= spec.stop_after:
        return spec
    return replace(spec, deadline_s=float(in_time[spec.stop_after - 1]))


class SimulatedRunner(CohortRunner, Protocol):
    """What the simulator asks of a runner beyond a production one: scores of devices' own future rows."""

    def evaluate(self, shared: Params, devices: NDArray[np.int64], *, round_: int, at: float) -> Evaluation:
        """Score devices ``[K]`` with the global and with their personalized models."""
        ...


class Pool(Protocol):
    """Where the cohorts of a whole run train: every arm gets its runner here."""

    def runner(self, arm: Arm, store: PersonalStore) -> SimulatedRunner:
        """A runner for one arm and its devices' personal states."""
        ...

    def peak_memory_bytes(self) -> list[int]:
        """Peak resident memory of each worker process, as far as it is known."""
        ...

    def stop(self) -> None:
        """End what was started."""
        ...


class LocalPool:
    """This process."""

    def runner(self, arm: Arm, store: PersonalStore) -> LocalRunner:
        """A runner here."""
        return LocalRunner(arm, store)

    def peak_memory_bytes(self) -> list[int]:
        """There are no other processes."""
        return []

    def stop(self) -> None:
        """Nothing was started."""


class LocalRunner:
    """Trains cohorts here; see `SimulatedRunner`.

    Args:
        arm: The world, the model and the method.
        store: The devices' personal states.
    """

    def __init__(self, arm: Arm, store: PersonalStore) -> None:
        self._arm, self._worker, self._store = arm, Worker(arm), store

    def run(self, spec: RoundSpec, cohort: NDArray[np.int64]) -> Iterator[ShardResult]:
        """One shard: the whole cohort."""
        if spec.stop_after is not None:
            spec = cut_deadline(spec, self._worker.reply_times(spec, cohort))
        trained = self._worker.train(spec, cohort, self._store.get(cohort.tolist()))
        self._store.stage(trained.devices, trained.personal_KQ)
        yield trained.shard

    def evaluate(self, shared: Params, devices: NDArray[np.int64], *, round_: int, at: float) -> Evaluation:
        """All devices here."""
        return evaluate(self._arm, shared, devices, self._store.get(devices.tolist()), round_=round_, at=at)

    def close(self) -> None:
        """Nothing to free."""
