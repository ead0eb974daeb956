"""What keeps the leader from seeing to a population: told in its own log, and written down for `fedretrain status`.

Rules of this file:
    * Trouble is told once until it changes, and its end is written down too.
    * Where it cannot be written (the trouble may be the database's) it is told all the same, and written when that goes again.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from fedretrain.server.event_log import EventLog, Fence

_log = logging.getLogger(__name__)


def stream(population: str) -> str:
    """Where a population's troubles are."""
    return f"population/{population}/troubles"


def last(log: EventLog, population: str) -> str:
    """What is wrong now; empty: nothing."""
    end = log.head(stream(population)).counter
    found = [str(entry.record["what"]) for entry in log.read(stream(population), after=max(0, end - 1))]
    return found[-1] if found else ""


class Troubles:
    """Of the populations of one leader.

    Args:
        log: The event log.
        fence: The leader's lease.
    """

    def __init__(self, log: EventLog, fence: Fence) -> None:
        self._log, self._fence = log, fence
        self._told: dict[str, str] = {}
        self._written: dict[str, str] = {}

    def tell(self, population: str, what: str, error: Exception | None = None) -> None:
        """Say what is wrong.

        Args:
            population: With which.
            what: In one line.
            error: Where from, if nobody foresaw it.
        """
        if self._told.get(population) != what:
            self._told[population] = what
            _log.error("%s: %s", population, what, exc_info=error)

    def write(self, population: str, at: float) -> None:
        """Write down what was told last.

        Raises:
            FencedError: If somebody else leads now.
        """
        what = self._told.get(population, "")
        with contextlib.suppress(SQLAlchemyError, OSError, DataError):
            if population not in self._written:  # an earlier leader's last word
                self._written[population] = last(self._log, population)
            if self._written[population] != what:
                self._log.append(stream(population), [{"what": what}], at=at, fence=self._fence)
                self._written[population] = what

    def ended(self, population: str) -> None:
        """Nothing is wrong any more."""
        self._told.pop(population, None)
