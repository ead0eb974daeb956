"""Children: started again with growing patience, limited, and ended with their parent."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedretrain.core.child import Backoff, Child, Command

if TYPE_CHECKING:
    from collections.abc import Callable

SLEEP = ("-c", "import time; time.sleep(60)")


def child_of(folder: Path, *words: str, **more: object) -> Child:
    return Child(Command(words, folder / "child.log", **more))  # type: ignore[arg-type]


def wait_until(holds: Callable[[], bool]) -> None:
    for _ in range(3000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it never happened")


def test_it_is_started_once(tmp_path: Path) -> None:
    child = child_of(tmp_path, *SLEEP)
    assert child.pid is None
    assert child.ensure(0.0)
    assert not child.ensure(1.0)
    assert child.num_starts == 1
    child.stop()
    assert not child.is_alive
    child.stop()


def test_one_that_dies_is_started_ever_more_rarely(tmp_path: Path) -> None:
    child = child_of(tmp_path, "-c", "print('died')")
    starts = []
    for now in range(40):
        if child.ensure(float(now)):
            starts.append(now)
        wait_until(lambda: not child.is_alive)
    gaps = [b - a for a, b in pairwise(starts)]
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[-1]
    assert child.exit_status == 0
    assert (tmp_path / "child.log").read_text().count("died") == len(starts)


def test_patience_grows_and_is_forgotten_after_a_good_while() -> None:
    backoff = Backoff(first_s=1.0, longest_s=4.0, settled_s=60.0)
    now, waits = 0.0, []
    assert backoff.is_due(now)
    for lived in (0.0, 1.0, 1.0, 1.0, 100.0, 1.0):
        backoff.begun(now)
        now += lived
        backoff.failed(now)
        backoff.failed(now + 0.5)  # looked at again: it is the same failure
        wait = next(w / 4 for w in range(100) if backoff.is_due(now + w / 4))
        waits.append(wait)
        now += wait
    assert waits == [1.0, 2.0, 4.0, 4.0, 1.0, 2.0]


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
def test_one_that_the_system_does_not_let_begin_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    tried = []

    def refuse(*_: object, **__: object) -> None:
        tried.append(now)
        raise OSError(number, os.strerror(number))

    child = child_of(tmp_path, *SLEEP)
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", refuse)
        for now in range(20):
            assert not child.ensure(float(now))
    assert tried == [0, 1, 3, 7, 15]
    assert (child.num_starts, child.pid, child.exit_status) == (0, None, None)
    assert f"a process cannot be started ([Errno {number}]" in caplog.text
    assert "tried again in 8 s" in caplog.text
    child.stop()  # there is nothing to end
    assert child.ensure(40.0)
    assert child.is_alive
    child.stop()


def test_one_that_lived_long_is_soon_started_again(tmp_path: Path) -> None:
    child = child_of(tmp_path, *SLEEP)
    child.ensure(0.0)
    child.stop()
    assert not child.ensure(200.0)
    assert child.ensure(201.0)
    child.stop()


def test_its_memory_is_limited(tmp_path: Path) -> None:
    greedy = "import time; time.sleep(0.5)\ntry: x = bytearray(2**30)\nexcept MemoryError: print('refused')"
    child = child_of(tmp_path, "-c", greedy, memory_bytes=2**28)
    child.ensure(0.0)
    wait_until(lambda: not child.is_alive)
    assert (tmp_path / "child.log").read_text() == "refused\n"


def test_it_is_nicer_than_this_process(tmp_path: Path) -> None:
    child = child_of(tmp_path, *SLEEP, niceness=5)
    child.ensure(0.0)
    assert child.pid is not None
    assert os.getpriority(os.PRIO_PROCESS, child.pid) == min(os.getpriority(os.PRIO_PROCESS, 0) + 5, 19)
    child.stop()


def test_a_long_log_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "child.log").write_text("x" * 100)
    child = child_of(tmp_path, "-c", "print('y')", log_bytes=10)
    child.ensure(0.0)
    wait_until(lambda: not child.is_alive)
    assert (tmp_path / "child.log").read_text() == "y\n"


def test_a_stubborn_one_is_killed(tmp_path: Path) -> None:
    words = (
        "-c",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
    )
    child = child_of(tmp_path, *words)
    child.ensure(0.0)
    wait_until(lambda: (tmp_path / "child.log").read_text() == "up\n")
    child.stop(grace_s=0.1)
    assert child.exit_status == -signal.SIGKILL


@pytest.mark.slow
def test_a_leashed_one_ends_with_its_parent(tmp_path: Path) -> None:
    """Even where the parent is killed."""
    program = (
        "import sys, time; from pathlib import Path; from fedretrain.core.child import *\n"
        "child = Child(Command(('-c', 'import os, time; from fedretrain.core import leash;"
        " leash.watch(os.getppid()); time.sleep(60)'), Path(sys.argv[1])))\n"
        "child.ensure(0.0); print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "log")], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        grandchild = int(parent.stdout.readline())
        time.sleep(1.0)  # it is watching
        parent.kill()
    wait_until(lambda: not _runs(grandchild))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
