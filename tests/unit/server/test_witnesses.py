"""A ledger that is older than what was seen of it elsewhere trains nobody."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fedretrain.artifacts.trust.words import TargetInfo
from fedretrain.core.errors import PrivacyError
from fedretrain.privacy.file_ledger import WitnessFile
from fedretrain.privacy.ledger import Head
from fedretrain.server.database_ledger import DatabaseLedger
from fedretrain.server.event_log import EventLog
from fedretrain.server.witnesses import check_ledger, witness_file
from tests.contract.ledger_contract import event


@pytest.fixture
def log(engine):
    return EventLog(engine)


def _trust(*targets):
    return SimpleNamespace(installable=lambda: {target.digest: target for target in targets})


def _target(number, head, population="p"):
    return TargetInfo(f"{number:064d}", 10, population, number, head.counter, head.hash)


def _charged(log, num_events):
    ledger = DatabaseLedger(log, "p", clock=lambda: 1.0)
    return [ledger.append(event(number)) for number in range(num_events)]


def _check(log, folder, *targets):
    check_ledger(log, "p", folder, _trust(*targets), lambda: 1.0)


def test_a_ledger_at_or_ahead_of_its_witnesses_is_fine(log, tmp_path):
    _check(log, tmp_path)
    heads = _charged(log, 3)
    WitnessFile(witness_file(tmp_path, "p")).save(heads[2])
    _check(log, tmp_path, _target(1, heads[0]), _target(2, heads[1]))


def test_a_ledger_behind_its_witness_file_is_refused(log, tmp_path):
    *_, last = _charged(log, 2)
    file = witness_file(tmp_path, "p")
    WitnessFile(file).save(Head(last.counter + 1, "f" * 64))
    with pytest.raises(
        PrivacyError, match=r"has 2 events, its witness saw 3: an old copy .*restore"
    ) as found:
        _check(log, tmp_path)
    assert str(file) in str(found.value)


def test_a_ledger_behind_the_newest_head_in_the_signed_list_is_refused(log, tmp_path):
    (first,) = _charged(log, 1)
    later = Head(4, "f" * 64)
    _check(log, tmp_path, _target(1, first), _target(2, later, "q"))
    with pytest.raises(PrivacyError, match="has 1 events, its witness saw 4"):
        _check(log, tmp_path, _target(2, later), _target(1, first))


def test_another_ledger_of_the_same_length_is_refused(log, tmp_path):
    _charged(log, 2)
    with pytest.raises(PrivacyError, match="is not the one its witness saw"):
        _check(log, tmp_path, _target(1, Head(1, "e" * 64)))
