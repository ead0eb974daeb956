"""Which devices were heard of in each slot: the fleet's comings and goings, by its heartbeats.

Rules of this file:
    * One row of bits for each slot, written by the leader in the first turn after the slot's end. A slot in which no coordinator ran has
      no row: nobody knows.
    * A device that was away in the slot and came back before that turn counts as heard of.
    * Rows older than `KEPT_S` are deleted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import delete, func, insert, select

from fedretrain.core.clock import DAY_S
from fedretrain.server.database import reading
from fedretrain.server.event_log import check_fence
from fedretrain.server.fleet import Standing
from fedretrain.server.tables import presence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from sqlalchemy import Engine

    from fedretrain.server.event_log import Fence
    from fedretrain.server.fleet import Device

KEPT_S = 30 * DAY_S


@dataclass(frozen=True)
class Slot:
    """One row.

    Attributes:
        at: When the slot begins.
        slot_s: How long it is.
        online_D: ``[D]`` who was heard of; devices beyond its end had not joined.
    """

    at: float
    slot_s: float
    online_D: NDArray[np.bool_]


def note(
    engine: Engine, fence: Fence | None, population: str, devices: Sequence[Device], slot_s: float, now: float
) -> bool:
    """Write down the slot that ended last, unless that was done; whether it was now.

    Args:
        engine: The database.
        fence: The leader's lease.
        population: Whose devices.
        devices: Everybody, by number.
        slot_s: Length of a slot.
        now: Instant, seconds since the epoch.

    Raises:
        FencedError: If somebody else leads now.
    """
    end = now // slot_s * slot_s
    newest = select(func.max(presence.c.at)).where(presence.c.population == population)
    with reading(engine) as connection:
        last = connection.scalar(newest)
    if not devices or (last is not None and last >= end - slot_s):
        return False
    begun = max(end - slot_s, np.nextafter(0.0, 1.0))  # 0 is never
    heard = [one.standing is Standing.ACTIVE and one.seen_at >= begun for one in devices]
    bits = np.packbits(np.array(heard, dtype=np.bool_)).tobytes()
    row = {
        "population": population,
        "at": end - slot_s,
        "slot_s": slot_s,
        "devices": len(devices),
        "online": bits,
    }
    with engine.begin() as connection:
        check_fence(connection, fence)
        connection.execute(insert(presence).values(**row))
        old = (presence.c.population == population) & (presence.c.at < now - KEPT_S)
        connection.execute(delete(presence).where(old))
    return True


def read(engine: Engine, population: str) -> list[Slot]:
    """Every slot that is known, oldest first."""
    query = select(presence).where(presence.c.population == population).order_by(presence.c.at)
    with reading(engine) as connection:
        rows = connection.execute(query).all()
    return [
        Slot(
            row.at,
            row.slot_s,
            np.unpackbits(np.frombuffer(row.online, np.uint8), count=row.devices).astype(np.bool_),
        )
        for row in rows
    ]
