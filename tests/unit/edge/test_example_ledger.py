"""What a device's examples have cost: kept, chained, witnessed, and refused where it is not the newest."""

from __future__ import annotations

import shutil
import sqlite3

import pytest

from fedretrain.core.errors import PrivacyError
from fedretrain.edge.example_ledger import LEDGER, ExampleLedger, shown
from fedretrain.privacy.example import ExampleBudget, ExampleCharge

FREE = ExampleBudget(0.0, 1e-5)


def charge(round_=0, examples=100):
    return ExampleCharge("c1", round_, examples, 5, 0.1, 1.2, 0.5, 10.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / LEDGER


def change(path, statement):
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_charges_are_found_again_with_their_epsilon(path):
    first = ExampleLedger(path).charge(charge(0), FREE)
    second = ExampleLedger(path).charge(charge(1, 120), FREE)
    rows = ExampleLedger(path).rows()
    assert [row.charge for row in rows] == [charge(0), charge(1, 120)]
    assert [row.epsilon for row in rows] == [first, second]
    assert 0 < first < second
    assert second == FREE.spent([charge(0), charge(1, 120)])


def test_what_is_beyond_the_budget_is_not_written(path):
    ledger = ExampleLedger(path)
    budget = ExampleBudget(ledger.charge(charge(), FREE), 1e-5)
    for ask in (ledger.check, ledger.charge):
        with pytest.raises(PrivacyError, match="is spent"):
            ask(charge(1), budget)
    assert len(ledger.rows()) == 1


def test_two_processes_that_charge_do_not_overlook_each_other(path):
    one, other = ExampleLedger(path), ExampleLedger(path)
    budget = ExampleBudget(one.charge(charge(), FREE), 1e-5)
    with pytest.raises(PrivacyError, match="is spent"):
        other.charge(charge(1), budget)


@pytest.mark.parametrize(
    "statement",
    [
        "update charges set epsilon = 0 where number = 1",
        "update charges set charge = replace(charge, '1.2', '9.9') where number = 2",
        "delete from charges where number = 1",
        "update charges set charge = '{}' where number = 1",
        "drop table charges",
    ],
)
def test_a_changed_ledger_is_refused(path, statement):
    for round_ in range(2):
        ExampleLedger(path).charge(charge(round_), FREE)
    change(path, statement)
    with pytest.raises(PrivacyError):
        ExampleLedger(path).rows()
    assert "problem" in shown(path, FREE)


def test_an_older_copy_or_none_is_refused(path, tmp_path):
    ledger = ExampleLedger(path)
    ledger.charge(charge(0), FREE)
    shutil.copy(path, tmp_path / "old")
    ledger.charge(charge(1), FREE)
    for remove in (lambda: shutil.copy(tmp_path / "old", path), path.unlink):
        for log in tmp_path.glob(f"{LEDGER}-*"):
            log.unlink()
        remove()
        with pytest.raises(PrivacyError, match="an old copy"):
            ExampleLedger(path)


def test_a_file_that_is_no_database_is_refused_and_left_alone(path):
    path.write_bytes(b"nothing" * 1000)
    with pytest.raises(PrivacyError, match="cannot be used"):
        ExampleLedger(path)
    assert path.read_bytes() == b"nothing" * 1000


def test_a_kill_before_the_witness_counts_the_charge(path, monkeypatch):
    ledger = ExampleLedger(path)
    ledger.charge(charge(0), FREE)

    def killed(_head):
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger._witness, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        ledger.charge(charge(1), FREE)
    again = ExampleLedger(path)
    assert len(again.rows()) == 2
    again.charge(charge(2), FREE)
    assert len(ExampleLedger(path).rows()) == 3


def test_what_was_spent_is_shown_with_unit_relation_and_scope(path):
    assert shown(path, FREE) is None
    ledger = ExampleLedger(path)
    assert shown(path, FREE) is None
    epsilon = ledger.charge(charge(), FREE)
    found = shown(path, ExampleBudget(8.0, 1e-5))
    assert (found["epsilon"], found["delta"], found["budget"], found["num_updates"]) == (
        epsilon,
        1e-5,
        8.0,
        1,
    )
    assert (found["unit"], found["relation"]) == ("one training example", "add_remove")
    assert "server included" in found["scope"]
