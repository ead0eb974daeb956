"""``python -m benchmarks.health [DEVICE_DAYS]``: how soon a device goes back by itself, and how often for nothing.

Each simulated device serves through the fold of `fedretrain.edge.health`, as the agent does. Faults begin at a random instant of a day
of the same noise; the time counts from there to the decision.

Noise of a healthy device:
    rate: 1, 2, 5 or 10 predictions a second.
    latency: lognormal with sigma 0.2 to 0.4; over the day load makes it up to 1.25 times as long as at install; a dozen bursts a day
        of 20 s on average (at most 120 s) make it 2 to 5 times as long. The record is the p99 of 1,000 predictions.
    errors: 1 %, and twice a day 20 s on average (at most 90 s) in which 80 % fail.
    memory: a sawtooth (median height 1 MiB, up to 6 MiB, every 1 to 30 minutes, a tenth irregular), six allocator steps a day (1 MiB on
        average, up to 4 MiB, two in three upwards), 0.1 MiB of noise on each reading (three in each sample), 8 MiB of warm-up after a start.
    labels: 100 a day, of which 90 % confirm; the version before had 300.

Rules of this file:
    * Counts are drawn from the exact distribution of what a recorder would count; the fold is the agent's own. A day in which no check can
      see anything (`is_calm`) is not folded.
    * A false rollback starts the device again, with the same record, so that a day goes on to count.
    * Every rate comes with its one-sided 95 % Clopper-Pearson bound; a device-day is the trial.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from benchmarks.results import append
from fedretrain.core.clock import DAY_S
from fedretrain.edge.health import (
    BLOCK_PREDICTIONS,
    NUM_BLOCKS,
    SETTLE_S,
    WINDOW,
    Counts,
    HealthState,
    LocalRollback,
    apply,
    decide,
)
from fedretrain.edge.health_checks import NUM_BAD, growth
from fedretrain.edge.health_limits import Check, HealthLimits, HealthRecord, p99_of
from fedretrain.edge.vitals import SAMPLE_S, Sample
from sim.gates.cases import clopper_pearson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LIMITS = HealthLimits()
SAMPLES = round(DAY_S / SAMPLE_S)
READINGS = 3  # of memory, in each sample
_DAYS = 10  # judged days of one device, after one that makes its record
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Fault:
    """What goes wrong from an instant on.

    Attributes:
        name: Of the fault.
        check: The check that ought to find it.
        slower: Every prediction takes so many times as long.
        tail: Or only so many of them, ``tail_times`` as long.
        tail_times: See `tail`.
        failing: The share of predictions that fail.
        leak_mib_per_min: How fast memory leaks.
    """

    name: str
    check: Check
    slower: float = 1.0
    tail: float = 0.0
    tail_times: float = 1.0
    failing: float = 0.0
    leak_mib_per_min: float = 0.0


FAULTS = (
    Fault("leak_1_mib_a_minute", Check.MEMORY_GROWTH, leak_mib_per_min=1.0),
    Fault("p99_doubled", Check.LATENCY_RATIO, slower=2.0),
    Fault("errors_20_percent", Check.ERRORS, failing=0.2),
    Fault("one_in_twenty_four_times_as_slow", Check.LATENCY_RATIO, tail=0.05, tail_times=4.0),
)
NO_FAULT = Fault("none", Check.SANITY)


@dataclass(frozen=True)
class Device:
    """The habits of a device.

    Attributes:
        rate: Predictions a second.
        sigma: Of the logarithm of latency.
        record_p99: Measured at install; the median at install is 1.
        height_mib: Of the sawtooth.
        period_s: Of the sawtooth.
        accuracy: Of its model.
    """

    rate: float
    sigma: float
    record_p99: float
    height_mib: float
    period_s: float
    accuracy: float = 0.9


def draw_device(rng: np.random.Generator, rate: float | None = None) -> Device:
    """A device of the fleet."""
    sigma = float(rng.uniform(0.2, 0.4))
    trial = np.exp(sigma * rng.standard_normal(1000))
    return Device(
        rate=float(rng.choice([1.0, 2.0, 5.0, 10.0])) if rate is None else rate,
        sigma=sigma,
        record_p99=p99_of(trial.tolist()),
        height_mib=min(6.0, float(np.exp(0.6 * rng.standard_normal()))),
        period_s=float(rng.uniform(60.0, 1800.0)),
    )


def covered(rng: np.random.Generator, num: float, mean_s: float, most_s: float) -> Floats:
    """The share of each sample of a day that bursts cover."""
    share = np.zeros(SAMPLES)
    for start in rng.uniform(0.0, DAY_S, rng.poisson(num)):
        end = start + min(most_s, float(rng.exponential(mean_s)))
        for place in range(int(start // SAMPLE_S), min(SAMPLES, int(end // SAMPLE_S) + 1)):
            left = place * SAMPLE_S
            share[place] += max(0.0, min(end, left + SAMPLE_S) - max(start, left)) / SAMPLE_S
    return np.minimum(share, 1.0)


def memory(rng: np.random.Generator, device: Device, fault: Fault, fault_at: float, *, fresh: bool) -> Floats:
    """The lowest reading of each sample of a day, MiB."""
    at = (np.arange(SAMPLES * READINGS) + rng.uniform(0.0, 1.0)) * (SAMPLE_S / READINGS)
    num = int(DAY_S / device.period_s * 1.5) + 2
    ends = np.cumsum(device.period_s * np.exp(0.1 * rng.standard_normal(num)))
    cycle = np.searchsorted(ends, at)
    begin, end = np.append(0.0, ends)[cycle], ends[np.minimum(cycle, num - 1)]
    heights = device.height_mib * np.exp(0.1 * rng.standard_normal(num + 1))
    level = 60.0 + heights[cycle] * (at - begin) / (end - begin)
    for when in rng.uniform(0.0, DAY_S, rng.poisson(6.0)):
        level[at >= when] += min(4.0, float(rng.exponential(1.0))) * (1.0 if rng.random() < 2 / 3 else -1.0)
    level += 0.1 * rng.standard_normal(len(at))
    if fresh:
        level -= 8.0 * np.exp(-at / 60.0)
    level += fault.leak_mib_per_min * np.maximum(0.0, at - fault_at) / 60.0
    return level.reshape(SAMPLES, READINGS).min(axis=1)


def slow_share(device: Device, times: Floats) -> Floats:
    """How many predictions are slow when all take so many times as long as at install."""
    bar = LIMITS.latency_ratio * device.record_p99
    return np.array([1.0 - _NORMAL.cdf(math.log(bar / t) / device.sigma) for t in times.tolist()])


def day(
    rng: np.random.Generator,
    device: Device,
    *,
    fresh: bool = False,
    fault: Fault = NO_FAULT,
    fault_at: float = math.inf,
) -> list[Sample]:
    """A day's samples; `fault` begins `fault_at` seconds after midnight."""
    faulty = np.clip((np.arange(1, SAMPLES + 1) * SAMPLE_S - fault_at) / SAMPLE_S, 0.0, 1.0)
    load = 1.125 - 0.125 * np.cos(2 * np.pi * np.arange(SAMPLES) / SAMPLES)
    burst, factor = covered(rng, 12.0, 20.0, 120.0), rng.uniform(2.0, 5.0)
    num = rng.poisson(device.rate * SAMPLE_S, SAMPLES)
    ill = rng.binomial(num, faulty)
    failing = np.maximum(0.01, 0.8 * covered(rng, 2.0, 20.0, 90.0))
    failed_well = rng.binomial(num - ill, failing)
    failed_ill = rng.binomial(ill, np.maximum(failing, fault.failing))
    calm, hit = slow_share(device, load), slow_share(device, load * factor)
    slow = rng.binomial(num - ill - failed_well, (1 - burst) * calm + burst * hit)
    tail = slow_share(device, load * fault.tail_times)
    worse = (1 - fault.tail) * slow_share(device, load * fault.slower) + fault.tail * tail
    slow += rng.binomial(ill - failed_ill, np.maximum(worse, (1 - burst) * worse + burst * hit))
    labels = rng.binomial(1, 100.0 / SAMPLES, SAMPLES)
    right = rng.binomial(labels, device.accuracy)
    lowest = memory(rng, device, fault, fault_at, fresh=fresh)
    return [
        Sample(num_served=n - f, num_failed=f, num_slow=s, memory_mib=m, num_labelled=k, num_correct=r)
        for n, f, s, m, k, r in zip(
            num.tolist(),
            (failed_well + failed_ill).tolist(),
            slow.tolist(),
            lowest.tolist(),
            labels.tolist(),
            right.tolist(),
            strict=True,
        )
    ]


