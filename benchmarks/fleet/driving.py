"""The processes of the load, and what they measured together.

Rules of this file:
    * Devices are dealt to a few processes; one of them, the probe, plays so few that its own event loop never keeps an answer waiting:
      what it measures is what a device on a machine of its own would.
    * CPU seconds of the coordinator and of the load are read apart: they share the machine's cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import psutil

from benchmarks.fleet.load import Orders
from benchmarks.fleet.office import environment
from fedretrain.core.child import leashed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NUM_PROBED = 50


@dataclass
class Driver:
    """One process of the load."""

    process: subprocess.Popen[str]
    result: Path
    log: Path

    def hear(self, word: str) -> None:
        """Wait for a line that says something; RuntimeError if the process ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if word in json.loads(line):
                return
        said = self.log.read_text()[-2000:]
        raise RuntimeError(f"a process of the load ended before it was {word}: {said}")

    def tell(self, word: str) -> None:
        """Give it an order."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def cpu_s(self) -> float:
        """CPU seconds that it has used."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def rss_mib(self) -> float:
        """Its resident memory."""
        return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)


class Drivers:
    """Every process of the load; a context manager.

    Args:
        folder: For their files.
        common: The orders that all share.
        devices: Who there is.
        count: Processes beside the probe.
    """

    def __init__(
        self, folder: Path, common: dict[str, Any], devices: Sequence[dict[str, Any]], count: int
    ) -> None:
        self._folder = folder
        numbered = [{**one, "number": number} for number, one in enumerate(devices)]
        probed = numbered[: min(NUM_PROBED, len(numbered) // 2)]
        rest = numbered[len(probed) :]
        parts = [probed, *(rest[place::count] for place in range(count))]
        self.all = [self._start(place, {**common, "devices": part}) for place, part in enumerate(parts)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.all:
            if one.process.poll() is None:
                one.process.kill()
            one.process.communicate()

    def _start(self, place: int, orders: dict[str, Any]) -> Driver:
        path, result = self._folder / f"load-{place}.json", self._folder / f"load-{place}.result"
        path.write_text(json.dumps(asdict(Orders(**orders, result=str(result)))))
        log_path = self._folder / f"load-{place}.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *leashed("-m", "benchmarks.fleet.load", str(path))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment(),
            )
        return Driver(process, result, log_path)

    def tell(self, word: str) -> None:
        """Give all an order."""
        for one in self.all:
            one.tell(word)

    def hear(self, word: str) -> None:
        """Wait until all have said something."""
        for one in self.all:
            one.hear(word)

    def cpu_s(self) -> float:
        """CPU seconds of all."""
        return sum(one.cpu_s() for one in self.all)

    def rss_mib(self) -> float:
        """Resident memory of all."""
        return sum(one.rss_mib() for one in self.all)

    def stop(self) -> list[dict[str, Any]]:
        """Let all end, with every record acknowledged; their figures, the probe's first."""
        self.tell("stop")
        self.hear("ended")
        return [json.loads(one.result.read_text()) for one in self.all]


def percentiles(times: Sequence[Sequence[float]], begun: float, ended: float) -> dict[str, float]:
    """Of the seconds of calls that were sent between two instants, in milliseconds."""
    ms = [1e3 * seconds for sent_at, seconds in times if begun <= sent_at < ended]
    if not ms:
        return {"calls": 0}
    p50, p99, most = map(float, np.percentile(ms, [50, 99, 100]))
    return {"p99_ms": round(p99, 1), "p50_ms": round(p50, 1), "max_ms": round(most, 1), "calls": len(ms)}


def together(figures: Sequence[dict[str, Any]], name: str) -> list[Any]:
    """A list of all processes' figures."""
    return [one for part in figures for one in part[name]]


def balance(figures: Sequence[dict[str, Any]], settled: int, stored: int) -> dict[str, int]:
    """What became of records: lost are those that were acknowledged and do not count, waiting those that devices still hold.

    Args:
        figures: Of all processes.
        settled: Records that counted.
        stored: Records in the store.
    """
    made, acknowledged = (sum(part[name] for part in figures) for name in ("num_made", "num_acknowledged"))
    return {
        "lost": max(0, acknowledged - settled) + max(0, settled - stored),
        "twice": max(0, stored - settled),
        "waiting": made - max(acknowledged, settled),
    }


def failures(figures: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Calls that failed, by the status."""
    found: dict[str, int] = {}
    for part in figures:
        for name, number in part["failures"].items():
            found[name] = found.get(name, 0) + number
    return found


class Shares:
    """Who used the cores between two instants: the coordinator, the load, and everybody else on the machine."""

    def __init__(self, office_cpu_s: float, load_cpu_s: float) -> None:
        self._begun, self._office, self._load = time.monotonic(), office_cpu_s, load_cpu_s
        self._busy = _busy_s()

    def until(self, office_cpu_s: float, load_cpu_s: float) -> dict[str, float]:
        """Shares in cores, and the machine's load average beside them."""
        wall_s = time.monotonic() - self._begun
        ours = office_cpu_s - self._office + load_cpu_s - self._load
        return {
            "coordinator_cores": round((office_cpu_s - self._office) / wall_s, 2),
            "load_generator_cores": round((load_cpu_s - self._load) / wall_s, 2),
            "others_cores": round(max(0.0, _busy_s() - self._busy - ours) / wall_s, 2),
            "machine_load": round(os.getloadavg()[0], 1),
        }


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice)
