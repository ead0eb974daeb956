"""A real process that is killed at any point: nothing that it said was kept is lost, and nothing counts twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedretrain.core.clock import Instant
from fedretrain.edge.records import Batch
from fedretrain.wire.sequence import Gap, Key, Priority
from tests.edge_cases import Device, Server, drain, notice_of
from tests.edge_child import payload_of

ROOT = Path(__file__).resolve().parents[2]
INFINITE = 10**9


def read_batch(said) -> Batch:
    records = tuple(
        SimpleNamespace(
            key=Key(*name, Priority(priority), sequence),
            payload=payload.encode("latin-1"),
            instant=Instant(0, 0),
        )
        for *name, priority, sequence, payload in said["records"]
    )
    gaps = tuple(Gap(*name, Priority(priority), first, last) for *name, priority, first, last in said["gaps"])
    return Batch(records, gaps, (), said["oldest_boot"])


class Life:
    """The server beside one device's many short lives, and what the device has claimed to keep."""

    def __init__(self, path, seed, max_bytes=INFINITE):
        self.path, self.rng, self.max_bytes = path, random.Random(seed), max_bytes
        self.server, self.kept, self.full = Server(), set(), []

    def live(self, *, point=0, answers=INFINITE, limit=0, deaf=0) -> int:
        """One life, which ends at `point`, or is killed from outside after so many answers; its exit status.

        The first `deaf` messages do not reach the server; after them there is room beyond `limit`.
        """
        words = [self.path, self.rng.randrange(10**6), point, self.max_bytes, limit]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.edge_child", *map(str, words)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for line in process.stdout:
            if not line.endswith("\n"):
                break  # torn by the kill
            answer = self.hear(json.loads(line), is_deaf=deaf > 0)
            deaf -= bool(answer)
            if answer and limit and deaf == 0:
                answer = "room"
            if answer and answers == 0:
                process.kill()
            elif answer:
                answers -= 1
                self.answer(process, answer)
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        return process.wait(timeout=60)

    def hear(self, said, *, is_deaf) -> str:
        if "flushed" in said:
            self.kept |= {(boot, priority, sequence) for boot, priority, sequence in said["flushed"]}
        elif "full" in said:
            self.full.append(said["full"])
        else:
            lot = self.rng.random()
            if is_deaf or lot < 0.3:
                return "lost"  # the message
            self.server.receive(read_batch(said))
            return "lost" if lot < 0.6 else "acknowledged"
        return ""

    @staticmethod
    def answer(process, answer):
        with contextlib.suppress(BrokenPipeError):  # it killed itself
            process.stdin.write(answer + "\n")
            process.stdin.flush()

    def check(self):
        """Hear the rest; then each record that was kept is counted once or named as dropped."""
        device = Device(self.path, max_bytes=self.max_bytes)
        drain(device, self.server, 100_000)
        device.database.close()
        counted = [key for key, _ in self.server.counted]
        assert len(set(counted)) == len(counted)
        assert not set(counted) & set(self.server.lost)
        assert len(set(self.server.lost)) == len(self.server.lost)
        assert all(payload in (b"first", payload_of(key)) for key, payload in self.server.counted)
        settled = {(key.boot, key.priority, key.sequence) for key in [*counted, *self.server.lost]}
        assert self.kept <= settled
        assert all(not state.late for state in self.server.inbox.streams.values())
        assert self.server.inbox.num_late_forgotten == 0


@pytest.mark.faults
@pytest.mark.parametrize("max_bytes", [INFINITE, 30_000], ids=["roomy", "tight"])
def test_killed_at_any_point_of_its_own(tmp_path, max_bytes):
    """Points from the opening of the files to the middle of later transactions."""
    life = Life(tmp_path / "agent.db", seed=1, max_bytes=max_bytes)
    statuses = [
        life.live(point=life.rng.choice([60, 600, 3_000]) - life.rng.randrange(50)) for _ in range(60)
    ]
    assert set(statuses) == {-9}
    assert len(life.kept) > 500
    life.check()
    assert bool(life.server.lost) == (max_bytes < INFINITE)
    assert len({key.boot for key, _ in life.server.counted}) > 10


@pytest.mark.faults
def test_killed_from_outside(tmp_path):
    life = Life(tmp_path / "agent.db", seed=2)
    statuses = [life.live(answers=life.rng.randrange(12)) for _ in range(30)]
    assert set(statuses) == {-9}
    life.check()
    assert not life.server.lost
    assert len(life.server.counted) >= len(life.kept) > 1_000


@pytest.mark.faults
def test_a_full_disk_leaves_what_is_kept_readable(tmp_path):
    life = Life(tmp_path / "agent.db", seed=3)
    life.live(answers=5)
    for limit in (100_000, 150_000):
        life.full.clear()
        life.live(limit=limit, answers=60, deaf=40)
        assert len(life.full) > 5
    life.check()
    assert life.server.lost, "what found no room, in memory either, and was named"
    assert len(life.server.counted) > 500


@pytest.mark.faults
def test_a_page_overwritten_in_the_middle_is_set_aside_and_the_agent_goes_on(tmp_path):
    life = Life(tmp_path / "agent.db", seed=4)
    life.live(answers=30)
    Device(life.path).database.close()  # what a kill left in the log goes into the file
    content = bytearray(life.path.read_bytes())
    assert len(content) > 10 * 4096
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = random.Random(4).randbytes(4096)
    life.path.write_bytes(content)
    before = len(life.server.counted)
    life.live(answers=20)
    notices = [notice_of(payload) for _, payload in life.server.counted if b"event" in payload]
    (aside,) = tmp_path.glob("agent.db.damaged-*")
    assert aside.read_bytes() == content
    assert [(notice["event"], notice["file"]) for notice in notices] == [("database_set_aside", aside.name)]
    assert len(life.server.counted) > before
