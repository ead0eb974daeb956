"""People with keys, and what somebody does who can write the database and has none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select, update

from fedretrain.artifacts.signed_order import public_half
from fedretrain.core.build import plain
from fedretrain.privacy.ledger import GENESIS
from fedretrain.rollout.safety import SafetyCommand, SafetyOrder
from fedretrain.server.event_log import _chained
from fedretrain.server.orders import Signer, recorded
from fedretrain.server.people import Notary, Person
from fedretrain.server.tables import events

if TYPE_CHECKING:
    from fedretrain.server.event_log import EventLog

FLEET, OTHER_FLEET = "f1" * 32, "f2" * 32
KEYS = {
    name: Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"."))
    for name in ("anna", "ben", "old", "eve")
}
PEOPLE = {
    "anna": Person(public_half(KEYS["anna"]), (public_half(KEYS["old"]),)),
    "ben": Person(public_half(KEYS["ben"])),
}
NOTARY = Notary("p", FLEET, PEOPLE)


def signer(name: str, fleet: str = FLEET) -> Signer:
    """Somebody's key."""
    return Signer(KEYS[name], fleet)


def order(
    by: str = "anna",
    key: str = "anna",
    *,
    at: float,
    population: str = "p",
    fleet: str = FLEET,
    reason: str = "smoke",
) -> dict[str, Any]:
    """Into safe mode, as a record of the log.

    Args:
        by: Who orders it, as it says.
        key: Whose key signs; empty: none.
        at: When.
        population: For which it is signed.
        fleet: For which it is signed.
        reason: Why.
    """
    body = plain(SafetyOrder(SafetyCommand.ENTER, by, reason=reason))
    return recorded("safety", body, population, at, signer(key, fleet) if key else None)


def rewrite(log: EventLog, stream: str, number: int, text: str) -> None:
    """Change a record, and every hash after it: what somebody can do who writes the database and knows how the chain is made."""
    with log.engine.begin() as connection:
        mine = events.c.stream == stream
        rows = connection.execute(select(events).where(mine).order_by(events.c.number)).all()
        previous = rows[number - 2].hash if number > 1 else GENESIS
        for row in rows[number - 1 :]:
            body = text if row.number == number else row.record
            previous = _chained(row.number, previous, row.at, body)
            place = mine & (events.c.number == row.number)
            connection.execute(update(events).where(place).values(record=body, hash=previous))
