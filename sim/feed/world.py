"""The synthetic world that real agents see: whose sensors read what, and what drift does to them.

Rules of this file:
    * Everything is a pure function of the configuration: `prepare` and `run` compute the same world, and the same run again.
    * The laboratory's devices are drawn by the fleet's recipe and are not in the fleet.
    * Drift is `sim.sensors`' own: the same gain and offset as in simulated campaigns, the same on every device that is hit, so one model can
      learn what they read afterwards.
    * Time is the age of the drift: a row's clean values never depend on when it is played.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core import rng
from sim.datasets.synthetic import SyntheticFleet
from sim.devices import plain_traits
from sim.feed.calibration import offset_that_costs
from sim.sensors.config import DriftConfig, DriftKind, DriftSpec
from sim.sensors.effects import SignalStats
from sim.sensors.plan import DriftPlan, RawRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.features.pipeline import Pipeline
    from sim.feed.config import FeedConfig

    Floats = NDArray[np.float32]
    Labels = NDArray[np.int64]

_LATENT, _LABEL_SKEW, _CONCEPT_SHIFT, _FEATURE_SKEW = 6, 0.3, 0.3, 0.05
"""Devices alike enough that a model from the laboratory scores 81 to 97 % in the fleet (seeds 0 to 9) before its sensors drift."""


@dataclass(frozen=True)
class Device:
    """A logical device of the fleet.

    Attributes:
        name: ``device-00`` and on.
        device_type: ``type-0`` and on.
        site: ``site-0`` and on.
        agent: The number of the agent that hosts it.
        drifts: Whether its sensors drift.
    """

    name: str
    device_type: str
    site: str
    agent: int
    drifts: bool


@dataclass(frozen=True)
class LabRows:
    """The laboratory's labelled rows, device after device.

    Attributes:
        x: ``[N, C]`` raw rows.
        y: ``[N]`` classes.
        at: ``[N]`` instants in seconds from the start of the recording.
        device: ``[N]`` which laboratory device; its number is above every device's of the fleet.
    """

    x: Floats
    y: Labels
    at: NDArray[np.float64]
    device: NDArray[np.int64]


class World:
    """A fleet, its laboratory and its drift.

    Args:
        config: Which world.
    """

    def __init__(self, config: FeedConfig) -> None:
        self.config = config
        self._recipe = self._make_recipe()

    def _make_recipe(self) -> SyntheticFleet:
        c = self.config
        return SyntheticFleet(
            num_devices=c.num_devices + c.num_lab_devices,
            num_samples=c.stream_rows,
            num_features=c.num_features,
            num_classes=c.num_classes,
            latent=_LATENT,
            seed=c.seed,
            label_skew=_LABEL_SKEW,
            concept_shift=_CONCEPT_SHIFT,
            feature_skew=_FEATURE_SKEW,
        )

    @property
    def features(self) -> Pipeline:
        """The fitted pipeline with its schema: what ``features.json`` holds. Nothing of it comes from data."""
        recipe = self._recipe
        blank = np.zeros((1, self.config.num_features), dtype=np.float32)
        return recipe.pipeline.fit(blank, recipe.schema)

    @cached_property
    def devices(self) -> tuple[Device, ...]:
        """The fleet; agents host devices that follow each other."""
        c = self.config
        seeds = rng.seeds_for(c.seed, -1, np.arange(1), "feed/drifts")
        order = rng.permutations(seeds, np.array([c.num_devices]), c.num_devices)[0]
        hit = set(order[: round(c.drift_fraction * c.num_devices)].tolist())
        width = max(2, len(str(c.num_devices - 1)))
        return tuple(
            Device(
                f"device-{k:0{width}d}",
                f"type-{k % c.num_types}",
                f"site-{k % c.num_sites}",
                k * c.num_agents // c.num_devices,
                k in hit,
            )
            for k in range(c.num_devices)
        )

    @cached_property
    def lab(self) -> LabRows:
        """What the laboratory has recorded."""
        c = self.config
        ids = c.num_devices + np.arange(c.num_lab_devices)
        x, y = self._recipe.generate(ids, c.lab_rows)
        at = np.tile(np.arange(c.lab_rows) * c.interval_s, c.num_lab_devices)
        return LabRows(x.reshape(-1, c.num_features), y.reshape(-1), at, np.repeat(ids, c.lab_rows))

    @cached_property
    def _streams(self) -> tuple[Floats, Labels]:
        """Every row of the fleet before any drift: ``[D, N, C]`` and ``[D, N]``."""
        return self._recipe.generate(np.arange(self.config.num_devices))

    @property
    def _num_drifting(self) -> int:
        """How many channels drift."""
        return self.config.drift_channels or max(1, self.config.num_features // 2)

    @cached_property
    def drift_offset(self) -> float:
        """How far they shift, in standard deviations of the laboratory's rows."""
        c, lab = self.config, self.lab
        return c.drift_offset or offset_that_costs(
            c.drift_loss, lab.x.astype(np.float64), lab.y, gain=c.drift_gain, channels=self._num_drifting
        )

    @cached_property
    def _plan(self) -> DriftPlan:
        c = self.config
        names = tuple(channel.name for channel in self._recipe.schema.channels)
        lab = self.lab.x.astype(np.float64)
        low, high = (
            np.array([getattr(ch, end) for ch in self._recipe.schema.channels]) for end in ("low", "high")
        )
        stats = SignalStats(names, low, high, lab.mean(axis=0), lab.std(axis=0))
        channels = names[: self._num_drifting]
        who = tuple(k for k, device in enumerate(self.devices) if device.drifts)
        kinds = ((DriftKind.GAIN, c.drift_gain), (DriftKind.OFFSET, self.drift_offset))
        specs = tuple(DriftSpec(kind, magnitude=size, channels=channels, devices=who) for kind, size in kinds)
        return DriftPlan(DriftConfig(specs if who else ()), c.seed, stats)

    def rows(
        self, device: int, first: int, count: int, *, drift_age_s: float = -1.0
    ) -> tuple[Floats, Labels]:
        """What a device's sensors report.

        Args:
            device: Its number.
            first: The number of the first row, from 0; a stream begins anew after its last row.
            count: So many rows.
            drift_age_s: Seconds since the sensors drifted; below 0: they have not yet.

        Returns:
            ``[count, C]`` raw rows and ``[count]`` the true classes.
        """
        x, y = self._streams
        index = (first + np.arange(count)) % self.config.stream_rows
        where = RawRows(np.zeros(count, dtype=np.int64), index, np.full(count, drift_age_s))
        traits = plain_traits(np.array([device]))
        return self._plan.apply(x[device, index][:, None, :], where, traits)[:, 0, :], y[device, index]

    def labelled(self, device: int, first: int, count: int) -> NDArray[np.bool_]:
        """``[count]`` of which rows a person says what was right."""
        seeds = rng.seeds_for(self.config.seed, -1, np.array([device]), "feed/labelled")
        return rng.uniforms_at(seeds, first + np.arange(count)) < self.config.label_fraction
