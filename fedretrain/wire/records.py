"""Flower records: what a device is told, and what it answers. Used by every Flower app of ours, on both sides.

Rules of this file:
    * A reply carries the packed update and who it is from. Numbers of examples and losses go only where the order asks for
      them, and it never does with differential privacy; personal state has no place in any message.
    * Nothing that a peer sends raises: what cannot be read is a `ClientFailure`, naming what was wrong. The other replies
      of the round are not affected.
    * Arrays are read without pickle, and only where size, type and shape are the expected ones.
    * Every message names its format's version; an unknown one is refused.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedretrain.core.ids import ClientId
from fedretrain.core.params import Layout
from fedretrain.core.types import ClientFailure, FailureKind, UpdateBlock
from fedretrain.training.upload import Packed, num_channels, unpack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from fedretrain.core.params import Params

FORMAT = 1
_ORDER, _BASE, _REPLY, _UPDATE = (
    "fedretrain.order",
    "fedretrain.base",
    "fedretrain.reply",
    "fedretrain.update",
)
_ROLL = "fedretrain.roll"
PLAN_OPTION = "plan"
"""The option of an order that carries the campaign's training plan, as text."""
_HEADER_BYTES = 4096  # more than numpy's header of a vector
_MAX_DETAIL = 200  # characters of a device's own words


class WireError(Exception):
    """A message that cannot be read. Caught at the edge of this module's callers: see `decode_reply`."""


@dataclass(frozen=True)
class TrainOrder:
    """What one client is asked to do in a round.

    Attributes:
        client: Who.
        round: Index of the round.
        base: The shared parameters to train from.
        base_version: Their version; the reply repeats it.
        seed: The run's seed (streams are ``seed_for(seed, round, client, purpose)``).
        at: The instant at which the round begins.
        clip_norm: The device clips to it too, though it is not trusted to; None: not at all.
        deadline_s: Replies later than this are not used.
        with_statistics: Whether the reply carries the number of examples and the loss. Never with DP.
        options: More for a simulation's client: plain values.
    """

    client: ClientId
    round: int
    base: Params
    base_version: int
    seed: int
    at: float = 0.0
    clip_norm: float | None = None
    deadline_s: float = math.inf
    with_statistics: bool = False
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """A readable answer.

    Attributes:
        block: The update, K = 1, without personal state.
        busy_s: Seconds of training, as the device says; 0 where it did not.
        size_bytes: Of the update as it was sent.
    """

    block: UpdateBlock
    busy_s: float = 0.0
    size_bytes: int = 0


def layout_digest(layout: Layout) -> str:
    """SHA-256 of names and shapes: two models whose packed vectors mean the same."""
    return hashlib.sha256(repr((layout.names, layout.shapes)).encode()).hexdigest()


def encode_order(order: TrainOrder) -> RecordDict:
    """The message to a device."""
    config: dict[str, Any] = {
        "format": FORMAT,
        "client": int(order.client),
        "round": order.round,
        "base_version": order.base_version,
        "seed": str(order.seed),  # up to 64 bits unsigned, where Flower's integers are signed
        "at": float(order.at),
        "clip_norm": math.nan if order.clip_norm is None else float(order.clip_norm),
        "deadline_s": float(order.deadline_s),
        "with_statistics": order.with_statistics,
        **{f"option.{name}": value for name, value in order.options.items()},
    }
    base = {
        name: Array(np.ascontiguousarray(leaf).reshape(np.shape(leaf))) for name, leaf in order.base.items()
    }
    return RecordDict({_ORDER: ConfigRecord(config), _BASE: ArrayRecord(base)})


def decode_order(records: RecordDict) -> TrainOrder:
    """The order in a message.

    Raises:
        WireError: If it is not one, or of another format.
    """
    try:
        config: dict[str, Any] = dict(records.config_records[_ORDER])
        _check_format(config)
        clip_norm = float(config["clip_norm"])
        return TrainOrder(
            client=ClientId(_integer(config, "client")),
            round=_integer(config, "round"),
            base={name: array.numpy() for name, array in records.array_records[_BASE].items()},
            base_version=_integer(config, "base_version"),
            seed=int(str(config["seed"])),
            at=float(config["at"]),
            clip_norm=None if math.isnan(clip_norm) else clip_norm,
            deadline_s=float(config["deadline_s"]),
            with_statistics=config["with_statistics"] is True,
            options={
                name.removeprefix("option."): value
                for name, value in config.items()
                if name.startswith("option.")
            },
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"no readable order: {error!r}") from error


def encode_update(
    order: TrainOrder, block: UpdateBlock, *, busy_s: float = 0.0, packed: Packed | None = None
) -> RecordDict:
    """The answer to `order`: the update of its client, and what the order asks for besides.

    Args:
        order: What was asked.
        block: The client's update, K = 1. Its personal state is left behind.
        busy_s: Seconds of training.
        packed: The update quantised: it goes in the place of the block's.
    """
    if block.clients.tolist() != [int(order.client)]:
        raise ValueError(f"an update of clients {block.clients.tolist()} for client {order.client}")
    reply = _reply_config(order)
    if order.with_statistics:
        reply |= {
            "num_examples": int(block.num_examples[0]),
            "loss": float(block.loss[0]),
            "busy_s": float(busy_s),
        }
    reply["layout"] = layout_digest(Layout.of(order.base))
    if packed is None:
        update = {"delta": Array(np.ascontiguousarray(block.delta_KP[0], dtype=np.float32))}
    else:
        update = {"codes": Array(packed.codes_KP[0]), "scales": Array(packed.scales_KC[0])}
    return RecordDict({_REPLY: ConfigRecord(reply), _UPDATE: ArrayRecord(update)})


