"""Cohorts over Flower's `Grid`: messages out, replies in as they come, until the deadline. Real devices and simulated ones.

Rules of this file:
    * A few messages are under way at once and few replies are pulled at once: memory holds that many models, whatever
      the cohort.
    * An order that its node never answers costs its own client: a failure, never an exception. An exception means that
      Flower itself cannot be reached.
    * Waiting ends with the deadline, with enough replies (`RoundSpec.stop_after`), or when all have answered.
    * A reply's time is from its order's being there for the node to the runner's finding the reply: what both wait before they look
      is in it. It is the schedule's, never the sum's: nothing that is released depends on it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode

from fedretrain.aggregation.aggregator import FixedDenominatorMean
from fedretrain.coordinator.reduce import Reducer
from fedretrain.core.ids import ClientId
from fedretrain.core.params import Layout
from fedretrain.core.types import ClientFailure, FailureKind
from fedretrain.wire.records import PLAN_OPTION, Reply, TrainOrder, decode_reply, decode_roll, encode_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from flwr.serverapp import Grid
    from numpy.typing import NDArray

    from fedretrain.coordinator.ports import RoundSpec, ShardResult

    Ids = NDArray[np.int64]

_LONGEST_TTL_S = 12 * 3600.0  # Flower forgets a message after this; a deadline beyond it makes no sense
_ROLL_S, _ANSWER_S, _POLL_S = 30.0, 6.0, 0.2
_MAX_DETAIL = 200


@dataclass(frozen=True)
class Pace:
    """How a grid is used.

    Attributes:
        window: Messages under way at once.
        pull: Replies asked for at once: each holds a model.
        poll_s: Between two looks.
        patience_s: Without any reply for so long, the rest is given up; infinite: the deadline decides.
    """

    window: int = 64
    pull: int = 16
    poll_s: float = 0.2
    patience_s: float = math.inf


@dataclass(frozen=True)
class _Sent:
    """An order under way, and the instant from which its node could have it."""

    order: TrainOrder
    at: float


class Correspondence:
    """Orders and their replies.

    Args:
        grid: Flower's.
        pace: How it is used.
    """

    def __init__(self, grid: Grid, pace: Pace) -> None:
        self._grid, self._pace = grid, pace
        self.heard = False
        """Whether any reply came."""
        self.num_sent = 0
        self.reply_s: dict[int, float] = {}
        """Seconds from asked to replied, by client."""

    def replies(
        self,
        orders: Iterator[TrainOrder],
        message: Callable[[TrainOrder], Message],
        *,
        wait_s: float = math.inf,
    ) -> Iterator[tuple[TrainOrder, Message | None]]:
        """Each order with its reply as it comes; with None where none came in time.

        Whoever stops iterating stops waiting.

        Args:
            orders: What to send, in this order.
            message: Makes an order's message, when it is its turn.
            wait_s: How long to wait, from now.
        """
        waiting: dict[str, _Sent] = {}
        until = heard_at = time.monotonic()
        until += wait_s
        left = True
        while left or waiting:
            left = self._send(orders, message, waiting) if left else False
            answers = self._pull(list(waiting))
            found_at = time.monotonic()
            for answer in answers:
                sent = waiting.pop(answer.metadata.reply_to_message_id)
                self.reply_s[int(sent.order.client)] = found_at - sent.at
                yield sent.order, answer
            now = time.monotonic()
            if answers:
                self.heard, heard_at = True, now
            elif now - heard_at > self._pace.patience_s or now > until:
                break
            else:
                time.sleep(self._pace.poll_s)
        yield from ((sent.order, None) for sent in waiting.values())
        yield from ((order, None) for order in orders)

    def _send(
        self,
        orders: Iterator[TrainOrder],
        message: Callable[[TrainOrder], Message],
        waiting: dict[str, _Sent],
    ) -> bool:
        """Fill the window; whether there may be more to send."""
        while len(waiting) < self._pace.window:
            order = next(orders, None)
            if order is None:
                return False
            (name,) = self._grid.push_messages([message(order)])
            waiting[name] = _Sent(order, time.monotonic())
            self.num_sent += 1
        return True

    def _pull(self, names: list[str]) -> list[Message]:
        """The first replies that are there, few at a time."""
        step = self._pace.pull
        for first in range(0, len(names), step):
            found = list(self._grid.pull_messages(names[first : first + step]))
            if found:
                return found
        return []


class Nodes(Protocol):
    """Which node of Flower's serves which device, now."""

    def online(self) -> Mapping[int, int]:
        """The node of each device whose node is connected."""
        ...


