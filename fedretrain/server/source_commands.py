"""``fedretrain sources``: which brokers telemetry comes from, and what was refused of it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from fedretrain.core.errors import DataError
from fedretrain.core.ids import is_name
from fedretrain.server import fleet
from fedretrain.server.command_line import command, desk_of, say
from fedretrain.server.database import reading
from fedretrain.server.fleet import Traits
from fedretrain.server.tables import dead_letters, sources

if TYPE_CHECKING:
    import argparse

    from fedretrain.server.desk import Desk

_SHOWN = 120  # characters of a payload


def add(below: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""

    def listed(arguments: argparse.Namespace) -> int:
        found = standings(desk_of(arguments))
        lines = [
            f"{one['name']:16} {one['standing']:10} {one['counted']:>10} counted {one['repeated']:>8} repeated "
            f"{sum(one['refused'].values()):>8} refused, broken {one['num_broken']} times {one['error']}".rstrip()
            for one in found
        ]
        return say(arguments, found, "\n".join(lines) or "no broker was read yet")

    def refused(arguments: argparse.Namespace) -> int:
        found = letters(desk_of(arguments), arguments.limit)
        lines = [
            f"{_clock(one['at'])} {one['source']}: {one['reason']} ({one['origin']}, {one['device'] or 'nobody'})"
            for one in found
        ]
        return say(arguments, found, "\n".join(lines) or "nothing was refused")

    group = below.add_parser("sources", help="brokers that telemetry comes from").add_subparsers(
        required=True
    )
    command(group, "list", listed, "every broker: whether it is reached, and what became of its messages")
    made = command(group, "refused", refused, "messages that were refused, oldest first, with the reason")
    made.add_argument("--limit", type=int, default=20, help="at most so many of the newest")


def watch(desk: Desk, names: list[str], device_type: str, site: str) -> None:
    """Count the raw samples of devices without an agent; all of them, or none.

    Raises:
        DataError: If a name cannot be one, or is of a device that had an agent.
    """
    with desk.log.engine.begin() as connection:
        for name in names:
            if not is_name(name):
                raise DataError(
                    f"{name!r:.100} is no name", where="device", fix="give letters, digits, . _ -"
                )
            fleet.watch(connection, desk.population, name, Traits(device_type, site), time.time())


def standings(desk: Desk) -> list[dict[str, Any]]:
    """Every source of a population, and what became of its messages."""
    query = select(sources).where(sources.c.population == desk.population).order_by(sources.c.name)
    with reading(desk.log.engine) as connection:
        rows = connection.execute(query).all()
    found = []
    for row in rows:
        counts = {"counted": 0, "repeated": 0, "lost": 0, "anew": 0, "refused": {}, **json.loads(row.counts)}
        found.append(
            {
                "name": row.name,
                "standing": row.standing,
                "since": row.since,
                "error": row.error,
                "num_broken": row.num_broken,
                **counts,
            }
        )
    return found


def letters(desk: Desk, limit: int) -> list[dict[str, Any]]:
    """The newest messages that were refused, oldest first."""
    mine = dead_letters.c.population == desk.population
    query = select(dead_letters).where(mine).order_by(dead_letters.c.number.desc()).limit(limit)
    with reading(desk.log.engine) as connection:
        rows = connection.execute(query).all()
    return [
        {
            "source": row.source,
            "device": row.device,
            "at": row.at,
            "origin": row.origin,
            "reason": row.reason,
            "begins": row.payload[:_SHOWN].decode(errors="replace"),
        }
        for row in reversed(rows)
    ]


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))
