"""A drift plan bound to a data set's channels: applied to raw rows, with the truth of what it did.

Rules of this file:
    * Effects apply in the plan's order, each to what the one before left.
    * The same `injections` feed the signal, the clock and the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core import rng
from fedretrain.core.errors import ConfigError, DataError
from sim.plugins import load
from sim.sensors.config import DriftConfig, DriftKind, DriftSpec, MagnitudeUnit
from sim.sensors.effects import SignalStats, Touched, effect, level, unit_scale
from sim.sensors.events import DriftEvent, Injection, events, injections

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from sim.devices import Traits

    Floats = NDArray[np.float64]
    Signal = NDArray[np.float32]
    Effect = Callable[[Signal, Touched], Signal]

_SCALED = (DriftKind.OFFSET, DriftKind.NOISE, DriftKind.STUCK)
_UNSIGNALLED = (DriftKind.CLOCK_SKEW, DriftKind.RECALIBRATION)


@dataclass(frozen=True)
class RawRows:
    """Where raw rows come from.

    Attributes:
        owner: ``[N]`` place of each row's device in the traits that go with it.
        index: ``[N]`` place of the row in its device's stream.
        event_at: ``[N]`` when it was really taken.
    """

    owner: NDArray[np.int64]
    index: NDArray[np.int64]
    event_at: Floats


class DriftPlan:
    """What happens to the sensors of a fleet.

    Args:
        config: The specifications.
        seed: The run's seed.
        stats: The channels of the data.

    Raises:
        ConfigError: If a specification names a channel that the data has not, or needs a range that the schema
            leaves open, or custom drift cannot be loaded.
    """

    def __init__(self, config: DriftConfig, seed: int, stats: SignalStats) -> None:
        self._specs, self._seed, self._stats = config.specs, seed, stats
        self._effects = [_effect(spec, stats, place) for place, spec in enumerate(config.specs)]

    def __len__(self) -> int:
        return len(self._specs)

    def injections(self, traits: Traits) -> list[Injection]:
        """Every specification's events on K devices."""
        return injections(self._specs, self._seed, traits, self._stats.names)

    def truth(self, traits: Traits) -> list[DriftEvent]:
        """The injected events of K devices."""
        return events(self.injections(traits), traits, self._stats.names)

    def apply(self, x: Signal, rows: RawRows, traits: Traits) -> Signal:
        """The signal as the sensors report it.

        Args:
            x: ``[N, T, C]`` raw samples as they would be without drift.
            rows: Where each row comes from.
            traits: K devices.

        Returns:
            ``[N, T, C]`` float32; `x` itself if nothing is touched, else a copy.
        """
        touched = x
        for one, change in zip(self.injections(traits), self._effects, strict=True):
            which = _active(one, rows)
            if change is None or not len(which):
                continue
            touched = touched.copy() if touched is x else touched
            before = touched[which]
            after = change(before, self._told(one, rows, which))
            if after.shape != before.shape:
                shapes = f"{before.shape} became {after.shape}"
                raise DataError(
                    f"custom drift changed the shape: {shapes}", where=f"drift.specs[{one.place}]"
                )
            hit = one.channels[rows.owner[which]][:, None, :]
            touched[which] = np.where(hit, after, before)
        return touched

    def reported_at(self, rows: RawRows, traits: Traits) -> Floats:
        """``[N]`` when the rows were taken by their devices' own clocks."""
        at = rows.event_at.copy()
        for one in self.injections(traits):
            if one.spec.kind == DriftKind.CLOCK_SKEW:
                which = _active(one, rows)
                told = self._told(one, rows, which)
                at[which] += told.magnitude * told.level
        return at

    def _told(self, one: Injection, rows: RawRows, which: NDArray[np.int64]) -> Touched:
        """What an effect is told of the rows it changes."""
        owner = rows.owner[which]
        age, seeds = rows.event_at[which] - one.onset_at[owner], one.seeds[owner]
        return Touched(
            age_s=age,
            level=level(one.spec, age, seeds),
            magnitude=one.magnitude[owner],
            device_seeds=seeds,
            # A stream of its own for each row: the row's word of the device's stream, mixed once more.
            row_seeds=rng.words_at(rng.words_at(seeds, -1), rows.index[which]),
            scale=unit_scale(one.spec, self._stats),
            stats=self._stats,
        )


def _active(one: Injection, rows: RawRows) -> NDArray[np.int64]:
    """Rows taken between onset and end on a device that is hit."""
    owner = rows.owner
    begun = rows.event_at >= one.onset_at[owner]
    return np.flatnonzero(one.hit[owner] & begun & (rows.event_at < one.end_at[owner]))


def _effect(spec: DriftSpec, stats: SignalStats, place: int) -> Effect | None:
    """The function of a specification, checked against the channels it is to change; None if it has none."""
    key = f"drift.specs[{place}]"
    unknown = [name for name in spec.channels if name not in stats.names]
    if unknown:
        known = ", ".join(stats.names[:12])
        raise ConfigError(
            f"there is no channel {unknown[0]!r}", where=f"{key}.channels", fix=f"known: {known}"
        )
    needs_range = spec.kind == DriftKind.CLIP or (spec.kind in _SCALED and spec.unit == MagnitudeUnit.RANGE)
    chosen = np.array([not spec.channels or name in spec.channels for name in stats.names])
    if needs_range and not np.isfinite((stats.high - stats.low)[chosen]).all():
        raise ConfigError(
            "the schema gives no range for a channel",
            where=f"{key}.unit",
            fix="use unit=std, or set the range",
        )
    if spec.kind in _UNSIGNALLED:
        return None
    if spec.kind == DriftKind.CUSTOM:
        made = load(spec.path, spec.options, needs=("apply",), key=f"{key}.path")
        return lambda x, rows: np.asarray(made.apply(x, rows), dtype=np.float32)
    return effect(spec)
