"""CPU time, wall time and peak memory over a process tree.

Rules of this file:
    * What is compared is CPU time over the process tree: a peer that starts workers pays for them, and a noisy
      machine changes it least.
    * The own process is read at nanosecond resolution, the others in the kernel's ticks (10 ms).
"""

from __future__ import annotations

import os
import platform
import resource
import time
from dataclasses import dataclass
from importlib import metadata

import psutil


@dataclass(frozen=True)
class Reading:
    """What a process tree has used so far.

    Attributes:
        cpu_s: CPU seconds, user and system.
        wall_s: Seconds on the clock.
    """

    cpu_s: float
    wall_s: float


class Tree:
    """The process tree under this process; ended children count what they had used when they ended or were last seen."""

    def __init__(self) -> None:
        self._root = psutil.Process()
        self._seen: dict[tuple[int, float], float] = {}
        self.peak_bytes = 0

    def read(self) -> Reading:
        """CPU time of this process and of everything below it."""
        memory = self._root.memory_info().rss
        for child in self._root.children(recursive=True):
            try:
                times = child.cpu_times()
                self._seen[child.pid, child.create_time()] = times.user + times.system
                memory += _private_bytes(child)
            except psutil.Error:  # it ended meanwhile: the last reading stays
                continue
        self.peak_bytes = max(self.peak_bytes, memory)
        return Reading(time.process_time() + sum(self._seen.values()), time.perf_counter())

    def peak_mib(self) -> float:
        """The most memory that was seen, at least the own process's high-water mark."""
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return max(self.peak_bytes, own) / 2**20


def _private_bytes(process: psutil.Process) -> int:
    memory = process.memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))  # workers share an object store: counted once


def versions(*packages: str) -> dict[str, str]:
    """Versions of packages, of Python and of the machine, to go with every result."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))
