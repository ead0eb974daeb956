"""From records to a summary: the only place where devices and seeds are averaged.

Rules of this file:
    * Devices count alike. Cold-start devices, and devices that were made, are never averaged with the others.
    * Intervals are those of `sim.statistics`; an accuracy's stays within 0 and 1.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.results import (
    ArmSummary,
    DeviceScore,
    Metric,
    ModelScores,
    Outcome,
    Population,
    PopulationScores,
    PrivacySummary,
    RoundRecord,
    Spread,
    SpreadEstimate,
)
from sim.statistics import FRACTION, UNBOUNDED, estimate, mean_rows, p10_rows, worst_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from sim.results import Estimate
    from sim.statistics import Bounds

    Groups = Mapping[int, Sequence[DeviceScore]]  # seed -> its devices


@dataclass(frozen=True)
class ArmFacts:
    """What the records of an arm do not say.

    Attributes:
        arm: Key, as in the records.
        title: Name for people.
        method: What a device computes.
        privacy: The fleet's DP figure; None without DP.
        example_epsilon: Example-level epsilon of the most charged device, scored or not; None if off.
        peak_memory_bytes: Peak resident memory of this process and its workers.
        weights_digests: sha256 of the final weights by seed.
    """

    arm: str
    title: str
    method: str
    privacy: PrivacySummary | None
    example_epsilon: float | None
    peak_memory_bytes: int
    weights_digests: Mapping[str, str]


def spread(scores: ArrayLike, metric: Metric) -> Spread:
    """A score over devices at one moment; NaN throughout if a score is not finite or there is none.

    Args:
        scores: ``[D]`` one score per device.
        metric: Says which end is the worst.
    """
    v = np.asarray(scores, dtype=np.float64)
    if not v.size or not np.isfinite(v).all():
        return Spread(np.nan, np.nan, np.nan)
    up = metric.higher_is_better
    return Spread(*(float(f(v[None])[0]) for f in (mean_rows, p10_rows(up), worst_rows(up))))


def population_of(score: DeviceScore) -> Population:
    """The population that a device belongs to."""
    if score.cold_start:
        return Population.COLD_START_VIRTUAL if score.is_virtual else Population.COLD_START_REAL
    return Population.VIRTUAL if score.is_virtual else Population.REAL


def summarise_arm(
    facts: ArmFacts, rounds: Iterable[RoundRecord], devices: Iterable[DeviceScore], metric: Metric
) -> ArmSummary:
    """One arm's summary from all records of a run.

    Args:
        facts: What the records do not say.
        rounds: Records of any arms; this arm's are picked.
        devices: Scores of any arms; this arm's are picked.
        metric: The run's main metric.
    """
    own = [r for r in rounds if r.arm == facts.arm]
    scores = [d for d in devices if d.arm == facts.arm]
    seeds = max(1, len({r.seed for r in own}))
    kept = sum(r.outcome is Outcome.COMMITTED for r in own)
    dropouts: dict[str, float] = defaultdict(float)
    for record in own:
        for kind, count in record.failures.items():
            dropouts[str(kind)] += count / seeds
    return ArmSummary(
        arm=facts.arm,
        title=facts.title,
        method=facts.method,
        populations=summarise_populations(scores, metric),
        privacy=facts.privacy,
        example_epsilon=facts.example_epsilon,
        rounds=kept / seeds,
        abandoned=(len(own) - kept) / seeds,
        replied=sum(r.replied for r in own) / seeds,
        dropouts=dict(sorted(dropouts.items())),
        bytes_up=sum(r.bytes_up for r in own) / seeds,
        bytes_down=sum(r.bytes_down for r in own) / seeds,
        seconds=sum(r.seconds for r in own) / seeds,
        peak_memory_bytes=facts.peak_memory_bytes,
        weights_digests=facts.weights_digests,
    )


def summarise_populations(scores: Sequence[DeviceScore], metric: Metric) -> tuple[PopulationScores, ...]:
    """Scores by population; populations without a scored device are left out."""
    found = []
    for population in Population:
        groups = by_seed(s for s in scores if population_of(s) is population and s.global_score is not None)
        if groups:
            found.append(_summarise_population(population, groups, metric))
    return tuple(found)


def by_seed(scores: Iterable[DeviceScore]) -> dict[int, list[DeviceScore]]:
    """Scores by seed, each in the order of the device ids."""
    groups: dict[int, list[DeviceScore]] = defaultdict(list)
    for score in sorted(scores, key=lambda s: (s.seed, s.device)):
        groups[score.seed].append(score)
    return dict(groups)


def _summarise_population(population: Population, groups: Groups, metric: Metric) -> PopulationScores:
    model = _models(groups, "global", metric)
    assert model is not None, "a population holds devices with a global score"
    return PopulationScores(
        population=population,
        num_devices=sum(map(len, groups.values())) / len(groups),
        global_model=model,
        personalized=_models(groups, "personalized", metric),
        gain=_gain(groups, metric),
    )


def _models(groups: Groups, which: str, metric: Metric) -> ModelScores | None:
    """Scores of the `global` or the `personalized` models."""

    def part(name: str, up: bool, bounds: Bounds) -> SpreadEstimate | None:
        return _spread_estimate(_values(groups, lambda s: getattr(s, f"{which}_{name}")), up, bounds)

    up = metric.higher_is_better
    score = part("score", up, FRACTION if up else (0.0, np.inf))
    if score is None:
        return None
    return ModelScores(
        score=score,
        macro_f1=part("macro_f1", True, FRACTION),
        mae=part("mae", False, (0.0, np.inf)),
        r2=part("r2", True, (-np.inf, 1.0)),
    )


def _values(groups: Groups, of: Callable[[DeviceScore], float | None]) -> list[NDArray[np.float64]]:
    """For each seed the devices' values that were measured."""
    measured = ([of(s) for s in scores] for scores in groups.values())
    arrays = (np.array([v for v in values if v is not None], dtype=np.float64) for values in measured)
    return [a for a in arrays if a.size]


def _spread_estimate(per_seed: list[NDArray[np.float64]], up: bool, bounds: Bounds) -> SpreadEstimate | None:
    if not per_seed:
        return None
    return SpreadEstimate(
        mean=estimate(per_seed, mean_rows, bounds),
        p10=estimate(per_seed, p10_rows(up), bounds),
        worst=_worst(per_seed, up, bounds),
    )


def _worst(per_seed: list[NDArray[np.float64]], up: bool, bounds: Bounds) -> Estimate:
    from sim.statistics import over_seeds  # one value per seed, whatever their number: see the rules there

    return over_seeds([float(worst_rows(up)(v[None])[0]) for v in per_seed], bounds)


def _gain(groups: Groups, metric: Metric) -> Estimate | None:
    gains = _values(groups, lambda s: s.gain(metric))
    return estimate(gains, mean_rows, UNBOUNDED) if gains else None
