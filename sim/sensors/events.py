"""Who is hit by what, when and how hard: the ground truth, drawn for any devices at any time.

Rules of this file:
    * An `Injection` is one specification for K devices, in arrays. What is applied to the signal and what
      `truth` lists are the same arrays, so neither can say what the other does not.
    * A draw depends on (seed, place of the specification in the plan, device).
    * A recalibration ends what it restores; it does not heal a broken sensor (`config.RESTORED`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core import rng
from sim.sensors.config import RESTORED, DriftKind, DriftSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sim.devices import Traits

    Floats = NDArray[np.float64]

_CHANNEL_DRAWS = 16  # the draws before it are target, onset, sign; the channels' keys follow


@dataclass(frozen=True)
class DriftEvent:
    """One injected event: what an oracle knows and no detector is told.

    Attributes:
        device: The device.
        channel: The channel's name; empty where the whole device is meant (clock, recalibration).
        kind: A `DriftKind`.
        onset_at: The first instant touched.
        end_at: The first instant no longer touched; inf if it never ends.
        magnitude: The device's own, signed, in the specification's unit.
        spec: The place of its specification in the plan.
    """

    device: int
    channel: str
    kind: DriftKind
    onset_at: float
    end_at: float
    magnitude: float
    spec: int


@dataclass(frozen=True)
class Injection:
    """One specification for K devices.

    Attributes:
        spec: The specification.
        place: Its place in the plan.
        hit: ``[K]`` bool.
        onset_at: ``[K]``.
        end_at: ``[K]``.
        magnitude: ``[K]`` signed.
        channels: ``[K, C]`` bool.
        seeds: ``[K]`` uint64, for what the effect itself draws.
    """

    spec: DriftSpec
    place: int
    hit: NDArray[np.bool_]
    onset_at: Floats
    end_at: Floats
    magnitude: Floats
    channels: NDArray[np.bool_]
    seeds: NDArray[np.uint64]


def injections(
    specs: Sequence[DriftSpec], seed: int, traits: Traits, names: Sequence[str]
) -> list[Injection]:
    """Every specification's events on K devices, recalibrations taken into account."""
    drawn = [_draw(spec, place, seed, traits, names) for place, spec in enumerate(specs)]
    visits = [one for one in drawn if one.spec.kind == DriftKind.RECALIBRATION]
    return [_restored(one, visits) for one in drawn]


def events(all_injections: Sequence[Injection], traits: Traits, names: Sequence[str]) -> list[DriftEvent]:
    """The events as a list, ordered by device, then specification, then channel."""
    found: list[DriftEvent] = []
    for one in all_injections:
        whole = one.spec.kind in (DriftKind.CLOCK_SKEW, DriftKind.RECALIBRATION)
        for k in np.flatnonzero(one.hit).tolist():
            channels = [""] if whole else [names[c] for c in np.flatnonzero(one.channels[k]).tolist()]
            event = DriftEvent(
                device=int(traits.device[k]),
                channel="",
                kind=DriftKind(one.spec.kind),
                onset_at=float(one.onset_at[k]),
                end_at=float(one.end_at[k]),
                magnitude=float(one.magnitude[k]),
                spec=one.place,
            )
            found.extend(replace(event, channel=channel) for channel in channels)
    order = {int(device): place for place, device in enumerate(traits.device)}
    return sorted(found, key=lambda event: (order[event.device], event.spec))


def _draw(spec: DriftSpec, place: int, seed: int, traits: Traits, names: Sequence[str]) -> Injection:
    """One specification's events, as if no device were ever recalibrated."""
    seeds = rng.seeds_for(seed, place, traits.device, "drift.event")
    draws = rng.uniforms(seeds, 3)
    onset = spec.onset_from_s + draws[:, 1] * (spec.onset_to_s - spec.onset_from_s)
    end = onset + (spec.duration_s or np.inf)
    size = np.full(len(traits), spec.magnitude)
    if spec.random_sign:
        size *= np.where(draws[:, 2] < 0.5, -1.0, 1.0)
    if spec.spread:
        size *= np.exp(
            spec.spread * rng.normals(rng.seeds_for(seed, place, traits.device, "drift.size"), 1)[:, 0]
        )
    if spec.kind == DriftKind.RECALIBRATION:
        end, size = onset, np.zeros(len(traits))
    return Injection(
        spec=spec,
        place=place,
        hit=_targets(spec, traits) & (draws[:, 0] < spec.device_fraction),
        onset_at=onset,
        end_at=end,
        magnitude=size,
        channels=_channels(spec, seeds, names),
        seeds=rng.seeds_for(seed, place, traits.device, "drift.effect"),
    )


def _targets(spec: DriftSpec, traits: Traits) -> NDArray[np.bool_]:
    """Devices that the specification can hit."""
    may = np.ones(len(traits), dtype=np.bool_)
    for wanted, has in (
        (spec.devices, traits.device),
        (spec.sites, traits.site),
        (spec.device_types, traits.device_type),
    ):
        if wanted:
            may &= np.isin(has, np.asarray(wanted))
    return may


def _channels(spec: DriftSpec, seeds: NDArray[np.uint64], names: Sequence[str]) -> NDArray[np.bool_]:
    """Which channels of each device are hit: ``[K, C]``."""
    allowed = np.array([not spec.channels or name in spec.channels for name in names])
    chosen = np.broadcast_to(allowed, (len(seeds), len(names))).copy()
    if spec.num_channels and spec.num_channels < allowed.sum():
        keys = rng.uniforms(seeds, _CHANNEL_DRAWS + len(names))[:, _CHANNEL_DRAWS:]
        keys[:, ~allowed] = 2.0  # after every real key
        ranks = np.argsort(np.argsort(keys, axis=1), axis=1)
        chosen &= ranks < spec.num_channels
    return chosen


def _restored(one: Injection, visits: Sequence[Injection]) -> Injection:
    """The injection, ended by the first recalibration after its onset."""
    if one.spec.kind not in RESTORED:
        return one
    end = one.end_at
    for visit in visits:
        ends = visit.hit & (visit.onset_at > one.onset_at)
        end = np.where(ends, np.minimum(end, visit.onset_at), end)
    return replace(one, end_at=end)
