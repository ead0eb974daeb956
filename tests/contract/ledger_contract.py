"""What every privacy ledger must do: in memory, in a file, in the event log.

Subclass `LedgerContract` and return a ledger of your kind from `open`, given the folder that it is kept in; opening the same
folder again is the same ledger, unless `durable` is False.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from fedretrain.core.errors import PrivacyError
from fedretrain.privacy.accountant import Spending
from fedretrain.privacy.event import PrivacyEvent, Sampling, encode_units
from fedretrain.privacy.file_ledger import WitnessFile
from fedretrain.privacy.ledger import GENESIS, Head, MemoryLedger
from fedretrain.privacy.mechanism import Relation

if TYPE_CHECKING:
    from pathlib import Path

    from fedretrain.privacy.ledger import Ledger, Witness


def event(round_: int = 0, **changes: Any) -> PrivacyEvent:
    values: dict[str, Any] = {
        "population": "p",
        "campaign": "c",
        "round": round_,
        "noise_multiplier": 1.0,
        "clip_norm": 0.5,
        "relation": Relation.ZERO_OUT,
        "sampling": Sampling.FIXED_SIZE,
        "units": encode_units([round_, round_ + 1, 40]),
    }
    return PrivacyEvent(**(values | changes))


class LedgerContract:
    """Run with pytest: `class TestFile(LedgerContract): ...`."""

    durable: ClassVar[bool] = True

    def open(self, folder: Path, witness: Witness | None = None) -> Ledger:
        """The ledger that is kept in a folder."""
        raise AssertionError("return a ledger")

    def close(self, ledger: Ledger) -> None:
        """Let go of it, so that it can be opened again."""

    def test_an_empty_ledger(self, tmp_path: Path) -> None:
        ledger = self.open(tmp_path)
        assert list(ledger.events()) == []
        assert ledger.head() == Head(0, GENESIS)
        self.close(ledger)

    def test_events_come_back_in_order(self, tmp_path: Path) -> None:
        ledger = self.open(tmp_path)
        events = [event(n, attempt=n % 2, bit_noise_stddev=float(n)) for n in range(4)]
        heads = [ledger.append(one) for one in events]
        assert list(ledger.events()) == events
        assert [head.counter for head in heads] == [1, 2, 3, 4]
        assert ledger.head() == heads[-1]
        assert len({head.hash for head in heads}) == 4
        self.close(ledger)

    def test_the_head_does_not_depend_on_the_kind(self, tmp_path: Path) -> None:
        ledger, reference = self.open(tmp_path), MemoryLedger()
        for n in range(3):
            assert ledger.append(event(n)) == reference.append(event(n))
        self.close(ledger)

    def test_what_was_read_does_not_change(self, tmp_path: Path) -> None:
        ledger = self.open(tmp_path)
        ledger.append(event(0))
        before = ledger.events()
        ledger.append(event(1))
        assert len(before) == 1
        self.close(ledger)

    def test_spending_is_the_events(self, tmp_path: Path) -> None:
        ledger = self.open(tmp_path)
        for n in range(3):
            ledger.append(event(n))
        spent = Spending()
        for one in ledger.events():
            spent = spent.charge(one)
        wanted = Spending()
        for n in range(3):
            wanted = wanted.charge(event(n))
        assert spent.epsilon(1e-5) == wanted.epsilon(1e-5) > 0
        self.close(ledger)

    def test_it_goes_on_after_being_opened_again(self, tmp_path: Path) -> None:
        if not self.durable:
            return
        witness = WitnessFile(tmp_path / "witness")
        for n in range(3):
            ledger = self.open(tmp_path, witness)
            assert list(ledger.events()) == [event(k) for k in range(n)]
            assert ledger.append(event(n)) == witness.load()
            self.close(ledger)

    def test_a_ledger_behind_its_witness_is_refused(self, tmp_path: Path) -> None:
        if not self.durable:
            return
        ledger = self.open(tmp_path)
        ledger.append(event(0))
        self.close(ledger)
        witness = WitnessFile(tmp_path / "witness")
        witness.save(Head(2, "f" * 64))
        with pytest.raises(PrivacyError, match="an old copy"):
            self.open(tmp_path, witness)

    def test_a_witness_of_another_ledger_is_refused(self, tmp_path: Path) -> None:
        if not self.durable:
            return
        ledger = self.open(tmp_path)
        ledger.append(event(0))
        self.close(ledger)
        witness = WitnessFile(tmp_path / "witness")
        witness.save(MemoryLedger([event(7)]).head())
        with pytest.raises(PrivacyError, match="not the one its witness saw"):
            self.open(tmp_path, witness)
