"""The agent's SQLite file: opened, checked, migrated, and put aside where it is damaged.

Rules of this file:
    * One process has it open; a commit is durable when it returns (write-ahead log, synchronous=FULL).
    * Threads share the connection: whoever uses it holds the `mutex`, so that no statement falls into another's transaction.
    * A damaged file never stops the agent: it is renamed (with the reason and the time), never deleted, and a new one is
      begun, with a notice of it. A stranger's file is refused and left alone.
    * A damaged log loses transactions; the loss is noticed (`fedretrain.edge.wal`) and the log is kept in a copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import sqlite3
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fedretrain.core.durable import sync_folder, write_whole
from fedretrain.core.errors import DataError
from fedretrain.edge import examples, lineage
from fedretrain.edge.start import Identity, identity_path, next_boot, read_identity
from fedretrain.edge.wal import find_damage

if TYPE_CHECKING:
    from collections.abc import Iterator

APPLICATION_ID = 0x46524544
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;
    CREATE TABLE notices (number INTEGER PRIMARY KEY, content TEXT NOT NULL) STRICT;
    CREATE TABLE boots (
        boot INTEGER PRIMARY KEY, machine TEXT NOT NULL, offset_s REAL, is_trusted INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE records (
        position INTEGER PRIMARY KEY, boot INTEGER NOT NULL, sequence INTEGER NOT NULL,
        monotonic_s REAL NOT NULL, at REAL, checksum INTEGER NOT NULL, payload BLOB NOT NULL
    ) STRICT;
    CREATE TABLE gaps (
        boot INTEGER NOT NULL, priority INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
        PRIMARY KEY (boot, priority, first)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE drops (
        priority INTEGER NOT NULL, reason TEXT NOT NULL, num_records INTEGER NOT NULL,
        PRIMARY KEY (priority, reason)
    ) STRICT, WITHOUT ROWID;
    """,
    examples.TABLES + lineage.TABLES,
)
"""SQL that takes a database from one version to the next; `PRAGMA user_version` counts those that were done."""

_SCHEMA = "SELECT type, name, sql FROM sqlite_master ORDER BY type, name"
_BUSY_S = 5.0
_DAMAGE = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}


class _DamagedError(Exception):
    """The file is no database of ours, or not a sound one; says why."""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the file is damaged, and not that it could not be read or written just now."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is None or code & 0xFF in _DAMAGE


class AgentDatabase:
    """The open database. Use as a context manager, or `close` it.

    Args:
        path: The file; made if it is not there. Beside it lie ``NAME.identity`` and ``NAME.lock``.
        now_at: Seconds since the epoch, as far as the device knows: goes into the name of a file that is set aside.
        suspect: Why the file is to be set aside whatever the check finds: an error met while it was in use.
        machine: Names this start of the machine, as `machine_start` does: the agent may start several times in one, and
            the monotonic clock goes on.

    Attributes:
        connection: For whoever holds `mutex`.
        identity: Who this start is.

    Raises:
        DataError: If another process has it open, it is another program's, or it can be neither read nor written.
    """

    def __init__(
        self, path: Path | str, *, now_at: float = 0.0, suspect: str = "", machine: str = ""
    ) -> None:
        self.path, self.machine = Path(path), machine
        self.mutex = threading.RLock()
        self._now_at = now_at
        self._has_begun = False
        self._lock = _lock(self.path)
        try:
            self.connection = self._open(suspect)
            self.identity = self._next_identity()
            with contextlib.suppress(
                OSError, sqlite3.OperationalError
            ):  # a full disk can be read all the same
                self.begin()
        except sqlite3.Error as error:
            self._unlock()
            raise DataError(
                f"the agent's database cannot be used: {error}",
                where=str(self.path),
                fix="check disk and rights",
            ) from error
        except BaseException:
            self._unlock()
            raise

    def recall(self, name: str) -> float:
        """A number that was kept; 0 for none."""
        with self.mutex:
            return float(self._meta(name) or 0.0)

    def remember(self, name: str, value: float) -> None:
        """Keep a number: in the transaction that is open, if there is one.

        Raises:
            sqlite3.OperationalError: If the disk would not have it.
        """
        with self.mutex:
            self._set_meta(name, value)

    @property
    def floor_at(self) -> float:
        """The last signed time that was kept; 0 for none."""
        return float(self._meta("floor_at") or 0.0)

    def raise_floor(self, at: float) -> bool:
        """Keep a signed time, unless a later one is kept already; False if the disk would not have it."""
        with self.mutex:
            try:
                if at > self.floor_at:
                    self._set_meta("floor_at", at)
            except sqlite3.OperationalError:
                return False
            return True

    def begin(self) -> None:
        """Make this start durable, beside the database first, then in it: before any of its records is. Once is enough.

        Raises:
            OSError: If the disk would not have it; try again later.
            sqlite3.OperationalError: In the same case.
        """
        if self._has_begun:
            return
        content = json.dumps({"installation": self.identity.installation, "boot": self.identity.boot})
        write_whole(identity_path(self.path), content.encode())
        with transaction(self.connection):
            self._set_meta("installation", self.identity.installation)
            self._set_meta("boot", self.identity.boot)
            self.connection.execute(
                "INSERT INTO boots (boot, machine) VALUES (?, ?)", (self.identity.boot, self.machine)
            )
        self._has_begun = True

    def close(self) -> None:
        """Close it and let others open it; may be called again."""
        if self._lock >= 0:
            self.connection.close()
        self._unlock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, suspect: str) -> sqlite3.Connection:
        """A sound, migrated connection; a damaged file is out of the way afterwards, and a notice says so."""
        was_ours = identity_path(self.path).exists() or _has_our_mark(self.path)
        aside = self.path.with_name(f"{self.path.name}.damaged-{_stamp(self._now_at)}-{secrets.token_hex(2)}")
        try:
            if was_ours and (reason := suspect or _orphaned_log(self.path)):
                raise _DamagedError(reason)  # noqa: TRY301 - what the check would say
            connection, notice = _checked(self.path, was_ours, aside)
        except _DamagedError as error:
            _set_aside(self.path, aside)
            connection, _ = _checked(self.path, was_ours, aside)
            notice = {"event": "database_set_aside", "reason": str(error), "file": aside.name}
        sync_folder(self.path.parent)
        if notice:
            connection.execute("INSERT INTO notices (content) VALUES (?)", (json.dumps(notice),))
        return connection

    def _next_identity(self) -> Identity:
        """Who this start is: above what either file knows."""
        beside = read_identity(identity_path(self.path))
        installation = self._meta("installation") or (beside and beside.installation) or secrets.token_hex(16)
        last = max(int(self._meta("boot") or 0), beside.boot if beside else 0)
        return Identity(str(installation), next_boot(last))

    def _meta(self, name: str) -> Any:
        row = self.connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def _set_meta(self, name: str, value: str | float) -> None:
        self.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def shorten_log(connection: sqlite3.Connection) -> None:
    """Move the log into the database and cut it, as far as the disk lets: on a full one there is room again then."""
    with contextlib.suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; durable when it ends."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _checked(path: Path, was_ours: bool, aside: Path) -> tuple[sqlite3.Connection, dict[str, str]]:
    """A connection to a sound database at the present version, and a notice of what was lost before, if anything was.

    Raises:
        _DamagedError: If it is ours and damaged, or of a later version.
        DataError: If it is another program's.
    """
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        is_new = _check(connection)
        notice = {"event": "database_missing"} if is_new and was_ours else {}
        log = path.with_name(path.name + "-wal")
        if reason := find_damage(connection, log):
            kept = aside.with_name(aside.name + "-wal")
            shutil.copyfile(log, kept)
            notice = {"event": "log_damaged", "reason": reason, "file": kept.name}
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
    except sqlite3.Error as error:
        connection.close()
        if not is_damage(error):
            raise
        if not was_ours:
            raise _not_ours(path) from error
        raise _DamagedError(str(error)) from error
    except _DamagedError:
        connection.close()
        if not was_ours:
            raise _not_ours(path) from None
        raise
    _migrate(connection)
    shorten_log(connection)
    return connection, notice


