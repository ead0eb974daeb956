"""What a lifetime's figures draw, as arrays: no drawing here.

Rules of this file:
    * A curve is a mean over seeds at the instants that every seed knows; its band is the interval of the tables.
    * Smoothing looks back only: a fall is never drawn before it happened.
    * What is the same drift in several seeds is drawn once, as the stretch over which it began.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.report.series import Curve, thin
from sim.statistics import over_seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from sim.lifetime.records import FeatureRecord, Life, StepRecord, TruthRecord

    Floats = NDArray[np.float64]

LEVELS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""PSI at which the heat map's colour changes: about equal steps of its logarithm."""
MAX_FEATURES = 24
_MAX_CELLS = 120  # of a row of the heat map: about a millimetre each


def window_of(lives: Sequence[Life]) -> int:
    """Steps over which curves are smoothed: about a fiftieth of the life, at most two weeks of days."""
    return min(14, max(1, min((len(life.steps) for life in lives), default=0) // 50))


def over_time(
    lives: Sequence[Life],
    value: Callable[[StepRecord], float],
    window: int = 1,
    base: Sequence[Life] = (),
) -> Curve:
    """A quantity over time, each point the mean of the last `window` steps that know it.

    Args:
        lives: One policy's.
        value: Of a step.
        window: Steps.
        base: Another policy's lives: the difference from those, paired by seed; empty for the quantity itself.
    """
    found: dict[float, list[float]] = defaultdict(list)
    other = {life.summary.seed: _smooth(life, value, window) for life in base}
    for life in lives:
        known = other.get(life.summary.seed, {})
        for at, v in _smooth(life, value, window).items():
            if not base:
                found[at].append(v)
            elif at in known:
                found[at].append(v - known[at])
    most = max(map(len, found.values()), default=0)
    common = sorted(at for at, values in found.items() if len(values) == most)
    kept = thin(list(range(len(common))))
    estimates = [over_seeds(found[common[i]]) for i in kept]
    return Curve(
        rounds=np.array([i + 1.0 for i in kept]),
        at=np.array([common[i] for i in kept]),
        mean=np.array([e.value for e in estimates]),
        low=np.array([e.value if e.low is None else e.low for e in estimates]),
        high=np.array([e.value if e.high is None else e.high for e in estimates]),
    )


def _smooth(life: Life, value: Callable[[StepRecord], float], window: int) -> dict[float, float]:
    """Instant -> smoothed value, where it is known."""
    smooth = trailing(np.array([value(step) for step in life.steps], dtype=np.float64), window).tolist()
    return {step.at: v for step, v in zip(life.steps, smooth, strict=True) if math.isfinite(v)}


def bare(curve: Curve) -> Curve:
    """Without its band."""
    return Curve(curve.rounds, curve.at, curve.mean, curve.mean, curve.mean)


def trailing(values: Floats, window: int) -> Floats:
    """``[T]`` mean of the known among the last `window` values; NaN where this one is unknown."""
    known = np.isfinite(values)
    total = np.cumsum(np.concatenate([[0.0], np.where(known, values, 0.0)]))
    number = np.cumsum(np.concatenate([[0.0], known.astype(np.float64)]))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    mean = (total[last] - total[first]) / np.maximum(number[last] - number[first], 1.0)
    return np.where(known, mean, np.nan)


@dataclass(frozen=True)
class Onset:
    """An injected drift, over the seeds that have it.

    Attributes:
        sign: A letter by which the figures name it.
        kind: What happened to the sensors.
        first_at: Its earliest beginning, seconds.
        at: The median.
        last_at: The latest.
        num_devices: Hit, mean over seeds.
    """

    sign: str
    kind: str
    first_at: float
    at: float
    last_at: float
    num_devices: float


def onsets(truth: Sequence[TruthRecord]) -> list[Onset]:
    """Injected drifts in the order of their beginning; a kind's k-th of each seed are one."""
    groups: dict[tuple[str, int], list[TruthRecord]] = defaultdict(list)
    seen: Counter[tuple[int, str]] = Counter()
    for record in truth:
        groups[record.kind, seen[record.seed, record.kind]].append(record)
        seen[record.seed, record.kind] += 1
    ordered = sorted(groups.values(), key=lambda g: float(np.median([r.onset_at for r in g])))
    return [_onset(i, group) for i, group in enumerate(ordered)]


def _onset(index: int, group: list[TruthRecord]) -> Onset:
    at = [record.onset_at for record in group]
    sign = chr(ord("A") + index % 26) + (str(index // 26) if index >= 26 else "")
    devices = float(np.mean([record.num_devices for record in group]))
    return Onset(sign, group[0].kind, min(at), float(np.median(at)), max(at), devices)


@dataclass(frozen=True)
class Heat:
    """PSI by feature and time.

    Attributes:
        features: ``F`` names, from the largest PSI on.
        edges_at: ``[T + 1]`` instants between cells, seconds.
        level_FT: Colour of each cell: how many of `LEVELS` its largest PSI reaches; -1 where there is none.
        significant_FT: Whether it was significant at some time in the cell.
        num_hidden: Features that are left out.
    """

    features: tuple[str, ...]
    edges_at: Floats
    level_FT: NDArray[np.int64]
    significant_FT: NDArray[np.bool_]
    num_hidden: int


def largest(records: Sequence[FeatureRecord]) -> tuple[str, ...]:
    """Every feature, from the largest PSI on."""
    most: dict[str, float] = {}
    for record in records:
        if math.isfinite(record.psi):
            most[record.feature] = max(record.psi, most.get(record.feature, 0.0))
    return tuple(sorted(most, key=lambda name: (-most[name], name)))


def heat(records: Sequence[FeatureRecord], features: tuple[str, ...], duration_s: float) -> Heat:
    """The heat map of one life.

    Args:
        records: Of that life.
        features: In the order in which they are drawn; those beyond `MAX_FEATURES` are left out.
        duration_s: Of the life.
    """
    shown = features[:MAX_FEATURES]
    row = {name: i for i, name in enumerate(shown)}
    instants = sorted({record.at for record in records})
    gap = float(np.median(np.diff(instants))) if len(instants) > 1 else duration_s
    num = max(1, min(_MAX_CELLS, round(duration_s / gap)))
    width = duration_s / num
    edges_at = np.linspace(0.0, duration_s, num + 1)
    psi_FT = np.full((len(shown), num), -np.inf)
    significant_FT = np.zeros(psi_FT.shape, dtype=np.bool_)
    for record in records:
        i = row.get(record.feature)
        if i is None or not math.isfinite(record.psi):
            continue
        t = min(num - 1, max(0, math.ceil(record.at / width) - 1))  # a window belongs to where it ends
        psi_FT[i, t] = max(psi_FT[i, t], record.psi)
        significant_FT[i, t] |= record.significant
    level_FT = np.where(np.isfinite(psi_FT), np.searchsorted(LEVELS, psi_FT, side="right"), -1)
    return Heat(shown, edges_at, level_FT, significant_FT, len(features) - len(shown))


def runs_of(row_T: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Stretches of equal values: (first, end, value)."""
    ends = [*(np.flatnonzero(np.diff(row_T)) + 1).tolist(), len(row_T)]
    return [(a, b, int(row_T[a])) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