def encode_failure(order: TrainOrder, kind: FailureKind, detail: str = "") -> RecordDict:
    """The answer of a device that cannot or will not train."""
    config = {**_reply_config(order), "failure": kind.value, "detail": detail[:_MAX_DETAIL]}
    return RecordDict({_REPLY: ConfigRecord(config)})


def decode_reply(order: TrainOrder, layout: Layout, records: RecordDict | None) -> Reply | ClientFailure:
    """What a device answered; never raises for what it sent.

    Args:
        order: What it was asked.
        layout: Of the shared parameters.
        records: The reply's content; None for an error reply without any.
    """
    if records is None:
        return ClientFailure(order.client, FailureKind.DROPPED, "an error reply")
    try:
        config: dict[str, Any] = dict(records.config_records[_REPLY])
        _check_format(config)
        _check_client(config, order.client)
        if "failure" in config:
            return _told_failure(order, config)
        if (_integer(config, "round"), _integer(config, "base_version")) != (order.round, order.base_version):
            detail = f"made in round {config['round']} from version {config['base_version']}"
            return ClientFailure(order.client, FailureKind.STALE, detail)
        return _read_update(order, layout, config, records)
    except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes break, only its own reply is lost
        return ClientFailure(order.client, FailureKind.MALFORMED, str(error)[:_MAX_DETAIL])


def encode_roll(clients: Sequence[ClientId]) -> RecordDict:
    """The answer to a roll call: which clients a node hosts."""
    return RecordDict({_ROLL: ConfigRecord({"format": FORMAT, "clients": [int(one) for one in clients]})})


def decode_roll(records: RecordDict | None) -> tuple[ClientId, ...]:
    """The clients of `encode_roll`; nobody where that cannot be read."""
    if records is None or _ROLL not in records.config_records:
        return ()
    config: dict[str, Any] = dict(records.config_records[_ROLL])
    found = config.get("clients")
    if config.get("format") != FORMAT or not isinstance(found, list):
        return ()
    return tuple(ClientId(one) for one in found if isinstance(one, int) and not isinstance(one, bool))


def _read_update(order: TrainOrder, layout: Layout, config: Mapping[str, Any], records: RecordDict) -> Reply:
    if config["layout"] != layout_digest(layout):
        raise WireError("parameter names or shapes differ from the model's")
    update = records.array_records[_UPDATE]
    delta = _unpacked(update, layout) if "codes" in update else _vector(update["delta"], layout.size)
    block = UpdateBlock(
        clients=np.array([order.client], dtype=np.int64),
        delta_KP=delta[None, :],
        num_examples=np.array(
            [_integer(config, "num_examples") if order.with_statistics else 1], dtype=np.int64
        ),
        loss=np.array([float(config["loss"]) if order.with_statistics else np.nan], dtype=np.float32),
        personal_KQ=np.zeros((1, 0), dtype=np.float32),
    )
    size_bytes = sum(len(array.data) for array in update.values())
    return Reply(block, float(config["busy_s"]) if order.with_statistics else 0.0, size_bytes)


def _unpacked(update: ArrayRecord, layout: Layout) -> NDArray[np.float32]:
    """An update that was quantised."""
    codes = _vector(update["codes"], layout.size, np.int8)
    scales = _vector(update["scales"], num_channels(layout))
    sent_P: NDArray[np.float32] = unpack(Packed(codes[None, :], scales[None, :]), layout)[0]
    return sent_P


def _vector(array: Array, size: int, kind: type = np.float32) -> NDArray[Any]:
    """A vector of `size` elements; its bytes are bounded before they are read."""
    dtype = np.dtype(kind)
    if len(array.data) > dtype.itemsize * size + _HEADER_BYTES:
        raise WireError(f"{len(array.data)} bytes for {size} parameters")
    vector = array.numpy()
    if vector.shape != (size,) or vector.dtype != dtype:
        raise WireError(f"update of shape {vector.shape} and type {vector.dtype}, expected ({size},) {dtype}")
    return np.asarray(vector, dtype=dtype)


def _told_failure(order: TrainOrder, config: Mapping[str, Any]) -> ClientFailure:
    try:
        kind = FailureKind(config["failure"])
    except ValueError:
        kind = FailureKind.MALFORMED
    return ClientFailure(order.client, kind, str(config.get("detail", ""))[:_MAX_DETAIL])


def _reply_config(order: TrainOrder) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "client": int(order.client),
        "round": order.round,
        "base_version": order.base_version,
    }


def _check_format(config: Mapping[str, Any]) -> None:
    if config["format"] != FORMAT:
        raise WireError(f"message format {config['format']!r}, {FORMAT} is understood")


def _check_client(config: Mapping[str, Any], client: ClientId) -> None:
    if _integer(config, "client") != client:
        raise WireError(f"it names client {config['client']}")


def _integer(config: Mapping[str, Any], name: str) -> int:
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise WireError(f"{name} is {value!r}, not an integer")
    return value
