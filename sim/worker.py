"""What the devices of one shard do in a round: answer or not, train, reply. Every runner plays devices through it.

Rules of this file:
    * The order is a device's own: asked, offline or online, has labelled data or not, trains, keeps its personal
      state, replies in time or too late. A device that goes away before its training ends keeps nothing; one that
      goes away between that and its reply keeps its personal state, though the round never hears of it.
    * A failure is a value. An exception means that the run itself cannot go on.
    * Devices are played some thousands at a time, so memory does not grow with the cohort.
    * Training and reduction are `fedretrain`'s: nothing of either is written here. A `Sink` takes what devices send:
      the reducer of a shard, or one device's reply.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedretrain.coordinator.reduce import Reducer
from fedretrain.core.ids import ClientId
from fedretrain.core.rng import seeds_for
from fedretrain.core.types import ClientFailure, FailureKind
from fedretrain.training.config import Upload
from fedretrain.training.data import num_steps
from fedretrain.training.executor import ClientWork
from fedretrain.training.upload import CLIP_MARGIN, pack, packed_bytes, unpack

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from fedretrain.coordinator.ports import RoundSpec, ShardResult
    from fedretrain.core.params import Params
    from fedretrain.core.types import ClientData, UpdateBlock
    from sim.arm import Arm
    from sim.personal_store import Rows

    Ids = NDArray[np.int64]

_AT_ONCE = 2048  # devices whose samples are held at once: blocks of like sizes still fill
BYTES_PER_PARAMETER = 4  # float32, uncompressed: what the simulated wire carries


class Asked(Protocol):
    """What a device needs to know of a round: a `RoundSpec`, or a `TrainOrder` off the wire."""

    @property
    def round(self) -> int:
        """Index of the round."""
        ...

    @property
    def base(self) -> Params:
        """The shared parameters to train from."""
        ...

    @property
    def seed(self) -> int:
        """The run's seed."""
        ...

    @property
    def at(self) -> float:
        """The instant at which the round begins."""
        ...

    @property
    def deadline_s(self) -> float:
        """Replies later than this are not used."""
        ...

    @property
    def clip_norm(self) -> float | None:
        """What updates are clipped to; None: they are not."""
        ...


class Sink(Protocol):
    """Takes what devices send: a `Reducer`, or the reply of one device."""

    def add(self, block: UpdateBlock) -> None:
        """The updates of clients that replied in time."""
        ...

    def fail(self, failures: Iterable[ClientFailure]) -> None:
        """Clients that contribute nothing."""
        ...


@dataclass(frozen=True)
class Played:
    """What a shard's devices are left with after a round, and what their radios carried.

    Attributes:
        devices: ``[K]`` devices that finished training, replied or not.
        personal_KQ: ``[K, Q]`` their personal state.
        bytes_down: Sent to devices.
        bytes_up: Sent by devices.
    """

    devices: Ids
    personal_KQ: NDArray[np.float32]
    bytes_down: int
    bytes_up: int


@dataclass(frozen=True)
class Trained:
    """A shard's result and the personal state its devices now hold.

    Attributes:
        shard: What goes to the coordinator.
        devices: ``[K]`` devices that finished training, replied or not.
        personal_KQ: ``[K, Q]`` their personal state: back to the store, never to the coordinator.
    """

    shard: ShardResult
    devices: Ids
    personal_KQ: NDArray[np.float32]


@dataclass(frozen=True)
class _Plan:
    """How each asked device will fare; arrays ``[K]``."""

    data: list[ClientData | None]
    begins: NDArray[np.bool_]
    trained_after_s: NDArray[np.float64]
    reply_after_s: NDArray[np.float64]
    away_at: NDArray[np.float64]


