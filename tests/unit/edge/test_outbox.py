from __future__ import annotations

import random
import sqlite3
from dataclasses import replace

import pytest

from fedretrain.core.clock import Anchor, Instant
from fedretrain.edge.change import Reason
from fedretrain.edge.database import shorten_log
from fedretrain.edge.outbox import MAX_RECORD_BYTES, OutboxDamagedError
from fedretrain.edge.records import OVERHEAD_BYTES
from fedretrain.wire.sequence import Gap, Priority
from tests.edge_cases import Device, Server, drain, notice_of


@pytest.fixture
def path(tmp_path):
    return tmp_path / "agent.db"


def spoken(batch):
    return [(record.key.priority, record.payload) for record in batch.records]


def test_records_go_by_priority_then_by_age_and_stay_until_acknowledged(path):
    device = Device(path)
    for priority, word in ((4, b"s"), (0, b"l0"), (3, b"h"), (0, b"l1")):
        device.add(Priority(priority), word)
    assert not device.outbox.pending(1000), "what is not durable is not sent"
    assert device.flush()
    device.restart()
    batch = device.outbox.pending(1000)
    assert spoken(batch) == [(0, b"l0"), (0, b"l1"), (3, b"h"), (4, b"s")]
    assert [record.key.sequence for record in batch.records] == [0, 1, 0, 0]
    assert device.outbox.pending(1000) == batch
    device.outbox.acknowledge(replace(batch, records=batch.records[:2]))
    assert spoken(device.outbox.pending(1000)) == [(3, b"h"), (4, b"s")]
    device.flush()
    device.restart()
    assert spoken(device.outbox.pending(1000)) == [(3, b"h"), (4, b"s")]


def test_a_batch_is_bounded_but_never_empty(path):
    device = Device(path)
    for word in (b"a" * 500, b"b" * 10, b"c" * 10):
        device.add(Priority.KPIS, word)
    device.flush()
    assert [len(payload) for _, payload in spoken(device.outbox.pending(1))] == [500]
    assert len(device.outbox.pending(500 + 10 + 2 * OVERHEAD_BYTES).records) == 2


def test_an_acknowledgement_that_was_not_flushed_is_sent_again_and_counts_nothing(path):
    device, server = Device(path), Server()
    device.add(Priority.LABELS)
    device.flush()
    device.outbox.acknowledge(server.receive(device.outbox.pending(100)))
    device.restart()
    again = device.outbox.pending(100)
    assert len(again.records) == 1
    device.outbox.acknowledge(server.receive(again))
    device.flush()
    assert not device.outbox.pending(100)
    assert len(server.counted) == 1


def test_the_lowest_priority_and_the_oldest_go_first_and_the_gap_is_told(path):
    device, server = Device(path, max_bytes=4 * (10 + OVERHEAD_BYTES)), Server()
    for priority in (0, 3, 4, 4, 4, 3):
        device.add(Priority(priority), b"." * 10)
    device.flush()
    batch = device.outbox.pending(10_000)
    assert [(record.key.priority, record.key.sequence) for record in batch.records] == [
        (0, 0),
        (3, 0),
        (3, 1),
        (4, 2),
    ]
    boot, installation = device.database.identity.boot, device.database.identity.installation
    assert batch.gaps == (Gap(installation, boot, Priority.SAMPLES, 0, 1),)
    assert device.outbox.status().dropped == {(Priority.SAMPLES, Reason.SIZE): 2}
    for _ in range(4):
        device.add(Priority.LABELS, b"." * 10)
    device.flush()
    grown = device.outbox.pending(10_000)
    assert [(gap.priority, gap.first, gap.last) for gap in grown.gaps] == [(0, 0, 0), (3, 0, 1), (4, 0, 2)]
    device.outbox.acknowledge(server.receive(batch))  # of the smaller gap, and of records that are gone
    device.flush()
    assert [(gap.priority, gap.first, gap.last) for gap in device.outbox.pending(10_000).gaps] == [
        (0, 0, 0),
        (3, 0, 1),
        (4, 2, 2),
    ]
    drain(device, server)
    assert len(server.counted) == 8
    assert len(server.lost) == 2, "what arrived before it was dropped is not lost"
    assert device.outbox.status().num_stored == device.outbox.status().stored_bytes == 0


def test_old_records_are_dropped_where_their_age_is_known(path):
    device = Device(path, max_age_s=100.0)
    device.add(Priority.KPIS, b"first")
    device.flush()
    device.restart()
    first_boot = device.outbox.pending(100).records[0].key.boot
    device.now_s = 150.0
    device.add(Priority.KPIS, b"second")
    device.flush()
    assert [word for _, word in spoken(device.outbox.pending(1000))] == [b"first", b"second"]
    device.now_s = 251.0
    device.flush()
    batch = device.outbox.pending(1000)
    assert spoken(batch) == [], "before one that is too old all are"
    assert {gap.boot for gap in batch.gaps} == {first_boot, device.database.identity.boot}
    device.add(Priority.KPIS, b"third")
    device.outbox.anchor(Anchor(device.database.identity.boot, 1e9))
    device.flush()
    device.restart()
    device.now_s, device.at = 5.0, 1e9 + 300.0
    device.flush()
    assert len(device.outbox.pending(1000).records) == 1
    device.at = 1e9 + 352.0
    device.flush()
    assert not device.outbox.pending(1000).records


