"""Is the served model well? A fold over quarter-minutes of service that ends, if need be, in a rollback on the device itself.

Rules of this file:
    * `decide` and `apply` are pure: time comes in, and nothing is asked of the machine.
    * Every check has a limit, and a breach names the check and its evidence. After a rollback the fold is over: the version that is
      gone back to begins a new one.
    * A check judges evidence, not time: a device that predicts seldom is judged once it has predicted, a block of at least
      `BLOCK_PREDICTIONS` at a time. No evidence is no breach.
    * What a healthy device looks like comes from its own record: latency measured at install *at the pace of service* (a processor
      that idles between predictions is slower than one in a tight loop), the growth of memory and the accuracy from the
      version before. A first version has nothing to go back to, so nothing is lost where there is no record yet.

What is claimed, and when (`benchmarks/health.py` measures it):
    * A doubled p99, 20 % failed predictions, and a leak of 1 MiB a minute lead to a rollback within five minutes of evidence. For the first two
      that is about 600 predictions: five minutes at two a second and more, as long as it takes to make them below.
    * Latency: successive predictions are independent but for bursts, and bursts do not reach into sixteen of twenty blocks; load
      makes the p99 at most about 1.3 times the record's. A device that is slowed for longer by something else looks like a slow model.
    * Memory: at most four allocator steps and drops in the window, and the device's own ramps were seen in the day before (they are in
      the record). A sawtooth that drops more often than once a minute or two, or whose ramps differ by as much as the leak, may hide it:
      that is left to `memory_mib`.
    * Accuracy: given the labels before, a block of labels is on average at least as right as the floor says. The floor is below the
      earlier version's accuracy by its own uncertainty and a tolerance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fedretrain.core.clock import HOUR_S
from fedretrain.core.errors import FedretrainError
from fedretrain.edge.health_checks import BETS, ShareLimit, growth, log_mean_wealth, log_tail, wagered
from fedretrain.edge.health_limits import Check, HealthLimits, HealthRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fedretrain.edge.vitals import Sample

BLOCK_PREDICTIONS = 20
"""A block of predictions is at least one sample and at least so many."""
NUM_BLOCKS = 20
"""Blocks that a share is judged on: five minutes, if predictions are many enough."""
WINDOW = 18
"""Steps between the readings of memory that a growth is read off: four and a half minutes, at a reading in each sample."""
LABEL_BLOCK = 10
"""Labels that make one wager."""
SETTLE_S = 180.0
"""Memory is not judged while a new model warms up."""
_HOURS = 24  # how long a growth of memory is remembered as the device's own
_GAP_S = 120.0  # readings further apart than this do not belong to one growth


@dataclass(frozen=True)
class Counts:
    """Predictions of a block."""

    served: int = 0
    failed: int = 0
    slow: int = 0
    over: int = 0

    def plus(self, sample: Sample) -> Counts:
        """With those of a sample."""
        return Counts(
            self.served + sample.num_served,
            self.failed + sample.num_failed,
            self.slow + sample.num_slow,
            self.over + sample.num_over,
        )


@dataclass(frozen=True)
class HealthState:
    """What the fold keeps: rings of fixed size.

    Attributes:
        version: The version that serves (its package's digest).
        record: What well looks like.
        began_at: When it began to serve.
        pending: Predictions that are not yet a block.
        blocks: The last `NUM_BLOCKS` blocks, oldest first.
        readings: (at, MiB) the last ``WINDOW + 1`` of memory.
        growths: (at, MiB a minute) after each of the last `WINDOW` readings: too young to be the device's own.
        hours: (hour, MiB a minute) the fastest growth of each of the last 24 hours that had one.
        num_labelled: Labels so far.
        num_correct: Predictions that they confirmed.
        wager: (labels, correct) that are not yet a block of labels.
        log_wealth: Of each gambler of the accuracy test.
        rolled_back: True once the fold is over.
    """

    version: str
    record: HealthRecord
    began_at: float
    pending: Counts = field(default_factory=Counts)
    blocks: tuple[Counts, ...] = ()
    readings: tuple[tuple[float, float], ...] = ()
    growths: tuple[tuple[float, float], ...] = ()
    hours: tuple[tuple[int, float], ...] = ()
    num_labelled: int = 0
    num_correct: int = 0
    wager: tuple[int, int] = (0, 0)
    log_wealth: tuple[float, ...] = (0.0,) * len(BETS)
    rolled_back: bool = False

    @property
    def growth_seen(self) -> float:
        """The fastest growth in the last day, MiB a minute, but for the last window; at least that of the record."""
        return max([self.record.growth_mib_per_min, *(rate for _, rate in self.hours)])

    def next_record(self, latency_p99_s: float | None) -> HealthRecord:
        """The record for the version that follows this one on the device."""
        seen = max([0.0, *(rate for _, rate in self.hours)]) if self.hours else self.record.growth_mib_per_min
        return HealthRecord(latency_p99_s, seen, self.num_labelled, self.num_correct)


@dataclass(frozen=True)
class Observed:
    """A sample was taken.

    Attributes:
        at: When it ended.
        sample: What it counted.
        floor: The accuracy that is defended, or None.
    """

    at: float
    sample: Sample
    floor: float | None


@dataclass(frozen=True)
class LocalRollback:
    """The version is to be left for the one before, now, without asking anyone.

    Attributes:
        at: When.
        version: The version that is not well.
        reason: For people.
        check: Which limit it broke.
        evidence: The figures behind it.
    """

    at: float
    version: str
    reason: str
    check: Check
    evidence: Mapping[str, float]


HealthEvent = Observed | LocalRollback


class IllegalHealthEvent(FedretrainError):  # noqa: N818 - named as the rollout's
    """An event that may not follow."""


def decide(limits: HealthLimits, state: HealthState, sample: Sample, now: float) -> tuple[HealthEvent, ...]:
    """What follows from a sample: that it was seen, and a rollback if it breaks a limit."""
    if state.rolled_back:
        return ()
    seen = Observed(now, sample, state.record.accuracy_floor(limits))
    after = apply(state, seen)
    fault = next(filter(None, (look(limits, after, sample, now) for look in _LOOKS)), None)
    return (seen,) if fault is None else (seen, fault)


def apply(state: HealthState, event: HealthEvent) -> HealthState:
    """The state after `event`.

    Raises:
        IllegalHealthEvent: If the fold is over, or the event is another version's.
    """
    if state.rolled_back:
        raise IllegalHealthEvent(f"{state.version} was rolled back already")
    if isinstance(event, LocalRollback):
        if event.version != state.version:
            raise IllegalHealthEvent(f"a rollback of {event.version} while {state.version} serves")
        return replace(state, rolled_back=True)
    sample = event.sample
    state = _with_labels(_with_predictions(state, sample), sample, event.floor)
    if sample.memory_mib is None or event.at < state.began_at + SETTLE_S:
        return state
    return _with_memory(state, event.at, sample.memory_mib)


def replay(state: HealthState, events: Iterable[HealthEvent]) -> HealthState:
    """The state that a log leads to."""
    for event in events:
        state = apply(state, event)
    return state


def _with_predictions(state: HealthState, sample: Sample) -> HealthState:
    pending = state.pending.plus(sample)
    if pending.served + pending.failed < BLOCK_PREDICTIONS:
        return replace(state, pending=pending)
    return replace(state, pending=Counts(), blocks=(*state.blocks, pending)[-NUM_BLOCKS:])


def _with_labels(state: HealthState, sample: Sample, floor: float | None) -> HealthState:
    labelled, correct = state.wager[0] + sample.num_labelled, state.wager[1] + sample.num_correct
    state = replace(
        state,
        num_labelled=state.num_labelled + sample.num_labelled,
        num_correct=state.num_correct + sample.num_correct,
    )
    if floor is None or labelled < LABEL_BLOCK:
        return replace(state, wager=(labelled, correct))
    wealth = wagered(state.log_wealth, correct / labelled, floor)
    return replace(state, wager=(0, 0), log_wealth=wealth)


def _with_memory(state: HealthState, at: float, mib: float) -> HealthState:
    """With a reading; growths that are older than a window become the device's own."""
    gap = bool(state.readings) and not 0 < at - state.readings[-1][0] <= _GAP_S
    readings = ((at, mib),) if gap else (*state.readings, (at, mib))[-WINDOW - 1 :]
    growths, hours = state.growths, state.hours
    if len(readings) == WINDOW + 1:
        minutes, levels = zip(*((when / 60.0, level) for when, level in readings), strict=True)
        growths = (*growths, (at, float(growth(minutes, levels))))
    if len(growths) > WINDOW:
        hours = _remembered(hours, *growths[0])
        growths = growths[1:]
    return replace(state, readings=readings, growths=growths, hours=hours)


def _remembered(
    hours: tuple[tuple[int, float], ...], at: float, rate: float
) -> tuple[tuple[int, float], ...]:
    """The fastest growth of each of the last hours that had one."""
    hour = int(at // HOUR_S)
    if hours and hours[-1][0] == hour:
        return (*hours[:-1], (hour, max(rate, hours[-1][1])))
    return (*hours, (hour, rate))[-_HOURS:]


def _sanity(_: HealthLimits, state: HealthState, sample: Sample, now: float) -> LocalRollback | None:
    if not sample.num_insane:
        return None
    reason = f"{sample.num_insane} sanity vectors fail"
    return LocalRollback(now, state.version, reason, Check.SANITY, {"num_failed": float(sample.num_insane)})


def _errors(limits: HealthLimits, state: HealthState, _: Sample, now: float) -> LocalRollback | None:
    counts = [(block.failed, block.served + block.failed) for block in state.blocks]
    return _share(limits.errors, counts, state, now, Check.ERRORS, "predictions fail")


def _slow(limits: HealthLimits, state: HealthState, _: Sample, now: float) -> LocalRollback | None:
    counts = [(block.slow, block.served) for block in state.blocks]
    what = f"predictions are slower than {limits.latency_ratio:g} times the p99 at install"
    return _share(limits.slow, counts, state, now, Check.LATENCY_RATIO, what)


def _over(limits: HealthLimits, state: HealthState, _: Sample, now: float) -> LocalRollback | None:
    counts = [(block.over, block.served) for block in state.blocks]
    what = f"predictions take more than {limits.latency_p99_s} s"
    return _share(limits.slow, counts, state, now, Check.LATENCY_LIMIT, what)


def _share(
    limit: ShareLimit, counts: list[tuple[int, int]], state: HealthState, now: float, check: Check, what: str
) -> LocalRollback | None:
    if not limit.breached(counts):
        return None
    hits, trials = sum(hit for hit, _ in counts), sum(trial for _, trial in counts)
    evidence = {
        "share": hits / trials,
        "limit": limit.limit,
        "num_predictions": float(trials),
        "log_chance": log_tail(hits, trials, limit.allowed),
    }
    return LocalRollback(now, state.version, f"{100 * hits / trials:.1f} % of {what}", check, evidence)


def _growth(limits: HealthLimits, state: HealthState, sample: Sample, now: float) -> LocalRollback | None:
    if sample.memory_mib is None or not state.growths or state.growths[-1][0] != now:
        return None
    rate = state.growths[-1][1]
    allowed = max(limits.growth_mib_per_min, state.growth_seen + limits.growth_added_mib_per_min)
    if rate < allowed:
        return None
    evidence = {"mib_per_min": rate, "limit": allowed, "memory_mib": sample.memory_mib}
    reason = f"memory grows by {rate:.2f} MiB a minute"
    return LocalRollback(now, state.version, reason, Check.MEMORY_GROWTH, evidence)


def _memory(limits: HealthLimits, state: HealthState, sample: Sample, now: float) -> LocalRollback | None:
    if limits.memory_mib is None or sample.memory_mib is None or sample.memory_mib <= limits.memory_mib:
        return None
    evidence = {"memory_mib": sample.memory_mib, "limit": limits.memory_mib}
    reason = f"memory is {sample.memory_mib:.0f} MiB"
    return LocalRollback(now, state.version, reason, Check.MEMORY_LIMIT, evidence)


def _accuracy(limits: HealthLimits, state: HealthState, _: Sample, now: float) -> LocalRollback | None:
    floor = state.record.accuracy_floor(limits)
    wealth = log_mean_wealth(state.log_wealth)
    if floor is None or wealth < -math.log(limits.accuracy_alpha):
        return None
    share = state.num_correct / state.num_labelled
    evidence = {
        "accuracy": share,
        "floor": floor,
        "num_labelled": float(state.num_labelled),
        "log_wealth": wealth,
    }
    reason = f"{100 * share:.1f} % of labelled predictions are right, not {100 * floor:.1f} %"
    return LocalRollback(now, state.version, reason, Check.ACCURACY, evidence)


_LOOKS = (_sanity, _errors, _slow, _over, _growth, _memory, _accuracy)
