"""Where raw rows come from: a data set's, or made from a seed.

Rules of this file:
    * A source answers for any devices, in any order and grouping, the same rows.
    * Rows are raw: what sensors would report without drift. Re-mounting of virtual devices is part of the source.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fedretrain.core import rng
from fedretrain.core.types import Objective
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.schema import Channel, Schema
from fedretrain.features.steps import Impute
from sim.datasets.base import SensorDataset, Timeline
from sim.fleet import FleetConfig, FleetKind
from sim.mounting import Mounting, three_axis_groups
from sim.noise import gaussian
from sim.sensors.effects import SignalStats
from sim.sensors.plan import RawRows
from sim.sharding import Held, drawn_traits, sharding_for
from sim.skew import log_label_shares, quantities

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.devices import Traits

    Ids = NDArray[np.int64]


@dataclass(frozen=True)
class RawGroup:
    """Raw rows of K devices, one device after the other, in time order.

    Attributes:
        x: ``[N, T, C]`` float32 (T = 1 for tables).
        y: ``[N]`` labels.
        rows: Whose, which and when.
        future: ``[N]`` bool.
    """

    x: NDArray[np.float32]
    y: NDArray[Any]
    rows: RawRows
    future: NDArray[np.bool_]


class Source(Protocol):
    """What a fleet is made from."""

    objective: Objective
    num_outputs: int
    class_names: tuple[str, ...]
    schema: Schema
    stats: SignalStats
    pipeline: Pipeline
    is_virtual: bool
    num_devices: int
    mean_rows: float
    digest: str

    def traits(self, devices: Ids) -> Traits:
        """Site and type of devices ``[K]``."""
        ...

    def raw(self, devices: Ids) -> RawGroup:
        """Raw rows of devices ``[K]``."""
        ...

    def name(self, device: int) -> str:
        """What to call a device."""
        ...


class DatasetSource:
    """Devices of a data set.

    Args:
        dataset: The rows.
        config: How they become devices.
        seed: The run's seed.
    """

    def __init__(self, dataset: SensorDataset, config: FleetConfig, seed: int) -> None:
        self._dataset = dataset
        self.objective, self.num_outputs = dataset.objective, dataset.num_outputs
        self.class_names, self.schema = dataset.class_names, dataset.schema
        past = ~dataset.future
        self.stats = signal_stats(dataset.schema, dataset.x[past])
        self._sharding = sharding_for(dataset, config, seed)
        self.num_devices = self._sharding.num_devices
        self.traits, self.name = self._sharding.traits, self._sharding.name
        self.is_virtual = config.kind == FleetKind.VIRTUAL or config.remount
        self._mounting = None
        if self.is_virtual:
            self._mounting = Mounting(config.mount, seed, self.stats, three_axis_groups(dataset.schema))
        holders = len(dataset.stream_names) if config.kind == FleetKind.VIRTUAL else self.num_devices
        self.mean_rows = len(dataset.y) / holders
        self.pipeline = dataset.pipeline
        if self.pipeline.schema is None:
            self.pipeline = self.pipeline.fit(dataset.x[past], dataset.schema, device=dataset.stream[past])
        self.digest = _digest(dataset.digest, config, seed)

    def raw(self, devices: Ids) -> RawGroup:
        """The devices' rows, re-mounted if they are virtual."""
        held, data = self._sharding.held(devices), self._dataset
        rows = RawRows(held.owner, _places(held), data.event_at[held.row])
        x = data.x[held.row]
        x = x if x.ndim == 3 else x[:, None, :]
        if self._mounting is not None:
            x = self._mounting.apply(x, rows, devices)
        return RawGroup(x, data.y[held.row], rows, data.future[held.row])


