"""A child process that is watched: started with limits, started again with growing patience, ended with its parent.

Rules of this file:
    * Instants are given: whoever watches several children looks at one clock.
    * A child that dies again and again is started ever more rarely; one that lived long enough begins anew. So is one that the system does
      not let begin: memory, processes and open files that are short now may not be later.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import subprocess
import sys
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_GRACE_S = 10.0
_LAST_BYTES = 4096
_log = logging.getLogger(__name__)


class Backoff:
    """When what failed is tried again: ever more rarely, until it went well for a while.

    Args:
        first_s: Wait after the first failure.
        longest_s: And at most.
        settled_s: Whatever went well for so long begins anew.
    """

    def __init__(self, first_s: float = 1.0, longest_s: float = 60.0, settled_s: float = 60.0) -> None:
        self._first_s, self._longest_s, self._settled_s = first_s, longest_s, settled_s
        self._wait_s, self._due_at = first_s, -math.inf
        self._begun_at: float | None = None

    def begun(self, now: float) -> None:
        """It was tried."""
        self._begun_at = now

    def failed(self, now: float) -> None:
        """It has failed; said once or often, it counts once for each `begun`."""
        if self._begun_at is None:
            return
        if now - self._begun_at >= self._settled_s:
            self._wait_s = self._first_s
        self._due_at, self._begun_at = now + self._wait_s, None
        self._wait_s = min(2 * self._wait_s, self._longest_s)

    def is_due(self, now: float) -> bool:
        """Whether it may be tried."""
        return now >= self._due_at

    def wait_s(self, now: float) -> float:
        """How long until it may be tried."""
        return max(0.0, self._due_at - now)


@dataclass(frozen=True)
class Command:
    """What to run, and within which limits.

    Attributes:
        words: Words of Python itself: ``("-m", "package.module", ...)``. See `leashed` for console scripts.
        env: Environment variables beside this process's.
        log: File that takes its output, and begins anew at a start beyond `log_bytes`; None: it says it where this process does.
        memory_bytes: The most private memory (RLIMIT_DATA); 0: no limit.
        niceness: Added to this process's; a device's own work comes first.
        log_bytes: Size beyond which the log begins anew.
    """

    words: tuple[str, ...]
    log: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int = 0
    niceness: int = 0
    log_bytes: int = 2**22


def leashed(script: str, *words: str) -> tuple[str, ...]:
    """The words that run a console script which ends when this process does; ``-m`` and a module for `script` run that."""
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
        self._backoff = Backoff()

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

        Where the system does not let it begin, the log says so, and it is tried again like one that died.

        Args:
            now: Monotonic instant, seconds.
        """
        if self.is_alive:
            return False
        self._backoff.failed(now)
        if not self._backoff.is_due(now):
            return False
        self._backoff.begun(now)
        try:
            self.start()
        except OSError as error:
            self._backoff.failed(now)
            wait_s = self._backoff.wait_s(now)
            _log.error("a process cannot be started (%s): it is tried again in %.0f s", error, wait_s)
            return False
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

    def start(self) -> None:
        """Start it, due or not; for who watches several together.

        Raises:
            OSError: If the system does not let it begin: too little memory, too many processes or open files, a full disk.
        """
        command = self.command
        with _output(command) as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own words
                [sys.executable, *command.words],
                env={**os.environ, **command.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.num_starts += 1
        try:
            _limit(self._process.pid, command)
        except ProcessLookupError:
            pass  # it has ended already
        except OSError:
            self.stop()  # nothing of ours runs without its limits
            raise


def _limit(pid: int, command: Command) -> None:
    """Give a process its limits."""
    if command.memory_bytes:
        resource.prlimit(pid, resource.RLIMIT_DATA, (command.memory_bytes, command.memory_bytes))
    if command.niceness:
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + command.niceness)


def _output(command: Command) -> contextlib.AbstractContextManager[IO[bytes] | None]:
    """Where a process's output goes; None: where this one's does."""
    if command.log is None:
        return contextlib.nullcontext()
    with contextlib.suppress(FileNotFoundError):
        if command.log.stat().st_size > command.log_bytes:
            command.log.unlink()
    return command.log.open("ab")


def last_line(path: Path) -> str:
    """The last line of a file; empty where there is none."""
    try:
        text = path.read_bytes()[-_LAST_BYTES:].decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
