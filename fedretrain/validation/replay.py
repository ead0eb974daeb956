"""Replay: a backlog, late, duplicated and out of order, must leave what being online all along would have left.

Rules of this file:
    * A fold is a callable from events in their order of arrival to a digest of the state that they leave. It is run on the
      events as they happened and on deliveries of the same events, and the digests must be equal.
    * Every event is delivered at least once; none is changed. What is drawn depends on the seed alone.
    * Only the final state is compared: what a monitor said meanwhile may differ, for it knew less.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fedretrain.core import rng

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

T = TypeVar("T")


class Disorder(StrEnum):
    """What happens to events on their way."""

    BACKLOG = "backlog"  # half of the devices go offline and deliver a stretch at once, in order
    LATE = "late"  # a fifth of the events come later, each by up to half of the list
    DUPLICATED = "duplicated"  # a third of the events come a second time, some time later
    OUT_OF_ORDER = "out_of_order"  # neighbours change places
    EVERYTHING = "everything"  # all of it


_OFFLINE_FRACTION = 0.5
_LATE_FRACTION = 0.2
_DUPLICATED_FRACTION = 1.0 / 3.0
_NEIGHBOURS = 8.0  # places


def deliveries(
    events: Sequence[T], seed: int, disorder: Disorder, device_of: Callable[[T], int]
) -> tuple[T, ...]:
    """The events as they arrive.

    Args:
        events: As they happened.
        seed: Of every draw.
        disorder: What happens to them.
        device_of: Whose an event is.
    """
    size = len(events)
    place = np.arange(size, dtype=np.float64)
    every = disorder is Disorder.EVERYTHING
    if every or disorder is Disorder.BACKLOG:
        device = np.array([device_of(event) for event in events], dtype=np.int64)
        place = _held_back(place, device, seed)
    if every or disorder is Disorder.LATE:
        late, delay = _draws(seed, "late", size), _draws(seed, "delay", size)
        place += np.where(late < _LATE_FRACTION, delay * size / 2.0, 0.0)
    if every or disorder is Disorder.OUT_OF_ORDER:
        place += _NEIGHBOURS * _draws(seed, "neighbours", size)
    index = np.arange(size)
    if every or disorder is Disorder.DUPLICATED:
        again = np.flatnonzero(_draws(seed, "again", size) < _DUPLICATED_FRACTION)
        later = place[again] + _draws(seed, "later", size)[again] * size
        index, place = np.concatenate([index, again]), np.concatenate([place, later])
    return tuple(events[i] for i in index[np.argsort(place, kind="stable")])


def _held_back(place: NDArray[np.float64], device: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Places after half of the devices held a stretch of theirs back until its end (some to the end of all)."""
    size = float(len(place))
    seeds = rng.seeds_for(seed, -1, device, "backlog")
    offline, begin, length = np.moveaxis(rng.uniforms(seeds, 3), -1, 0)
    end = np.minimum((begin + length) * size, size)
    held = (offline < _OFFLINE_FRACTION) & (place >= begin * size) & (place < end)
    return np.where(held, end, place)


def _draws(seed: int, purpose: str, size: int) -> NDArray[np.float64]:
    return rng.uniforms(rng.seeds_for(seed, -1, np.arange(size), purpose), 1)[:, 0]


@dataclass(frozen=True)
class Mismatch:
    """A fold that a delivery left in another state."""

    fold: str
    disorder: Disorder
    seed: int


@dataclass(frozen=True)
class ReplayOutcome:
    """What the replays left.

    Attributes:
        num_events: Events that were replayed.
        num_replays: Replays of all folds.
        digests: By fold, of the state that being online left.
        mismatches: The replays that left another.
    """

    num_events: int
    num_replays: int
    digests: Mapping[str, str]
    mismatches: tuple[Mismatch, ...]

    @property
    def ok(self) -> bool:
        """Whether every replay left the same state."""
        return not self.mismatches


def check_replay(
    folds: Mapping[str, Callable[[Sequence[T]], str]],
    events: Sequence[T],
    *,
    device_of: Callable[[T], int],
    seeds: Sequence[int] = (0, 1, 2),
) -> ReplayOutcome:
    """Run every fold on the events and on deliveries of each disorder and seed.

    Args:
        folds: By name, from events in order of arrival to a digest of the state: the monitors' store, the training set.
        events: As they happened.
        device_of: Whose an event is.
        seeds: One set of deliveries each.
    """
    online = {name: fold(events) for name, fold in folds.items()}
    trials = [(disorder, seed) for disorder in Disorder for seed in seeds]
    arrived = {trial: deliveries(events, trial[1], trial[0], device_of) for trial in trials}
    mismatches = tuple(
        Mismatch(name, *trial)
        for name, fold in folds.items()
        for trial in trials
        if fold(arrived[trial]) != online[name]
    )
    return ReplayOutcome(len(events), len(folds) * len(trials), online, mismatches)