def serve(
    state: HealthState, samples: Sequence[Sample], begin: float, *, judged: bool = True
) -> tuple[HealthState, LocalRollback | None]:
    """Fold samples until a rollback; if not `judged`, a rollback is ignored."""
    for index, sample in enumerate(samples):
        for event in decide(LIMITS, state, sample, begin + (index + 1) * SAMPLE_S):
            if isinstance(event, LocalRollback):
                if judged:
                    return apply(state, event), event
                continue
            state = apply(state, event)
    return state, None


def growths(samples: Sequence[Sample], *, fresh: bool) -> Floats:
    """The growth of memory after each reading of a day that has a full window behind it."""
    readings = np.array([s.memory_mib for s in samples if s.memory_mib is not None])
    if fresh:
        readings = readings[round(SETTLE_S / SAMPLE_S) - 1 :]
    windows = sliding_window_view(readings, WINDOW + 1)
    return growth(np.arange(WINDOW + 1) * (SAMPLE_S / 60.0), windows)


def blocks_of(samples: Sequence[Sample]) -> list[Counts]:
    """The blocks that a day's samples make."""
    blocks, pending = [], Counts()
    for sample in samples:
        pending = pending.plus(sample)
        if pending.served + pending.failed >= BLOCK_PREDICTIONS:
            blocks.append(pending)
            pending = Counts()
    return blocks


