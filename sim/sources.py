"""Where raw rows come from: a data set's, or made from a seed.

Rules of this file:
    * A source answers for any devices, in any order and grouping, the same rows.
    * Rows are raw: what sensors would report without drift. Re-mounting of virtual devices is part of the source.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fedretrain.core.types import Objective
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.steps import Impute
from sim.datasets.synthetic import SyntheticFleet
from sim.fleet import FleetConfig, FleetKind
from sim.mounting import Mounting, three_axis_groups
from sim.sensors.effects import SignalStats
from sim.sensors.plan import RawRows
from sim.sharding import Held, drawn_traits, sharding_for
from sim.skew import quantities

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.features.schema import Schema
    from sim.datasets.base import SensorDataset, Timeline
    from sim.devices import Traits

    Ids = NDArray[np.int64]


_STATS_DEVICES = 64  # generated devices whose past rows tell the channels' scales


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
    num_virtual: int
    num_devices: int
    mean_rows: float
    digest: str

    def traits(self, devices: Ids) -> Traits:
        """Site and type of devices ``[K]``."""
        ...

    def raw(self, devices: Ids, *, past: bool = False) -> RawGroup:
        """Raw rows of devices ``[K]``; with `past`, a source may leave out those that are scored."""
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
        mounted = config.kind == FleetKind.VIRTUAL or config.remount
        self._natural = self._sharding.num_natural if config.kind == FleetKind.VIRTUAL else 0
        self.num_virtual = self.num_devices - self._natural if mounted else 0
        self._mounting = None
        if self.num_virtual:
            self._mounting = Mounting(config.mount, seed, self.stats, three_axis_groups(dataset.schema))
        holders = len(dataset.stream_names) if config.kind == FleetKind.VIRTUAL else self.num_devices
        self.mean_rows = len(dataset.y) / holders
        self.pipeline = dataset.pipeline
        if self.pipeline.schema is None:
            self.pipeline = self.pipeline.fit(dataset.x[past], dataset.schema, device=dataset.stream[past])
        self.digest = _digest(dataset.digest, config, seed)

    def raw(self, devices: Ids, *, past: bool = False) -> RawGroup:
        """The devices' rows, re-mounted if they are virtual."""
        del past  # they lie in memory anyway
        held, data = self._sharding.held(devices), self._dataset
        rows = RawRows(held.owner, _places(held), data.event_at[held.row])
        x = data.x[held.row]
        x = x if x.ndim == 3 else x[:, None, :]
        if self._mounting is not None:
            moved = devices[held.owner] >= self._natural
            mine = RawRows(rows.owner[moved], rows.index[moved], rows.event_at[moved])
            x[moved] = self._mounting.apply(x[moved], mine, devices)
        return RawGroup(x, data.y[held.row], rows, data.future[held.row])


class GeneratedSource:
    """Synthetic devices, made from their seed when asked for: a million need no million objects.

    Args:
        config: How many, and what they hold.
        seed: The run's seed.
        timeline: When the campaign is.
    """

    def __init__(self, config: FleetConfig, seed: int, timeline: Timeline | None = None) -> None:
        self._config, self._seed = config, seed
        recipe = SyntheticFleet(num_devices=config.num_devices, seed=seed, **asdict(config.generator))
        self._recipe = recipe
        self._event_at = recipe.event_at(np.arange(1), timeline)[0]
        self.objective, self.num_outputs = Objective.CLASSIFICATION, recipe.num_classes
        self.class_names, self.schema = recipe.class_names, recipe.schema
        few, _ = recipe.generate(np.arange(min(_STATS_DEVICES, config.num_devices)))
        self.stats = signal_stats(recipe.schema, few[:, ~recipe.future])
        # Drift may lose values, and the recipe's own pipeline has nothing to fill them with.
        steps = (Impute("constant", 0.0), *recipe.pipeline.steps)
        self.pipeline = Pipeline(steps).fit(few[0], recipe.schema)
        self.num_virtual = config.num_devices  # nobody's signals: never called real
        self.num_devices, self.mean_rows = config.num_devices, float(recipe.num_samples)
        self.digest = _digest("generated", config, seed)

    def traits(self, devices: Ids) -> Traits:
        """Drawn for each device."""
        return drawn_traits(self._config, self._seed, devices)

    def raw(self, devices: Ids, *, past: bool = False) -> RawGroup:
        """Rows generated from each device's seed; with skewed quantities, the latest of its past."""
        recipe, num_past = self._recipe, int((~self._recipe.future).sum())
        x, y = recipe.generate(devices, num_past if past else 0)  # scored rows come last
        size = np.round(num_past * quantities(self._seed, devices, self._config.quantity_sigma))
        first = num_past - np.clip(size, 1, num_past).astype(np.int64)
        held = np.arange(x.shape[1]) >= first[:, None]
        owner, index = np.nonzero(held)
        at = np.broadcast_to(self._event_at[: x.shape[1]], held.shape)
        if held.all():  # no copy of the largest arrays
            x, y, at = x.reshape(-1, recipe.num_features), y.reshape(-1), at.reshape(-1)
        else:
            x, y, at = x[held], y[held], at[held]
        return RawGroup(x[:, None, :], y, RawRows(owner, index, at), recipe.future[index])

    def name(self, device: int) -> str:
        """A number."""
        return f"generated {device}"


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
