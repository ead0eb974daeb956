"""What a device must not forget: kept whole, found again, and said where it is lost."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from fedretrain.artifacts.assignment import Assignment, CampaignInvite
from fedretrain.artifacts.notice import Notice
from fedretrain.core.build import plain
from fedretrain.core.errors import DataError
from fedretrain.edge.memory import COPY, MEMORY, Memory, MemoryFile

INVITE = CampaignInvite("c", "a" * 64, "host:1", 0.0, 10.0, 3, 60.0)


def assignment(counter=1, **more):
    return Assignment("p", "a", "a" * 64, "", counter, 0.0, 100.0, **more)


def test_what_was_told_is_found_again(tmp_path):
    told = assignment(3, withdrawn=("b" * 64,), safe_mode=True, invite=INVITE)
    MemoryFile(tmp_path).change(lambda memory: memory.told(told).serving("x"))
    found = MemoryFile(tmp_path)
    assert not found.was_lost
    assert found.value == Memory().told(told).serving("x")
    assert found.value.invite == INVITE


def test_a_refusal_is_history_after_the_next_assignment_and_not_before():
    memory = Memory().told(assignment(1)).refusing("a" * 64, "why")
    assert memory.told(assignment(1)).refused == "a" * 64
    assert memory.told(assignment(2)).refused == ""
    assert memory.accepting("a" * 64).refused == ""
    assert memory.accepting("b" * 64).refused == "a" * 64


def test_a_refused_version_is_no_longer_confirmed():
    memory = replace(Memory(), confirmed="v")
    assert memory.refusing("v", "why").confirmed == ""
    assert memory.refusing("w", "why").confirmed == "v"


def test_bases_are_in_the_order_of_service_and_bounded():
    memory = Memory()
    for number in range(40):
        memory = memory.serving(str(number))
    assert memory.bases[-1] == "39"
    assert len(memory.bases) == 16
    assert memory.serving("30").bases[-2:] == ("39", "30")
    assert memory.beginning_from("campaign").bases[-2:] == ("campaign", "39")


def notice(*withdrawn, at=50.0, serve="c" * 64, safe_mode=False):
    return Notice("p", withdrawn, serve, safe_mode, at, 100.0)


def test_a_notice_takes_back_what_it_names_and_nothing_else():
    told = Memory().told(assignment(withdrawn=("b" * 64, "c" * 64)))
    after = told.heeding(notice("a" * 64, "d" * 64))
    assert after == replace(told, serve="c" * 64, withdrawn=("a" * 64, "b" * 64, "d" * 64))
    assert told.heeding(notice("d" * 64)).serve == "a" * 64
    scored = replace(told, shadow="d" * 64)
    assert scored.heeding(notice("d" * 64)).shadow == ""
    assert scored.heeding(notice("a" * 64)).shadow == "d" * 64
    safe = replace(told, safe_mode=True)
    assert safe.heeding(notice("a" * 64)).safe_mode  # it leads nobody out
    assert told.heeding(notice(safe_mode=True)) == replace(safe, withdrawn=("b" * 64,))


def test_a_notice_holds_no_device_whose_assignment_is_as_new_and_survives_the_same_assignment():
    told = Memory().told(assignment(1))
    assert told.heeding(notice("a" * 64, at=0.0)) == told
    heeded = told.heeding(notice("a" * 64))
    assert heeded.told(assignment(1)) == heeded
    old = replace(told, issued_at=-1.0)  # of an agent that did not remember when
    assert old.told(assignment(1)).heeding(notice("a" * 64, at=0.0)) == told
    newer = replace(assignment(2), issued_at=50.0)
    assert heeded.told(newer) == told.told(newer)
    assert heeded.told(newer).heeding(notice("a" * 64)) == told.told(newer)


@pytest.mark.parametrize("spoil", [b"", b"{}", b"[]", b"null", b"\xff" * 10])
def test_one_spoilt_copy_costs_nothing_two_are_said(tmp_path, spoil):
    MemoryFile(tmp_path).change(lambda memory: memory.told(assignment(5)))
    (tmp_path / MEMORY).write_bytes(spoil)
    found = MemoryFile(tmp_path)
    assert (found.value.counter, found.was_lost) == (5, False)
    (tmp_path / COPY).write_bytes(spoil)
    found = MemoryFile(tmp_path)
    assert (found.value, found.was_lost) == (Memory(), True)


def test_a_full_disk_changes_nothing_unless_it_only_is_a_note(tmp_path, monkeypatch):
    file = MemoryFile(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match="cannot be written"):
        file.change(lambda memory: memory.told(assignment(1)))
    assert file.value == Memory()
    file.note(lambda memory: memory.refusing("v", "why"))
    assert file.value.refused == "v"


def test_a_refresh_that_was_done_is_remembered_whatever_is_told_later(tmp_path):
    file = MemoryFile(tmp_path)
    file.change(lambda memory: memory.told(assignment(1, refresh=2)))
    file.change(lambda memory: replace(memory, refreshed=2))
    file.change(lambda memory: memory.told(assignment(2, refresh=0)))
    found = MemoryFile(tmp_path).value
    assert (found.refresh, found.refreshed) == (0, 2)


def test_the_ledger_that_was_seen_only_goes_forwards_and_its_hash_stays(tmp_path):
    file = MemoryFile(tmp_path)
    for counter, hash_ in [(3, "c"), (2, "b"), (3, "x"), (0, "")]:
        file.change(lambda memory, head=(counter, hash_): memory.witnessing(*head))
        file = MemoryFile(tmp_path)
        assert (file.value.ledger_counter, file.value.ledger_hash) == (3, "c")
    file.change(lambda memory: memory.witnessing(4, "d").told(assignment(2)))
    assert (file.value.ledger_counter, file.value.ledger_hash) == (4, "d")


def test_a_memory_of_an_earlier_version_has_seen_no_ledger(tmp_path, monkeypatch):
    def older(value):
        return {key: one for key, one in plain(value).items() if not key.startswith("ledger_")}

    monkeypatch.setattr("fedretrain.edge.memory.plain", older)
    MemoryFile(tmp_path).change(lambda memory: memory.told(assignment(5)))
    found = MemoryFile(tmp_path)
    assert not found.was_lost
    assert (found.value.counter, found.value.ledger_counter, found.value.ledger_hash) == (5, 0, "")
