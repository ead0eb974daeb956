"""Which rows of a data set a device holds.

Rules of this file:
    * Past rows of a device come only from past rows of the data, scored rows only from scored rows.
    * `rows` of a device depend on (seed, device) alone. Natural and virtual devices keep nothing per device; a
      partition keeps one integer per row of the data.
    * Rows of a device stand in time order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedretrain.core import rng
from fedretrain.core.errors import ConfigError
from sim.devices import Traits
from sim.fleet import FleetConfig, FleetKind
from sim.skew import drawn_groups, label_bins, log_label_shares, quantities

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.datasets.base import SensorDataset

    Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Held:
    """Rows of K devices, one device after the other.

    Attributes:
        row: ``[N]`` row numbers in the data set.
        owner: ``[N]`` place of each row's device among those asked.
    """

    row: Ids
    owner: Ids


class Sharding(Protocol):
    """Which rows a device holds, and what the device is."""

    @property
    def num_devices(self) -> int:
        """Devices are 0 to ``num_devices - 1``."""
        ...

    @property
    def num_natural(self) -> int:
        """So many devices, the first ones, are natural streams as they are."""
        ...

    def traits(self, devices: Ids) -> Traits:
        """Site and type of devices ``[K]``."""
        ...

    def held(self, devices: Ids) -> Held:
        """Rows of devices ``[K]``, in order."""
        ...

    def name(self, device: int) -> str:
        """What to call a device."""
        ...


@dataclass(frozen=True)
class Csr:
    """Rows grouped: group g holds ``row[start[g] : start[g + 1]]``, in time order."""

    row: Ids
    start: Ids

    @classmethod
    def of(cls, group: Ids, rows: Ids, at: NDArray[np.float64], num_groups: int) -> Csr:
        """Group `rows` by ``group`` (of each of them), in order of the instants `at` of all rows."""
        order = np.lexsort((rows, at[rows], group))
        return cls(rows[order], np.searchsorted(group[order], np.arange(num_groups + 1)))

    def take(self, groups: Ids) -> Held:
        """Rows of several groups, one after the other."""
        sizes = self.start[groups + 1] - self.start[groups]
        owner = np.repeat(np.arange(len(groups)), sizes)
        first = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64) if len(groups) else sizes
        place = np.arange(len(owner)) - first[owner] + self.start[groups][owner]
        return Held(self.row[place], owner)


class NaturalSharding:
    """A device is a stream of the data set.

    Raises:
        ConfigError: If more devices are asked for than there are streams.
    """

    def __init__(self, dataset: SensorDataset, config: FleetConfig) -> None:
        self._dataset = dataset
        streams = len(dataset.stream_names)
        if config.num_devices > streams:
            raise ConfigError(
                f"{dataset.name} has {streams} natural devices, {config.num_devices} were asked for",
                where="fleet.num_devices",
                fix="use fleet.kind=virtual (or partition) to make more",
            )
        self._num = config.num_devices or streams
        everything = np.arange(len(dataset.y))
        self._rows = Csr.of(dataset.stream.astype(np.int64), everything, dataset.event_at, streams)

    @property
    def num_devices(self) -> int:
        """The streams used."""
        return self._num

    @property
    def num_natural(self) -> int:
        """All of them."""
        return self._num

    def traits(self, devices: Ids) -> Traits:
        """The data set's own."""
        return Traits(
            devices,
            self._dataset.site[devices].astype(np.int64),
            self._dataset.device_type[devices].astype(np.int64),
        )

    def held(self, devices: Ids) -> Held:
        """The stream's rows."""
        return self._rows.take(devices)

    def name(self, device: int) -> str:
        """The stream's name."""
        return self._dataset.stream_names[device]


