"""A child process that is watched: started with limits, started again with growing patience, ended with its parent.

Rules of this file:
    * Instants are given: whoever watches several children looks at one clock.
    * A child that dies again and again is started ever more rarely; one that lived long enough begins anew.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_FIRST_S, _LONGEST_S, _SETTLED_S = 1.0, 60.0, 60.0
_GRACE_S = 10.0


@dataclass(frozen=True)
class Command:
    """What to run, and within which limits.

    Attributes:
        words: Words of Python itself: ``("-m", "package.module", ...)``. See `leashed` for console scripts.
        env: Environment variables beside this process's.
        log: File that takes its output; it is truncated at each start beyond `log_bytes`.
        memory_bytes: The most private memory (RLIMIT_DATA); 0: no limit.
        niceness: Added to this process's; a device's own work comes first.
        log_bytes: Size beyond which the log begins anew.
    """

    words: tuple[str, ...]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int = 0
    niceness: int = 0
    log_bytes: int = 2**22


def leashed(script: str, *words: str) -> tuple[str, ...]:
    """The words that run a console script which ends when this process does."""
    return ("-m", "fedretrain.core.leash", str(os.getpid()), script, *words)


class Child:
    """A process that should run.

    Args:
        command: Which.
    """

    def __init__(self, command: Command) -> None:
        self.command = command
        self.num_starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = self._due_at = 0.0
        self._wait_s = _FIRST_S

    @property
    def pid(self) -> int | None:
        """Of the running process; None if there is none."""
        return self._process.pid if self._process is not None and self.is_alive else None

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """Of the last process; negative for a signal; None while it runs, or if none ever did."""
        return None if self._process is None else self._process.poll()

    def ensure(self, now: float) -> bool:
        """Start the process if it does not run and is due; whether it was started.

        Args:
            now: Monotonic instant, seconds.
        """
        if self.is_alive:
            if now - self._started_at >= _SETTLED_S:
                self._wait_s = _FIRST_S
            return False
        if self._process is not None:
            if self._due_at <= self._started_at:
                self._due_at = now + self._wait_s
                self._wait_s = min(2 * self._wait_s, _LONGEST_S)
            if now < self._due_at:
                return False
        self._start()
        self._started_at = self._due_at = now
        return True

    def stop(self, grace_s: float = _GRACE_S) -> None:
        """End it: SIGTERM, and SIGKILL after `grace_s`. May be called twice."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        command = self.command
        with contextlib.suppress(FileNotFoundError):
            if command.log.stat().st_size > command.log_bytes:
                command.log.unlink()
        with command.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own words
                [sys.executable, *command.words],
                env={**os.environ, **command.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.num_starts += 1
        pid = self._process.pid
        with contextlib.suppress(ProcessLookupError):  # it may have ended already
            if command.memory_bytes:
                limit = (command.memory_bytes, command.memory_bytes)
                resource.prlimit(pid, resource.RLIMIT_DATA, limit)
            if command.niceness:
                os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + command.niceness)
