"""Lives run in parallel: one process for each life, as many at a time as there are cores.

Rules of this file:
    * A life is a pure function of configuration, policy and seed; where it runs changes nothing, nor does where it was stopped.
    * A life is lived in slices; between two of them it can be put aside. Whatever stops the run puts every life aside that can go on
      from there, and one that is over is not lived again (`Shelf`). Only this process writes.
    * A life whose process was killed goes on once more from where it was put aside.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fedretrain.core.errors import FedretrainError, UserError
from sim.interrupts import held, terminate_is_ctrl_c
from sim.schema import RunnerKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sim.lifetime.policies import NamedPolicy
    from sim.lifetime.records import Life
    from sim.lifetime.shelf import Shelf
    from sim.schema import Config

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

SLICE_S = 1.0
"""Seconds of wall time that a life is lived before it may be put aside."""


class UnderWay(Protocol[T_co]):
    """A job that was begun."""

    def go(self, seconds: float) -> T_co | None:
        """Go on for about so many seconds; the result once it is over."""
        ...

    def save(self) -> bytes | None:
        """Everything that another process needs to go on; None if it would have to begin again."""
        ...


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

    def begin(self, saved: bytes | None, where: str) -> UnderWay[T_co]:
        """Begin it in this process, or go on from what was saved, which comes from `where`."""
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

    def begin(self, saved: bytes | None, where: str) -> UnderWay[Life]:
        """Begin it in this process, or go on."""
        import torch

        from sim.lifetime.underway import LifeUnderWay

        torch.set_num_threads(1)
        return LifeUnderWay(self.config, self.policy, self.seed, saved, where)


def run_jobs(jobs: Sequence[Job[T]], told: Callable[[T], None], shelf: Shelf) -> list[T]:
    """Run all lives that are not over; `told` hears of each when it is.

    Returns:
        In the order of the jobs.

    Raises:
        FedretrainError: If a life could not be lived to its end.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, every life put aside.
    """
    found: dict[int, T] = {}
    left: dict[int, Job[T]] = {}
    for place, job in enumerate(jobs):
        over = shelf.finished(place)
        if over is None:
            left[place] = job
        else:
            found[place] = over
            told(over)

    def done(place: int, result: T) -> None:
        shelf.finish(place, result)
        found[place] = result
        told(result)

    run = _in_ray if jobs[0].config.runner.kind is RunnerKind.RAY and len(left) > 1 else _here
    run(left, shelf, done)
    return [found[place] for place in range(len(jobs))]


def _here(jobs: dict[int, Job[T]], shelf: Shelf, done: Callable[[int, T], None]) -> None:
    """One after the other in this process."""
    with terminate_is_ctrl_c():
        for place, job in jobs.items():
            done(place, _lived(place, job, shelf))


def _lived(place: int, job: Job[T], shelf: Shelf) -> T:
    life = job.begin(shelf.under_way(place), shelf.where(place))
    shelf.begun(place)
    try:
        while True:
            with held():
                found = life.go(SLICE_S)
            if found is not None:
                return found
            shelf.put_aside_if_due(place, life.save)
    except KeyboardInterrupt:  # between two slices: `held` lets none be broken off
        with suppress(UserError):  # a full disk: what was put aside last stands
            shelf.put_aside(place, life.save)
        raise


def _in_ray(jobs: dict[int, Job[T]], shelf: Shelf, done: Callable[[int, T], None]) -> None:
    """In processes of Ray's, as many at a time as it has cores."""
    import ray

    from sim.ray_runner import start_ray

    start_ray(next(iter(jobs.values())).config.runner)
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting, elsewhere = list(jobs.items()), _Elsewhere(shelf)
    with terminate_is_ctrl_c():  # after Ray has started: it sets a handler of its own
        try:
            while waiting or elsewhere.num_lives:
                while waiting and elsewhere.num_lives < cores:
                    elsewhere.begin(*waiting.pop(0))
                for place, result in elsewhere.step():
                    done(place, result)
        except BaseException:
            elsewhere.put_aside()
            raise
        finally:
            elsewhere.end()