def test_times_are_resolved_by_the_trusted_anchor_of_their_start(path):
    device = Device(path)
    device.now_s = 7.0
    device.add(Priority.KPIS)
    boot = device.database.identity.boot
    device.outbox.anchor(Anchor(boot, 500.0, is_trusted=False))
    device.flush()
    batch = device.outbox.pending(100)
    assert batch.records[0].instant == Instant(boot, 7.0, None)
    assert batch.anchors == (Anchor(boot, 500.0, is_trusted=False),)
    device.outbox.anchor(Anchor(boot, 1000.0))
    device.outbox.anchor(Anchor(boot, 600.0, is_trusted=False))
    device.flush()
    device.restart()
    batch = device.outbox.pending(100)
    assert batch.records[0].instant == Instant(boot, 7.0, 1007.0)
    assert batch.anchors == (Anchor(boot, 1000.0),)


def test_an_anchor_serves_the_agents_earlier_starts_in_the_same_start_of_the_machine(path):
    device, boots = Device(path), []
    for machine in ("", "one", "two", "two", "two"):
        device.database.close()
        device.machine = machine
        device.start()
        device.now_s += 1.0
        device.add(Priority.KPIS)
        device.flush()
        boots.append(device.database.identity.boot)
    device.outbox.anchor(Anchor(boots[-1], 1000.0))
    device.outbox.anchor(Anchor(boots[-1], 1500.0, is_trusted=False))
    device.flush()
    device.restart()
    instants = [record.instant.at for record in device.outbox.pending(1000).records]
    assert instants == [None, None, 1003.0, 1004.0, 1005.0]
    device.outbox.anchor(Anchor(device.database.identity.boot, 2000.0))
    assert [record.instant.at for record in device.outbox.pending(1000).records] == instants, (
        "each start keeps its own"
    )


def test_starts_are_forgotten_once_nothing_of_them_is_held(path):
    device, server = Device(path), Server()
    boots = []
    for _ in range(3):
        boots.append(device.database.identity.boot)
        device.add(Priority.KPIS)
        device.flush()
        device.restart()
    batch = device.outbox.pending(10_000)
    assert batch.oldest_boot == boots[0]
    device.outbox.acknowledge(server.receive(replace(batch, records=batch.records[:1])))
    device.flush()
    assert device.outbox.pending(10_000).oldest_boot == boots[1]
    drain(device, server)
    assert device.outbox.pending(1).oldest_boot == device.database.identity.boot
    rows = device.database.connection.execute("SELECT boot FROM boots").fetchall()
    assert rows == [(device.database.identity.boot,)]
    assert len(server.counted) == 3


def test_a_start_is_not_done_with_while_a_gap_of_it_is_untold(path):
    device, server = Device(path, max_bytes=10 * (10 + OVERHEAD_BYTES)), Server()
    first = device.database.identity.boot
    device.add(Priority.SAMPLES, b"." * 10)
    device.flush()
    device.restart()
    for _ in range(10):
        device.add(Priority.LABELS, b"." * 10)
    device.flush()
    batch = device.outbox.pending(10_000)
    assert {record.key.boot for record in batch.records} == {device.database.identity.boot}
    assert [gap.boot for gap in batch.gaps] == [first]
    assert batch.oldest_boot == first
    drain(device, server)
    assert [key.boot for key in server.lost] == [first]


def test_the_records_of_too_many_starts_are_given_up_with_an_alert(path):
    device, server = Device(path, max_boots=3), Server()
    boots = []
    for number in range(5):
        boots.append(device.database.identity.boot)
        device.add(Priority.KPIS, b"%d" % number)
        device.add(Priority.KPIS, b"%d" % number)
        device.flush()
        if number == 0:
            batch = device.outbox.pending(1000)
            server.receive(replace(batch, records=batch.records[1:]))
        device.restart()
    batch = device.outbox.pending(10_000)
    assert batch.oldest_boot == boots[3]
    assert [notice_of(payload) for priority, payload in spoken(batch) if priority is Priority.ALERTS] == [
        {"event": "boots_given_up", "before": boots[number], "num_records": 2} for number in (1, 2, 3)
    ]
    assert device.outbox.status().dropped[Priority.KPIS, Reason.BOOTS] == 6
    drain(device, server)
    assert server.inbox.num_late_forgotten == 1, "the one below the one that came"


def test_a_flipped_bit_is_dropped_by_its_checksum(path):
    device, server = Device(path), Server()
    for word in (b"one", b"two", b"three"):
        device.add(Priority.KPIS, word)
    device.flush()
    device.database.connection.execute("UPDATE records SET payload = x'747770' WHERE sequence = 1")
    device.restart()
    assert [word for _, word in spoken(device.outbox.pending(1000))] == [b"one", b"three"]
    drain(device, server)
    assert [key.sequence for key in server.lost] == [1]
    assert device.outbox.status().dropped == {(Priority.KPIS, Reason.DAMAGED): 1}