def _orphaned_log(path: Path) -> str:
    """Why the log cannot belong to the file, where it cannot: SQLite would delete it."""
    sizes = [
        file.stat().st_size if file.exists() else 0 for file in (path, path.with_name(path.name + "-wal"))
    ]
    return "" if sizes[0] or not sizes[1] else "the file is empty or missing, its log is not"


def _set_aside(path: Path, aside: Path) -> None:
    """Rename the database and its log. The log first: a database without its log can still be set aside."""
    for end in ("-shm", "-wal", ""):
        file = path.with_name(path.name + end)
        if file.exists():
            file.rename(aside.with_name(aside.name + end))
    sync_folder(path.parent)


def _check(connection: sqlite3.Connection) -> bool:
    """Raise if the file is damaged; whether it is an empty one."""
    connection.execute("PRAGMA cell_size_check=ON")
    version, mark = _pragma(connection, "user_version"), _pragma(connection, "application_id")
    schema = connection.execute(_SCHEMA).fetchall()
    is_new = not version and not mark and not schema
    if mark != APPLICATION_ID and not is_new:
        raise _DamagedError(f"application id {mark:#x}")
    if version > len(MIGRATIONS):
        raise _DamagedError(f"version {version}, made by a later agent; this one knows {len(MIGRATIONS)}")
    if schema != _schema_of(version):
        raise _DamagedError("its tables are not those of its version")
    found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    if found != "ok":
        raise _DamagedError(found)
    return is_new


def _schema_of(version: int) -> list[tuple[str, str, str]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as model:
        for migration in MIGRATIONS[:version]:
            model.executescript(migration)
        return model.execute(_SCHEMA).fetchall()


def _migrate(connection: sqlite3.Connection) -> None:
    """Take the database to the present version. What fails here is a defect of the agent's, not of the file's."""
    for number in range(_pragma(connection, "user_version"), len(MIGRATIONS)):
        try:
            connection.executescript(
                f"BEGIN IMMEDIATE; PRAGMA application_id={APPLICATION_ID};"
                f"{MIGRATIONS[number]}; PRAGMA user_version={number + 1}; COMMIT;"
            )
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _not_ours(path: Path) -> DataError:
    return DataError(
        "this file is not the agent's database", where=str(path), fix="give the agent a path of its own"
    )


def _has_our_mark(path: Path) -> bool:
    """Whether the header carries our application id: known without SQLite, for a file that it cannot open."""
    try:
        with path.open("rb") as file:
            file.seek(68)
            return file.read(4) == APPLICATION_ID.to_bytes(4, "big")
    except OSError:
        return False


def _stamp(at: float) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y%m%dT%H%M%SZ")
    except (OverflowError, ValueError, OSError):
        return "unknown"


def _lock(path: Path) -> int:
    """A descriptor that holds the lock; closing it, or dying, lets go."""
    try:
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise DataError(
            f"the agent's database cannot be used: {error.strerror}",
            where=str(path),
            fix="check disk and rights",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise DataError(
            "another agent uses this database",
            where=str(path),
            fix="stop it, or give this one a path of its own",
        ) from error
    return descriptor