class KeyedNodes:
    """Nodes known by the keys that the devices enrolled with: what a node says of itself does not matter.

    Args:
        grid: Flower's.
        keys: Gives the devices of each registered public key (PEM): those that may be asked now.
    """

    def __init__(self, grid: Grid, keys: Callable[[], Mapping[bytes, Sequence[int]]]) -> None:
        self._grid, self._keys = grid, keys

    def online(self) -> Mapping[int, int]:
        """See `Nodes.online`."""
        keys = self._keys()
        nodes = self._grid.get_nodes()
        return {device: node.node_id for node in nodes for device in keys.get(node.public_key, ())}


class CalledNodes:
    """Nodes that say themselves whom they host: for development, where SuperNodes have no keys of their own.

    Args:
        grid: Flower's.
        num_devices: Numbers from 0 to below this are believed.
    """

    def __init__(self, grid: Grid, num_devices: int) -> None:
        self._grid, self._num_devices = grid, num_devices
        self._hosted: dict[int, tuple[ClientId, ...]] = {}
        self._asked: dict[str, int] = {}
        self._ask_again_at: dict[int, float] = {}

    def online(self) -> Mapping[int, int]:
        """See `Nodes.online`. Asks nodes now and then, since devices join them; waits a moment for those that never answered."""
        nodes = set(self._grid.get_node_ids())
        until = time.monotonic() + (_ANSWER_S if self._call(nodes) else 0.0)
        while True:
            answers = list(self._grid.pull_messages(list(self._asked))) if self._asked else []
            for answer in answers:
                node = self._asked.pop(answer.metadata.reply_to_message_id)
                if not answer.has_error():
                    self._hosted[node] = decode_roll(answer.content)
            if not answers:
                if nodes <= set(self._hosted) or time.monotonic() >= until:
                    break
                time.sleep(_POLL_S)
        return {
            int(client): node
            for node, clients in self._hosted.items()
            for client in clients
            if node in nodes and 0 <= client < self._num_devices
        }

    def _call(self, nodes: set[int]) -> bool:
        """Whether anybody was asked."""
        now = time.monotonic()
        due = sorted(node for node in nodes if now >= self._ask_again_at.get(node, now))
        if not due:
            return False
        calls = [_message(RecordDict(), node, "query", "") for node in due]
        self._asked |= dict(zip(self._grid.push_messages(calls), due, strict=True))
        self._ask_again_at |= dict.fromkeys(due, now + _ROLL_S)
        return True


