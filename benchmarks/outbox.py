"""What the device's outbox costs: bytes written to its disk in a day, records per second in and out.

Rules of this file:
    * One JSON line per measurement, ratios first, with versions and cores; one thread.
    * `day` is 1,440 minutes of a typical device, played without waiting: each minute a histogram report (800 bytes, 16 features of
      13 cells, compressed) and a KPI record (120 bytes), every tenth a label (60 bytes), every sixth hour an alert (200 bytes). Online it
      sends and is acknowledged at every flush; offline it sends nothing all day, then everything. `plain` is one transaction per
      record and per acknowledgement.
    * Bytes written are what the kernel counted for this process (`write_bytes` of ``/proc/self/io``: pages that became dirty, by
      4 KiB), log and checkpoints included; the file system's own journal is not in it.
    * The receiver takes part: a record that it does not count exactly once stops the measurement.
    * The exit status is 1 if a limit was missed.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import cores, versions
from benchmarks.results import FOLDER, append
from fedretrain.core.clock import DAY_S, Instant
from fedretrain.edge.database import AgentDatabase
from fedretrain.edge.outbox import Outbox
from fedretrain.wire.inbox import Inbox, receive
from fedretrain.wire.sequence import Arrival, Priority

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_MIB_A_DAY = 64.0
LEAST_ADDED_PER_S = 10_000
LEAST_DRAINED_PER_S = 5_000
_MINUTES = 1_440
_BATCH_BYTES = 1 << 18


@dataclass(frozen=True)
class Traffic:
    """What a device has to say in a minute: (priority, bytes, every how many minutes)."""

    kinds: tuple[tuple[Priority, int, int], ...] = (
        (Priority.HISTOGRAMS, 800, 1),
        (Priority.KPIS, 120, 1),
        (Priority.LABELS, 60, 10),
        (Priority.ALERTS, 200, 360),
    )

    def at(self, minute: int) -> Iterator[tuple[Priority, bytes]]:
        """The records of a minute."""
        for priority, size, every in self.kinds:
            if minute % every == 0:
                yield priority, bytes(size)


class Server:
    """Counts what comes."""

    def __init__(self) -> None:
        self.inbox, self.num_fresh = Inbox(), 0

    def hear(self, outbox: Outbox) -> bool:
        """Take a batch and acknowledge it; whether there was one."""
        batch = outbox.pending(_BATCH_BYTES)
        if not batch:
            return False
        keys = [record.key for record in batch.records]
        self.inbox, receipt = receive(self.inbox, batch.oldest_boot, keys, batch.gaps)
        self.num_fresh += receipt.records.count(Arrival.FRESH)
        outbox.acknowledge(batch)
        return True


def written_bytes() -> int:
    """Bytes that this process has had written so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


def day_case(folder: Path, flush_minutes: int, *, is_online: bool, is_plain: bool = False) -> dict[str, Any]:
    """A day of a device."""
    traffic, server, said, num_added = Traffic(), Server(), 0, 0
    path = folder / f"{flush_minutes}-{is_online}-{is_plain}.db"
    before = written_bytes()
    with AgentDatabase(path) as database:
        boot = database.identity.boot
        outbox = Outbox(database, max_bytes=1 << 26, max_age_s=30 * DAY_S, opened=Instant(boot, 0.0))
        for minute in range(_MINUTES):
            now = Instant(boot, 60.0 * minute)
            for priority, payload in traffic.at(minute):
                outbox.add(priority, payload, now)
                said, num_added = said + len(payload), num_added + 1
                if is_plain:
                    outbox.flush(now)
                    server.hear(outbox)
                    outbox.flush(now)
            if minute % flush_minutes == flush_minutes - 1:
                outbox.flush(now)
                if is_online:
                    server.hear(outbox)
        outbox.flush()
        while server.hear(outbox):
            outbox.flush()
    if server.num_fresh != num_added:
        raise RuntimeError(f"{server.num_fresh} of {num_added} records counted")
    written = written_bytes() - before
    return {
        "case": f"day_{'plain' if is_plain else 'online' if is_online else 'offline'}_{flush_minutes}min",
        "times_payload": round(written / said, 1),
        "written_mib": round(written / 2**20, 1),
        "payload_mib": round(said / 2**20, 2),
        "num_records": num_added,
        "file_mib": round(path.stat().st_size / 2**20, 2),
    }


def speed_case(folder: Path, num_records: int = 50_000, flush_every: int = 100) -> dict[str, Any]:
    """Records per second: added and made durable, then sent, settled and let go. 200 bytes each, all priorities.

    The limits are on CPU seconds: a shared machine and its disk change them least.
    """
    server = Server()
    with AgentDatabase(folder / "speed.db") as database:
        now = Instant(database.identity.boot, 0.0)
        outbox = Outbox(database, max_bytes=1 << 28, max_age_s=DAY_S, opened=now)
        start, start_cpu = time.perf_counter(), time.process_time()
        for number in range(num_records):
            outbox.add(Priority(number % len(Priority)), bytes(200), now)
            if number % flush_every == flush_every - 1:
                outbox.flush(now)
        added, added_cpu = time.perf_counter(), time.process_time()
        size = sum(file.stat().st_size for file in folder.glob("speed.db*"))
        while server.hear(outbox):
            pass
        outbox.flush(now)
        drained, drained_cpu = time.perf_counter(), time.process_time()
    if server.num_fresh != num_records:
        raise RuntimeError("records were lost")
    added_per_s, drained_per_s = (
        num_records / (added_cpu - start_cpu),
        num_records / (drained_cpu - added_cpu),
    )
    return {
        "case": "speed",
        "added_per_cpu_s": round(added_per_s),
        "drained_per_cpu_s": round(drained_per_s),
        "met": added_per_s >= LEAST_ADDED_PER_S and drained_per_s >= LEAST_DRAINED_PER_S,
        "added_per_s": round(num_records / (added - start)),
        "drained_per_s": round(num_records / (drained - added)),
        "disk_bytes_per_record": round(size / num_records),
        "flush_every": flush_every,
        "num_records": num_records,
    }


def main() -> int:
    """Print one JSON line per measurement."""
    place = {"versions": versions("fedretrain"), "cores": cores()}
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        folder = Path(name)
        plain = day_case(folder, 1, is_online=True, is_plain=True)
        days = [
            day_case(folder, minutes, is_online=online) for minutes in (1, 10) for online in (True, False)
        ]
        for day in days:
            day["share_of_plain"] = round(day["written_mib"] / plain["written_mib"], 3)
            day["met"] = day["written_mib"] <= MOST_MIB_A_DAY
        lines = [*days, plain, speed_case(folder)]
    for line in lines:
        print(json.dumps({**line, **place}), flush=True)
        append("outbox", {**line, **place})
    return int(not all(line.get("met", True) for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
