"""The simulated world: a fleet with its availability, network and labels, put together from configurations.

Rules of this file:
    * A group of devices is materialised at once: rows, drift, preprocessing, label arrival.
    * Drift comes before preprocessing, as on a device; labels are of what happened, not of what the sensor said.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import ConfigError, DataError
from sim.availability import Availability, AvailabilityConfig
from sim.cache import StreamCache
from sim.fleet import FleetConfig, FleetKind
from sim.groups import StreamGroup
from sim.labels import Labels, LabelsConfig, class_distance, hardness_ranks
from sim.network import Network, NetworkConfig
from sim.sensors.config import DriftConfig
from sim.sensors.plan import DriftPlan
from sim.sources import DatasetSource, GeneratedSource, RawGroup, Source

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fedretrain.core.types import ClientData, Objective
    from fedretrain.features.pipeline import Pipeline
    from fedretrain.features.schema import Schema
    from sim.datasets.base import SensorDataset, Timeline
    from sim.devices import Traits
    from sim.fleet import DeviceStream, Fleet
    from sim.sensors.events import DriftEvent

_GROUP_BYTES = 4 << 20  # raw rows materialised at once; beyond it speed no longer grows, memory does
_MOST_FLEET_PER_CACHE = 8  # times the cache: beyond it fewer than one in eight asked for would be found there


@dataclass(frozen=True)
class WorldConfig:
    """Everything about the world but its data and its seed."""

    fleet: FleetConfig = field(default_factory=FleetConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    availability: AvailabilityConfig = field(default_factory=AvailabilityConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)


class SimulatedFleet:
    """A fleet over any source of raw rows. See `sim.fleet.Fleet` for what its methods promise.

    Args:
        source: Raw rows and traits.
        drift: What happens to the sensors.
        labels: When labels arrive.
        digest: Of everything that the fleet was made from.
        cache_bytes: Memory for streams most recently used; 0 for none.
    """

    def __init__(
        self,
        source: Source,
        drift: DriftPlan,
        labels: Labels,
        *,
        digest: str,
        cache_bytes: int,
    ) -> None:
        self._source, self._drift, self._labels = source, drift, labels
        self._digest = digest
        # Of a fleet far larger than the cache hardly anything would be asked for again before it is let go.
        worthwhile = self._device_bytes * self.num_devices <= _MOST_FLEET_PER_CACHE * cache_bytes
        self._cache = StreamCache(cache_bytes if worthwhile else 0, self._made)

    @property
    def num_devices(self) -> int:
        """Devices are 0 to ``num_devices - 1``."""
        return self._source.num_devices

    @property
    def num_virtual(self) -> int:
        """Devices made by re-mounting others' signals; natural ones come first."""
        return self._source.num_virtual

    def virtual(self, devices: ArrayLike) -> NDArray[np.bool_]:
        """Whether each of devices ``[K]`` is virtual: the last `num_virtual` are."""
        return self._checked(devices) >= self.num_devices - self.num_virtual

    @property
    def digest(self) -> str:
        """SHA-256 of what the fleet was made from."""
        return self._digest

    @property
    def objective(self) -> Objective:
        """What models are trained for."""
        return self._source.objective

    @property
    def num_outputs(self) -> int:
        """Classes, or 1."""
        return self._source.num_outputs

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty for regression."""
        return self._source.class_names

    @property
    def schema(self) -> Schema:
        """The raw channels."""
        return self._source.schema

    @property
    def pipeline(self) -> Pipeline:
        """The preprocessing, fitted (local steps are fitted for each device)."""
        return self._source.pipeline

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape F of one model input."""
        return self.pipeline.output_shape(self.schema)

    def traits(self, devices: ArrayLike) -> Traits:
        """Site and type of devices ``[K]``."""
        return self._source.traits(self._checked(devices))

    def streams(self, devices: ArrayLike) -> list[DeviceStream]:
        """The samples of devices ``[K]``, in order."""
        return self._cache.get(self._checked(devices))

    def trainable(self, devices: ArrayLike, at: float) -> list[ClientData]:
        """What each of devices ``[K]`` may train on at the instant `at`."""
        ids = self._checked(devices)
        if self._cache.limit_bytes:
            return self._cache.trainable(ids, at)
        # Nothing is kept: rows that are only scored need not be made, unless they bear on the others.
        past = not len(self._drift) and not self._labels.config.bias
        groups = self._made(ids, past=past)
        return [data for group in groups for data in group.trainable(np.arange(len(group)), at)]

    def truth(self, devices: ArrayLike) -> list[DriftEvent]:
        """The drift injected into devices ``[K]``."""
        return self._drift.truth(self.traits(devices))

    def name(self, device: int) -> str:
        """What to call a device in a report."""
        return self._source.name(device)

    def _checked(self, devices: ArrayLike) -> NDArray[np.int64]:
        ids = np.atleast_1d(np.asarray(devices, dtype=np.int64))
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= self.num_devices):
            raise DataError(f"devices are 0 to {self.num_devices - 1}", where=f"device {ids.max()}")
        return ids

    @property
    def _device_bytes(self) -> float:
        """Raw rows of a usual device."""
        return 4 * int(np.prod(self.schema.row_shape)) * self._source.mean_rows

    def _made(self, devices: NDArray[np.int64], *, past: bool = False) -> list[StreamGroup]:
        """Materialise devices, group by group."""
        group = max(1, int(_GROUP_BYTES / max(self._device_bytes, 1.0)))
        return [self._group(devices[i : i + group], past=past) for i in range(0, len(devices), group)]

    def _group(self, devices: NDArray[np.int64], *, past: bool) -> StreamGroup:
        """Materialise one group at once."""
        raw, traits = self._source.raw(devices, past=past), self._source.traits(devices)
        drifted = self._drift.apply(raw.x, raw.rows, traits) if len(self._drift) else raw.x
        event_at = self._drift.reported_at(raw.rows, traits) if len(self._drift) else raw.rows.event_at
        ends = np.searchsorted(raw.rows.owner, np.arange(len(devices) + 1))
        x = self._inputs(drifted.reshape(len(drifted), *self.schema.row_shape), raw.future, ends)
        label_at = self._label_at(devices, raw, x)
        return StreamGroup(x, raw.y, event_at, label_at, raw.future, ends)

    def _inputs(
        self, x: NDArray[np.float32], future: NDArray[np.bool_], ends: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Model inputs of raw rows; a local step is fitted on each device's own past rows."""
        if not len(x):
            return np.empty((0, *self.input_shape), dtype=np.float32)
        if not self.pipeline.has_local:
            return self.pipeline.apply(x)
        out = np.zeros((len(x), *self.input_shape), dtype=np.float32)
        for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            past = x[a:b][~future[a:b]]
            if b > a:
                out[a:b] = self.pipeline.localize(past).apply(x[a:b])  # no past: neutral numbers
        return out

    def _label_at(
        self, devices: NDArray[np.int64], raw: RawGroup, x: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """When each row's label arrives, by the true clock."""
        rows, hardness = raw.rows, None
        if self._labels.config.bias and len(x):
            hardness = hardness_ranks(class_distance(x, raw.y, rows.owner), rows.owner)
        return self._labels.label_at(
            devices[rows.owner], rows.index, rows.event_at, hardness=hardness, y=raw.y
        )


@dataclass(frozen=True)
class World:
    """What the loop runs in."""

    fleet: Fleet
    availability: Availability
    network: Network
    labels: Labels


def build_world(
    config: WorldConfig,
    *,
    seed: int,
    dataset: SensorDataset | None = None,
    timeline: Timeline | None = None,
    cache_bytes: int = 256 << 20,
) -> World:
    """Put a world together; the same arguments give the same world on any worker.

    Args:
        config: Fleet, drift, availability, network and labels.
        seed: The run's seed.
        dataset: The data, for every kind of fleet but a generated one.
        timeline: When the campaign is, for a generated fleet (a data set has its own).
        cache_bytes: Memory for streams most recently used.

    Raises:
        ConfigError: If a generated fleet is given data, or another kind none.
    """
    generated = config.fleet.kind == FleetKind.GENERATED
    if generated != (dataset is None):
        what = "is made from its seed, not from data" if generated else "needs a data set"
        raise ConfigError(f"a fleet of kind {config.fleet.kind} {what}", where="fleet.kind")
    source: Source = (
        GeneratedSource(config.fleet, seed, timeline)
        if dataset is None
        else DatasetSource(dataset, config.fleet, seed)
    )
    availability = Availability(config.availability, seed, source.traits)
    network = Network(config.network, seed, source.traits)
    labels = Labels(config.labels, seed, availability.delivered_at)
    digest = hashlib.sha256(f"{source.digest}|{config!r}|{seed}".encode()).hexdigest()
    drift = DriftPlan(config.drift, seed, source.stats)
    fleet = SimulatedFleet(source, drift, labels, digest=digest, cache_bytes=cache_bytes)
    return World(fleet, availability, network, labels)