class PartitionSharding:
    """The rows of the whole data set, dealt out to devices once: every row to exactly one device.

    A class's rows are cut among the devices in proportion to (quantity x class share); past and scored rows are
    cut by the same shares. A device may end up with no rows, as in a real fleet.
    """

    def __init__(self, dataset: SensorDataset, config: FleetConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        devices = np.arange(config.num_devices)
        bins = label_bins(dataset.y)
        shares = np.exp(log_label_shares(seed, devices, int(bins.max()) + 1, config.label_alpha))
        weights = shares * quantities(seed, devices, config.quantity_sigma)[:, None]
        owner = np.empty(len(bins), dtype=np.int64)
        for side in (False, True):
            rows = np.flatnonzero(dataset.future == side)
            owner[rows] = _dealt(bins[rows], weights, rng.seed_for(seed, int(side), 0, "fleet.deal"))
        self._rows = Csr.of(owner, np.arange(len(bins)), dataset.event_at, config.num_devices)

    @property
    def num_devices(self) -> int:
        """As configured."""
        return self._config.num_devices

    @property
    def num_natural(self) -> int:
        """None: a dealt device mixes streams."""
        return 0

    def traits(self, devices: Ids) -> Traits:
        """Drawn: a dealt device mixes streams, so it has no site of theirs."""
        return drawn_traits(self._config, self._seed, devices)

    def held(self, devices: Ids) -> Held:
        """The rows dealt to each."""
        return self._rows.take(devices)

    def name(self, device: int) -> str:
        """A number: a dealt device is nobody in the data."""
        return f"virtual shard {device}" if self._config.remount else f"shard {device}"


class VirtualSharding:
    """A device holds rows of one natural stream, its source (device modulo streams); signals are re-mounted later.

    Past rows are drawn from the source's past without replacement, `rows_fraction` of them on average, weighted by
    the device's class shares; scored rows likewise, so that a device is scored on what it meets. With `keep_natural`
    the first devices are the streams themselves, whole.
    """

    def __init__(self, dataset: SensorDataset, config: FleetConfig, seed: int) -> None:
        self._dataset, self._config, self._seed = dataset, config, seed
        self._bins = label_bins(dataset.y)
        streams = len(dataset.stream_names)
        self._sides = []
        for side in (False, True):
            rows = np.flatnonzero(dataset.future == side)
            self._sides.append(Csr.of(dataset.stream[rows].astype(np.int64), rows, dataset.event_at, streams))

    @property
    def num_devices(self) -> int:
        """As configured."""
        return self._config.num_devices

    @property
    def num_natural(self) -> int:
        """The streams, where they are kept."""
        streams = len(self._dataset.stream_names)
        return min(streams, self.num_devices) if self._config.keep_natural else 0

    def source(self, devices: Ids) -> Ids:
        """The natural stream of each device."""
        return devices % len(self._dataset.stream_names)

    def traits(self, devices: Ids) -> Traits:
        """The source's, or drawn for virtual devices where the configuration says so."""
        drawn, source = drawn_traits(self._config, self._seed, devices), self.source(devices)
        made = devices >= self.num_natural
        site = self._dataset.site[source].astype(np.int64)
        kind = self._dataset.device_type[source].astype(np.int64)
        return Traits(
            devices,
            np.where(made & (self._config.num_sites > 0), drawn.site, site),
            np.where(made & (self._config.num_types > 0), drawn.device_type, kind),
        )

    def held(self, devices: Ids) -> Held:
        """Rows drawn from each device's source, past rows first."""
        size = quantities(self._seed, devices, self._config.quantity_sigma) * self._config.rows_fraction
        size[devices < self.num_natural] = 1.0
        shares = log_label_shares(self._seed, devices, int(self._bins.max()) + 1, self._config.label_alpha)
        rows: list[Ids] = [np.empty(0, dtype=np.int64)]
        owners = rows.copy()
        source = self.source(devices)
        for stream in np.unique(source).tolist():
            places = np.flatnonzero(source == stream)
            for side, csr in enumerate(self._sides):
                of = csr.row[csr.start[stream] : csr.start[stream + 1]]
                who, picked = self._picked(devices[places], of, size[places], shares[places], side)
                rows.append(of[picked])
                owners.append(places[who])
        row, owner = np.concatenate(rows), np.concatenate(owners)
        order = np.lexsort((row, self._dataset.event_at[row], owner))
        return Held(row[order], owner[order])

    def name(self, device: int) -> str:
        """The stream's name; or virtual, and of whom."""
        source = self._dataset.stream_names[device % len(self._dataset.stream_names)]
        return source if device < self.num_natural else f"virtual {device} (of {source})"

    def _picked(
        self, devices: Ids, of: Ids, size: NDArray[np.float64], shares: NDArray[np.float64], side: int
    ) -> tuple[Ids, Ids]:
        """Weighted sampling without replacement by exponential keys: the smallest ``-log(u) / weight`` win.

        Source: Efraimidis and Spirakis 2006, https://doi.org/10.1016/j.ipl.2005.11.003.
        """
        count = np.clip(np.round(size * len(of)), min(self._config.min_rows, len(of)), len(of)).astype(
            np.int64
        )
        if (count == len(of)).all():
            everyone = np.repeat(np.arange(len(devices)), len(of))
            return everyone, np.tile(np.arange(len(of)), len(devices))
        u = rng.uniforms(rng.seeds_for(self._seed, side, devices, "fleet.rows"), len(of))
        keys = np.log(-np.log(u)) - shares[:, self._bins[of]]
        ranks = np.argsort(np.argsort(keys, axis=1, kind="stable"), axis=1)
        who, picked = np.nonzero(ranks < count[:, None])
        return who, picked


def drawn_traits(config: FleetConfig, seed: int, devices: Ids) -> Traits:
    """Site and type drawn for each device."""
    return Traits(
        devices,
        drawn_groups(seed, devices, max(1, config.num_sites), "fleet.site"),
        drawn_groups(seed, devices, max(1, config.num_types), "fleet.type"),
    )


def sharding_for(dataset: SensorDataset, config: FleetConfig, seed: int) -> Sharding:
    """The sharding that a configuration asks for.

    Raises:
        ConfigError: If the kind needs no data set, or more natural devices are asked for than there are.
    """
    if config.kind == FleetKind.NATURAL:
        return NaturalSharding(dataset, config)
    if config.kind == FleetKind.PARTITION:
        return PartitionSharding(dataset, config, seed)
    if config.kind == FleetKind.VIRTUAL:
        return VirtualSharding(dataset, config, seed)
    raise ConfigError("a generated fleet has no data set", where="fleet.kind", fix="use experiment=scale")


def _dealt(bins: Ids, weights: NDArray[np.float64], seed: int) -> Ids:
    """The device of each row: each class's rows, shuffled, are cut in proportion to the devices' weights."""
    owner = np.empty(len(bins), dtype=np.int64)
    draws = rng.generator(seed)
    for label in np.unique(bins).tolist():
        rows = draws.permutation(np.flatnonzero(bins == label))
        # A random phase: else rounding would favour the same devices in every class.
        cuts = np.cumsum(weights[:, label]) / weights[:, label].sum() * len(rows) + draws.random()
        owner[rows] = np.searchsorted(np.floor(cuts[:-1]), np.arange(len(rows)), side="right")
    return owner
