"""Aggregators with a defect, by import path: what `benchmarks.simulation_gate` sabotages campaigns with.

Rules of this file:
    * Each keeps every update of a round and releases the wrong thing. None of them draws anything: a replay repeats.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core import rng

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fedretrain.aggregation.aggregator import Updates

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Every update of a round: what a broken aggregator breaks."""

    size: int
    blocks: tuple[NDArray[np.float64], ...] = ()


@dataclass(frozen=True)
class Broken:
    """An aggregator with a defect.

    Attributes:
        kind: Which, a key of `_BREAKS`.
        strength: How bad.
    """

    kind: str
    strength: float = 1.0
    first: list[Floats] = field(default_factory=list)

    @property
    def max_cohort(self) -> int | None:
        """Few: it keeps every update."""
        return 256

    def init(self, size: int, clip_norm: float | None) -> Rows:
        """No updates."""
        del clip_norm
        return Rows(size)

    def accumulate(self, state: Rows, updates: Updates) -> Rows:
        """One block more."""
        return replace(state, blocks=(*state.blocks, updates.scaled()))

    def merge(self, a: Rows, b: Rows) -> Rows:
        """The updates of both."""
        return replace(a, blocks=a.blocks + b.blocks)

    def release(self, state: Rows) -> Floats:
        """The wrong update."""
        return _BREAKS[self.kind](np.concatenate(state.blocks), self)


def _poisoned(rows_KP: Floats, by: Broken) -> Floats:
    """Three clients in ten send the opposite, several times as long."""
    bad = max(1, round(0.3 * len(rows_KP)))
    rows_KP[:bad] *= -by.strength
    return np.asarray(rows_KP.mean(axis=0))


def _giant(rows_KP: Floats, by: Broken) -> Floats:
    """One client weighs as much as `strength` others, and sends the opposite of what it learnt."""
    weight = np.ones(len(rows_KP))
    weight[0] = by.strength
    rows_KP[0] = -rows_KP[0]
    return np.asarray(weight @ rows_KP / weight.sum())


def _stale(rows_KP: Floats, by: Broken) -> Floats:
    """What the first round released, for ever."""
    if not by.first:
        by.first.append(rows_KP.mean(axis=0))
    return by.first[0] * by.strength


def _noisy(rows_KP: Floats, by: Broken) -> Floats:
    """Noise on the mean that nobody asked for, as long as the mean times `strength`."""
    mean = rows_KP.mean(axis=0)
    word = np.frombuffer(np.float64(mean.sum()).tobytes(), dtype=np.int64)
    noise = rng.normals(rng.seeds_for(0, -1, word, "benchmark.noise"), len(mean))[0]
    return np.asarray(mean + by.strength * np.linalg.norm(mean) * noise / np.sqrt(len(mean)))


def _partial(rows_KP: Floats, by: Broken) -> Floats:
    """Only the first `strength` of the parameters arrive."""
    mean = rows_KP.mean(axis=0)
    mean[round(by.strength * len(mean)) :] = 0.0
    return np.asarray(mean)


def _crossed(rows_KP: Floats, by: Broken) -> Floats:
    """Each client's update is read in the wrong order: rolled by its place."""
    return np.asarray(np.mean([np.roll(row, k * int(by.strength)) for k, row in enumerate(rows_KP)], axis=0))


_BREAKS: dict[str, Callable[[Floats, Broken], Floats]] = {
    "scaled": lambda rows, by: np.asarray(rows.mean(axis=0) * by.strength),
    "poisoned": _poisoned,
    "giant": _giant,
    "stale": _stale,
    "noisy": _noisy,
    "partial": _partial,
    "crossed": _crossed,
}
