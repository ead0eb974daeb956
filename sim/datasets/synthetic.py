"""A fleet of any size, generated on demand: device k's samples are a pure function of (seed, k).

Rules of this file:
    * Nothing is kept per device: a million devices cost what the asked-for ones cost.
    * A device's samples do not depend on which others are generated with it, to the last bit: counter-based draws,
      arithmetic on single numbers, and one matrix product for each device, always of the same shape.
    * The world: each class is a point in a small latent space; samples scatter around it; sensors mix the latent
      numbers (`features`) and saturate. Devices differ in their favourite classes (label skew), in where their
      classes lie (concept shift), and in their sensors' gain and offset (feature skew).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core import rng
from fedretrain.core.errors import ConfigError
from fedretrain.core.types import Objective
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Channel, Schema
from sim.datasets.base import SensorDataset, Timeline, content_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

CAVEATS = ("synthetic: says how fast and how large, nothing about a real sensor",)
_BLOCK = 2**17  # latent numbers drawn at a time: a core's cache holds their words while they are mixed
_TILE = 2**17  # values of sensors likewise
_EVEN_BYTES = np.uint64(0x00FF00FF00FF00FF)
_LOW_32, _BIT_32 = np.uint64(2**32 - 1), np.uint64(2**32)


@dataclass(frozen=True)
class SyntheticFleet:
    """The recipe of a synthetic fleet.

    Attributes:
        num_devices: D.
        num_samples: N of each device, training and scored.
        num_features: C.
        num_classes: Classes.
        latent: Dimensions of the latent space.
        seed: Of everything.
        label_skew: Share of a device's samples that come from its two favourite classes.
        concept_shift: How far a device's classes lie from everybody's, in units of a sample's scatter.
        feature_skew: Spread of the sensors' gain around 1 and of their offset around 0.
        scored_fraction: Share of a device's samples that is scored.
    """

    num_devices: int = 1_000_000
    num_samples: int = 64
    num_features: int = 64
    num_classes: int = 6
    latent: int = 8
    seed: int = 0
    label_skew: float = 0.5
    concept_shift: float = 1.0
    feature_skew: float = 0.1
    scored_fraction: float = 0.2

    def __post_init__(self) -> None:
        if (
            min(self.num_devices, self.num_features, self.latent) < 1
            or min(self.num_samples, self.num_classes) < 2
        ):
            raise ConfigError(
                f"this synthetic fleet is not possible: {self}",
                fix="sizes from 1, samples and classes from 2",
            )
        if not 0.0 <= self.label_skew <= 1.0 or not 0.0 < self.scored_fraction < 1.0:
            raise ConfigError(
                "label_skew is a share from 0 to 1, and scored_fraction lies between 0 and 1", where="scale"
            )
        if min(self.concept_shift, self.feature_skew) < 0.0 or self.feature_skew >= 0.3:
            raise ConfigError(
                "concept_shift is 0 or more and feature_skew is from 0 to below 0.3", where="scale"
            )

    @property
    def schema(self) -> Schema:
        """``num_features`` saturating sensors."""
        return Schema(tuple(Channel(f"s{i}", "1", -3.0, 3.0) for i in range(self.num_features)))

    @property
    def pipeline(self) -> Pipeline:
        """The declared ranges, a third of them being usual; nothing fitted."""
        return Pipeline((Scaler("fixed", (0.0,), (0.5,)),))

    @cached_property
    def future(self) -> NDArray[np.bool_]:
        """``[N]`` which samples are scored: the last ones, on every device."""
        num_scored = min(self.num_samples - 1, max(1, round(self.scored_fraction * self.num_samples)))
        return np.arange(self.num_samples) >= self.num_samples - num_scored

    @cached_property
    def _world(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Class centers ``[classes, latent]`` and the sensors' mixing ``[latent, C]``, the same for all devices."""
        seeds = rng.seeds_for(self.seed, -1, np.arange(2), "synthetic/world")
        centers = rng.normals(seeds[:1], self.num_classes * self.latent).reshape(
            self.num_classes, self.latent
        )
        mixing = rng.normals(seeds[1:], self.latent * self.num_features).reshape(
            self.latent, self.num_features
        )
        return (1.5 * centers).astype(np.float32), (mixing / np.sqrt(self.latent)).astype(np.float32)

    def generate(
        self, devices: NDArray[np.integer[Any]], rows: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The samples of some devices.

        Args:
            devices: ``[K]`` numbers from 0 to D - 1.
            rows: Only each device's first so many samples; 0: all N.

        Returns:
            x ``[K, N, C]`` float32 and y ``[K, N]`` int64, in time order.

        Raises:
            ConfigError: If there is no such device.
        """
        ids = np.asarray(devices, dtype=np.int64)
        if len(ids) and (ids.min() < 0 or ids.max() >= self.num_devices):
            raise ConfigError(
                f"devices are 0 to {self.num_devices - 1}", where="scale", fix="raise num_devices"
            )
        rows = rows or self.num_samples
        x = np.empty((len(ids), rows, self.num_features), dtype=np.float32)
        y = np.empty((len(ids), rows), dtype=np.int64)
        step = max(1, _BLOCK // (rows * self.latent))
        for start in range(0, len(ids), step):
            part = slice(start, start + step)
            y[part] = self._labels(ids[part], rows)
            self._samples(ids[part], y[part], x[part])
        return x, y

    def _draw(self, ids: NDArray[np.int64], purpose: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Centred draws of unit variance ``[K, *shape]``: sums of four bytes, two to a word; cheaper than normals."""
        count = int(np.prod(shape))
        words = rng.words(rng.seeds_for(self.seed, -1, ids, f"synthetic/{purpose}"), -(-count // 2))
        # Bytes two at a time in each quarter of a word, then quarters two at a time: 16 bits cannot overflow.
        quarters = ((words & _EVEN_BYTES) + ((words >> np.uint64(8)) & _EVEN_BYTES)).view(np.uint16)
        total = (quarters[:, ::2] + quarters[:, 1::2])[:, :count].astype(np.float32)
        total -= np.float32(2 * 255)
        total /= np.float32(np.sqrt((2**16 - 1) / 3.0))
        return total.reshape(len(ids), *shape)

    def _labels(self, ids: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
        """``[K, rows]``: one of two favourites with probability `label_skew`, else any class; a word for each sample."""
        classes = np.uint64(self.num_classes)
        favourites = rng.words(rng.seeds_for(self.seed, -1, ids, "synthetic/favourites"), 2)
        favourites = ((favourites >> np.uint64(33)) * classes) >> np.uint64(31)
        words = rng.words(rng.seeds_for(self.seed, -1, ids, "synthetic/labels"), rows)
        anyone = ((words >> np.uint64(33)) * classes) >> np.uint64(31)
        preferred = np.where(words & _BIT_32, favourites[:, :1], favourites[:, 1:])
        skewed = (words & _LOW_32) < np.uint64(self.label_skew * 2**32)
        return np.where(skewed, preferred, anyone).astype(np.int64)

    def _samples(self, ids: NDArray[np.int64], y: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """``[K, rows, C]`` of a block of devices, into `out`."""
        centers, mixing = self._world
        shift = self._draw(ids, "concept", (self.num_classes, self.latent)) * np.float32(self.concept_shift)
        latent = self._draw(ids, "scatter", (y.shape[1], self.latent))
        own = (shift + centers).reshape(-1, self.latent)  # each device's classes
        latent += np.take(own, y + self.num_classes * np.arange(len(ids))[:, None], axis=0)
        skew = self._draw(ids, "sensors", (2, 1, self.num_features)) * np.float32(self.feature_skew)
        skew[:, 0] += np.float32(1.0)
        step = max(1, _TILE // out[:1].size)
        for start in range(0, len(ids), step):
            part = slice(start, start + step)
            _sensed(latent[part], mixing, skew[part], out[part])

    def event_at(
        self, devices: NDArray[np.integer[Any]], timeline: Timeline | None = None
    ) -> NDArray[np.float64]:
        """``[K, N]`` instants: the same on every device."""
        at = (timeline or Timeline()).place(np.zeros(self.num_samples, dtype=np.int64), self.future)
        return np.broadcast_to(at, (len(devices), self.num_samples))

    @property
    def class_names(self) -> tuple[str, ...]:
        """``class 0`` and on."""
        return tuple(f"class {c}" for c in range(self.num_classes))


def _sensed(
    latent: NDArray[np.float32],
    mixing: NDArray[np.float32],
    skew: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """What saturating, skewed sensors make of latent numbers: ``[K, N, C]`` into `out`."""
    np.matmul(latent, mixing, out=out)
    size = np.abs(out)
    size += np.float32(1.0)
    out /= size  # a sensor that saturates at 1
    out *= skew[:, 0]
    out += skew[:, 1]


def load(
    data_dir: object = None, *, recipe: SyntheticFleet | None = None, timeline: Timeline | None = None
) -> SensorDataset:
    """A small synthetic fleet as an ordinary data set (every device in memory).

    Args:
        data_dir: Not used.
        recipe: What to generate; 100 devices by default.
        timeline: Where rows are put in virtual time.
    """
    del data_dir
    recipe = recipe or SyntheticFleet(num_devices=100)
    devices = np.arange(recipe.num_devices)
    x, y = recipe.generate(devices)
    none = np.zeros(recipe.num_devices, dtype=np.int32)
    return SensorDataset(
        name="scale",
        schema=recipe.schema,
        objective=Objective.CLASSIFICATION,
        num_outputs=recipe.num_classes,
        class_names=recipe.class_names,
        x=x.reshape(-1, recipe.num_features),
        y=y.reshape(-1),
        stream=np.repeat(devices, recipe.num_samples).astype(np.int32),
        stream_names=tuple(f"device {k}" for k in devices),
        site=none,
        device_type=none,
        event_at=np.array(recipe.event_at(devices, timeline)).reshape(-1),
        future=np.tile(recipe.future, recipe.num_devices),
        pipeline=recipe.pipeline,
        digest=content_digest(np.frombuffer(repr(recipe).encode(), dtype=np.uint8)),
        caveats=CAVEATS,
    )
