from __future__ import annotations

import pytest

from fedretrain.wire.sequence import Priority
from tests.edge_cases import Device, notice_of

FRAME = 4096 + 24
NUM_FLUSHES = 20


@pytest.fixture
def device(tmp_path):
    """A device that dies with a log of twenty transactions behind the one that opened it."""
    device = Device(tmp_path / "agent.db")
    log = device.path.with_name("agent.db-wal")
    before = log.stat().st_size
    for number in range(NUM_FLUSHES):
        device.add(Priority.KPIS, b"%d" % number)
        device.flush()
    # A copy of the files is what a killed process leaves.
    left = {file: file.read_bytes() for file in (device.path, log)}
    device.database.close()
    for file, content in left.items():
        file.write_bytes(content)
    device.left = left[log]
    assert before % FRAME == len(left[log]) % FRAME == 32
    assert len(left[log]) - before == NUM_FLUSHES * FRAME
    return device


def reopened(device, log):
    device.path.with_name("agent.db-wal").write_bytes(log)
    device.start()
    records = device.outbox.pending(1_000_000).records
    notices = [notice_of(record.payload) for record in records if record.key.priority is Priority.ALERTS]
    return len(records) - len(notices), notices


def flipped(content, position):
    return content[:position] + bytes([content[position] ^ 64]) + content[position + 1 :]


def test_a_whole_log_is_replayed_without_a_notice(device):
    assert reopened(device, device.left) == (NUM_FLUSHES, [])
    assert not list(device.path.parent.glob("*damaged*"))


@pytest.mark.parametrize("frames", [2, 5, 10])
def test_a_flipped_bit_in_the_middle_of_the_log_is_told(device, frames):
    damaged = flipped(device.left, len(device.left) - frames * FRAME + 1000)
    count, (notice,) = reopened(device, damaged)
    assert count == NUM_FLUSHES - frames
    assert notice["event"] == "log_damaged"
    assert notice["reason"] == f"{frames} transactions of the log cannot be read"
    assert (device.path.parent / notice["file"]).read_bytes() == damaged
    device.restart()
    assert len(device.outbox.pending(1_000_000).records) == count + 1, "told once"


@pytest.mark.parametrize("cut", [1, 100, FRAME - 1, FRAME])
def test_a_torn_end_is_a_power_cut_and_no_damage(device, cut):
    assert reopened(device, device.left[:-cut]) == (NUM_FLUSHES - 1, [])


def test_a_last_transaction_that_is_damaged_looks_like_a_power_cut(device):
    assert reopened(device, flipped(device.left, len(device.left) - 1000)) == (NUM_FLUSHES - 1, [])


@pytest.mark.parametrize("position", [0, 9, 17, 25])
def test_a_header_that_is_none_is_told(device, position):
    count, (notice,) = reopened(device, flipped(device.left, position))
    assert count == 0
    assert notice["reason"] == "the header of the log is none"


def test_an_older_log_behind_the_present_one_is_none_of_its_transactions(device):
    """SQLite writes over a log that it has moved into the database; what is behind are frames of before."""
    assert reopened(device, device.left) == (NUM_FLUSHES, [])
    log = device.path.with_name("agent.db-wal")
    device.add(Priority.KPIS)
    device.flush()
    present = log.read_bytes()
    old = device.left[len(present) :]
    content = device.path.read_bytes()
    device.database.close()
    device.path.write_bytes(content)
    assert reopened(device, present + old) == (NUM_FLUSHES + 1, [])


@pytest.mark.parametrize("is_missing", [True, False])
def test_a_log_without_its_database_is_kept(device, is_missing):
    device.path.unlink()
    if not is_missing:
        device.path.touch()
    count, (notice,) = reopened(device, device.left)
    assert count == 0
    assert notice["reason"] == "the file is empty or missing, its log is not"
    assert (device.path.parent / f"{notice['file']}-wal").read_bytes() == device.left


def test_a_database_that_lost_everything_is_told(tmp_path):
    device = Device(tmp_path / "agent.db")
    device.add(Priority.KPIS)
    device.flush()
    device.database.close()
    device.path.write_bytes(b"")
    device.start()
    (record,) = device.outbox.pending(1000).records
    assert notice_of(record.payload) == {"event": "database_missing"}
