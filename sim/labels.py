"""When, and whether, the label of a sample becomes known: a pure function of (seed, device, sample).

Rules of this file:
    * A label that never arrives has ``label_at = inf``. A device may train only on labels that have arrived.
    * Loss comes first (with its bias), then delay, then delivery: a device that is offline when its label is
      ready gets it once it is back (`deliver`).
    * A draw depends on the device and on the sample's place in the device's own stream, never on the group in
      which the sample was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.core import rng
from fedretrain.core.checks import as_tuples, finite, fraction, not_negative, require
from fedretrain.core.clock import DAY_S, HOUR_S

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Floats = NDArray[np.float64]
Deliver = Callable[[NDArray[np.int64], Floats], Floats]
"""(devices, ready_at) -> delivered_at, for example `Availability.delivered_at`."""


class DelayKind(StrEnum):
    """How long a label takes."""

    NONE = "none"
    CONSTANT = "constant"
    EXPONENTIAL = "exponential"
    LOGNORMAL = "lognormal"
    NIGHTLY = "nightly"
    PERIODIC = "periodic"


@dataclass(frozen=True)
class LabelsConfig:
    """Delay, loss and bias of labels.

    Attributes:
        delay: The distribution of the delay.
        delay_s: Constant: the delay. Exponential: its mean. Lognormal: its median. Periodic: the length of the periods,
            counted from instant 0, at whose end all labels of the period arrive. Nightly: not used.
        sigma: Lognormal: the spread of its logarithm.
        cutoff_s: Nightly: how long before the batch hour a sample must have been taken to be in that batch.
        batch_hour: Nightly: hour of the campaign's day at which labels arrive, 0 to 24.
        loss_fraction: The fraction of labels that never arrive.
        bias: -1 to 1. The probability of being labelled is ``(1 - loss) (1 + bias (2h - 1))`` with h in 0..1 the
            rank of a sample's hardness in its device's stream: above 0 hard cases are labelled more often (an
            operator looks at alarms), below 0 less often. The fraction lost stays `loss_fraction`.
        class_rate: The probability of being labelled is multiplied by the entry of the sample's class; empty for
            none, else one number from 0 to 1 for each class.
        shared: Devices that hold the same sample at the same place (sensors that see one exposure) get its label together:
            a draw depends on the place alone.
        rest_period_s: Above 0, labels that would be lost arrive after all, at the end of the period of so many seconds
            (counted from instant 0) in which their sample was taken: a few labels early, all of them in the end.
        until_s: Samples taken from this instant on are never labelled; 0: there is no such instant.
        replay_offline: Labels of a device that is offline arrive once it is online again.
    """

    delay: DelayKind = DelayKind.NONE
    delay_s: float = DAY_S
    sigma: float = 1.0
    cutoff_s: float = 0.0
    batch_hour: float = 3.0
    loss_fraction: float = 0.0
    bias: float = 0.0
    class_rate: tuple[float, ...] = ()
    shared: bool = False
    rest_period_s: float = 0.0
    until_s: float = 0.0
    replay_offline: bool = True

    def __post_init__(self) -> None:
        as_tuples(self, ["class_rate"])
        not_negative("labels.delay_s", self.delay_s)
        not_negative("labels.sigma", self.sigma)
        not_negative("labels.rest_period_s", self.rest_period_s)
        not_negative("labels.until_s", self.until_s)
        not_negative("labels.cutoff_s", self.cutoff_s)
        fraction("labels.loss_fraction", self.loss_fraction)
        finite("labels.bias", self.bias)
        require(-1.0 <= self.bias <= 1.0, f"{self.bias} is outside -1 to 1", key="labels.bias")
        require(0.0 <= self.batch_hour < 24.0, "is not an hour of the day", key="labels.batch_hour")
        periodic = self.delay == DelayKind.PERIODIC
        require(not periodic or self.delay_s > 0, "a period is longer than nothing", key="labels.delay_s")
        for rate in self.class_rate:
            fraction("labels.class_rate", rate)
        kept = 1.0 - self.loss_fraction
        require(
            kept * (1.0 + abs(self.bias)) <= 1.0 + 1e-12,
            f"a bias of {self.bias} needs a probability above 1 when {kept:g} of the labels arrive",
            key="labels.bias",
            fix=f"lose at least {1.0 - 1.0 / (1.0 + abs(self.bias)):.3g} of them (labels.loss_fraction)",
        )


class Labels:
    """Label arrival: what a fleet asks for each group of samples.

    Args:
        config: Delay, loss and bias.
        seed: The run's seed.
        deliver: Delays what a device gets while it is offline; None means that all are always online.
    """

    def __init__(self, config: LabelsConfig, seed: int, deliver: Deliver | None = None) -> None:
        self.config = config
        self._seed = seed
        self._deliver = deliver if config.replay_offline else None

    def label_at(
        self,
        devices: ArrayLike,
        index: ArrayLike,
        event_at: ArrayLike,
        *,
        hardness: ArrayLike | None = None,
        y: NDArray[Any] | None = None,
    ) -> Floats:
        """When each sample's label arrives.

        Args:
            devices: ``[N]`` the device of each sample.
            index: ``[N]`` the sample's place in the device's stream.
            event_at: ``[N]`` when it was taken.
            hardness: ``[N]`` rank of its hardness within its device, 0 to 1 (see `hardness_ranks`); None: all
                alike.
            y: ``[N]`` class indices, for `class_rate`.

        Returns:
            ``[N]`` instants, never before `event_at`; inf where the label is lost.
        """
        ids, taken = np.asarray(devices, dtype=np.int64), np.asarray(event_at, dtype=np.float64)
        at = self._arrival_at(ids, index, taken, hardness, y)
        return np.where(taken < self.config.until_s, at, np.inf) if self.config.until_s else at

    def _arrival_at(
        self,
        ids: NDArray[np.int64],
        index: ArrayLike,
        taken: Floats,
        hardness: ArrayLike | None,
        y: NDArray[Any] | None,
    ) -> Floats:
        """See `label_at`, but for `until_s`."""
        if self._certain:
            at = taken + self.delays(taken, taken)
            return at if self._deliver is None else self._deliver(ids, at)
        drawn_for = np.zeros_like(ids) if self.config.shared else ids
        seeds = rng.seeds_for(self._seed, -1, drawn_for, "labels")
        place = 2 * np.asarray(index, dtype=np.int64)
        arrives = rng.uniforms_at(seeds, place) < self._probability(len(ids), hardness, y)
        rest_at: float | Floats = np.inf
        if period := self.config.rest_period_s:
            rest_at = np.floor(taken / period + 1.0) * period
        at = np.where(arrives, taken + self.delays(rng.uniforms_at(seeds, place + 1), taken), rest_at)
        if self._deliver is not None and arrives.any():
            at[arrives] = self._deliver(ids[arrives], at[arrives])
        return at

    @property
    def _certain(self) -> bool:
        """True where every label arrives after a delay that nothing is drawn for."""
        config = self.config
        drawn = config.delay in (DelayKind.EXPONENTIAL, DelayKind.LOGNORMAL)
        return not (drawn or config.loss_fraction or config.bias or config.class_rate)

    def delays(self, draws: Floats, event_at: Floats) -> Floats:
        """Seconds from each sample to its label, by inversion of uniform draws in (0, 1)."""
        config = self.config
        if config.delay == DelayKind.NONE:
            return np.zeros_like(event_at)
        if config.delay == DelayKind.CONSTANT:
            return np.full_like(event_at, config.delay_s)
        if config.delay == DelayKind.EXPONENTIAL:
            return -config.delay_s * np.log1p(-draws)
        if config.delay == DelayKind.LOGNORMAL:
            from scipy.special import ndtri  # late: 0.2 s that other delays need not pay

            spread: Floats = config.delay_s * np.exp(config.sigma * ndtri(draws))
            return spread
        if config.delay == DelayKind.PERIODIC:
            return np.floor(event_at / config.delay_s + 1.0) * config.delay_s - event_at
        batch = config.batch_hour * HOUR_S
        nights = np.ceil((event_at + config.cutoff_s - batch) / DAY_S)
        return np.maximum(nights * DAY_S + batch - event_at, 0.0)

    def _probability(self, count: int, hardness: ArrayLike | None, y: NDArray[Any] | None) -> Floats:
        """The probability of being labelled, of each sample."""
        config = self.config
        chance = np.full(count, 1.0 - config.loss_fraction)
        if config.bias and hardness is not None:
            chance *= 1.0 + config.bias * (2.0 * np.asarray(hardness, dtype=np.float64) - 1.0)
        if config.class_rate:
            rates = np.asarray(config.class_rate)
            require(
                y is not None
                and np.issubdtype(y.dtype, np.integer)
                and (not count or int(y.max()) < len(rates)),
                f"{len(rates)} rates do not cover the classes",
                key="labels.class_rate",
                fix="give one number for each class of a classification task",
            )
            chance *= rates[y]
        return chance


def hardness_ranks(values: ArrayLike, groups: ArrayLike) -> Floats:
    """The rank of each value within its group, scaled to (0, 1) with mean 1/2.

    Args:
        values: ``[N]`` any measure of hardness.
        groups: ``[N]`` the device of each sample, equal ones side by side.

    Returns:
        ``[N]`` (rank + 1/2) / size of the group.
    """
    of = np.asarray(groups)
    order = np.lexsort((np.asarray(values), of))
    _, inverse, sizes = np.unique(of, return_inverse=True, return_counts=True)
    start = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    ranks = np.empty(len(of), dtype=np.float64)
    ranks[order] = np.arange(len(of)) - start[inverse[order]]
    return (ranks + 0.5) / sizes[inverse]


def class_distance(x: NDArray[np.float32], y: NDArray[Any], groups: ArrayLike) -> Floats:
    """The default hardness: how far a sample is from the centroid of its class on its own device.

    Args:
        x: ``[N, *F]`` model inputs.
        y: ``[N]`` class indices; or targets, and the measure is the distance from the device's mean target.
        groups: ``[N]`` the device of each sample.

    Returns:
        ``[N]`` Euclidean distances.
    """
    owner = np.unique(np.asarray(groups), return_inverse=True)[1]
    if np.issubdtype(y.dtype, np.integer):
        flat, owner = (
            x.reshape(len(x), -1),
            np.unique(owner * (int(y.max(initial=0)) + 1) + y, return_inverse=True)[1],
        )
    else:
        flat = y.reshape(-1, 1)
    order = np.argsort(owner, kind="stable")
    sizes = np.bincount(owner)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    centres = np.add.reduceat(flat[order].astype(np.float64), starts, axis=0) / sizes[:, None]
    gap = flat - centres[owner]
    distance: Floats = np.sqrt(np.sum(gap * gap, axis=1))
    return distance
