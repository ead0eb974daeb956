"""A population's privacy ledger in the event log, appended under the fence of whoever acts.

Rules of this file:
    * `append` returns after the transaction is on the disk, and the witness has the new head: charge first, release
      afterwards.
    * The fence and the expected head are checked in the append's own transaction: a process that was replaced charges
      nothing, and two that spend from one budget do not overlook each other.
    * The head is that of `privacy.ledger.chain`, so it does not depend on where a ledger is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from fedretrain.core.errors import DataError, PrivacyError
from fedretrain.privacy.event import PrivacyEvent
from fedretrain.privacy.ledger import Head, chain, check_witness
from fedretrain.server.event_log import ConflictError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fedretrain.privacy.ledger import Witness
    from fedretrain.server.event_log import EventLog, Fence


def ledger_stream(population: str) -> str:
    """The name of a population's stream."""
    return f"population/{population}/ledger"


class DatabaseLedger:
    """See `privacy.ledger.Ledger`.

    Args:
        log: The event log.
        population: Whose budget.
        clock: Seconds since the epoch.
        fence: The lease under which this process charges; None only to read, and in tests.
        witness: Where the head is kept besides; None: nowhere, and then an old back-up cannot be noticed.

    Raises:
        PrivacyError: If the ledger was changed, or is behind its witness.
    """

    def __init__(
        self,
        log: EventLog,
        population: str,
        *,
        clock: Callable[[], float],
        fence: Fence | None = None,
        witness: Witness | None = None,
    ) -> None:
        self._log, self._stream, self._clock = log, ledger_stream(population), clock
        self._fence, self._witness = fence, witness
        self._events: list[PrivacyEvent] = []
        self._heads = [Head()]
        self._load()
        if witness is not None:
            check_witness(witness.load(), self._heads, self._stream)
            witness.save(self.head())

    def append(self, event: PrivacyEvent) -> Head:
        """Make the event durable, witness it, and return the new head.

        Raises:
            FencedError: If somebody else acts now.
            PrivacyError: If it cannot be written, or another process has charged meanwhile. Release nothing then.
        """
        head = chain(self.head(), event)
        record = {"event": event.to_dict(), "hash": head.hash}
        try:
            self._log.append(
                self._stream, [record], at=self._clock(), fence=self._fence, after=self.head().counter
            )
            if self._witness is not None:
                self._witness.save(head)
        except ConflictError as error:
            raise PrivacyError(
                "another process has charged this ledger meanwhile",
                where=self._stream,
                fix="resume the campaign: it reads the ledger again; nothing was released",
            ) from error
        except (SQLAlchemyError, OSError) as error:
            raise PrivacyError(
                f"the privacy ledger cannot be written: {error}",
                where=self._stream,
                fix="mend the database, then resume the campaign; nothing was released",
            ) from error
        self._events.append(event)
        self._heads.append(head)
        return head

    def events(self) -> Sequence[PrivacyEvent]:
        """Every event, oldest first."""
        return tuple(self._events)

    def head(self) -> Head:
        """The present head."""
        return self._heads[-1]

    @property
    def heads(self) -> Sequence[Head]:
        """Every head that there was, from the empty ledger's on."""
        return tuple(self._heads)

    def _load(self) -> None:
        try:
            for entry in self._log.read(self._stream):
                event = PrivacyEvent.from_dict(entry.record["event"])
                head = chain(self.head(), event)
                if head.hash != entry.record["hash"]:
                    raise _changed(f"{self._stream}, event {entry.number}")
                self._events.append(event)
                self._heads.append(head)
        except (DataError, KeyError, TypeError, ValueError) as error:
            raise _changed(self._stream) from error


def _changed(where: str) -> PrivacyError:
    return PrivacyError(
        "the privacy ledger was changed: the chain of hashes breaks here",
        where=where,
        fix="restore the database; a budget whose record is damaged cannot be spent",
    )