class GeneratedSource:
    """Synthetic devices, made from their seed when asked for: a million need no million objects.

    Args:
        config: How many, and what they hold.
        seed: The run's seed.
        timeline: When the campaign is.
    """

    def __init__(self, config: FleetConfig, seed: int, timeline: Timeline | None = None) -> None:
        made = config.generator
        self._config, self._seed, self._timeline = config, seed, timeline or Timeline()
        self.objective, self.num_outputs = Objective.CLASSIFICATION, made.num_classes
        self.class_names = tuple(f"class {c}" for c in range(made.num_classes))
        self.schema = Schema(
            tuple(Channel(f"f{i:03d}", "1", -16.0, 16.0, missing=True) for i in range(made.num_features))
        )
        ones = np.ones(made.num_features)
        self.stats = SignalStats(self.schema.names, -16.0 * ones, 16.0 * ones, 0.0 * ones, ones)
        self.pipeline = Pipeline((Impute("constant", 0.0),)).fit(
            np.zeros((1, made.num_features), dtype=np.float32), self.schema
        )
        self.is_virtual = False
        self.num_devices = config.num_devices
        self.mean_rows = float(made.past_rows + made.future_rows)
        means = rng.normals(
            rng.seeds_for(seed, -1, np.arange(made.num_classes), "generator.means"), made.num_features
        )
        means *= made.separation / np.linalg.norm(means, axis=1, keepdims=True)
        self._means = means.astype(np.float32)
        self.digest = _digest("generated", config, seed)

    def traits(self, devices: Ids) -> Traits:
        """Drawn for each device."""
        return drawn_traits(self._config, self._seed, devices)

    def raw(self, devices: Ids) -> RawGroup:
        """Rows generated from each device's seed."""
        made = self._config.generator
        past = made.past_rows * quantities(self._seed, devices, self._config.quantity_sigma)
        sizes = np.maximum(np.round(past), 1.0).astype(np.int64) + made.future_rows
        owner = np.repeat(np.arange(len(devices)), sizes)
        index = _places(Held(owner, owner))
        future = index >= (sizes - made.future_rows)[owner]
        y = self._labels(devices, owner, index)
        seeds = rng.seeds_for(self._seed, -1, devices, "generator.rows")
        x = gaussian(rng.words_at(seeds[owner], index), made.num_features)
        x += self._means[y]
        shift = gaussian(rng.seeds_for(self._seed, -1, devices, "generator.shift"), made.num_features)
        x += (np.float32(made.shift) * shift)[owner]
        at = self._timeline.place(owner, future)
        return RawGroup(x[:, None, :], y, RawRows(owner, index, at), future)

    def name(self, device: int) -> str:
        """A number."""
        return f"generated {device}"

    def _labels(self, devices: Ids, owner: Ids, index: Ids) -> Ids:
        """A class for each row, from its device's class shares."""
        count = self.num_outputs
        u = rng.uniforms_at(rng.seeds_for(self._seed, -1, devices, "generator.labels")[owner], index)
        if not self._config.label_alpha:
            return (u * count).astype(np.int64)
        shares = np.exp(log_label_shares(self._seed, devices, count, self._config.label_alpha))
        edges = np.cumsum(shares, axis=1)[:, :-1]
        return (u[:, None] > edges[owner]).sum(axis=1)


def signal_stats(schema: Schema, x: NDArray[np.float32]) -> SignalStats:
    """Mean and standard deviation of each channel over raw rows ``[N, ..., C]``; a constant channel has std 1."""
    flat = x.reshape(-1, x.shape[-1])
    known = ~np.isnan(flat)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, flat, 0.0).sum(axis=0, dtype=np.float64) / count
    variance = np.where(known, (flat - mean) ** 2, 0.0).sum(axis=0) / count
    std = np.sqrt(variance)
    return SignalStats(schema.names, schema.lows, schema.highs, mean, np.where(std > 0, std, 1.0))


def _places(held: Held) -> Ids:
    """The place of each row in its device's stream."""
    starts = np.searchsorted(held.owner, held.owner, side="left")
    return np.arange(len(held.owner)) - starts


def _digest(data: str, config: FleetConfig, seed: int) -> str:
    return hashlib.sha256(f"{data}|{config!r}|{seed}".encode()).hexdigest()
