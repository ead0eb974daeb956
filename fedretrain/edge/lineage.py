"""Which examples a version saw: known on the device, committed to outside, provable by the device alone.

Rules of this file:
    * A campaign learns a commitment and nothing else: HMAC-SHA256, keyed with 32 random bytes that never leave the device, over the
      canonical list of example ids. Without the salt it tells neither an id nor whether two lists are alike; with it, no
      other list opens it.
    * The same examples in another order are the same list.
    * Erasure takes examples, labels, personal parameters, salts and lists at once; the commitment that others hold then opens to nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedretrain.core.errors import DataError
from fedretrain.edge import personal
from fedretrain.edge.transaction import overwrite_erased, transaction

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable
    from pathlib import Path

    from fedretrain.edge.examples import Stream

_SALT_BYTES = 32
TABLES = """
create table if not exists lineage (
    commitment text primary key, device text not null, model text not null,
    campaign text not null, version text, salt blob not null, examples text not null, at real not null
);
create index if not exists lineage_by_version on lineage (device, model, version);
"""


@dataclass(frozen=True)
class Use:
    """Examples that one training used.

    Attributes:
        commitment: 64 hexadecimal digits: what the campaign was told.
        campaign: Which training.
        version: Digest of the version that came of it; None while that is not known.
        examples: Their ids, sorted.
        at: When they were used, seconds since the epoch.
    """

    commitment: str
    campaign: str
    version: str | None
    examples: tuple[str, ...]
    at: float


def tables(connection: sqlite3.Connection) -> None:
    """Make the tables where they are not there yet."""
    connection.execute("pragma secure_delete = on")
    for statement in TABLES.split(";"):
        connection.execute(statement)


def commitment(salt: bytes, examples: Iterable[str]) -> str:
    """What is told of a list of example ids: 64 hexadecimal digits."""
    return hmac.new(salt, _canonical(examples).encode(), hashlib.sha256).hexdigest()


def _canonical(examples: Iterable[str]) -> str:
    """Sorted, each once, as JSON: no two lists are written alike."""
    return json.dumps(sorted(set(examples)), ensure_ascii=True, separators=(",", ":"))


class Lineage:
    """What the examples of one stream were used for.

    Args:
        connection: An open database; `tables` was called on it.
        stream: Whose examples.
    """

    def __init__(self, connection: sqlite3.Connection, stream: Stream) -> None:
        self._connection, self._key = connection, (stream.device, stream.model)

    def used(self, campaign: str, examples: Iterable[str], at: float) -> str:
        """Remember that a campaign's training used examples; call it before the update is sent.

        Returns:
            The commitment: all that may leave the device.
        """
        ids, salt = sorted(set(examples)), secrets.token_bytes(_SALT_BYTES)
        made = commitment(salt, ids)
        with transaction(self._connection):
            self._connection.execute(
                "insert into lineage (commitment, device, model, campaign, salt, examples, at)"
                " values (?, ?, ?, ?, ?, ?, ?)",
                (made, *self._key, campaign, salt, _canonical(ids), at),
            )
        return made

    def came_of(self, campaign: str, version: str) -> None:
        """Note which version a campaign made.

        Raises:
            DataError: If this stream took no part in it.
        """
        with transaction(self._connection):
            changed = self._connection.execute(
                "update lineage set version = ? where device = ? and model = ? and campaign = ?",
                (version, *self._key, campaign),
            )
            if not changed.rowcount:
                raise DataError(f"nothing here was used by the campaign {campaign!r}", where="lineage")

    def of(self, version: str) -> tuple[Use, ...]:
        """Which examples a version saw on this device, by training; shown here and nowhere else."""
        found = self._connection.execute(
            "select commitment, campaign, version, examples, at from lineage"
            " where device = ? and model = ? and version = ? order by at, commitment",
            (*self._key, version),
        )
        return tuple(
            Use(c, campaign, made, tuple(json.loads(ids)), at) for c, campaign, made, ids, at in found
        )

    def seen(self) -> frozenset[str]:
        """Ids of the examples that any training here was given."""
        found = self._connection.execute(
            "select examples from lineage where device = ? and model = ?", self._key
        )
        return frozenset(id_ for (ids,) in found for id_ in json.loads(ids))

    def verify(self, told: str) -> bool:
        """Whether a commitment that others hold is opened by what is kept here."""
        found = self._connection.execute(
            "select salt, examples from lineage where device = ? and model = ? and commitment = ?",
            (*self._key, told),
        ).fetchone()
        return found is not None and hmac.compare_digest(commitment(found[0], json.loads(found[1])), told)


def erase(connection: sqlite3.Connection, stream: Stream, personal_folder: Path) -> None:
    """Forget a logical device that is retired: its examples, labels, lineage and personal parameters.

    May be called again after a failure; it then goes on.

    Args:
        connection: The open database, with the tables of `examples` and of this file.
        stream: Which device and model.
        personal_folder: Where `personal` keeps its parameters.

    Raises:
        DataError: If somebody reads the database, so that the old content is still in its log.
        OSError: If the personal parameters cannot be overwritten.
    """
    key = (stream.device, stream.model)
    with transaction(connection):
        connection.execute("delete from predictions where device = ? and model = ?", key)
        connection.execute("delete from lineage where device = ? and model = ?", key)
    personal.erase(personal_folder, stream)
    overwrite_erased(connection)