def is_calm(samples: Sequence[Sample], record: HealthRecord, *, fresh: bool) -> bool:
    """True if no check but that of labels can see anything in a day: by what each of them needs at least.

    Most days are calm, and the fold is then given their labels alone, which makes thousands of device-days affordable. What it would
    have remembered of the day's growth of memory is lost: its limit is then lower, never higher.
    """
    blocks = blocks_of(samples)
    served, failed, slow = (
        np.array([getattr(block, name) for block in blocks]) for name in ("served", "failed", "slow")
    )
    for hits, trials, limit in ((slow, served, LIMITS.slow), (failed, served + failed, LIMITS.errors)):
        bad = sliding_window_view(hits > limit.limit * trials, NUM_BLOCKS).sum(axis=1)
        if bad.max() >= NUM_BAD:
            return False
    least = max(LIMITS.growth_mib_per_min, record.growth_mib_per_min + LIMITS.growth_added_mib_per_min)
    return float(growths(samples, fresh=fresh).max()) < least


def only_labels(samples: Sequence[Sample]) -> list[Sample]:
    """The labels of a day and nothing else."""
    return [Sample(num_labelled=s.num_labelled, num_correct=s.num_correct) for s in samples if s.num_labelled]


def recorded(rng: np.random.Generator, device: Device) -> HealthRecord:
    """What a day under the version before leaves as the record (`HealthState.next_record`)."""
    seen = float(growths(day(rng, device, fresh=True), fresh=True)[:-WINDOW].max())
    right = int(rng.binomial(300, device.accuracy))
    return HealthRecord(device.record_p99, max(0.0, seen), num_labelled=300, num_correct=right)


