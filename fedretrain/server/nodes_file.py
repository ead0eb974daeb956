"""The file that tells a campaign's server app which devices it may ask behind each SuperNode's key."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fedretrain.core.durable import write_whole
from fedretrain.server.fleet import Standing

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from fedretrain.server.fleet import Device


def write_nodes(path: Path, devices: Iterable[Device], kept: frozenset[int]) -> frozenset[str]:
    """Write the file where it has changed: JSON of public keys (PEM) to numbers.

    The key of one who is kept out stays, without its number: its agent may train for others, or be let in again.

    Args:
        path: The file.
        devices: Of the population.
        kept: Numbers of those that are kept out.

    Returns:
        The keys: whose SuperNodes are let in.
    """
    nodes: dict[str, list[int]] = {}
    for device in devices:
        if device.standing is Standing.ACTIVE and device.traits.node_key:
            asked = nodes.setdefault(device.traits.node_key, [])
            asked += [] if device.number in kept else [device.number]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(nodes, sort_keys=True).encode()
    if not path.exists() or path.read_bytes() != content:
        write_whole(path, content)
    return frozenset(nodes)
