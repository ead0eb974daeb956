"""Every kind of privacy ledger keeps the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest

from fedretrain.privacy.file_ledger import FileLedger
from fedretrain.privacy.ledger import MemoryLedger
from fedretrain.server.database import open_database
from fedretrain.server.database_ledger import DatabaseLedger
from fedretrain.server.event_log import EventLog
from tests.contract.ledger_contract import LedgerContract

if TYPE_CHECKING:
    from pathlib import Path

    from fedretrain.privacy.ledger import Ledger, Witness


class TestMemory(LedgerContract):
    durable: ClassVar[bool] = False

    def open(self, folder: Path, witness: Witness | None = None) -> Ledger:
        del folder, witness
        return MemoryLedger()


class TestFile(LedgerContract):
    def open(self, folder: Path, witness: Witness | None = None) -> Ledger:
        return FileLedger(folder / "ledger.jsonl", witness=witness)

    def close(self, ledger: Ledger) -> None:
        assert isinstance(ledger, FileLedger)
        ledger.close()


class TestDatabase(LedgerContract):
    @pytest.fixture(autouse=True)
    def database(self, database_url: str) -> None:
        self.url = database_url

    def open(self, folder: Path, witness: Witness | None = None) -> Ledger:
        del folder
        self.log = EventLog(open_database(self.url))
        return DatabaseLedger(self.log, "p", clock=lambda: 1.0, witness=witness)

    def close(self, ledger: Ledger) -> None:
        del ledger
        self.log.engine.dispose()