def test_damage_that_is_met_in_use_says_so_and_the_file_is_set_aside_at_the_next_opening(path):
    device, server = Device(path, max_bytes=10**7), Server()
    for _ in range(400):
        device.add(Priority.KPIS, b"." * 9_000)
    device.flush()
    shorten_log(device.database.connection)
    content = path.read_bytes()
    damaged = content[: len(content) // 2] + random.Random(1).randbytes(len(content) - len(content) // 2)
    with path.open("r+b") as file:
        file.write(damaged)
    device.database.connection.execute("PRAGMA shrink_memory")
    with pytest.raises(OutboxDamagedError) as caught:
        device.outbox.pending(10**7)
    device.database.close()
    device.start(suspect=str(caught.value))
    device.add(Priority.LABELS)
    drain(device, server)
    notice, label = notice_of(server.counted[1][1]), server.counted[0]
    assert label == (label[0], b"x")
    assert (notice["event"], notice["reason"]) == ("database_set_aside", str(caught.value))
    assert (path.parent / notice["file"]).stat().st_size == len(content)


def test_a_full_disk_keeps_what_is_stored_readable_and_memory_bounded(path):
    device, server = Device(path, buffer_bytes=20_000), Server()
    device.add(Priority.KPIS, b"before")
    device.flush()
    pages = device.database.connection.execute("PRAGMA page_count").fetchone()[0]
    device.database.connection.execute(f"PRAGMA max_page_count={pages}")
    for _ in range(10):
        device.add(Priority.KPIS, b"." * 9_000)
        device.add(Priority.LABELS, b"." * 800)
    assert not device.flush()
    status = device.outbox.status()
    assert "full" in status.error
    assert status.num_buffered <= 12
    assert [word for _, word in spoken(device.outbox.pending(1_000))] == [b"before"]
    device.database.connection.execute("PRAGMA max_page_count=10000")
    drain(device, server)
    assert len(server.counted) + len(server.lost) == 21
    assert {key.priority for key in server.lost} == {Priority.KPIS}
    assert sum(key.priority is Priority.LABELS for key, _ in server.counted) == 10
    assert device.outbox.status().error == ""


def test_a_start_on_a_full_disk_reads_and_keeps_nothing_before_it_is_durable_itself(path, monkeypatch):
    device, server = Device(path), Server()
    device.add(Priority.KPIS, b"before")
    device.flush()
    old_boot = device.database.identity.boot
    with monkeypatch.context() as patch:

        def full(*_):
            raise OSError(28, "No space left on device")

        patch.setattr("fedretrain.edge.database.write_whole", full)
        device.restart()
        device.add(Priority.KPIS, b"after")
        assert not device.flush()
        assert device.outbox.status().error == "the identity cannot be kept: No space left on device"
        assert [word for _, word in spoken(device.outbox.pending(1000))] == [b"before"]
    assert device.flush()
    assert len(device.outbox.pending(1000).records) == 2
    boot = device.database.identity.boot
    device.restart()
    assert old_boot < boot < device.database.identity.boot
    drain(device, server)
    assert {payload for _, payload in server.counted} == {b"before", b"after"}


def test_impossible_records_are_refused(path):
    device = Device(path)
    with pytest.raises(ValueError, match="is the most"):
        device.add(Priority.KPIS, b"." * (MAX_RECORD_BYTES + 1))
    boot = device.database.identity.boot
    for instant in (Instant(boot + 1, 0.0), Instant(boot, float("nan")), Instant(boot, 0.0, float("inf"))):
        with pytest.raises(ValueError, match="instant"):
            device.outbox.add(Priority.KPIS, b"", instant)
    device.flush()
    assert not device.outbox.pending(100)


def test_records_and_the_mark_of_what_they_were_made_from_are_one(tmp_path):
    device = Device(tmp_path / "agent.db")
    told = [(Priority.LABELS, b"one"), (Priority.LABELS, b"two")]
    remember = device.database.remember
    assert device.outbox.add_with(told, device.instant(), lambda: remember("mark", 1.0))
    device.restart()
    assert device.database.recall("mark") == 1.0
    assert [record.payload for record in device.outbox.pending(1000).records] == [b"one", b"two"]


def test_where_the_mark_cannot_be_written_no_record_is_left_and_no_number_is_lost(tmp_path):
    device, server = Device(tmp_path / "agent.db"), Server()
    device.add(Priority.LABELS, b"before")

    def full():
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    assert not device.outbox.add_with([(Priority.LABELS, b"lost")] * 3, device.instant(), full)
    device.add(Priority.LABELS, b"after")
    drain(device, server)
    assert [(key.sequence, payload) for key, payload in server.counted] == [(0, b"before"), (1, b"after")]
    assert not server.lost
