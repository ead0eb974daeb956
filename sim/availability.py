"""When a device can be reached: a pure function of (seed, device, instant).

Rules of this file:
    * A model answers `online(traits, seed, at)` for any devices at any instants, in any order, with no state
      of its own: draws are counter based, one stream per device, one counter per time slot.
    * Slotted models are constant through a slot of `slot_s` seconds, beginning at multiples of `slot_s` (also
      before instant 0). That makes the next change of state exact.
    * `Availability` is the conjunction of the configured models: a device is online when all of them say so.
    * Dropouts come from two causes: a coin per round and device (battery, user), and the device's own
      availability ending before its reply.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fedretrain.core import rng
from fedretrain.core.checks import as_tuples, fraction, not_negative, positive, require
from fedretrain.core.clock import DAY_S, HOUR_S
from sim.devices import Traits, TraitsOf, plain_traits
from sim.plugins import load
from sim.trace import Trace, TraceConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    Ids = NDArray[np.int64]
    Bools = NDArray[np.bool_]
    Floats = NDArray[np.float64]


class AvailabilityKind(StrEnum):
    """The models on offer."""

    ALWAYS = "always"
    DIURNAL = "diurnal"
    MARKOV = "markov"
    TRACE = "trace"
    CUSTOM = "custom"


class AvailabilityModel(Protocol):
    """What a model of the user's answers; `tests/contract/availability_contract.py` holds its contract."""

    @property
    def slot_s(self) -> float:
        """The answer is constant through each slot of so many seconds."""
        ...

    def online(self, traits: Traits, seed: int, at: Floats) -> Bools:
        """Whether each device is online.

        Args:
            traits: K devices (repeats allowed).
            seed: The run's seed; all randomness comes from it by `core.rng`.
            at: ``[K]`` an instant for each.

        Returns:
            ``[K]`` bool.
        """
        ...


@dataclass(frozen=True)
class Diurnal:
    """Online with a probability that follows the local hour of the day, drawn anew in each slot.

    The probability is a raised cosine between `low` (12 hours from `peak_hour`) and `high` (at `peak_hour`), or
    `hourly`, 24 numbers from local midnight on.

    Attributes:
        low: The lowest probability.
        high: The highest.
        peak_hour: Local hour of the highest: 0 to 24.
        hourly: 24 probabilities instead of the curve; empty for the curve.
        site_offset_h: Hours that a site's local time is ahead of the campaign's clock; sites beyond the list
            start over at its beginning. Empty: all at 0.
        spread_h: Standard deviation of a device's own habit around its site's time, in hours.
        slot_s: Seconds from one draw to the next.
    """

    low: float = 0.1
    high: float = 0.9
    peak_hour: float = 2.0
    hourly: tuple[float, ...] = ()
    site_offset_h: tuple[float, ...] = ()
    spread_h: float = 1.0
    slot_s: float = HOUR_S

    def __post_init__(self) -> None:
        as_tuples(self, ["hourly", "site_offset_h"])
        for name in ("low", "high"):
            fraction(f"availability.diurnal.{name}", getattr(self, name))
        require(self.low <= self.high, "low is above high", key="availability.diurnal.low")
        require(len(self.hourly) in (0, 24), "24 numbers are needed", key="availability.diurnal.hourly")
        for value in self.hourly:
            fraction("availability.diurnal.hourly", value)
        not_negative("availability.diurnal.spread_h", self.spread_h)
        positive("availability.diurnal.slot_s", self.slot_s)

    def probability(self, local_hour: Floats) -> Floats:
        """The probability of being online at a local hour (any real number, taken modulo 24)."""
        if self.hourly:
            return np.asarray(self.hourly)[np.floor(local_hour % 24.0).astype(np.int64) % 24]
        wave = 0.5 + 0.5 * np.cos((local_hour - self.peak_hour) * (2.0 * np.pi / 24.0))
        curve: Floats = self.low + (self.high - self.low) * wave
        return curve

    def online(self, traits: Traits, seed: int, at: Floats) -> Bools:
        """One draw per device and slot against the probability at the middle of the slot."""
        slot = np.floor(at / self.slot_s)
        offset = np.zeros(len(traits))
        if self.site_offset_h:
            offset += np.asarray(self.site_offset_h)[traits.site % len(self.site_offset_h)]
        if self.spread_h:
            offset += self.spread_h * _each_device(traits.device, partial(_habits, seed))
        hour = (slot + 0.5) * self.slot_s / HOUR_S + offset
        streams = _each_device(
            traits.device, lambda ids: rng.seeds_for(seed, -1, ids, "availability.diurnal")
        )
        draws = rng.uniforms_at(streams, slot)
        answer: Bools = draws < self.probability(hour)
        return answer


