"""Counts of raw samples by device and slot, until the slot is over: then they are a record of telemetry like an agent's.

Rules of this file:
    * Functions take the connection of the caller's transaction: counts change with the offsets and numbers of the messages
      that they came from, or not at all.
    * What comes after its slot became a record begins a new tally of that slot, which becomes another record: rows add up.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import delete, insert, select, update

from fedretrain.monitoring.reports import join
from fedretrain.server.tables import tallies, telemetry
from fedretrain.wire.control import encode_report
from fedretrain.wire.v1 import fleet_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from fedretrain.monitoring.reports import Reports

_FLUSHED_AT_ONCE = 500
_COUNTS = ("features", "violations")


def add(connection: Connection, population: str, device: str, package: str, parts: Sequence[Reports]) -> None:
    """Add counts to the tallies of their slots.

    Args:
        connection: Of the transaction.
        population: Whose.
        device: Its name.
        package: Digest of the version on whose bins was counted.
        parts: Of one message each; one row for each slot.
    """
    for rows in _by_slot(join(parts)):
        where = {"population": population, "device": device, "slot": int(rows.slot_K[0]), "package": package}
        mine = _is(where)
        found = pb.Payload.FromString(encode_report(rows, package))
        known = connection.scalar(select(tallies.c.payload).where(mine))
        if known is None:
            _number(found)
            connection.execute(insert(tallies).values(**where, payload=found.SerializeToString()))
            continue
        total = pb.Payload.FromString(known)
        for name in _COUNTS:
            kept, more = getattr(total.report, name), getattr(found.report, name)
            kept[:] = (np.array(kept, dtype=np.int64) + np.array(more, dtype=np.int64)).tolist()
        connection.execute(update(tallies).where(mine).values(payload=total.SerializeToString()))


def _by_slot(rows: Reports) -> list[Reports]:
    """One row for each slot, with the sum of its counts."""
    found = []
    for slot in np.unique(rows.slot_K):
        one = rows.take(rows.slot_K == slot)
        first = one.take(np.array([0]))
        first.features_KFC[0] = one.features_KFC.sum(axis=0)
        first.violations_KF[0] = one.violations_KF.sum(axis=0)
        found.append(first)
    return found


def flush(connection: Connection, population: str, slot_s: float, now: float) -> int:
    """Make records of the tallies whose slots are over; how many.

    Args:
        connection: Of the transaction.
        population: Whose.
        slot_s: Length of a slot.
        now: Instant, seconds since the epoch.
    """
    over = (tallies.c.population == population) & (tallies.c.slot < int(now // slot_s))
    found = connection.execute(select(tallies).where(over).limit(_FLUSHED_AT_ONCE)).all()
    for row in found:
        record = {
            "population": population,
            "device": row.device,
            "at": (row.slot + 1) * slot_s,
            "received_at": now,
            "payload": row.payload,
        }
        connection.execute(insert(telemetry).values(**record))
        key = {name: getattr(row, name) for name in ("population", "device", "slot", "package")}
        connection.execute(delete(tallies).where(_is(key)))
    return len(found)


def _number(payload: pb.Payload) -> None:
    """A row's number is its own within the slot; nothing is kept of those that were given."""
    payload.report.row = secrets.randbits(32)


def _is(where: dict[str, Any]) -> Any:
    return (
        (tallies.c.population == where["population"])
        & (tallies.c.device == where["device"])
        & (tallies.c.slot == where["slot"])
        & (tallies.c.package == where["package"])
    )
