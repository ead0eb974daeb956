"""The signed federated evaluation that each population's devices are asked: written by the leader, told by every gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, insert, select

from fedretrain.server.event_log import check_fence
from fedretrain.server.tables import questions

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from fedretrain.server.event_log import Fence


def tell(engine: Engine, fence: Fence | None, population: str, envelope: bytes) -> None:
    """Ask a population's devices something; an empty envelope asks nothing any more.

    Raises:
        FencedError: If somebody else asks now.
    """
    with engine.begin() as connection:
        check_fence(connection, fence)
        connection.execute(delete(questions).where(questions.c.population == population))
        if envelope:
            connection.execute(insert(questions).values(population=population, envelope=envelope))


def asked(connection: Connection) -> dict[str, bytes]:
    """What is asked now, by population."""
    return {row.population: row.envelope for row in connection.execute(select(questions))}
