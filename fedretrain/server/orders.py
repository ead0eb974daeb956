"""What people order: written by the command line, read by the reconciler, and the audit log of both.

Rules of this file:
    * An order is an event like any other: durable, hash-chained, with who gave it, from which account, and when. Nothing is done that is
      not in it.
    * The reconciler takes an order once: how far it has read is part of the same transaction as what follows from it.
    * An order that is not the word of whom it names (`people.Notary`) is passed over and written down with the reason.
    * A tick takes one order and one yes to a rollout; the next one waits for the next tick, so that none is lost behind another. A no
      waits for nobody.
    * An order's kind in the log never changes, whatever becomes of its class.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedretrain.artifacts.signed_order import sign
from fedretrain.coordinator.cycle_events import Refused
from fedretrain.coordinator.cycle_evidence import (
    Discard,
    Order,
    Propose,
    Quarantine,
    Resubmit,
    Retrain,
    ServeAgain,
    Withdraw,
)
from fedretrain.core.build import build, plain
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.rollout.evidence import Answer, Approval, Operator
from fedretrain.rollout.quarantine import Release
from fedretrain.rollout.safety import SafetyOrder
from fedretrain.server.account import account
from fedretrain.server.people import signature_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from fedretrain.privacy.ledger import Head
    from fedretrain.server.event_log import Entry, EventLog
    from fedretrain.server.people import Notary

Said = Order | Approval | Operator

KINDS: Mapping[str, type] = {
    "safety": SafetyOrder,
    "release": Release,
    "propose": Propose,
    "withdraw": Withdraw,
    "quarantine": Quarantine,
    "serve_again": ServeAgain,
    "retrain": Retrain,
    "resubmit": Resubmit,
    "discard": Discard,
    "approval": Approval,
    "operator": Operator,
}
_NAMES = {cls: name for name, cls in KINDS.items()}


def stream(population: str) -> str:
    """Where a population's orders are."""
    return f"population/{population}/orders"


def give(log: EventLog, population: str, said: Said, at: float, signer: Signer | None = None) -> Head:
    """Write an order down; the reconciler takes it at its next tick.

    Args:
        log: The event log.
        population: Whose.
        said: What somebody orders.
        at: Instant, seconds since the epoch.
        signer: Their key; None: it is not signed.

    Raises:
        ConfigError: If nobody gave it.
    """
    check_name(said.by)
    said = replace(said, by=said.by.strip())
    record = recorded(_NAMES[type(said)], plain(said), population, at, signer)
    return log.append(stream(population), [record], at=at)


@dataclass(frozen=True)
class Signer:
    """Signs what one person orders.

    Attributes:
        key: Theirs.
        fleet: Fingerprint of the fleet's authority.
    """

    key: Ed25519PrivateKey
    fleet: str


def recorded(
    kind: str, body: Mapping[str, Any], population: str, at: float, signer: Signer | None
) -> dict[str, Any]:
    """What a person orders, as a record of the log: with the account that the command runs under, and signed.

    Args:
        kind: What it is, in a word.
        body: What is ordered, by whom and why; JSON-ready.
        population: Whose.
        at: Instant, seconds since the epoch.
        signer: The person's key; None: it is not signed.
    """
    record: dict[str, Any] = {"kind": kind, "body": dict(body), "account": account()}
    if signer is not None:
        nonce = secrets.token_hex(16)
        record["signed"] = plain(
            sign(signer.key, record, population=population, fleet=signer.fleet, at=at, nonce=nonce)
        )
    return record


def check_name(by: str) -> None:
    """Raise a `ConfigError` unless somebody gives the order."""
    if not by.strip():
        raise ConfigError("an order needs a name", where="--by", fix="say who you are: --by NAME")


@dataclass(frozen=True)
class Orders:
    """What was ordered since the last tick.

    Attributes:
        cycle: For the loop.
        approval: The first answer to a rollout's question, or a no that came after it: another yes waits for the next time.
        operator: The first order to a rollout; what was said after another one is gathered next time.
        refused: What was passed over, and why.
        nonces: Of the signed orders among them.
        through: Number of the last order read.
    """

    cycle: tuple[Order, ...] = ()
    approval: Approval = field(default_factory=Approval)
    operator: Operator = field(default_factory=Operator)
    refused: tuple[Refused, ...] = ()
    nonces: frozenset[str] = frozenset()
    through: int = 0


def gather(
    entries: Iterable[Entry],
    through: int,
    notary: Notary,
    now: float,
    taken: frozenset[str] = frozenset(),
) -> Orders:
    """The orders of some entries of the stream.

    Args:
        entries: Those after `through`.
        through: Number of the last order that was taken before.
        notary: Says what is nobody's word.
        now: Instant, seconds since the epoch, for how long a signed order counts.
        taken: Nonces of the signed orders that were taken before.

    Raises:
        DataError: If an entry is no order.
    """
    found = Orders(through=through)
    for entry in entries:
        said = read(entry.record)
        reason = notary.refusal(entry.record, now, taken | found.nonces)
        if reason:
            refused = Refused(type(said).__name__.lower(), said.by, reason, entry.number)
            found = replace(found, refused=(*found.refused, refused), through=entry.number)
            continue
        signature = signature_of(entry.record)
        grown = _taken(found, said, entry.at if signature is None else signature.at)
        if grown is None:
            break
        nonces = found.nonces if signature is None else found.nonces | {signature.nonce}
        found = replace(grown, nonces=nonces, through=entry.number)
    return found


def _taken(found: Orders, said: Said, at: float) -> Orders | None:
    """With one order more; None where it waits for the next tick.

    Args:
        found: The orders before it.
        said: What is ordered.
        at: When, seconds since the epoch.
    """
    if isinstance(said, Approval):
        if found.approval.answer is Answer.GRANTED and said.answer is Answer.GRANTED:
            return None
        return (
            found
            if found.approval.answer is Answer.REFUSED
            else replace(found, approval=replace(said, at=at))
        )
    if isinstance(said, Operator):
        return None if found.operator.by else replace(found, operator=said)
    return replace(found, cycle=(*found.cycle, said))


def read(record: Mapping[str, Any]) -> Said:
    """The order of a record.

    Raises:
        DataError: If it is none.
    """
    cls = KINDS.get(str(record.get("kind")))
    if cls is None:
        raise DataError(
            f"an order of kind {record.get('kind')!r}", where="orders", fix="use the release that wrote it"
        )
    try:
        said: Said = build(cls, record.get("body", {}), where="orders")
    except ConfigError as error:
        raise DataError(f"not an order: {error.what}", where="orders") from error
    return said
