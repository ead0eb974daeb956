"""The coordinator's database: SQLite in a file, or PostgreSQL by its URL.

Rules of this file:
    * A committed transaction is on the disk when `commit` returns: WAL with synchronous=FULL on SQLite.
    * A transaction that writes takes SQLite's write lock at its beginning, so that what it read cannot change under it.
    * Who only reads (`reading`) takes no lock: it sees one state of the database, and neither waits for writers nor keeps them.
    * The tables are made and changed by migrations only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from fedretrain.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_S = 30.0
_READS = "fedretrain_reads"


def open_database(url: str) -> Engine:
    """The engine of a database whose tables are those of this release.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql+psycopg://...``.

    Raises:
        ConfigError: If the URL is none, or of a database that is not supported.
        DataError: If the database cannot be opened or migrated.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError(
            f"{url!r} is no database URL", where="database.url", fix="give sqlite:///FILE"
        ) from error
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ConfigError(
            f"a database of kind {parsed.get_backend_name()}",
            where="database.url",
            fix="use sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME",
        )
    sqlite = parsed.get_backend_name() == "sqlite"
    arguments: dict[str, Any] = {"timeout": _BUSY_S} if sqlite else {}
    engine = create_engine(parsed, connect_args=arguments, pool_pre_ping=not sqlite)
    if sqlite:
        _durable(engine)
    try:
        migrate(engine)
    except OperationalError as error:
        raise DataError(
            f"the database cannot be opened: {error.orig}",
            where=parsed.render_as_string(),
            fix="check that its folder or server is there",
        ) from error
    return engine


def reading(engine: Engine) -> Connection:
    """A connection to look with, as a context manager: nothing that is written in it is kept.

    Args:
        engine: Of `open_database`.
    """
    return engine.connect().execution_options(**{_READS: True})


def migrate(engine: Engine) -> None:
    """Bring the tables to this release's."""
    config = AlembicConfig()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


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
