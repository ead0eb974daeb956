"""All or nothing on a plain SQLite connection, whatever its isolation level; and deletions that leave nothing behind."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what the body did, or undo it if it raises; inside another transaction it is a part of that one."""
    if connection.in_transaction:
        yield
        return
    connection.execute("begin immediate")
    try:
        yield
    except BaseException:
        connection.execute("rollback")
        raise
    connection.execute("commit")


def overwrite_erased(connection: sqlite3.Connection) -> None:
    """Bring deletions into the file itself and empty the write-ahead log, which still holds what was deleted.

    With `pragma secure_delete` the deleted content is then in neither. What the storage underneath keeps of overwritten blocks (flash
    does) is beyond this: encrypt the volume.

    Raises:
        DataError: If somebody is reading the old content, so that it must stay for now.
    """
    busy, *_ = connection.execute("pragma wal_checkpoint(truncate)").fetchone()
    if busy:
        raise DataError(
            "what was deleted is still in the write-ahead log: the database is being read",
            where="erasure",
            fix="end the reader and erase again",
        )