class Worker:
    """Plays the devices of one shard.

    Args:
        arm: The world, the model and the method.
    """

    def __init__(self, arm: Arm) -> None:
        self.arm = arm

    def reply_times(self, spec: RoundSpec, devices: Ids) -> NDArray[np.float64]:
        """Seconds after the round's start at which each device's reply arrives: ``[K]``; inf if it never does."""
        return np.concatenate([self._reply_times(spec, part) for part in _parts(devices)])

    def _reply_times(self, spec: RoundSpec, devices: Ids) -> NDArray[np.float64]:
        plan = self._plan(spec, devices)
        lost = ~plan.begins | (plan.away_at <= spec.at + plan.reply_after_s)
        return np.where(lost, np.inf, plan.reply_after_s)

    def train(self, spec: RoundSpec, devices: Ids, personal: Rows) -> Trained:
        """One round of the devices ``[K]``.

        Args:
            spec: The round; replies after `deadline_s` are TIMEOUT.
            devices: Who is asked.
            personal: Their personal states, where they have one.
        """
        begun = time.process_time()
        reducer = Reducer(spec, devices)
        played = self.play(spec, devices, personal, reducer)
        shard = reducer.result(
            bytes_down=played.bytes_down, bytes_up=played.bytes_up, busy_s=time.process_time() - begun
        )
        return Trained(shard, played.devices, played.personal_KQ)

    def play(self, asked: Asked, devices: Ids, personal: Rows, sink: Sink) -> Played:
        """One round of the devices ``[K]``, with what they send going to `sink`.

        Args:
            asked: What they are asked to do.
            devices: Who is asked.
            personal: Their personal states, where they have one.
            sink: Hears of each device once, in an update or in a failure.
        """
        played = [self._play(asked, part, personal, sink) for part in _parts(devices)]
        return Played(
            np.concatenate([one.devices for one in played]),
            np.concatenate([one.personal_KQ for one in played]),
            sum(one.bytes_down for one in played),
            sum(one.bytes_up for one in played),
        )

    def _play(self, asked: Asked, devices: Ids, personal: Rows, sink: Sink) -> Played:
        plan = self._plan(asked, devices)
        away = plan.away_at <= asked.at + plan.reply_after_s
        late = plan.reply_after_s > asked.deadline_s
        trains = plan.begins & (plan.away_at > asked.at + plan.trained_after_s)
        replies = plan.begins & ~away
        sink.fail(self._failures(plan, devices, away, late))
        ids, seeds = devices.tolist(), seeds_for(asked.seed, asked.round, devices, "training").tolist()
        work = [
            ClientWork(ClientId(ids[k]), data, self._own(personal.get(ids[k])), seeds[k])
            for k in np.flatnonzero(trains).tolist()
            if (data := plan.data[k]) is not None
        ]
        counted = set(devices[replies & ~late].tolist())
        kept, rows = self._train(asked, work, personal, counted, sink)
        down, up = self._payload_bytes * int(plan.begins.sum()), self._upload_bytes * int(replies.sum())
        return Played(kept, rows, down, up)

    def _train(
        self, asked: Asked, work: Sequence[ClientWork], personal: Rows, counted: set[int], sink: Sink
    ) -> tuple[Ids, NDArray[np.float32]]:
        """Train, hand on the updates that count, and gather what devices keep."""
        devices: list[Ids] = []
        rows: list[NDArray[np.float32]] = []
        for trained in self.arm.executor.train(asked.base, work) if work else ():
            block, kept_KQ = self._sent(trained, personal, asked.clip_norm)
            devices.append(block.clients)
            rows.append(kept_KQ)
            keep = np.array([client in counted for client in block.clients.tolist()], dtype=bool)
            sink.add(block if keep.all() else block.take(keep))
        if not devices:
            return np.zeros(0, np.int64), np.zeros((0, self.arm.state_size), np.float32)
        return np.concatenate(devices), np.concatenate(rows)

    def _own(self, row: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        """The personal state of what a device keeps; see `Arm.state_size`."""
        size = self.arm.task.personal.size
        return None if row is None or not size else row[:size]

    def _sent(
        self, block: UpdateBlock, kept: Rows, clip_norm: float | None
    ) -> tuple[UpdateBlock, NDArray[np.float32]]:
        """The updates as the server will read them, and ``[K, Q]`` what the devices keep: a device's own code, `upload.pack`."""
        if self.arm.training.upload is not Upload.INT8:
            return block, block.personal_KQ
        layout, size = self.arm.task.shared, self.arm.task.personal.size
        before = np.zeros((len(block), layout.size), dtype=np.float32)
        for k, client in enumerate(block.clients.tolist()):
            if client in kept:
                before[k] = kept[client][size:]
        bound = None if clip_norm is None else clip_norm * CLIP_MARGIN
        packed, left = pack(block.delta_KP, before, layout, bound)
        return replace(block, delta_KP=unpack(packed, layout)), np.concatenate(
            [block.personal_KQ, left], axis=1
        )

    @property
    def _payload_bytes(self) -> int:
        """One way: the shared parameters."""
        return self.arm.task.shared.size * BYTES_PER_PARAMETER

    @property
    def _upload_bytes(self) -> int:
        """Of one update."""
        if self.arm.training.upload is Upload.INT8:
            return packed_bytes(self.arm.task.shared)
        return self._payload_bytes

    def _plan(self, spec: Asked, devices: Ids) -> _Plan:
        """Who begins, and when each would reply or go away."""
        world = self.arm.world
        availability = world.availability
        online = availability.online(devices, spec.at) & ~availability.dropped_before(devices, spec.round)
        data: list[ClientData | None] = [None] * len(devices)
        held = world.fleet.trainable(devices[online], spec.at)
        for k, one in zip(np.flatnonzero(online).tolist(), held, strict=True):
            data[k] = one
        sizes = np.zeros(len(devices), dtype=np.int64)
        sizes[online] = np.fromiter(map(len, held), dtype=np.int64, count=len(held))
        local = self.arm.config.training
        steps = sum(
            num_steps(sizes, local.batch_size, phase.epochs, phase.max_steps)
            for phase in self.arm.task.phases()
        )
        payload = self._payload_bytes
        trained_after_s, reply_after_s = (
            world.network.reply_after_s(
                devices, round_=spec.round, down_bytes=payload, up_bytes=up_bytes, num_steps=steps
            )
            for up_bytes in (0, self._upload_bytes)
        )
        away_at = availability.dropped_at(devices, spec.round, spec.at, reply_after_s)
        return _Plan(data, online & (sizes > 0), trained_after_s, reply_after_s, away_at)

    def _failures(
        self, plan: _Plan, devices: Ids, away: NDArray[np.bool_], late: NDArray[np.bool_]
    ) -> list[ClientFailure]:
        found = []
        for k, device in enumerate(devices.tolist()):
            if plan.data[k] is None:
                kind = FailureKind.UNAVAILABLE
            elif not plan.begins[k]:
                kind = FailureKind.NO_DATA
            elif away[k]:
                kind = FailureKind.DROPPED
            elif late[k]:
                kind = FailureKind.TIMEOUT
            else:
                continue
            found.append(ClientFailure(ClientId(device), kind))
        return found


def _parts(devices: Ids) -> list[Ids]:
    """The devices in parts of at most `_AT_ONCE`, at least one part."""
    return [devices[first : first + _AT_ONCE] for first in range(0, max(len(devices), 1), _AT_ONCE)]
