"""The rounds of one arm with one seed, on the virtual clock, from the first or from a checkpoint.

Rules of this file:
    * Decisions are the coordinator's (`run_round`); this loop moves the clock, asks, records, evaluates.
    * `Progress` is all that goes on from one round to the next. It changes when a round is over and at no other time,
      so an interrupted round leaves nothing behind and is repeated, bit for bit, on resuming.
    * In simulation nothing is released to anybody, so the ledger goes back with the checkpoint. A production ledger
      never does.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.coordinator.charging import Purse, SeededNoises, can_pay
from fedretrain.coordinator.round import run_round
from fedretrain.coordinator.state import Outcome, ServerState
from fedretrain.privacy.event import Sampling
from fedretrain.privacy.ledger import MemoryLedger
from sim import results
from sim.example_privacy import example_epsilons, nothing_sent, with_round
from sim.interrupts import held
from sim.personal_store import PersonalStore
from sim.summarise import spread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from fedretrain.coordinator.state import RoundResult
    from fedretrain.privacy.event import PrivacyEvent
    from sim.arm import Arm
    from sim.evaluation import Evaluation
    from sim.local_runner import SimulatedRunner
    from sim.results import DeviceScore, RoundRecord

_SAMPLED = 300  # devices by which shares of the fleet (drift, labels) are estimated in large fleets


@dataclass
class Progress:
    """Where a campaign stands between two rounds.

    Attributes:
        state: The coordinator's.
        store: The devices' personal states.
        contributed: ``[D]`` int32: in how many released rounds each device's update was used.
        sent: ``[E, 3]`` int64 for example-level DP: see `sim.example_privacy`.
        next_round: The first round not yet run; the number of rounds when it is over.
        events: The ledger's.
        records: One for each round.
        over: True if the budget ended the campaign before its last round.
    """

    state: ServerState
    store: PersonalStore
    contributed: NDArray[np.int32]
    sent: NDArray[np.int64] = field(default_factory=nothing_sent)
    next_round: int = 0
    events: list[PrivacyEvent] = field(default_factory=list)
    records: list[RoundRecord] = field(default_factory=list)
    over: bool = False


class Campaign:
    """One arm with one seed.

    Args:
        name: Key of the arm in every record.
        arm: World, model, method.
        progress: From a checkpoint; None to begin.
    """

    def __init__(self, name: str, arm: Arm, progress: Progress | None = None) -> None:
        self.name, self.arm = name, arm
        fleet, layout = arm.world.fleet, arm.task.shared
        self.rules = arm.rules
        self.progress = progress or Progress(
            ServerState.first(
                layout,
                arm.first_shared(),
                self.rules.rounds.server_optimizer,
                fleet.num_devices,
                self.rules.clip_norm,
            ),
            PersonalStore(arm.state_size),
            np.zeros(fleet.num_devices, dtype=np.int32),
        )
        self._ledger = MemoryLedger(self.progress.events)
        noises = SeededNoises(arm.seed)
        private = self.rules.rounds.dp is not None
        self.purse = Purse(self._ledger, noises, self.rules.budget) if private else None
        self._watch = _Watch(arm)

    def run(self, runner: SimulatedRunner, told: Callable[[RoundRecord], None]) -> None:
        """Run the rounds that are left; `told` hears of each when it is over."""
        campaign = self.arm.config.campaign
        while self.progress.next_round < campaign.num_rounds and not self.progress.over:
            self._round(runner, self.progress.next_round)
            told(self.progress.records[-1])

    def finish(self, runner: SimulatedRunner) -> list[DeviceScore]:
        """The final scores of every device, or of a sample of a very large fleet."""
        campaign = self.arm.config.campaign
        devices = first_devices(self.arm.world.fleet.num_devices, campaign.score_devices)
        at = campaign.num_rounds * campaign.round_interval_s
        found = runner.evaluate(self.progress.state.tree, devices, round_=campaign.num_rounds, at=at)
        progress = self.progress
        example = example_epsilons(self.arm, devices, progress.sent)
        return [score for score in device_scores(self, found, example) if score.num_scored > 0]

    def epsilon(self) -> float | None:
        """What the ledger adds up to; None without DP."""
        return None if self.purse is None else self.purse.spent.epsilon(self.rules.delta)

    def _round(self, runner: SimulatedRunner, round_: int) -> None:
        begun = time.perf_counter()
        campaign, progress, world = self.arm.config.campaign, self.progress, self.arm.world
        at = round_ * campaign.round_interval_s
        online = world.availability.online(np.arange(world.fleet.num_devices), at)
        # Under Poisson sampling the coin is tossed for everybody: who is offline is a failure, not ineligible.
        eligible = None if campaign.sampling is Sampling.POISSON else self._eligible(online)
        cohort = self.rules.sampler.cohort(self.arm.seed, round_, progress.state.history, eligible)
        progress.store.discard()
        state, result = run_round(
            progress.state,
            self.rules.rounds,
            cohort,
            runner,
            round_=round_,
            seed=self.arm.seed,
            at=at,
            purse=self.purse,
        )
        last = result.outcome is Outcome.BUDGET_SPENT or round_ + 1 == campaign.num_rounds
        due = last or (round_ + 1) % campaign.evaluate_every == 0
        try:
            progress.store.commit()
            found = self._evaluate(runner, state, round_, at) if due else None
            seconds = time.perf_counter() - begun
            record = self._record(result, found, at, float(online.mean()), seconds)
            with held():
                self._advance(state, result, record)
        except BaseException:
            if progress.next_round == round_:  # Ctrl-C during the evaluation: the round never was
                progress.store.undo()
            raise

    def _eligible(self, online: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """``[D]``: who is online and can pay; all who are online where nobody can: the round itself is then refused."""
        payers = self._can_pay()
        return online & (payers | ~payers.any())

    def _can_pay(self) -> NDArray[np.bool_]:
        """``[D]`` or ``[]``: whose unit has budget left for one more round; participations are public."""
        dp, budget, clip_norm = self.rules.rounds.dp, self.rules.budget, self.progress.state.clip_norm
        if dp is None or budget is None or self.purse is None or clip_norm is None:
            return np.ones((), dtype=np.bool_)
        num_devices = self.arm.world.fleet.num_devices
        return can_pay(
            dp,
            budget,
            self.purse.spent,
            sampling=str(self.arm.config.campaign.sampling),
            expected=self.rules.sampler.expected(num_devices),
            clip_norm=clip_norm,
            num_devices=num_devices,
        )

    def _advance(self, state: ServerState, result: RoundResult, record: RoundRecord) -> None:
        """The round is over."""
        progress = self.progress
        progress.state = state
        if result.outcome is Outcome.RELEASED:
            progress.contributed[result.oracle.clients] += 1
        progress.sent = with_round(self.arm, progress.sent, result, record.at)
        progress.events = list(self._ledger.events())
        progress.over = result.outcome is Outcome.BUDGET_SPENT
        progress.records.append(record)
        progress.next_round = result.round + 1

    def _evaluate(self, runner: SimulatedRunner, state: ServerState, round_: int, at: float) -> Evaluation:
        campaign = self.arm.config.campaign
        devices = first_devices(self.arm.world.fleet.num_devices, campaign.evaluate_devices)
        return runner.evaluate(state.tree, devices, round_=round_, at=at)

    def _record(
        self, result: RoundResult, found: Evaluation | None, at: float, online: float, seconds: float
    ) -> RoundRecord:
        losses = result.oracle.loss[np.isfinite(result.oracle.loss)]
        scores = _Spreads.of(self.arm, found)
        private = self.purse is not None
        return results.RoundRecord(
            arm=self.name,
            seed=self.arm.seed,
            round=result.round,
            at=at,
            outcome=_OUTCOMES[result.outcome],
            cohort=result.num_asked,
            replied=result.num_contributed,
            failures={str(kind): count for kind, count in result.failure_counts.items()},
            train_loss=float(losses.mean()) if len(losses) else None,
            epsilon=self.epsilon() if private else None,
            clip_norm=result.clip_norm,
            update_norm=result.update_norm,
            bytes_up=result.bytes_up,
            bytes_down=result.bytes_down,
            seconds=seconds,
            global_score=scores.global_score,
            personalized_score=scores.personalized_score,
            global_macro_f1=scores.global_macro_f1,
            personalized_macro_f1=scores.personalized_macro_f1,
            drift_fraction=self._watch.drift_fraction(at),
            labels_fraction=self._watch.labels_fraction(at),
            available_fraction=online,
        )


_OUTCOMES = {
    Outcome.RELEASED: results.Outcome.COMMITTED,
    Outcome.ABANDONED: results.Outcome.ABANDONED,
    Outcome.DIVERGED: results.Outcome.ABANDONED,
    Outcome.BUDGET_SPENT: results.Outcome.STOPPED,
}


def first_devices(num_devices: int, wanted: int) -> NDArray[np.int64]:
    """Devices to score: natural ones come first in every fleet; 0 means all."""
    return np.arange(min(num_devices, wanted or num_devices), dtype=np.int64)


@dataclass(frozen=True)
class _Spreads:
    """What a record says of an evaluation: over natural devices where there are any."""

    global_score: results.Spread | None = None
    personalized_score: results.Spread | None = None
    global_macro_f1: float | None = None
    personalized_macro_f1: float | None = None

    @classmethod
    def of(cls, arm: Arm, found: Evaluation | None) -> _Spreads:
        if found is None:
            return cls()
        metric = metric_of(arm)
        real = ~arm.world.fleet.virtual(found.devices)
        use = (real if real.any() else np.ones_like(real)) & (found.num_scored > 0)
        own = found.personalized

        def f1(scores: dict[str, NDArray[np.float64]] | None) -> float | None:
            return float(np.mean(scores["macro_f1"][use])) if scores and "macro_f1" in scores else None

        return cls(
            spread(found.global_model[metric][use], metric),
            None if own is None else spread(own[metric][use], metric),
            f1(dict(found.global_model)),
            f1(None if own is None else dict(own)),
        )


def metric_of(arm: Arm) -> results.Metric:
    """The main metric of the arm's task."""
    classifies = arm.world.fleet.objective == "classification"
    return results.Metric.ACCURACY if classifies else results.Metric.RMSE


