"""Where a population's ledger is seen outside its database, so that a restored back-up cannot spend twice.

Rules of this file:
    * A witness file beside the database has the head of every charge; the signed list, which devices hold too, the head at each
      release.
    * A ledger that is behind any of them trains nobody: what it has forgotten was spent.
    * Witnesses are read before the ledger: one that is charged meanwhile is ahead of them, never behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.privacy.file_ledger import WitnessFile
from fedretrain.privacy.ledger import Head, check_witness
from fedretrain.server.database_ledger import DatabaseLedger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fedretrain.artifacts.trust.repository import TrustRepository
    from fedretrain.server.event_log import EventLog


def witness_file(folder: Path, population: str) -> Path:
    """The file of a population, below the coordinator's folder."""
    path = folder / "witness" / f"{population}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def check_ledger(
    log: EventLog, population: str, folder: Path, trust: TrustRepository, clock: Callable[[], float]
) -> None:
    """Refuse a ledger that is older than what was seen of it elsewhere.

    Args:
        log: The event log.
        population: Whose ledger.
        folder: The coordinator's.
        trust: The signed list.
        clock: Seconds since the epoch.

    Raises:
        PrivacyError: Then.
    """
    file = witness_file(folder, population)
    seen = {str(file): WitnessFile(file).load(), "the signed list": _signed(trust, population)}
    heads = DatabaseLedger(log, population, clock=clock).heads
    for where, head in seen.items():
        if head is not None:
            check_witness(head, heads, f"{population}, by {where}")


def _signed(trust: TrustRepository, population: str) -> Head | None:
    """The newest head in the signed list."""
    found = (one for one in trust.installable().values() if one.population == population)
    newest = max(found, key=lambda one: one.ledger_counter, default=None)
    if newest is None or not newest.ledger_counter:
        return None
    return Head(newest.ledger_counter, newest.ledger_hash)