class GridRunner:
    """Trains cohorts on real devices.

    Args:
        grid: Flower's.
        nodes: Which node serves which device.
        plan: The campaign's training plan, as text; it goes with each order.
        private: With differential privacy nothing of single clients is kept.
        pace: How the grid is used.
    """

    def __init__(
        self, grid: Grid, nodes: Nodes, plan: str, *, private: bool = True, pace: Pace | None = None
    ) -> None:
        self._grid, self._nodes, self._plan = grid, nodes, plan
        self._private, self._pace = private, pace or Pace()

    def online(self, num_devices: int) -> NDArray[np.bool_]:
        """``[N]``: whose node is connected now."""
        mask = np.zeros(num_devices, dtype=np.bool_)
        mask[[device for device in self._nodes.online() if device < num_devices]] = True
        return mask

    def run(self, spec: RoundSpec, cohort: Ids) -> Iterator[ShardResult]:
        """One shard: the replies as they come in; see `ports.CohortRunner`."""
        node_of, taken = self._nodes.online(), _Taken(spec, cohort, keep_oracle=not self._private)
        asked = [client for client in cohort.tolist() if client in node_of]
        taken.fail([client for client in cohort.tolist() if client not in node_of], FailureKind.UNAVAILABLE)
        ttl_s = min(spec.deadline_s, _LONGEST_TTL_S)

        def message(order: TrainOrder) -> Message:
            node = node_of[int(order.client)]
            return _message(encode_order(order), node, "train", str(order.round), ttl_s)

        orders = (train_order(spec, client, {PLAN_OPTION: self._plan}) for client in asked)
        correspondence = Correspondence(self._grid, self._pace)
        for order, answer in correspondence.replies(orders, message, wait_s=spec.deadline_s):
            if answer is not None:
                taken.take(order, answer)
            if spec.stop_after is not None and taken.num_updates >= spec.stop_after:
                break
        taken.fail([client for client in asked if client not in taken.heard], FailureKind.TIMEOUT)
        yield taken.result(correspondence)

    def close(self) -> None:
        """The grid is the run's: nothing to free."""


class _Taken:
    """The replies of one round on their way into one partial sum."""

    def __init__(self, spec: RoundSpec, cohort: Ids, *, keep_oracle: bool) -> None:
        self._layout = Layout.of(spec.base)
        self._reducer = Reducer(spec, cohort, keep_oracle=keep_oracle)
        self._busy_s, self._bytes_up = 0.0, 0
        self.heard: set[int] = set()
        self.num_updates = 0

    def take(self, order: TrainOrder, answer: Message) -> None:
        """Reduce one reply."""
        self.heard.add(int(order.client))
        read = read_answer(order, self._layout, answer)
        if isinstance(read, ClientFailure):
            self._reducer.fail([read])
            return
        self._reducer.add(read.block)
        self.num_updates += 1
        self._busy_s += read.busy_s
        self._bytes_up += read.size_bytes

    def fail(self, clients: Sequence[int], kind: FailureKind) -> None:
        """Clients that were not heard of."""
        self._reducer.fail(ClientFailure(ClientId(client), kind) for client in clients)

    def result(self, correspondence: Correspondence) -> ShardResult:
        """Everything reduced, with the times of the replies that counted."""
        bytes_down = correspondence.num_sent * 4 * self._layout.size
        done = self._reducer.result(bytes_down=bytes_down, bytes_up=self._bytes_up, busy_s=self._busy_s)
        reply_s = {client: correspondence.reply_s[client] for client in done.clients.tolist()}
        return replace(done, reply_s=reply_s)


def train_order(spec: RoundSpec, client: int, options: Mapping[str, str | int | float | bool]) -> TrainOrder:
    """What one client is asked to do. Numbers of examples are for aggregators that weigh by them.

    Args:
        spec: The round.
        client: Who.
        options: See `TrainOrder.options`.
    """
    return TrainOrder(
        client=ClientId(client),
        round=spec.round,
        base=spec.base,
        base_version=spec.base_version,
        seed=spec.seed,
        at=spec.at,
        clip_norm=spec.clip_norm,
        deadline_s=spec.deadline_s,
        with_statistics=not isinstance(spec.aggregator, FixedDenominatorMean),
        options=options,
    )


def read_answer(order: TrainOrder, layout: Layout, answer: Message) -> Reply | ClientFailure:
    """What a device answered; an error of Flower's or of the device's app is a failure of its client.

    Args:
        order: What it was asked.
        layout: Of the shared parameters.
        answer: Its message.
    """
    if not answer.has_error():
        return decode_reply(order, layout, answer.content)
    refused = answer.error.code == ErrorCode.INVALID_FAB
    kind = FailureKind.REFUSED if refused else FailureKind.DROPPED
    return ClientFailure(order.client, kind, str(answer.error.reason)[:_MAX_DETAIL])


def _message(content: RecordDict, node: int, kind: str, group: str, ttl_s: float = _LONGEST_TTL_S) -> Message:
    return Message(content, node, kind, ttl=ttl_s, group_id=group)