def device_scores(
    campaign: Campaign, found: Evaluation, example: NDArray[np.float64] | None
) -> Sequence[DeviceScore]:
    """Final scores as records, one for each device."""
    arm, metric = campaign.arm, metric_of(campaign.arm)
    virtual = arm.world.fleet.virtual(found.devices)
    own = found.personalized or {}

    def value(scores: dict[str, NDArray[np.float64]], name: str, k: int) -> float | None:
        return float(scores[name][k]) if name in scores and np.isfinite(scores[name][k]) else None

    theirs = dict(found.global_model)
    return [
        results.DeviceScore(
            arm=campaign.name,
            seed=arm.seed,
            device=int(device),
            is_virtual=bool(virtual[k]),
            cold_start=bool(campaign.progress.contributed[device] == 0),
            num_rounds=int(campaign.progress.contributed[device]),
            num_scored=int(found.num_scored[k]),
            global_score=value(theirs, metric, k),
            personalized_score=value(dict(own), metric, k),
            global_macro_f1=value(theirs, "macro_f1", k),
            personalized_macro_f1=value(dict(own), "macro_f1", k),
            global_mae=value(theirs, "mae", k),
            personalized_mae=value(dict(own), "mae", k),
            global_r2=value(theirs, "r2", k),
            personalized_r2=value(dict(own), "r2", k),
            example_epsilon=None if example is None else float(example[k]),
        )
        for k, device in enumerate(found.devices.tolist())
    ]


class _Watch:
    """Shares of the fleet over time, from a sample of devices."""

    def __init__(self, arm: Arm) -> None:
        fleet = arm.world.fleet
        devices = np.arange(min(fleet.num_devices, _SAMPLED))
        events = fleet.truth(devices)
        self._count = len(devices)
        self._device = np.array([event.device for event in events], dtype=np.int64)
        self._onset = np.array([event.onset_at for event in events], dtype=np.float64)
        self._end = np.array([event.end_at for event in events], dtype=np.float64)
        streams = fleet.streams(devices)
        past = [~stream.future for stream in streams]
        self._event_at = np.concatenate([s.event_at[p] for s, p in zip(streams, past, strict=True)])
        self._label_at = np.concatenate([s.label_at[p] for s, p in zip(streams, past, strict=True)])

    def drift_fraction(self, at: float) -> float:
        """Share of devices with an injected drift active at `at`."""
        active = (self._onset <= at) & (at < self._end)
        return len(np.unique(self._device[active])) / self._count

    def labels_fraction(self, at: float) -> float | None:
        """Share of the training rows taken by `at` that are labelled by then."""
        taken = self._event_at <= at
        return float(np.mean(self._label_at[taken] <= at)) if taken.any() else None