def false_rollbacks(seed: int, device_days: int, num_days: int = _DAYS) -> list[list[LocalRollback]]:
    """The rollbacks of each judged day of a healthy fleet."""
    found: list[list[LocalRollback]] = []
    number = 0
    while len(found) < device_days:
        rng = np.random.default_rng([seed, number])
        number += 1
        device = draw_device(rng)
        state = HealthState("served", recorded(rng, device), 0.0)
        for index in range(min(num_days, device_days - len(found))):
            samples, begin, today = day(rng, device, fresh=index == 0), index * DAY_S, []
            if is_calm(samples, state.record, fresh=index == 0):
                samples = only_labels(samples)
            while samples:
                state, fault = serve(state, samples, begin)
                if fault is None:
                    break
                today.append(fault)
                passed = round((fault.at - begin) / SAMPLE_S)
                samples, begin = samples[passed:], fault.at
                state = HealthState("served", state.record, begin)
            found.append(today)
    return found


def time_to_rollback(fault: Fault, seed: int, rate: float) -> tuple[float, Check | None]:
    """Seconds from the beginning of a fault to the rollback (infinite if none within an hour), and the check that found it."""
    rng = np.random.default_rng([seed, round(10 * rate)])
    device = draw_device(rng, rate)
    record = recorded(rng, device)
    fault_at = float(rng.uniform(2 * 3600.0, DAY_S - 3600.0))
    first = int(fault_at // SAMPLE_S) - 400  # the hour and more before it is enough for every ring
    samples = day(rng, device, fault=fault, fault_at=fault_at)
    begin = first * SAMPLE_S
    state = HealthState("served", record, begin)
    state, found = serve(state, samples[first : first + 640], begin)
    return (math.inf, None) if found is None else (found.at - fault_at, found.check)


def fault_line(fault: Fault, num: int, rate: float) -> dict[str, Any]:
    """Times to rollback of one fault at one rate of predictions."""
    runs = [time_to_rollback(fault, seed, rate) for seed in range(num)]
    true = np.array([time for time, _ in runs if time > 0])
    within = int((true <= 300.0).sum())
    return {
        "case": f"{fault.name}_at_{rate:g}_per_s",
        "runs": len(true),
        "before_the_fault": num - len(true),
        "by_its_own_check": sum(check is fault.check for time, check in runs if time > 0),
        "median_s": round(float(np.median(true)), 1),
        "p95_s": round(float(np.quantile(true, 0.95, method="higher")), 1),
        "slowest_s": round(float(true.max()), 1),
        "within_five_minutes": round(within / len(true), 4),
        "at_least_with_95_percent_confidence": round(clopper_pearson(within, len(true))[0], 4),
    }


def false_line(days: Sequence[Sequence[LocalRollback]]) -> dict[str, Any]:
    """How often a healthy device goes back, for each 1,000 device-days."""
    bad = sum(bool(today) for today in days)
    by_check = {check.value: sum(e.check is check for today in days for e in today) for check in Check}
    return {
        "case": "false_rollbacks",
        "device_days": len(days),
        "bad_device_days": bad,
        "per_1000_device_days": round(1000.0 * bad / len(days), 3),
        "at_most_with_95_percent_confidence": round(1000.0 * clopper_pearson(bad, len(days))[1], 3),
        "rollbacks_by_check": {name: count for name, count in by_check.items() if count},
    }


def main(arguments: Sequence[str]) -> int:
    """Print one JSON line per fault and rate, and one for the healthy fleet; 1 if the fleet misses its limit."""
    device_days = int(arguments[0]) if arguments else 4000
    for fault in FAULTS:
        for rate in (1.0, 2.0, 5.0, 10.0):
            tell(fault_line(fault, 200, rate))
    line = false_line(false_rollbacks(0, device_days))
    tell(line)
    return int(line["at_most_with_95_percent_confidence"] > 1.0)


def tell(line: dict[str, Any]) -> None:
    """Print a measurement and keep it."""
    print(json.dumps(line), flush=True)
    append("health", line)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
