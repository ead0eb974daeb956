"""A ledger that is older than what was seen of it elsewhere trains nobody."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fedretrain.artifacts.trust.words import TargetInfo
from fedretrain.core.errors import PrivacyError
from fedretrain.privacy.file_ledger import WitnessFile
from fedretrain.privacy.ledger import Head
from fedretrain.server import fleet
from fedretrain.server.database_ledger import DatabaseLedger
from fedretrain.server.event_log import EventLog
from fedretrain.server.fleet import Standing, Traits
from fedretrain.server.witnesses import HEARTBEATS, Witnesses, check_ledger, witness_file
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


def _check(log, folder, *targets, kept=()):
    check_ledger(log, "p", folder, _trust(*targets), lambda: 1.0, frozenset(kept))


def _hear(log, name, head=None, population="p"):
    """A device that is enrolled says what it has seen; one of an earlier version says nothing of it."""
    with log.engine.begin() as connection:
        if fleet.find(connection, population, name) is None:
            fleet.enrol(connection, population, name, name, Traits(), 1.0)
        said = {} if head is None else {"ledger": [head.counter, head.hash]}
        fleet.heard(connection, [(population, name, 1.0, said)])


def _judge(log, name, standing):
    with log.engine.begin() as connection:
        fleet.set_standing(connection, "p", name, standing, 1.0)


def _everybody(log):
    with log.engine.connect() as connection:
        return fleet.everybody(connection, "p")


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


def test_devices_that_have_seen_no_more_than_the_ledger_has_are_fine(log, tmp_path):
    heads = _charged(log, 3)
    for name, head in {"old": None, "new": Head(0, ""), "older": heads[0], "equal": heads[2]}.items():
        _hear(log, name, head)
    _hear(log, "elsewhere", Head(9, "f" * 64), population="q")
    _check(log, tmp_path)


def test_a_ledger_behind_what_a_device_has_seen_is_refused_and_the_devices_are_named(log, tmp_path):
    heads = _charged(log, 2)
    _hear(log, "fine", heads[1])
    for number in range(7):
        _hear(log, f"ahead-{number}", Head(3 + number % 2, "f" * 64))
    with pytest.raises(PrivacyError) as found:
        _check(log, tmp_path)
    assert found.value.what == (
        "the privacy ledger has 2 events, ahead-0, ahead-1, ahead-2, ahead-3, ahead-4 and 2 more saw 4 in a signed list: "
        "an old copy"
    )
    assert found.value.where == "p, by its devices"
    assert "restore the newest copy" in found.value.fix
    assert "devices revoke" in found.value.fix


@pytest.mark.parametrize("counter", [1, 2])
def test_another_ledger_than_the_one_that_a_device_has_seen_is_refused(log, tmp_path, counter):
    _charged(log, 2)
    _hear(log, "a", Head(counter, "e" * 64))
    with pytest.raises(
        PrivacyError, match=f"event {counter} .* is not the one that a saw in a signed list: another copy"
    ):
        _check(log, tmp_path)


@pytest.mark.parametrize("how", ["kept out", Standing.REVOKED, Standing.RETIRED])
def test_a_device_whose_word_does_not_count_stops_nothing(log, tmp_path, how):
    _hear(log, "fine")
    _hear(log, "liar", Head(2**64 - 1, "lie"))
    with pytest.raises(PrivacyError, match="liar saw 18446744073709551615"):
        _check(log, tmp_path)
    kept = [1]
    if how != "kept out":
        _judge(log, "liar", how)
        kept = []
    _check(log, tmp_path, kept=kept)


class _Population:
    """What a campaign's start looks at; a training file of a population with a ledger, or without."""

    def __init__(self, log, *, charges=True):
        rules = SimpleNamespace(privacy="a policy" if charges else None)
        self.name, self.models = "p", SimpleNamespace(training=SimpleNamespace(rules=rules))
        self._log, self.devices = log, []

    def tick(self):
        self.devices = _everybody(self._log)


@pytest.fixture
def now(monkeypatch):
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr("fedretrain.server.witnesses.time.monotonic", lambda: now.s)
    return now


def _witnesses(log, tmp_path):
    return Witnesses(log, tmp_path, _trust(), lambda: 1.0, 60.0)


def test_a_new_leader_listens_before_it_charges_and_only_then(log, tmp_path, now):
    witnesses, private = _witnesses(log, tmp_path), _Population(log)
    assert witnesses.agree(_Population(log, charges=False), frozenset(), starts=True)
    assert not witnesses.agree(private, frozenset(), starts=True)
    _hear(log, "a", Head(1, "f" * 64))  # since the population's last tick
    now.s += 60.0 * HEARTBEATS
    with pytest.raises(PrivacyError, match="an old copy"):
        witnesses.agree(private, frozenset(), starts=True)
    assert witnesses.agree(private, frozenset({0}), starts=True)


def test_a_device_that_speaks_later_ends_a_campaign_under_way(log, tmp_path, now, monkeypatch):
    first, second = _charged(log, 2)
    witnesses, population = _witnesses(log, tmp_path), _Population(log)
    now.s += 60.0 * HEARTBEATS
    _hear(log, "a", first)
    population.tick()
    looked = []
    read = DatabaseLedger.__init__

    def counted(self, *arguments, **more):
        looked.append(1)
        read(self, *arguments, **more)

    monkeypatch.setattr(DatabaseLedger, "__init__", counted)
    for starts in (True, False, False):  # the ledger is read where there is something to compare
        assert witnesses.agree(population, frozenset(), starts=starts)
    assert len(looked) == 1
    _hear(log, "a", second)
    population.tick()
    for _ in range(2):
        assert witnesses.agree(population, frozenset(), starts=False)
    assert len(looked) == 2
    _hear(log, "a", Head(3, "f" * 64))
    population.tick()
    for _ in range(2):
        with pytest.raises(PrivacyError, match="has 2 events, a saw 3"):
            witnesses.agree(population, frozenset(), starts=False)
