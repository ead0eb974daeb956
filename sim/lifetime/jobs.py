"""Lives run in parallel: one process for each life, as many at a time as there are cores.

Rules of this file:
    * A life is a pure function of configuration, policy and seed; where it runs changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fedretrain.core.errors import FedretrainError
from sim.schema import RunnerKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sim.lifetime.policies import NamedPolicy
    from sim.lifetime.records import Life
    from sim.schema import Config

T_co = TypeVar("T_co", covariant=True)


class Job(Protocol[T_co]):
    """A life to be lived in any process: a frozen dataclass with these fields."""

    @property
    def config(self) -> Config:
        """The experiment's configuration."""
        ...

    @property
    def title(self) -> str:
        """What to call it if it fails."""
        ...

    def run(self) -> T_co:
        """Live it, in this process."""
        ...


@dataclass(frozen=True)
class LifeJob:
    """One life.

    Attributes:
        config: The experiment's configuration.
        policy: The policy that it lives under.
        seed: Of everything random.
    """

    config: Config
    policy: NamedPolicy
    seed: int

    @property
    def title(self) -> str:
        """What to call it if it fails."""
        return f"the life of policy {self.policy.name}, seed {self.seed},"

    def run(self) -> Life:
        """Live it, in this process."""
        import torch

        from sim.lifetime.loop import live

        torch.set_num_threads(1)
        return live(self.config, self.policy, self.seed)


def run_jobs(jobs: Sequence[Job[T_co]], told: Callable[[T_co], None]) -> list[T_co]:
    """Run all lives; `told` hears of each when it is over.

    Returns:
        In the order of the jobs.

    Raises:
        FedretrainError: If a life could not be lived to its end.
    """
    kind = jobs[0].config.runner.kind
    if kind is RunnerKind.RAY and len(jobs) > 1:
        found = dict(_in_ray(jobs, told))
    else:
        found = {}
        for at, job in enumerate(jobs):
            found[at] = job.run()
            told(found[at])
    return [found[at] for at in range(len(jobs))]


def _in_ray(jobs: Sequence[Job[T_co]], told: Callable[[T_co], None]) -> Iterator[tuple[int, T_co]]:
    import ray

    from sim.ray_runner import start_ray

    start_ray(jobs[0].config.runner)
    remote = ray.remote(_run).options(num_cpus=1, max_retries=1)
    # Longest first would need to know; seeds in turn keep the policies of one seed together.
    waiting = {remote.remote(_local(job)): at for at, job in enumerate(jobs)}
    while waiting:
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        at = waiting.pop(ready)
        try:
            life: T_co = ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            raise _cause(error, jobs[at]) from error
        told(life)
        yield at, life


def _run(job: Job[T_co]) -> T_co:
    return job.run()


def _local(job: Any) -> Any:
    """The same life with its cohorts in its own process."""
    return replace(job, config=replace(job.config, runner=replace(job.config.runner, kind=RunnerKind.LOCAL)))


def _cause(error: Exception, job: Job[Any]) -> Exception:
    """What went wrong in the other process: a user's error as such, a defect of ours as it is."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, FedretrainError):
        return cause
    return RuntimeError(f"{job.title} failed: {error}")
