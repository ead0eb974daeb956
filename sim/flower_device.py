"""What a simulated device does with a Flower message. The order and the update are production's (`wire.records`).

Rules of this file:
    * The device is played by the same `Worker` as in every other runner, as a cohort of one.
    * Beside the order and the update travels what only a simulation has, each in a record of its own: the device's
      personal state, which a real device keeps for itself, and what the simulator may know of it (`Beside`). Nothing
      that coordinates reads them.
    * The update is not clipped here: the server clips anyway, and so the aggregate is the other runners', bit for bit.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedretrain.core.build import build, plain
from fedretrain.core.ids import ClientId
from fedretrain.core.types import ClientFailure, FailureKind
from fedretrain.wire.records import decode_order, encode_failure, encode_update
from sim.arm import Arms
from sim.schema import Config
from sim.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from fedretrain.core.types import UpdateBlock
    from fedretrain.wire.records import TrainOrder

    Row = NDArray[np.float32]

_ARM, _PERSONAL, _KNOWN = "sim.arm", "sim.personal", "sim.known"
_ARMS = Arms()  # a worker process builds each world once, whatever number of messages it serves


@dataclass(frozen=True)
class Beside:
    """What a simulated reply carries beside the update.

    Attributes:
        personal: ``[Q]`` the device's personal state; None if it did not finish training.
        num_examples: It trained on; 0 if it did not.
        loss: Its mean training loss; NaN if it did not train.
        bytes_down: The simulated radio received.
        bytes_up: The simulated radio sent.
        busy_s: Processor seconds.
    """

    personal: Row | None = None
    num_examples: int = 0
    loss: float = float("nan")
    bytes_down: int = 0
    bytes_up: int = 0
    busy_s: float = 0.0


def arm_text(config: Config) -> str:
    """The configuration that a device's process builds its world from, as a message carries it."""
    return json.dumps(plain(config), sort_keys=True)


def beside_order(arm: str, seed: int, personal: Row | None) -> dict[str, ArrayRecord | ConfigRecord]:
    """What goes to a simulated device beside its order."""
    told: dict[str, ArrayRecord | ConfigRecord] = {_ARM: ConfigRecord({"config": arm, "seed": str(seed)})}
    if personal is not None:
        told[_PERSONAL] = ArrayRecord({"row": Array(personal)})
    return told


def read_beside(records: RecordDict) -> Beside:
    """What came from a simulated device beside its update."""
    known: dict[str, Any] = dict(records.config_records.get(_KNOWN, ConfigRecord()))
    return Beside(personal=_row(records), **known)


def answer(records: RecordDict) -> RecordDict:
    """Play the device that a message is for, and make its reply.

    Args:
        records: An order with what is beside it.
    """
    begun = time.process_time()
    order, told = decode_order(records), records.config_records[_ARM]
    arm = _ARMS.get(_config(str(told["config"])), int(str(told["seed"])))
    row, device = _row(records), int(order.client)
    reply = _Reply()
    devices = np.array([device], dtype=np.int64)
    played = Worker(arm).play(order, devices, {} if row is None else {device: row}, reply)
    content = reply.content(order)
    block = reply.block
    if len(played.devices) and arm.state_size:
        content[_PERSONAL] = ArrayRecord({"row": Array(played.personal_KQ[0])})
    content[_KNOWN] = ConfigRecord(
        {
            "num_examples": 0 if block is None else int(block.num_examples[0]),
            "loss": float("nan") if block is None else float(block.loss[0]),
            "bytes_down": played.bytes_down,
            "bytes_up": played.bytes_up,
            "busy_s": time.process_time() - begun,
        }
    )
    return content


class _Reply:
    """What one device says: an update or a failure. See `worker.Sink`."""

    def __init__(self) -> None:
        self.block: UpdateBlock | None = None
        self._failure = ClientFailure(ClientId(0), FailureKind.LOST)

    def add(self, block: UpdateBlock) -> None:
        """The device's update; a block of nobody where its reply is late."""
        if len(block):
            self.block = block

    def fail(self, failures: Iterable[ClientFailure]) -> None:
        """Why it sends none."""
        for failure in failures:
            self._failure = failure

    def content(self, order: TrainOrder) -> RecordDict:
        """As a message."""
        if self.block is not None:
            return encode_update(order, self.block)
        return encode_failure(order, self._failure.kind, self._failure.detail)


def _row(records: RecordDict) -> Row | None:
    """The personal state in a message."""
    if _PERSONAL not in records.array_records:
        return None
    return np.asarray(records.array_records[_PERSONAL]["row"].numpy(), dtype=np.float32)


@lru_cache(maxsize=8)
def _config(text: str) -> Config:
    return build(Config, json.loads(text))
