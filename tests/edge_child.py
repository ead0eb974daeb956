"""An agent in a process of its own, for tests that kill it: ``python -m tests.edge_child FILE SEED KILL_AT MAX_BYTES LIMIT``.

It adds, flushes and sends records without end; each line that it prints says what is now true. It kills itself at point KILL_AT (0: never):
points are the steps of SQLite's machine inside its transactions, and the system's calls that Python audits. LIMIT bounds the size of
every file that it writes (0: none), as a full disk would, until the answer is that there is room.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sqlite3
import sys

from fedretrain.core.clock import Instant
from fedretrain.edge.database import AgentDatabase
from fedretrain.edge.outbox import Outbox
from fedretrain.wire.sequence import Key, Priority


def payload_of(key: Key) -> bytes:
    """What the record of a key must say; the first of a stream says so, and notices come before it."""
    return f"{key.boot}.{key.priority}.{key.sequence} ".encode() * (1 + key.sequence % 50)


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def kill_at(point: int) -> None:
    passed = 0

    def step(*_: object) -> int:
        nonlocal passed
        passed += 1
        if passed == point:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    def audit(event: str, _: tuple[object, ...]) -> None:
        if event == "open" or event.startswith(("os.", "sqlite3.", "fcntl.")):
            step()

    def watched(*arguments: object, **options: object) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_progress_handler(step, 20)
        return connection

    connect, sqlite3.connect = sqlite3.connect, watched
    sys.addaudithook(audit)


def main(path: str, seed: str, point: str, max_bytes: str, limit: str) -> None:
    rng = random.Random(int(seed))
    if int(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    if int(point):
        kill_at(int(point))
    database = AgentDatabase(path)
    boot = database.identity.boot
    outbox = Outbox(
        database, max_bytes=int(max_bytes), max_age_s=1e9, opened=Instant(boot, 0.0), buffer_bytes=20_000
    )
    first = [outbox.add(priority, b"first", Instant(boot, 0.0)) for priority in Priority]
    next_of = {key.priority: key.sequence + 1 for key in first}
    waiting = [[boot, key.priority, key.sequence] for key in first]
    for second in range(100_000):
        for _ in range(rng.randrange(30)):
            priority = rng.choice(list(Priority))
            key = Key(database.identity.installation, boot, priority, next_of[priority])
            assert outbox.add(priority, payload_of(key), Instant(boot, second)) == key
            next_of[priority] += 1
            waiting.append([boot, priority, key.sequence])
        if outbox.flush(Instant(boot, second)):
            say(flushed=waiting)
            waiting = []
        else:
            say(full=outbox.status().error)
        batch = outbox.pending(rng.randrange(20_000))
        say(
            oldest_boot=batch.oldest_boot,
            records=[
                [*part(record.key), record.key.sequence, record.payload.decode("latin-1")]
                for record in batch.records
            ],
            gaps=[[*part(gap), gap.first, gap.last] for gap in batch.gaps],
        )
        answer = sys.stdin.readline().strip()
        if answer == "stop":
            return
        if answer == "room":
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if answer == "acknowledged":
            outbox.acknowledge(batch)


def part(key) -> list[object]:
    return [key.installation, key.boot, key.priority]


if __name__ == "__main__":
    main(*sys.argv[1:])