class _Remote:
    """A life in a process of its own."""

    def __init__(self, job: Job[Any], saved: bytes | None, where: str) -> None:
        self._job, self._saved, self._where = job, saved, where
        self._life: UnderWay[Any] | None = None

    def go(self, seconds: float) -> Any:
        """See `UnderWay`. It begins here, so that what is wrong comes back as what it is."""
        if self._life is None:
            self._life, self._saved = self._job.begin(self._saved, self._where), None
        return self._life.go(seconds)

    def save(self) -> bytes | None:
        """See `UnderWay`."""
        return None if self._life is None else self._life.save()


@dataclass
class _Life:
    """A life in another process, as it is known here.

    Attributes:
        job: What it is.
        actor: Its process.
        has_begun: Whether it has lived a slice: then it can be put aside.
        was_killed: Whether its process died before.
    """

    job: Job[Any]
    actor: Any
    has_begun: bool = False
    was_killed: bool = False


class _Elsewhere:
    """The lives that are lived in other processes. Mutable."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._lives: dict[int, _Life] = {}
        self._asked: dict[Any, int] = {}

    @property
    def num_lives(self) -> int:
        """How many there are."""
        return len(self._lives)

    def begin(self, place: int, job: Job[Any]) -> None:
        """A life begins, or goes on from where it was put aside."""
        self._lives[place] = _Life(job, self._actor(place, job))
        self._ask(place)

    def step(self) -> list[tuple[int, Any]]:
        """Wait for a slice to be lived; the life if it was the last one.

        Raises:
            FedretrainError: If it could not be lived to its end.
        """
        import ray

        (ready,), _ = ray.wait(list(self._asked), num_returns=1)
        place = self._asked.pop(ready)
        life = self._lives[place]
        try:
            found = ray.get(ready)
        except ray.exceptions.RayActorError as error:
            self._again(place, error)
            return []
        except ray.exceptions.RayTaskError as error:
            del self._lives[place]  # broken off within a slice: it cannot be put aside
            ray.kill(life.actor)
            raise _cause(error, life.job) from error
        if found is not None:
            del self._lives[place]
            ray.kill(life.actor)
            return [(place, found)]
        if not life.has_begun:
            life.has_begun = True
            self._shelf.begun(place)
        self._shelf.put_aside_if_due(place, self._save_of(life))
        self._ask(place)
        return []

    def put_aside(self) -> None:
        """Put every life aside that can be."""
        for place, life in self._lives.items():
            if life.has_begun:
                with suppress(Exception):  # a full disk, a dead process: what was put aside last stands
                    self._shelf.put_aside(place, self._save_of(life))

    def end(self) -> None:
        """End their processes."""
        import ray

        for life in self._lives.values():
            ray.kill(life.actor)

    def _actor(self, place: int, job: Job[Any]) -> Any:
        import ray

        remote = ray.remote(_Remote).options(num_cpus=1, max_restarts=0)
        return remote.remote(_local(job), self._shelf.under_way(place), self._shelf.where(place))

    def _ask(self, place: int) -> None:
        self._asked[self._lives[place].actor.go.remote(SLICE_S)] = place

    def _again(self, place: int, error: Exception) -> None:
        """A process died: once more from where the life was put aside."""
        life = self._lives.pop(place)
        if life.was_killed:
            raise _cause(error, life.job) from error
        self._lives[place] = _Life(life.job, self._actor(place, life.job), was_killed=True)
        self._ask(place)

    def _save_of(self, life: _Life) -> Callable[[], bytes | None]:
        import ray

        def save() -> bytes | None:
            data: bytes | None = ray.get(life.actor.save.remote())
            return data

        return save


def _local(job: Any) -> Any:
    """The same life with its cohorts in its own process."""
    return replace(job, config=replace(job.config, runner=replace(job.config.runner, kind=RunnerKind.LOCAL)))


def _cause(error: Exception, job: Job[Any]) -> Exception:
    """What went wrong in the other process: a user's error as such, a defect of ours as it is."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, FedretrainError):
        return cause
    return RuntimeError(f"{job.title} failed: {error}")
