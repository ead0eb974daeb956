"""The server-held pool: labelled rows of consented devices, copied as their labels arrive, and training on them.

Rules of this file:
    * Only devices that were consented to are in it. Training on it releases nothing of anybody else's, so it costs no
      privacy budget; what it says of the consented devices no epsilon bounds.
    * It holds what those devices' buffers hold, the rows kept for validation left out.
    * It trains with the life's own method, as one client that holds every row; a device's bound on its steps and its
      example-level noise are not the server's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import ConfigError
from fedretrain.core.ids import ClientId
from fedretrain.core.rng import seed_for
from fedretrain.core.types import ClientData
from fedretrain.training.executor import ClientWork, executor_for
from fedretrain.training.methods.make import make_task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.core.params import Params
    from sim.arm import Arm
    from sim.lifetime.rows import LifeFleet

_NOBODY = -1  # the pooled client's stream of randomness is no device's


class Pool:
    """Rows of the first devices of a fleet.

    Args:
        arm: Model and method.
        fleet: The life's devices.
        num_devices: So many have consented.

    Raises:
        ConfigError: If the fleet has fewer.
    """

    def __init__(self, arm: Arm, fleet: LifeFleet, num_devices: int) -> None:
        if num_devices > fleet.num_devices:
            raise ConfigError(
                f"{num_devices} devices are to be pooled, the fleet has {fleet.num_devices}",
                where="lifetime.pool_devices",
                fix=f"give 0 to {fleet.num_devices}",
            )
        self._arm, self._fleet = arm, fleet
        self.devices = np.arange(num_devices)
        rows = fleet.rows
        self._mine = np.flatnonzero((rows.device < num_devices) & ~fleet.held_out)
        own = arm.training
        training = replace(own, max_steps=0 if own.epochs else own.max_steps, example_dp=None)
        self._task = make_task(arm.config.personalization, training, arm.model)
        self._executor = executor_for(arm.config.runner.executor, self._task, arm.model, training)
        self._personal: NDArray[np.float32] | None = None

    def num_rows(self, at: float) -> int:
        """Labelled rows that it holds at an instant."""
        rows = self._fleet.rows
        event_at = rows.event_at[self._mine]
        first, last = np.searchsorted(event_at, (at - self._fleet.buffer_s, at), side="right")
        held = self._mine[first:last]
        held = held[rows.label_at[held] <= at]
        counts = np.bincount(rows.device[held], minlength=len(self.devices))
        return int(np.minimum(counts, self._fleet.buffer_rows).sum())

    def copied(self, start_at: float, end_at: float) -> int:
        """Bytes of the rows whose labels arrive after `start_at` and no later than `end_at`."""
        rows = self._fleet.rows
        arrived = rows.labelled_between(start_at, end_at)
        arrived = arrived[(rows.device[arrived] < len(self.devices)) & ~self._fleet.held_out[arrived]]
        return int(rows.x[arrived].nbytes + rows.y[arrived].nbytes)

    def begin(self) -> None:
        """A new campaign: the pooled client starts without a personal state."""
        self._personal = None

    def round(self, shared: Params, round_: int, at: float, kept_out: NDArray[np.bool_]) -> Params | None:
        """The shared parameters after the pooled client trained once on its rows, those of kept devices left out; None without rows."""
        data = self._data(self.devices[~kept_out[self.devices]], at)
        if not len(data):
            return None
        seed = seed_for(self._arm.seed, round_, _NOBODY, "pool")
        work = ClientWork(ClientId(0), data, self._personal, seed)
        (block,) = self._executor.train(shared, [work])
        if self._task.personal.size:
            self._personal = block.personal_KQ[0]
        layout = self._task.shared
        return layout.unpack(layout.pack(shared) + block.delta_KP[0])

    def _data(self, devices: NDArray[np.int64], at: float) -> ClientData:
        held = self._fleet.trainable(devices, at)
        if not held:
            return ClientData(self._fleet.rows.x[:0], self._fleet.rows.y[:0])
        return ClientData(np.concatenate([one.x for one in held]), np.concatenate([one.y for one in held]))
