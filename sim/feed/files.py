"""What a world leaves in its folder, for a coordinator, its agents and `run`.

Rules of this file:
    * The same configuration writes the same bytes.
    * ``feed.json`` says everything that `run` needs, the configuration included.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy

from fedretrain.core.build import build, plain
from fedretrain.core.durable import write_whole
from fedretrain.core.errors import DataError
from sim.feed.config import FeedConfig  # noqa: TC001 - `build` reads the annotations
from sim.feed.world import Device, World  # noqa: TC001 - likewise

if TYPE_CHECKING:
    from pathlib import Path

DESCRIPTION, FEATURES, LAB, DRIFT_NOW = "feed.json", "features.json", "pool/lab.safetensors", "drift.now"


@dataclass(frozen=True)
class Agent:
    """An agent as the feed knows it.

    Attributes:
        name: ``agent-0`` and on.
        http: ``host:port`` of its local API.
        devices: Names of the devices that it hosts.
    """

    name: str
    http: str
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Description:
    """What ``feed.json`` holds.

    Attributes:
        config: Which world.
        devices: The fleet.
        agents: Who hosts it.
        classes: Names of the classes.
    """

    config: FeedConfig
    devices: tuple[Device, ...]
    agents: tuple[Agent, ...]
    classes: tuple[str, ...]


def describe(world: World) -> Description:
    """The description of a world."""
    c = replace(world.config, drift_offset=world.drift_offset)
    agents = tuple(
        Agent(
            f"agent-{a}",
            f"{c.host}:{c.first_port + a}",
            tuple(device.name for device in world.devices if device.agent == a),
        )
        for a in range(c.num_agents)
    )
    return Description(c, world.devices, agents, tuple(f"class {k}" for k in range(c.num_classes)))


def write(world: World, folder: Path) -> Description:
    """Write a world's files.

    Raises:
        DataError: If the folder cannot be written to.
    """
    lab, found = world.lab, describe(world)
    arrays = {
        "x": lab.x,
        "y": lab.y,
        "at": lab.at,
        "device": lab.device,
        "group": lab.device % world.config.num_types,
    }
    files = {
        FEATURES: world.features.to_json().encode(),
        LAB: safetensors.numpy.save({name: np.ascontiguousarray(one) for name, one in arrays.items()}),
        DESCRIPTION: (json.dumps(plain(found), indent=2) + "\n").encode(),
    }
    try:
        (folder / LAB).parent.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_whole(folder / name, content)
    except OSError as error:
        raise DataError(
            f"it cannot be written: {error}", where=str(folder), fix="name another folder"
        ) from error
    return found


def read(folder: Path) -> Description:
    """The description of a prepared world.

    Raises:
        DataError: If there is none.
        ConfigError: If it says what cannot be.
    """
    path = folder / DESCRIPTION
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"no world was prepared there: {error}", where=str(path), fix="python -m sim feed prepare DIR"
        ) from error
    return build(Description, values, where=str(path))
