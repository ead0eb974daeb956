from __future__ import annotations

import json
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from fedretrain.core.errors import DataError
from fedretrain.edge import database
from fedretrain.edge.database import MIGRATIONS, AgentDatabase
from fedretrain.edge.outbox import OutboxDamagedError
from fedretrain.edge.start import machine_start
from fedretrain.wire.sequence import Priority
from tests.edge_cases import Device, Server, drain, notice_of


@pytest.fixture
def path(tmp_path):
    return tmp_path / "agent.db"


def identity(path):
    with AgentDatabase(path) as opened:
        return opened.identity


def aside(path):
    return sorted(path.parent.glob(f"{path.name}.damaged-*"))


def test_each_start_is_above_the_last_and_the_installation_stays(path):
    starts = [identity(path) for _ in range(5)]
    boots = [start.boot for start in starts]
    assert boots == sorted(set(boots))
    assert len({start.installation for start in starts}) == 1
    assert len(bytes.fromhex(starts[0].installation)) == 16
    assert max(boots) < 2**53


@pytest.mark.parametrize("lost", ["agent.db", "agent.db.identity"])
def test_who_it_is_survives_the_loss_of_either_file(path, lost):
    first, second = identity(path), identity(path)
    (path.parent / lost).unlink()
    third = identity(path)
    assert first.boot < second.boot < third.boot
    assert third.installation == first.installation


@pytest.mark.parametrize("restored", [["agent.db"], ["agent.db.identity"], ["agent.db", "agent.db.identity"]])
def test_a_restored_file_never_makes_a_boot_come_again(path, restored):
    identity(path)
    for name in restored:
        shutil.copy(path.parent / name, path.parent / f"{name}.copy")
    later = [identity(path).boot for _ in range(4)]
    for name in restored:
        shutil.copy(path.parent / f"{name}.copy", path.parent / name)
    again = identity(path).boot
    assert again not in later
    assert len(restored) == 2 or again > max(later)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"installation": "a"}', b'{"boot": "x", "installation": 1}']
)
def test_an_unreadable_identity_file_is_written_anew(path, content):
    first = identity(path)
    path.with_name("agent.db.identity").write_bytes(content)
    second = identity(path)
    assert second.boot > first.boot
    assert json.loads(path.with_name("agent.db.identity").read_text()) == {
        "installation": first.installation,
        "boot": second.boot,
    }


def test_a_commit_is_durable_when_it_returns(path):
    with AgentDatabase(path) as opened:
        asked = [
            opened.connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous")
        ]
    assert asked == ["wal", 2]


def test_one_process_at_a_time(path):
    with AgentDatabase(path), pytest.raises(DataError, match="another agent"):
        AgentDatabase(path)
    identity(path)


def test_the_floor_only_rises(path):
    with AgentDatabase(path) as opened:
        assert opened.floor_at == 0.0
        assert opened.raise_floor(100.0)
        assert opened.raise_floor(50.0)
    with AgentDatabase(path) as opened:
        assert opened.floor_at == 100.0


def test_the_floor_on_a_full_disk(path):
    with AgentDatabase(path) as opened:
        opened.connection.execute("PRAGMA query_only=1")
        assert not opened.raise_floor(100.0)
        opened.connection.execute("PRAGMA query_only=0")
        assert opened.floor_at == 0.0


@pytest.mark.skipif(
    not Path("/proc/sys/kernel/random/boot_id").exists(), reason="this system does not name its starts"
)
def test_the_machine_names_its_start():
    assert len(machine_start()) == 36


def test_a_strangers_file_is_left_alone(path):
    for make in (
        lambda: path.write_text("notes " * 1000),
        lambda: sqlite3.connect(path).execute("CREATE TABLE t (x)"),
    ):
        make()
        before = path.read_bytes()
        with pytest.raises(DataError, match="not the agent's database"):
            AgentDatabase(path)
        assert path.read_bytes() == before
        assert not aside(path)
        path.unlink()


def test_a_folder_that_is_not_there_is_one_line(path):
    with pytest.raises(DataError, match="No such file"):
        AgentDatabase(path.parent / "nowhere" / "agent.db")


def test_migrations_go_on_from_where_they_were(path, monkeypatch):
    device = Device(path)
    key = device.add(Priority.LABELS, b"kept")
    device.flush()
    device.database.close()
    more = "CREATE TABLE more (x INTEGER) STRICT;"
    monkeypatch.setattr(database, "MIGRATIONS", (*MIGRATIONS, more + "SELECT nothing"))
    with pytest.raises(DataError, match="syntax error"):
        AgentDatabase(path)
    assert not aside(path), "a defect of the agent's, not of the file's"
    monkeypatch.setattr(database, "MIGRATIONS", (*MIGRATIONS, more))
    for _ in range(2):
        device.start()
        assert device.outbox.pending(100).records[0].key == key
        assert device.database.connection.execute("SELECT count(*) FROM more").fetchone() == (0,)
        assert device.database.connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
        device.database.close()


def test_a_file_of_a_later_agent_is_set_aside(path):
    identity(path)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    connection.close()
    device = Device(path)
    batch = device.outbox.pending(1000)
    notice = notice_of(batch.records[0].payload)
    assert "later agent" in notice["reason"]
    assert aside(path)


def test_a_lost_database_is_told(path):
    identity(path)
    path.unlink()
    device = Device(path)
    (record,) = device.outbox.pending(1000).records
    assert record.key.priority is Priority.ALERTS
    assert notice_of(record.payload) == {"event": "database_missing"}
    device.restart()
    assert len(device.outbox.pending(1000).records) == 1, "told once"


def test_a_damaged_file_is_set_aside_whole_and_the_agent_goes_on(path):
    """Bytes overwritten anywhere: it opens, at once or anew, and what is then sent is what was said."""
    device = Device(path)
    said = {}
    for number in range(400):
        payload = b"%d " % number * 40
        said[device.add(Priority(number % 5), payload)] = payload
    device.flush()
    device.database.close()
    sound, size, outcomes = path.read_bytes(), path.stat().st_size, []
    rng = random.Random(5)
    for trial in range(40):
        for file in path.parent.glob("agent.db*"):
            file.unlink()
        content = bytearray(sound)
        start = rng.randrange(size) if trial else size // 2
        length = rng.choice([1, 16, 4096])
        content[start : start + length] = rng.randbytes(len(content[start : start + length]))
        path.write_bytes(content)
        path.with_name("agent.db.identity").write_text(json.dumps({"installation": "a" * 32, "boot": 7}))
        server = Server()
        for suspect in ("", "an error while in use"):
            try:
                device.start(suspect)
                new = device.add(Priority.LABELS, b"after")
                drain(device, server)
                break
            except OutboxDamagedError:
                device.database.close()
        device.database.close()
        counted = dict(server.counted)
        assert counted[new] == b"after"
        for key, payload in counted.items():
            old = said.get(key)
            assert payload == old or key.priority is Priority.ALERTS or key == new
        if aside(path):
            (kept,) = aside(path)
            assert kept.stat().st_size == size
            alerts = [notice_of(p) for k, p in counted.items() if k.boot == new.boot and k != new]
            assert [(alert["event"], alert["file"]) for alert in alerts] == [
                ("database_set_aside", kept.name)
            ]
            outcomes.append("aside")
        else:
            assert len(server.lost) + len(counted) >= 400
            outcomes.append("whole" if len(counted) == 401 else "less")
    assert {"aside", "less"} <= set(outcomes), outcomes