def _habits(seed: int, devices: Ids) -> Floats:
    """How far each device's day is from its site's, in standard deviations."""
    return rng.normals(rng.seeds_for(seed, -1, devices, "availability.habit"), 1)[:, 0]


def _each_device(devices: Ids, values: Callable[[Ids], NDArray[Any]]) -> NDArray[Any]:
    """``values(devices)`` for ``[K]`` devices, computed once where equal ones stand side by side (rows of a stream)."""
    if len(devices) < 2:
        return values(devices)
    first = np.flatnonzero(np.concatenate([[True], devices[1:] != devices[:-1]]))
    return np.repeat(values(devices[first]), np.diff(first, append=len(devices)))


@dataclass(frozen=True)
class Markov:
    """A two-state continuous-time Markov chain (on, off), observed at slot starts and held through the slot.

    Over one slot the chain's transition matrix is ``k I + (1 - k) S`` with S drawing from the stationary law
    and ``k = exp(-slot_s (1/mean_on_s + 1/mean_off_s))``. So each slot tosses a coin: with probability ``1 - k``
    the state is drawn anew from the stationary law, else it stays. The state at a slot is therefore the draw of
    the last renewal at or before it, which a look back over the slots finds: exact, stationary, without history.

    Attributes:
        mean_on_s: Mean time online.
        mean_off_s: Mean time offline. The stationary probability is ``mean_on_s / (mean_on_s + mean_off_s)``.
        slot_s: Seconds of a slot.
    """

    mean_on_s: float = 6 * HOUR_S
    mean_off_s: float = 2 * HOUR_S
    slot_s: float = 900.0

    def __post_init__(self) -> None:
        for name in ("mean_on_s", "mean_off_s", "slot_s"):
            positive(f"availability.markov.{name}", getattr(self, name))
        ratio = self.slot_s / min(self.mean_on_s, self.mean_off_s)
        # A slot 10,000 times shorter than a stay would look back over too many slots to be of use.
        require(ratio > 1e-4, "is too short beside the mean times", key="availability.markov.slot_s")

    @property
    def on_fraction(self) -> float:
        """The stationary probability of being online."""
        return self.mean_on_s / (self.mean_on_s + self.mean_off_s)

    def online(self, traits: Traits, seed: int, at: Floats) -> Bools:
        """The state drawn at each device's last renewal."""
        renewals = rng.seeds_for(seed, -1, traits.device, "availability.renewal")
        keep = np.exp(-self.slot_s * (1.0 / self.mean_on_s + 1.0 / self.mean_off_s))
        slot = np.floor(at / self.slot_s).astype(np.int64)
        waiting = np.arange(len(slot))
        while len(waiting):
            renewed = rng.uniforms_at(renewals[waiting], slot[waiting]) >= keep
            waiting = waiting[~renewed]
            slot[waiting] -= 1
        states = rng.seeds_for(seed, -1, traits.device, "availability.state")
        answer: Bools = rng.uniforms_at(states, slot) < self.on_fraction
        return answer


@dataclass(frozen=True)
class Always:
    """Always online."""

    slot_s: float = DAY_S

    def online(self, traits: Traits, seed: int, at: Floats) -> Bools:  # noqa: ARG002 - the protocol's form
        """True for everybody."""
        return np.ones(len(traits), dtype=np.bool_)


