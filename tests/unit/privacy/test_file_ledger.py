"""The durable ledger: chained, witnessed, one writer, safe in a crash."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from fedretrain.core.errors import PrivacyError
from fedretrain.privacy.accountant import epsilon
from fedretrain.privacy.file_ledger import FileLedger, WitnessFile, read_ledger
from fedretrain.privacy.ledger import Head, MemoryLedger


@pytest.fixture
def events(cohort_event):
    return [cohort_event([i, i + 1], round=i) for i in range(4)]


@pytest.fixture
def path(tmp_path, events):
    file = tmp_path / "ledger.jsonl"
    with FileLedger(file) as ledger:
        for event in events:
            ledger.append(event)
    return file


def test_events_survive_a_restart_and_so_does_epsilon(path, events):
    with FileLedger(path) as ledger:
        assert list(ledger.events()) == events
        assert epsilon(ledger.events(), 1e-5) == epsilon(events, 1e-5) > 0
        assert ledger.head() == MemoryLedger(events).head()
    assert read_ledger(path) == (events, MemoryLedger(events).head())


def test_it_is_on_the_disk_before_append_returns(tmp_path, events, monkeypatch):
    calls = []
    real = os.fsync
    with FileLedger(tmp_path / "l") as ledger:
        monkeypatch.setattr(os, "fsync", lambda f: (calls.append((tmp_path / "l").stat().st_size), real(f)))
        ledger.append(events[0])
    assert calls == [(tmp_path / "l").stat().st_size]


def test_a_killed_writer_loses_nothing_that_was_appended(tmp_path):
    program = """
import os, sys
from fedretrain.privacy.event import PrivacyEvent, Sampling, encode_units
from fedretrain.privacy.file_ledger import FileLedger
from fedretrain.privacy.mechanism import Relation
ledger = FileLedger(sys.argv[1])
for r in range(3):
    ledger.append(PrivacyEvent("p", "c", r, 1.0, 1.0, Relation.ZERO_OUT, Sampling.FIXED_SIZE, encode_units([r])))
os._exit(9)
"""
    file = tmp_path / "l"
    done = subprocess.run([sys.executable, "-c", program, str(file)], check=False)
    assert done.returncode == 9
    with FileLedger(file) as ledger:
        assert [e.round for e in ledger.events()] == [0, 1, 2]


def _damage(path, change):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(change(lines)))


def _edited(lines):
    record = json.loads(lines[1])
    record["event"]["noise_multiplier"] = 50.0
    record["event"]["noise_stddev"] = 50.0
    return [lines[0], json.dumps(record).encode() + b"\n", *lines[2:]]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (_edited, 2),
        (lambda ls: [ls[0], *ls[2:]], 2),
        (lambda ls: [ls[1], ls[0], *ls[2:]], 1),
        (lambda ls: [*ls, ls[-1]], 5),
        (lambda ls: [ls[0], b"\n", *ls[1:]], 2),
        (lambda ls: [ls[0], b"not json\n", *ls[1:]], 2),
        (lambda ls: [ls[0], ls[1].replace(b'"counter":2', b'"counter":7'), *ls[2:]], 2),
    ],
)
def test_an_edited_missing_swapped_or_doubled_line_is_refused(path, change, line):
    _damage(path, change)
    for repair in (False, True):
        with pytest.raises(PrivacyError, match=f"line {line}\\b"):
            FileLedger(path, repair=repair)


def test_a_torn_last_line_is_refused_and_set_aside_when_asked(path, events):
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"counter":5,"event":{"camp')
    with pytest.raises(PrivacyError, match="repair=True"):
        FileLedger(path)
    with FileLedger(path, repair=True) as ledger:
        assert list(ledger.events()) == events
        ledger.append(events[0])
    assert len(read_ledger(path)[0]) == 5
    assert (path.parent / "ledger.jsonl.torn-5").read_bytes() == b'{"counter":5,"event":{"camp'


def test_every_torn_length_is_safe(path, events):
    """Cut the file at every byte of its last line: refused, or read with the line charged, never misread."""
    whole = path.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(start, len(whole), 7):
        path.write_bytes(whole[:end])
        with FileLedger(path, repair=True) as ledger:
            assert list(ledger.events()) == events[:3]
    path.write_bytes(whole[:-1])  # only the line feed is missing: it counts as charged
    with FileLedger(path) as ledger:
        assert list(ledger.events()) == events


def test_a_second_writer_is_refused(path):
    with FileLedger(path), pytest.raises(PrivacyError, match="another process"):
        FileLedger(path)
    FileLedger(path).close()


def test_a_restored_backup_is_refused(tmp_path, events):
    file, witness = tmp_path / "l", WitnessFile(tmp_path / "w")
    with FileLedger(file, witness=witness) as ledger:
        ledger.append(events[0])
        backup = file.read_bytes()
        ledger.append(events[1])
    file.write_bytes(backup)
    with pytest.raises(PrivacyError, match="an old copy"):
        FileLedger(file, witness=witness)
    file.unlink()
    with pytest.raises(PrivacyError, match="an old copy"):
        FileLedger(file, witness=witness)


def test_another_history_of_the_same_length_is_refused(tmp_path, events):
    witness = WitnessFile(tmp_path / "w")
    with FileLedger(tmp_path / "l", witness=witness) as ledger:
        ledger.append(events[0])
    with FileLedger(tmp_path / "other") as ledger:
        ledger.append(events[2])
        ledger.append(events[3])
    with pytest.raises(PrivacyError, match="not the one its witness saw"):
        FileLedger(tmp_path / "other", witness=witness)


def test_a_ledger_ahead_of_its_witness_is_taken(tmp_path, events):
    """A crash between the ledger's fsync and the witness's: charged, nothing released."""
    file, witness = tmp_path / "l", WitnessFile(tmp_path / "w")
    with FileLedger(file, witness=witness) as ledger:
        ledger.append(events[0])
    with FileLedger(file) as ledger:
        ledger.append(events[1])
    with FileLedger(file, witness=witness) as ledger:
        assert witness.load() == ledger.head() == Head(2, ledger.head().hash)


def test_a_lost_or_damaged_witness_is_refused(tmp_path, events):
    file, witness = tmp_path / "l", WitnessFile(tmp_path / "w")
    with FileLedger(file, witness=witness) as ledger:
        ledger.append(events[0])
    (tmp_path / "w").write_text("{}")
    with pytest.raises(PrivacyError, match="cannot be read"):
        FileLedger(file, witness=witness)
    (tmp_path / "w").unlink()
    with pytest.raises(PrivacyError, match="witness has seen none"):
        FileLedger(file, witness=witness)


def test_a_full_disk_stops_the_ledger_before_anything_is_released(path, events, monkeypatch):
    with FileLedger(path) as ledger:

        def full(_file, _content):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(PrivacyError, match="No space left"):
            ledger.append(events[0])
        monkeypatch.undo()
        with pytest.raises(PrivacyError, match="open it anew"):
            ledger.append(events[0])
        assert list(ledger.events()) == events
    with FileLedger(path, repair=True) as ledger:
        assert list(ledger.events()) == events


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(PrivacyError, match="cannot be read"):
        read_ledger(tmp_path / "none")
