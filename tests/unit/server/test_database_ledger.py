"""The ledger in the event log: fenced, one writer at a time, and what a changed database looks like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update

from fedretrain.core.errors import PrivacyError
from fedretrain.server.database_ledger import DatabaseLedger
from fedretrain.server.event_log import EventLog, FencedError
from fedretrain.server.tables import events
from tests.contract.ledger_contract import event

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from fedretrain.server.event_log import Fence


@pytest.fixture
def log(engine: Engine) -> EventLog:
    return EventLog(engine)


def ledger_of(log: EventLog, fence: Fence | None = None) -> DatabaseLedger:
    return DatabaseLedger(log, "p", clock=lambda: 1.0, fence=fence)


def test_who_lost_the_lease_charges_nothing(log: EventLog) -> None:
    old = log.acquire("campaign/c", "one", now=0.0, ttl_s=10.0)
    ledger = ledger_of(log, old)
    ledger.append(event(0))
    new = log.acquire("campaign/c", "other", now=20.0, ttl_s=10.0)
    with pytest.raises(FencedError):
        ledger.append(event(1))
    assert list(ledger.events()) == [event(0)]  # and it does not believe that it did
    assert list(ledger_of(log, new).events()) == [event(0)]


def test_two_that_spend_from_one_budget_do_not_overlook_each_other(log: EventLog) -> None:
    one, other = ledger_of(log), ledger_of(log)
    one.append(event(0))
    with pytest.raises(PrivacyError, match="another process has charged"):
        other.append(event(1))
    assert list(ledger_of(log).events()) == [event(0)]


def test_populations_have_ledgers_of_their_own(log: EventLog) -> None:
    ledger_of(log).append(event(0))
    assert list(DatabaseLedger(log, "q", clock=lambda: 1.0).events()) == []


def test_an_edited_event_is_found(log: EventLog) -> None:
    ledger_of(log).append(event(0))
    with log.engine.begin() as connection:
        connection.execute(update(events).values(record='{"event":{},"hash":""}'))
    with pytest.raises(PrivacyError, match="the chain of hashes breaks"):
        ledger_of(log)


def test_an_event_of_another_chain_is_found(log: EventLog) -> None:
    """Even where the event log's own chain is whole."""
    log.append("population/p/ledger", [{"event": event(0).to_dict(), "hash": "0" * 64}], at=1.0)
    with pytest.raises(PrivacyError, match="the chain of hashes breaks"):
        ledger_of(log)


def test_a_witness_that_cannot_be_written_stops_the_release(log: EventLog) -> None:
    class Full:
        def load(self) -> None:
            return None

        def save(self, head: object) -> None:
            if getattr(head, "counter", 0):
                raise OSError("no space")

    ledger = DatabaseLedger(log, "p", clock=lambda: 1.0, witness=Full())
    with pytest.raises(PrivacyError, match="cannot be written"):
        ledger.append(event(0))
    assert list(ledger_of(log).events()) == [event(0)]  # the charge stands: budget is wasted, never overspent
