"""Every sample of a fleet's life, in the order of time, and what a device holds of them at an instant.

Rules of this file:
    * A row is predicted when it is taken, scored with its true label by the oracle, and trained on only once its label
      has arrived: score before train (prequential), whatever the data set's own split says.
    * A device's buffer is bounded in time and in rows; the newest labelled rows stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.types import ClientData

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from fedretrain.core.types import Objective
    from fedretrain.features.pipeline import Pipeline
    from fedretrain.features.schema import Schema
    from sim.devices import Traits
    from sim.fleet import DeviceStream, Fleet
    from sim.sensors.events import DriftEvent

    Ids = NDArray[np.int64]


@dataclass(frozen=True)
class LifeRows:
    """R rows of all devices, sorted by the instant at which they were taken.

    Attributes:
        x: ``[R, *F]`` float32 model inputs.
        y: ``[R]``.
        device: ``[R]`` int64.
        event_at: ``[R]`` increasing.
        label_at: ``[R]`` when the label arrives at the coordinator's side; inf: never.
        by_device: ``[R]`` row numbers, device after device, in time order inside each.
        starts: ``[D + 1]`` where each device's rows begin in `by_device`.
        by_label: ``[L]`` the rows whose labels arrive, in the order of arrival.
        arrival_at: ``[L]`` when they do.
    """

    x: NDArray[np.float32]
    y: NDArray[Any]
    device: Ids
    event_at: NDArray[np.float64]
    label_at: NDArray[np.float64]
    by_device: Ids
    starts: Ids
    by_label: Ids
    arrival_at: NDArray[np.float64]

    @classmethod
    def of(cls, fleet: Fleet) -> LifeRows:
        """All rows of a fleet, materialised."""
        streams = fleet.streams(np.arange(fleet.num_devices))
        device = np.repeat(np.arange(len(streams)), [len(one) for one in streams])
        event_at = np.concatenate([one.event_at for one in streams])
        order = np.argsort(event_at, kind="stable")
        device = device[order]
        y = np.concatenate([one.y for one in streams])[order]
        label_at = np.concatenate([one.label_at for one in streams])[order]
        x = _in_order([one.x for one in streams], order)
        del streams  # what follows needs the memory
        arriving = np.flatnonzero(np.isfinite(label_at))
        by_label = arriving[np.argsort(label_at[arriving], kind="stable")]
        return cls(
            x=x,
            y=y,
            device=device,
            event_at=event_at[order],
            label_at=label_at,
            by_device=np.argsort(device, kind="stable"),
            starts=np.searchsorted(np.sort(device), np.arange(fleet.num_devices + 1)),
            by_label=by_label,
            arrival_at=label_at[by_label],
        )

    def __len__(self) -> int:
        return len(self.y)

    def between(self, start_at: float, end_at: float) -> slice:
        """The rows taken from `start_at` on and before `end_at`."""
        first, last = np.searchsorted(self.event_at, (start_at, end_at))
        return slice(int(first), int(last))

    def labelled_between(self, start_at: float, end_at: float) -> Ids:
        """Numbers of the rows whose labels arrive after `start_at` and no later than `end_at`."""
        first, last = np.searchsorted(self.arrival_at, (start_at, end_at), side="right")
        return self.by_label[first:last]

    def of_device(self, device: int) -> Ids:
        """A device's rows in time order."""
        return self.by_device[self.starts[device] : self.starts[device + 1]]


def _in_order(parts: Sequence[NDArray[np.float32]], order: Ids) -> NDArray[np.float32]:
    """The rows of all parts in the given order: each part goes to its places, and no second copy of all is made."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    x = np.empty((len(order), *parts[0].shape[1:]), dtype=np.float32)
    left = 0
    for part in parts:
        x[place[left : left + len(part)]] = part
        left += len(part)
    return x


class LifeFleet:
    """A `sim.fleet.Fleet` whose devices train on what their buffers hold.

    Args:
        fleet: The fleet of the world.
        rows: Its rows.
        buffer_s: How long a labelled sample is kept.
        buffer_rows: How many are kept at most.
        holdout_every: Every so manieth row of a device is kept for validation and never trained on; 0: none is.
    """

    def __init__(
        self,
        fleet: Fleet,
        rows: LifeRows,
        *,
        buffer_s: float,
        buffer_rows: int,
        holdout_every: int = 0,
    ) -> None:
        self._fleet, self.rows = fleet, rows
        self.buffer_s, self.buffer_rows = buffer_s, buffer_rows
        place = np.arange(len(rows)) - np.repeat(rows.starts[:-1], np.diff(rows.starts))
        self.held_out = np.zeros(len(rows), dtype=np.bool_)
        if holdout_every:
            self.held_out[rows.by_device[place % holdout_every == holdout_every - 1]] = True

    @property
    def num_devices(self) -> int:
        """See `Fleet`."""
        return self._fleet.num_devices

    @property
    def num_virtual(self) -> int:
        """See `Fleet`."""
        return self._fleet.num_virtual

    @property
    def digest(self) -> str:
        """See `Fleet`."""
        return self._fleet.digest

    @property
    def objective(self) -> Objective:
        """See `Fleet`."""
        return self._fleet.objective

    @property
    def num_outputs(self) -> int:
        """See `Fleet`."""
        return self._fleet.num_outputs

    @property
    def class_names(self) -> tuple[str, ...]:
        """See `Fleet`."""
        return self._fleet.class_names

    @property
    def schema(self) -> Schema:
        """See `Fleet`."""
        return self._fleet.schema

    @property
    def pipeline(self) -> Pipeline:
        """See `Fleet`."""
        return self._fleet.pipeline

    @property
    def input_shape(self) -> tuple[int, ...]:
        """See `Fleet`."""
        return self._fleet.input_shape

    def virtual(self, devices: ArrayLike) -> NDArray[np.bool_]:
        """See `Fleet`."""
        return self._fleet.virtual(devices)

    def traits(self, devices: ArrayLike) -> Traits:
        """See `Fleet`."""
        return self._fleet.traits(devices)

    def streams(self, devices: ArrayLike) -> list[DeviceStream]:
        """See `Fleet`."""
        return self._fleet.streams(devices)

    def truth(self, devices: ArrayLike) -> list[DriftEvent]:
        """See `Fleet`."""
        return self._fleet.truth(devices)

    def name(self, device: int) -> str:
        """See `Fleet`."""
        return self._fleet.name(device)

    def trainable(self, devices: ArrayLike, at: float) -> list[ClientData]:
        """The labelled rows that each device's buffer holds at the instant `at`, in time order."""
        return [self._buffer(int(device), at) for device in np.atleast_1d(np.asarray(devices))]

    def _buffer(self, device: int, at: float) -> ClientData:
        rows = self.rows
        mine = rows.of_device(device)
        first, last = np.searchsorted(rows.event_at[mine], (at - self.buffer_s, at), side="right")
        mine = mine[first:last]
        held = mine[(rows.label_at[mine] <= at) & ~self.held_out[mine]][-self.buffer_rows :]
        return ClientData(rows.x[held], rows.y[held])
