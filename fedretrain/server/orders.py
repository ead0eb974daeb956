"""What people order: written by the command line, read by the reconciler, and the audit log of both.

Rules of this file:
    * An order is an event like any other: durable, hash-chained, with who gave it, from which account, and when. Nothing is done that is
      not in it.
    * The reconciler takes an order once: how far it has read is part of the same transaction as what follows from it.
    * A tick takes one order and one yes to a rollout; the next one waits for the next tick, so that none is lost behind another. A no
      waits for nobody.
    * An order's kind in the log never changes, whatever becomes of its class.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedretrain.coordinator.cycle_evidence import (
    Discard,
    Order,
    Propose,
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

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fedretrain.privacy.ledger import Head
    from fedretrain.server.event_log import Entry, EventLog

Said = Order | Approval | Operator

KINDS: Mapping[str, type] = {
    "safety": SafetyOrder,
    "release": Release,
    "propose": Propose,
    "withdraw": Withdraw,
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


def give(log: EventLog, population: str, said: Said, at: float) -> Head:
    """Write an order down; the reconciler takes it at its next tick.

    Raises:
        ConfigError: If nobody gave it.
    """
    check_name(said.by)
    said = replace(said, by=said.by.strip())
    record = {"kind": _NAMES[type(said)], "body": plain(said), "account": account()}
    return log.append(stream(population), [record], at=at)


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
        through: Number of the last order read.
    """

    cycle: tuple[Order, ...] = ()
    approval: Approval = field(default_factory=Approval)
    operator: Operator = field(default_factory=Operator)
    through: int = 0


def gather(entries: Iterable[Entry], through: int) -> Orders:
    """The orders of some entries of the stream.

    Args:
        entries: Those after `through`.
        through: Number of the last order that was taken before.

    Raises:
        DataError: If an entry is no order.
    """
    found = Orders(through=through)
    for entry in entries:
        said = read(entry.record)
        if isinstance(said, Approval):
            if found.approval.answer is Answer.GRANTED and said.answer is Answer.GRANTED:
                break
            found = (
                found
                if found.approval.answer is Answer.REFUSED
                else replace(found, approval=replace(said, at=entry.at))
            )
        elif isinstance(said, Operator):
            if found.operator.by:
                break
            found = replace(found, operator=said)
        else:
            found = replace(found, cycle=(*found.cycle, said))
        found = replace(found, through=entry.number)
    return found


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
