"""What every gateway tells the devices of a population, beside each its own assignment: written by the leader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import delete, insert, select

from fedretrain.server.event_log import check_fence
from fedretrain.server.tables import announcements

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from fedretrain.server.event_log import Fence


@dataclass(frozen=True)
class Announcement:
    """What a population's devices are told.

    Attributes:
        question: The signed federated evaluation that is on; empty: none.
        hasten: Whether they shall be heard sooner, for what they serve may have to be taken back.
        notice: What they must leave at once, signed; empty: nothing.
    """

    question: bytes = b""
    hasten: bool = False
    notice: bytes = b""


def tell(engine: Engine, fence: Fence | None, population: str, told: Announcement) -> None:
    """Tell a population's devices something; what was told before is told no more.

    Raises:
        FencedError: If somebody else tells them now.
    """
    with engine.begin() as connection:
        check_fence(connection, fence)
        connection.execute(delete(announcements).where(announcements.c.population == population))
        connection.execute(insert(announcements).values(population=population, **vars(told)))


def told(connection: Connection) -> dict[str, Announcement]:
    """What is told now, by population."""
    rows = connection.execute(select(announcements))
    return {row.population: Announcement(row.question, row.hasten, row.notice) for row in rows}
