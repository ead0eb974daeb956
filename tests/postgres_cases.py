"""A PostgreSQL of the tests' own: a cluster in a temporary folder, reached by a Unix socket in it, and by nobody else.

As root the server runs under the user that Debian's package makes for it, since it refuses to run as root.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from sqlalchemy import create_engine, text

from tests.children import dying_with_us

if TYPE_CHECKING:
    from collections.abc import Iterator

_BINARIES = Path("/usr/lib/postgresql")
_STARTED_S = 60.0


def missing() -> str:
    """Why no cluster can be started here; empty if one can."""
    if _folder_of_binaries() is None:
        return "PostgreSQL's server is not installed: make setup-system"
    if os.geteuid() == 0 and not _user():
        return "the tests run as root, and there is no user postgres under whom PostgreSQL could run"
    return ""


class Cluster:
    """A running server.

    Args:
        durable: Whether it waits for the disk. A kill of its processes loses nothing either way, a power cut would.
    """

    def __init__(self, *, durable: bool = False) -> None:
        found = _folder_of_binaries()
        assert found is not None
        self._binaries = found
        self.folder = Path(tempfile.mkdtemp(prefix="fedretrain-pg-"))
        self._as: dict[str, Any] = _user()
        if self._as:
            os.chown(self.folder, self._as["user"], self._as["group"])
        self._data, self._log = self.folder / "data", self.folder / "log"
        self._durable = durable
        self._server: subprocess.Popen[bytes] | None = None
        self._names = (f"test_{number}" for number in itertools.count())
        words = ("-D", self._data, "-U", "tests", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        subprocess.run(
            [self._binaries / "initdb", *words], check=True, capture_output=True, cwd=self.folder, **self._as
        )
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder),
            "shared_buffers": "16MB",
            "max_connections": "60",
            "fsync": "on" if self._durable else "off",
        }
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with self._log.open("ab") as log:
            self._server = subprocess.Popen(
                dying_with_us([str(self._binaries / "postgres"), "-D", str(self._data), *words]),
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **self._as,
            )
        until = time.monotonic() + _STARTED_S
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"PostgreSQL did not start:\n{self._log.read_text()[-3000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End every process of the server at once."""
        assert self._server is not None
        processes = [psutil.Process(self._server.pid)]
        processes += processes[0].children(recursive=True)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self._server.wait()
        psutil.wait_procs(processes[1:], timeout=30)

    def close(self) -> None:
        """Stop the server and remove all that it kept."""
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal.SIGINT)  # fast: it ends its connections
            self._server.wait(timeout=60)
        shutil.rmtree(self.folder)

    def url(self, name: str) -> str:
        """Of a database."""
        return f"postgresql://tests@/{name}?host={self.folder}"

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """An empty database while the context lasts; its URL."""
        name = next(self._names)
        self._run(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            self._run(f"DROP DATABASE {name} WITH (FORCE)")

    def _answers(self) -> bool:
        ready = [self._binaries / "pg_isready", "-q", "-h", self.folder, "-U", "tests"]
        return subprocess.run(ready, check=False, capture_output=True, cwd=self.folder).returncode == 0

    def _run(self, command: str) -> None:
        engine = create_engine(self.url("postgres").replace("postgresql:", "postgresql+psycopg:"))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(command))
        engine.dispose()


def _folder_of_binaries() -> Path | None:
    """The newest release's programs: Debian's, or those on the path."""
    found = sorted(_BINARIES.glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which("postgres")
    if found:
        return found[-1].parent
    return Path(on_path).resolve().parent if on_path else None


def _user() -> dict[str, Any]:
    """Under whom root starts it; nothing where that is this user."""
    if os.geteuid() != 0:
        return {}
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
