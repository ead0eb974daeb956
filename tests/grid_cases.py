"""Flower's grid in this process: nodes whose devices answer here, and what may become of their replies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, RecordDict
from flwr.common.constant import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from fedretrain.edge.client_app import Device


class Answer:
    """As much of a Flower message as a runner reads."""

    def __init__(self, to: str, node: int, content: RecordDict | None, code: int = 0) -> None:
        self.metadata = type("Metadata", (), {"reply_to_message_id": to, "src_node_id": node})()
        self.content: Any = content
        self.error = type("Error", (), {"code": code, "reason": "the reason"})()

    def has_error(self) -> bool:
        return self.content is None


def refusing(to: str, node: int, _content: RecordDict) -> Answer:
    """The device was invited to another bundle."""
    return Answer(to, node, None, ErrorCode.INVALID_FAB)


def crashing(to: str, node: int, _content: RecordDict) -> Answer:
    """The node went away."""
    return Answer(to, node, None, ErrorCode.NODE_UNAVAILABLE)


def silent(_to: str, _node: int, _content: RecordDict) -> None:
    """No reply ever comes."""


class LoopbackGrid:
    """Nodes with the devices of this process.

    Args:
        devices: The device (an agent's, with its clients) of each node.
        broken: What becomes of a client's reply instead.
        keys: Public keys of the nodes.
    """

    def __init__(
        self,
        devices: Mapping[int, Device],
        broken: Mapping[int, Callable[[str, int, RecordDict], Answer | None]] | None = None,
        keys: Mapping[int, bytes] | None = None,
    ) -> None:
        self.devices, self.broken, self.keys = dict(devices), dict(broken or {}), dict(keys or {})
        self.waiting: dict[str, tuple[int, str, RecordDict]] = {}
        self.num_sent = self.most_waiting = self.most_asked = 0
        self.ttls: list[float] = []

    def get_node_ids(self) -> list[int]:
        return list(self.devices)

    def get_nodes(self) -> list[Any]:
        return [
            type("NodeInfo", (), {"node_id": node, "public_key": self.keys.get(node, b"")})()
            for node in self.devices
        ]

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        names = []
        for message in messages:
            self.num_sent += 1
            self.ttls.append(message.metadata.ttl)
            name = str(self.num_sent)
            self.waiting[name] = (
                message.metadata.dst_node_id,
                message.metadata.message_type,
                message.content,
            )
            names.append(name)
        self.most_waiting = max(self.most_waiting, len(self.waiting))
        return names

    def pull_messages(self, names: Iterable[str]) -> list[Any]:
        """The latest of those asked for, one at a time."""
        names = list(names)
        self.most_asked = max(self.most_asked, len(names))
        for name in reversed(names):
            if name not in self.waiting:
                continue
            node, kind, content = self.waiting[name]
            if kind == "query":
                del self.waiting[name]
                return [Answer(name, node, self.devices[node].roll())]
            client = int(content.config_records["fedretrain.order"]["client"])
            broken = self.broken.get(client)
            if broken is silent:
                continue
            del self.waiting[name]
            reply = self.devices[node].answer(content)
            answer = Answer(name, node, reply) if broken is None else broken(name, node, reply)
            return [] if answer is None else [answer]
        return []


def lying(to: str, node: int, content: RecordDict) -> Answer:
    """The device answers for another client."""
    config = dict(content.config_records["fedretrain.reply"])
    content["fedretrain.reply"] = ConfigRecord({**config, "client": 99})
    return Answer(to, node, content)
