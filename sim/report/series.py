"""What the figures draw, as arrays: no drawing here.

Rules of this file:
    * A curve is a mean over seeds at the rounds where all that have the round were evaluated; its band is the same
      interval as in the tables.
    * The score drawn is that of the model a device would serve: personalized where there is one.
    * A device's score is its mean over seeds. Very long series are thinned, never smoothed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.compare import served
from sim.results import Outcome, Population
from sim.statistics import over_seeds
from sim.summarise import population_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from sim.results import DeviceScore, Metric, RoundRecord, Run, Spread

    Floats = NDArray[np.float64]

_MAX_POINTS = 400


@dataclass(frozen=True)
class Curve:
    """A quantity by round.

    Attributes:
        rounds: ``[T]`` rounds, from 1.
        at: ``[T]`` virtual instants, seconds.
        mean: ``[T]`` mean over seeds.
        low: ``[T]`` lower end of the interval, equal to `mean` where there is none.
        high: ``[T]`` upper end.
    """

    rounds: Floats
    at: Floats
    mean: Floats
    low: Floats
    high: Floats

    def __len__(self) -> int:
        return len(self.rounds)


def curve(records: Iterable[RoundRecord], value: Callable[[RoundRecord], float | None]) -> Curve:
    """A quantity by round, over the seeds in `records`; rounds where it is not known are left out."""
    values: dict[int, list[float]] = defaultdict(list)
    instants: dict[int, list[float]] = defaultdict(list)
    for record in records:
        v = value(record)
        if v is not None and math.isfinite(v):
            values[record.round].append(v)
            instants[record.round].append(record.at)
    most = max(map(len, values.values()), default=0)
    kept = thin(sorted(r for r, found in values.items() if len(found) == most))
    estimates = [over_seeds(values[r]) for r in kept]
    return Curve(
        rounds=np.array([r + 1.0 for r in kept]),
        at=np.array([float(np.mean(instants[r])) for r in kept]),
        mean=np.array([e.value for e in estimates]),
        low=np.array([e.value if e.low is None else e.low for e in estimates]),
        high=np.array([e.value if e.high is None else e.high for e in estimates]),
    )


def thin(rounds: list[int]) -> list[int]:
    """Evenly spread rounds, the last among them, at most `_MAX_POINTS`."""
    stride = max(1, math.ceil(len(rounds) / _MAX_POINTS))
    return rounds[::-1][::stride][::-1]


def served_spread(record: RoundRecord) -> Spread | None:
    """The score, over devices, of what they would serve after a round."""
    return record.personalized_score or record.global_score


def of_arm(run: Run, arm: str) -> list[RoundRecord]:
    """An arm's rounds."""
    return [r for r in run.rounds if r.arm == arm]


def device_means(
    run: Run, arm: str, value: Callable[[DeviceScore], float | None]
) -> dict[Population, dict[int, float]]:
    """Each device's mean over seeds of what is known, by population. A device that took part with some seeds only is in both."""
    cells: dict[tuple[Population, int], list[float]] = defaultdict(list)
    for score in run.devices:
        v = value(score) if score.arm == arm else None
        if v is not None and math.isfinite(v):
            cells[population_of(score), score.device].append(v)
    found: dict[Population, dict[int, float]] = defaultdict(dict)
    for (population, device), values in cells.items():
        found[population][device] = float(np.mean(values))
    return dict(found)


def sorted_scores(run: Run, arm: str, population: Population, metric: Metric) -> Floats:
    """``[D]`` what each device would serve, from the worst on."""
    scores = np.sort(np.array(list(device_means(run, arm, served).get(population, {}).values())))
    return scores if metric.higher_is_better else scores[::-1]


def thin_sorted(values: Floats) -> Floats:
    """At most `_MAX_POINTS` of a sorted array, both ends among them."""
    if len(values) <= _MAX_POINTS:
        return values
    return values[np.linspace(0, len(values) - 1, _MAX_POINTS).round().astype(np.int64)]


@dataclass(frozen=True)
class Participation:
    """Where the cohorts of an arm went, mean over seeds, in bins of neighbouring rounds.

    Attributes:
        rounds: ``[B]`` first round of each bin, from 1.
        width: Rounds in a bin.
        shares: For ``replied`` and each kind of failure ``[B]`` the share of those asked.
        abandoned: Rounds abandoned or refused, mean over seeds.
    """

    rounds: Floats
    width: int
    shares: dict[str, Floats]
    abandoned: float


def participation(records: list[RoundRecord], max_bins: int = 60) -> Participation:
    """Where the cohorts went."""
    num_rounds = max((r.round for r in records), default=-1) + 1
    width = max(1, math.ceil(num_rounds / max_bins))
    num_bins = math.ceil(num_rounds / width)
    totals: dict[str, Floats] = {"replied": np.zeros(num_bins)}
    asked = np.zeros(num_bins)
    for record in records:
        bin_ = record.round // width
        asked[bin_] += record.cohort
        totals["replied"][bin_] += record.replied
        for kind, num in record.failures.items():
            totals.setdefault(kind, np.zeros(num_bins))[bin_] += num
    shares: dict[str, Floats] = {
        kind: np.divide(total, np.maximum(asked, 1.0)) for kind, total in totals.items() if total.any()
    }
    seeds = max(1, len({r.seed for r in records}))
    gone = sum(r.outcome is not Outcome.COMMITTED for r in records) / seeds
    firsts = 1.0 + width * np.arange(num_bins, dtype=np.float64)
    return Participation(firsts, width, shares, gone)
