"""Who tampers with a life, each in one way; every effect has its size as a hyperparameter.

Rules of this file:
    * Nobody acts before the first decision to retrain. The version that it makes is the candidate; later ones are left alone.
    * What breaks in training is trained for real. What breaks around the model (its package, its rows) is done to its outputs, and the devices' own check,
      which runs the model itself, does not see it.
    * Which rows are hit depends on the life's seed and the row.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedretrain.core import rng
from fedretrain.core.clock import DAY_S
from fedretrain.retraining.decision import Action, Decision
from fedretrain.rollout.causes import EventKind
from fedretrain.rollout.events import RolloutEvent
from sim.lifetime.saboteur import Saboteur
from sim.sabotage.executors import Garbling, Mislabelled, Poisoned, TamperedArm, Wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from fedretrain.coordinator.cycle import CycleEvent
    from fedretrain.core.params import Params
    from fedretrain.core.types import UpdateBlock
    from fedretrain.training.executor import ClientWork, Executor
    from sim.arm import Arm
    from sim.lifetime.campaigns import Trained
    from sim.lifetime.loop import Living

    Ids = NDArray[np.int64]


class Honest(Saboteur):
    """Leaves the candidate as it was trained, and knows which version it is.

    Attributes:
        candidate: The version of the first retrain; None before it is decided.
    """

    def __init__(self) -> None:
        self.candidate: int | None = None
        self._lives: Living | None = None
        self._listeners: list[Callable[[CycleEvent], None]] = []

    def attach(self, living: Living) -> None:
        """See `Saboteur`."""
        self._lives = living

    @property
    def living(self) -> Living:
        """The life that this is about."""
        assert self._lives is not None
        return self._lives

    def heard(self, event: CycleEvent) -> None:
        """See `Saboteur`."""
        body = event.body
        decided = isinstance(body, Decision) and body.action is Action.RETRAIN
        state = self.living.state
        if decided and self.candidate is None and state is not None and state.training is not None:
            self.candidate = state.training.version
        if isinstance(body, RolloutEvent):
            self.moved(body)
        for listener in self._listeners:
            listener(event)

    def listen(self, listener: Callable[[CycleEvent], None]) -> None:
        """Tell somebody of every event, after the saboteur has acted on it."""
        self._listeners.append(listener)

    def moved(self, event: RolloutEvent) -> None:
        """The rollout took a step."""

    def is_candidate(self, version: int) -> bool:
        """Whether a version is the one to tamper with."""
        return version == self.candidate


class Twin(Honest):
    """The candidate is the champion once more, personal states and all."""

    def made(self, trained: Trained) -> Trained:
        """See `Saboteur`."""
        if not self.is_candidate(trained.version):
            return trained
        assert self.living.state is not None
        versions, champion = self.living.serving.versions, self.living.state.champion
        return replace(trained, shared=versions.shared[champion], personal=dict(versions.personal[champion]))


class _Switched(Wrapped):
    """One executor until a switch is thrown, another one from then on."""

    def __init__(self, honest: Executor, tampered: Executor, on: Callable[[], bool]) -> None:
        super().__init__(honest)
        self._tampered, self._on = tampered, on

    def train(self, shared: Params, work: Sequence[ClientWork]) -> Iterator[UpdateBlock]:
        """See `Executor`."""
        yield from (self._tampered if self._on() else self._inner).train(shared, work)


class BadTraining(Honest):
    """The campaign of the candidate trains with another executor.

    Args:
        tamper: From the honest executor and the number of classes to the other one.
    """

    def __init__(self, tamper: Callable[[Executor, int], Executor]) -> None:
        super().__init__()
        self._tamper = tamper

    def training(self, arm: Arm) -> Arm:
        """See `Saboteur`."""

        def switched(honest: Executor) -> Executor:
            other = self._tamper(honest, arm.world.fleet.num_outputs)
            return _Switched(honest, other, self._trains)

        return TamperedArm(arm.config, arm.seed, arm.setting, switched)

    def _trains(self) -> bool:
        """Whether the campaign under way makes the candidate."""
        state = self.living.state
        return state is not None and state.training is not None and self.is_candidate(state.training.version)


def label_flips(share: float) -> BadTraining:
    """A share of all training labels is the next class."""
    return BadTraining(lambda honest, num_classes: Mislabelled(honest, share, num_classes))


def poisoned_clients(share: float, factor: float) -> BadTraining:
    """A share of the clients sends its updates times a factor."""
    return BadTraining(lambda honest, _: Poisoned(honest, share, factor))


class NotNumbers(Honest):
    """Some of the candidate's weights are NaN.

    Args:
        share: Of the first array of weights; at least one.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self._share = share

    def made(self, trained: Trained) -> Trained:
        """See `Saboteur`."""
        if not self.is_candidate(trained.version) or trained.shared is None:
            return trained
        name = min(trained.shared)
        leaf = trained.shared[name].copy()
        leaf.reshape(-1)[: max(1, round(self._share * leaf.size))] = np.nan
        return replace(trained, shared={**trained.shared, name: leaf})