@dataclass(frozen=True)
class CustomModel:
    """A model of the user's.

    Attributes:
        path: ``package.module:factory``; called with `options`, it returns an `AvailabilityModel`.
        options: Keyword arguments of the factory.
    """

    path: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AvailabilityConfig:
    """Which models hold, and how often devices drop out.

    Attributes:
        models: A device is online when all of these say so; empty means always.
        diurnal: Settings of the model of that name.
        markov: Settings of the model of that name.
        trace: Settings of the model of that name.
        custom: Settings of the model of that name.
        dropout_before: Probability that a device asked does not answer at all, per round.
        dropout_mid: Probability that a device begins and goes away before it replies, per round.
        horizon_s: How far ahead the next time online is looked for; beyond it a device counts as never back.
    """

    models: tuple[AvailabilityKind, ...] = (AvailabilityKind.ALWAYS,)
    diurnal: Diurnal = field(default_factory=Diurnal)
    markov: Markov = field(default_factory=Markov)
    trace: TraceConfig = field(default_factory=TraceConfig)
    custom: CustomModel = field(default_factory=CustomModel)
    dropout_before: float = 0.0
    dropout_mid: float = 0.0
    horizon_s: float = 30 * DAY_S

    def __post_init__(self) -> None:
        as_tuples(self, ["models"])
        fraction("availability.dropout_before", self.dropout_before)
        fraction("availability.dropout_mid", self.dropout_mid)
        positive("availability.horizon_s", self.horizon_s)


def _models(config: AvailabilityConfig) -> tuple[AvailabilityModel, ...]:
    """The configured models, opened: a trace is read here."""
    custom = config.custom

    def opened(kind: AvailabilityKind) -> AvailabilityModel:
        if kind == AvailabilityKind.DIURNAL:
            return config.diurnal
        if kind == AvailabilityKind.MARKOV:
            return config.markov
        if kind == AvailabilityKind.TRACE:
            return Trace.read(config.trace)
        if kind == AvailabilityKind.CUSTOM:
            key = "availability.custom.path"
            model: AvailabilityModel = load(custom.path, custom.options, needs=("online", "slot_s"), key=key)
            return model
        return Always()

    return tuple(opened(kind) for kind in config.models)


