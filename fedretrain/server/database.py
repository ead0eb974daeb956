"""The coordinator's database: SQLite in a file, or PostgreSQL by its URL.

Rules of this file:
    * A committed transaction is on the disk when `commit` returns: WAL with synchronous=FULL on SQLite, synchronous_commit
      on PostgreSQL, whatever a role or a server is set to.
    * What a transaction read cannot change under it. On SQLite each takes the one write lock at its beginning; on
      PostgreSQL it is READ COMMITTED, and a transaction that writes what it concluded from what it read takes a lock: of the
      rows (FOR UPDATE), or of a name where rows are not there yet (`hold`).
    * Locks are taken in one order, or a transaction could wait for one that waits for it: a lease's row, then a name, then
      rows by population and device.
    * Who only reads (`reading`) takes no lock: it sees one state of the database, and neither waits for writers nor keeps them.
    * The tables are made and changed by migrations only, by one process at a time.
    * A damaged database is a `DatabaseDamagedError` wherever it is met, in place of what the driver says: nobody takes it for
      one that is away for a while, and who decides ends. A coordinator looks at every page before it starts.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError

from fedretrain.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine
    from sqlalchemy.engine import ExceptionContext

_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_S = 30.0
_READS = "fedretrain_reads"
_MIGRATING = "migrations"
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_DAMAGE_STATES = {"XX001", "XX002"}  # of PostgreSQL: data, and an index, that are corrupted
_POSTGRES = {
    "synchronous_commit": "on",
    "lock_timeout": f"{_BUSY_S:.0f}s",
    # A client whose machine is gone holds its locks until the server notices: these are when it does.
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}


class DatabaseDamagedError(DataError):
    """Pages of the database are not what was written.

    Args:
        what: What was found.
        where: The database.
    """

    def __init__(self, what: str, where: str) -> None:
        super().__init__(
            f"the database is damaged: {what}",
            where=where,
            fix="stop every coordinator, keep a copy of the file, and put the newest back-up that `fedretrain verify` accepts in its "
            "place; devices serve meanwhile, and keep what they have to report",
        )


def open_database(url: str) -> Engine:
    """The engine of a database whose tables are those of this release.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql://USER@HOST/NAME``; what libpq reads besides counts (PGPASSFILE, PGSSLMODE).

    Raises:
        ConfigError: If the URL is none, or of a database that is not supported.
        DataError: If the database cannot be opened or migrated, or is damaged.
    """
    parsed = check_url(url)
    engine = _sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _postgresql(parsed)
    event.listen(engine, "handle_error", _name_damage)
    try:
        migrate(engine)
    except DatabaseDamagedError:
        engine.dispose()
        raise
    except DatabaseError as error:
        engine.dispose()
        raise DataError(
            f"the database cannot be opened: {error.orig}",
            where=parsed.render_as_string(),
            fix="check that its folder or server is there",
        ) from error
    return engine


def check_pages(engine: Engine) -> None:
    """Look at every page: damage that a process would meet in a month is told before it starts. PostgreSQL does that by itself.

    Raises:
        DatabaseDamagedError: If there is any.
    """
    if engine.dialect.name != "sqlite":
        return
    with reading(engine) as connection:
        found = str(connection.scalar(text("PRAGMA quick_check(1)")))
    if found != "ok":
        raise DatabaseDamagedError(" ".join(found.split()), engine.url.render_as_string())


def _name_damage(context: ExceptionContext) -> None:
    """Say by name what a driver says by a number."""
    error, engine = context.original_exception, context.engine
    code, state = getattr(error, "sqlite_errorcode", None), getattr(error, "sqlstate", None)
    if (code is not None and code & 0xFF in _DAMAGE) or state in _DAMAGE_STATES:
        where = "" if engine is None else engine.url.render_as_string()
        raise DatabaseDamagedError(str(error), where) from error


def reading(engine: Engine) -> Connection:
    """A connection to look with, as a context manager: nothing that is written in it is kept.

    Args:
        engine: Of `open_database`.
    """
    options: dict[str, Any] = {_READS: True}
    if engine.dialect.name == "postgresql":
        options["isolation_level"] = "REPEATABLE READ"
    return engine.connect().execution_options(**options)


def check_url(url: str) -> URL:
    """The parts of a database's URL.

    Raises:
        ConfigError: If it is none, or of a database that is not supported.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError(
            f"{url!r} is no database URL", where="database", fix="give sqlite:///FILE"
        ) from error
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise ConfigError(
            f"a database of kind {parsed.drivername}",
            where="database",
            fix="use sqlite:///FILE or postgresql://USER@HOST/NAME",
        )
    return parsed


def hold(connection: Connection, name: str) -> None:
    """Keep other transactions that hold the same name waiting until this one ends.

    Args:
        connection: Of the transaction. On SQLite it holds everything already.
        name: Any text; two that differ share a lock once in 2**64.
    """
    if connection.dialect.name == "postgresql":
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


def migrate(engine: Engine) -> None:
    """Bring the tables to this release's."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it says at each start that it has begun
    config = AlembicConfig()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with engine.begin() as connection:
        hold(connection, _MIGRATING)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": _BUSY_S})
    _durable(engine)
    return engine


def _postgresql(url: URL) -> Engine:
    """Connections that were lost are noticed before they are used, and what is lost in a transaction fails it."""
    options = " ".join(f"-c {name}={value}" for name, value in _POSTGRES.items())
    arguments: dict[str, Any] = {"options": options, "connect_timeout": int(_BUSY_S)}
    try:
        return create_engine(
            url, connect_args=arguments, pool_pre_ping=True, isolation_level="READ COMMITTED"
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            "PostgreSQL needs psycopg, which is not installed",
            where="database",
            fix="pip install 'fedretrain[postgres]'",
        ) from error


def _durable(engine: Engine) -> None:
    """Make SQLite's commits durable, and its transactions begin where ours do."""

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        reads = connection.get_execution_options().get(_READS, False)
        connection.execute(text("BEGIN" if reads else "BEGIN IMMEDIATE"))