class Costly(Honest):
    """The candidate is slower, or larger.

    Args:
        slowdown: Times the latency.
        growth: Times the size.
    """

    def __init__(self, *, slowdown: float = 1.0, growth: float = 1.0) -> None:
        super().__init__()
        self._slowdown, self._growth = slowdown, growth

    def latency_s(self, version: int, usual_s: float) -> float:
        """See `Saboteur`."""
        return usual_s * self._slowdown if self.is_candidate(version) else usual_s

    def size_bytes(self, version: int, usual: int) -> int:
        """See `Saboteur`."""
        return round(usual * self._growth) if self.is_candidate(version) else usual


class Scaled(Honest):
    """The candidate's logits are scaled: the same decisions, wrong confidence.

    Args:
        scale: Times the logits; above 1 it is surer than it should be, below 1 less sure.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self._scale = np.float32(scale)

    def logits(
        self, version: int, rows: Ids, logits: NDArray[np.float32], *, served: bool
    ) -> NDArray[np.float32]:
        """See `Saboteur`."""
        del rows, served
        return logits * self._scale if self.is_candidate(version) else logits


class Rows(Protocol):
    """Which of the rows ``[n]`` of a life something is done to."""

    def __call__(self, living: Living, rows: Ids) -> NDArray[np.bool_]:
        """``[n]``."""
        ...


def all_rows(living: Living, rows: Ids) -> NDArray[np.bool_]:
    """Every one."""
    del living
    return np.ones(len(rows), dtype=np.bool_)


def late_rows(living: Living, rows: Ids) -> NDArray[np.bool_]:
    """Those whose label takes longer than a day, and comes."""
    delay = living.rows.label_at[rows] - living.rows.event_at[rows]
    return np.isfinite(delay) & (delay > DAY_S)


def rows_of_site(site: int) -> Rows:
    """Those of the devices of a site."""

    def chosen(living: Living, rows: Ids) -> NDArray[np.bool_]:
        sites = living.fleet.traits(living.everybody).site
        return np.asarray(sites[living.rows.device[rows]] == site)

    return chosen


class WrongOutputs(Honest):
    """The candidate errs on a share of some rows, and may be right on a share of all others.

    Args:
        where: The rows on which it errs.
        share: Of them; these rows get the class after the one that the model would say.
        gain: Share of the other rows that it gets right whatever the model would say.
        only_served: On devices that serve it; validation and shadow see nothing.
    """

    def __init__(self, where: Rows, share: float, *, gain: float = 0.0, only_served: bool = False) -> None:
        super().__init__()
        self._where, self._share, self._gain, self._only_served = where, share, gain, only_served

    def logits(
        self, version: int, rows: Ids, logits: NDArray[np.float32], *, served: bool
    ) -> NDArray[np.float32]:
        """See `Saboteur`."""
        if not self.is_candidate(version) or (self._only_served and not served):
            return logits
        living = self.living
        seeds = np.full(len(rows), living.seed_of("sabotaged rows"), dtype=np.uint64)
        draw = rng.uniforms_at(seeds, rows)
        hit = self._where(living, rows)
        made = logits.copy()
        wrong = np.flatnonzero(hit & (draw < self._share))
        made[wrong] = np.roll(logits[wrong], 1, axis=1)
        right = np.flatnonzero(~hit & (draw < self._gain))
        _swap_top(made, right, living.rows.y[rows[right]].astype(np.int64))
        return made


def _swap_top(logits: NDArray[np.float32], which: Ids, label: Ids) -> None:
    """Give the largest logit of some rows to the given class, in place."""
    top = logits[which].argmax(axis=1)
    largest, other = logits[which, top], logits[which, label]
    logits[which, top], logits[which, label] = other, largest


class GarbledInstall(Honest):
    """The re-fit of personal state goes wrong where the candidate is installed to be served.

    Args:
        spread: Standard deviation of what is added to every number of it.
    """

    def __init__(self, spread: float) -> None:
        super().__init__()
        self._spread = spread

    def installing(self, version: int, executor: Executor) -> Executor:
        """See `Saboteur`."""
        return Garbling(executor, self._spread) if self.is_candidate(version) else executor


class DeadLabels(Honest):
    """No label arrives any more once the canary's devices have installed the candidate; the candidate is good."""

    def moved(self, event: RolloutEvent) -> None:
        """See `Honest`."""
        if event.kind is EventKind.INSTALLED and event.step == 1:
            rows = self.living.rows
            rows.label_at[rows.label_at > event.at] = np.inf
            rows.arrival_at[rows.arrival_at > event.at] = np.inf