class Availability:
    """The fleet's availability: what the loop asks.

    Args:
        config: Which models hold.
        seed: The run's seed.
        traits: Where sites and types of devices come from (`Fleet.traits`).
    """

    def __init__(self, config: AvailabilityConfig, seed: int, traits: TraitsOf = plain_traits) -> None:
        self.config = config
        self._seed, self._traits = seed, traits
        self._models = _models(config)
        self._always = all(isinstance(model, Always) for model in self._models)

    def online(self, devices: ArrayLike, at: ArrayLike) -> Bools:
        """Whether devices ``[K]`` are online at `at` (one instant, or one for each): ``[K]`` bool."""
        if self._always:
            return np.ones(np.shape(devices), dtype=np.bool_)
        traits, instants = self._asked(devices, at)
        answer = np.ones(len(traits), dtype=np.bool_)
        for model in self._models:
            left = np.flatnonzero(answer)
            answer[left] = model.online(traits.take(left), self._seed, instants[left])
        return answer

    def next_online(self, devices: ArrayLike, at: ArrayLike) -> Floats:
        """The first instant at or after `at` when each device is online: ``[K]``; inf beyond the horizon."""
        if self._always:
            return np.broadcast_to(np.asarray(at, dtype=np.float64), np.shape(devices)).copy()
        traits, instants = self._asked(devices, at)
        # A conjunction: let each model in turn push the instant ahead until none of them does.
        limit = instants + self.config.horizon_s
        open_ = np.arange(len(instants))
        while len(open_):
            before = instants[open_].copy()
            for model in self._models:
                instants[open_] = _next_online(
                    model, traits.take(open_), self._seed, instants[open_], limit[open_]
                )
            open_ = open_[(instants[open_] != before) & np.isfinite(instants[open_])]
        return instants

    def delivered_at(self, devices: ArrayLike, at: ArrayLike) -> Floats:
        """When what is ready at `at` reaches its destination: an offline device replays its buffer once back."""
        return self.next_online(devices, at)

    def first_offline(self, devices: ArrayLike, at: ArrayLike, until: ArrayLike) -> Floats:
        """The first instant in ``[at, until]`` when each device is offline: ``[K]``; inf if it stays online."""
        if self._always:
            return np.full(np.shape(devices), np.inf)
        traits, instants = self._asked(devices, at)
        ends = np.broadcast_to(np.asarray(until, dtype=np.float64), instants.shape)
        first = np.full(len(traits), np.inf)
        for model in self._models:
            first = np.minimum(first, _first_offline(model, traits, self._seed, instants, ends))
        return first

    def dropped_before(self, devices: ArrayLike, round_: int) -> Bools:
        """Whether each device fails to answer when asked in a round, by the round's coin: ``[K]`` bool."""
        seeds = rng.seeds_for(self._seed, round_, devices, "availability.dropout_before")
        answer: Bools = rng.uniforms(seeds, 1)[..., 0] < self.config.dropout_before
        return answer

    def dropped_at(self, devices: ArrayLike, round_: int, at: float, reply_after_s: ArrayLike) -> Floats:
        """When each device goes away after it began a round at `at`, before its reply: ``[K]``; inf if it replies.

        Args:
            devices: ``[K]``.
            round_: The round.
            at: When the round began.
            reply_after_s: ``[K]`` seconds from then to each device's reply.
        """
        replies = at + np.asarray(reply_after_s, dtype=np.float64)
        draws = rng.uniforms(rng.seeds_for(self._seed, round_, devices, "availability.dropout_mid"), 2)
        when = at + draws[..., 1] * (replies - at)
        tossed = np.where(draws[..., 0] < self.config.dropout_mid, when, np.inf)
        return np.minimum(tossed, self.first_offline(devices, at, replies))

    def _asked(self, devices: ArrayLike, at: ArrayLike) -> tuple[Traits, Floats]:
        ids = np.asarray(devices, dtype=np.int64)
        instants = np.broadcast_to(np.asarray(at, dtype=np.float64), ids.shape).copy()
        return self._traits(ids), instants


def _next_online(model: AvailabilityModel, traits: Traits, seed: int, at: Floats, limit: Floats) -> Floats:
    """The first instant at or after `at` when one model says online; inf beyond `limit`."""
    if isinstance(model, Always):
        return at
    if isinstance(model, Trace):
        found = model.next_online(traits, at)
        return np.where(found <= limit, found, np.inf)
    at = at.copy()
    open_ = np.arange(len(at))
    while len(open_):
        open_ = open_[~model.online(traits.take(open_), seed, at[open_])]
        at[open_] = _next_slot(at[open_], model.slot_s)
        at[open_[at[open_] > limit[open_]]] = np.inf
        open_ = open_[np.isfinite(at[open_])]
    return at


def _first_offline(model: AvailabilityModel, traits: Traits, seed: int, at: Floats, until: Floats) -> Floats:
    """The first instant in ``[at, until]`` when one model says offline; inf if none."""
    if isinstance(model, Trace):
        found = model.first_offline(traits, at)
        return np.where(found <= until, found, np.inf)
    first = np.full(len(at), np.inf)
    if isinstance(model, Always):
        return first
    at = at.copy()
    open_ = np.arange(len(at))
    while len(open_):
        here = model.online(traits.take(open_), seed, at[open_])
        first[open_[~here]] = at[open_[~here]]
        open_ = open_[here]
        at[open_] = _next_slot(at[open_], model.slot_s)
        open_ = open_[at[open_] <= until[open_]]
    return first


def _next_slot(at: Floats, slot_s: float) -> Floats:
    """The start of the slot after the one that holds `at`, never `at` itself whatever the rounding."""
    slot = np.floor(at / slot_s)
    start = (slot + 1.0) * slot_s
    # A millionth of a slot outweighs any rounding, so the search always moves on.
    return np.where(np.floor(start / slot_s) > slot, start, start + 1e-6 * slot_s)
