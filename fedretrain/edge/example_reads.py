"""Looks at a stream's buffer that are not for training: what was labelled, what is newest, and the mending of its time.

Rules of this file:
    * Nothing here leaves the device.
    * Functions of `examples.Examples`' tables; whoever calls them holds the database's mutex.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedretrain.edge.transaction import transaction

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from fedretrain.edge.examples import Stream


class Reads:
    """Of one stream.

    Args:
        connection: An open database with the tables of `examples`.
        stream: Whose examples.
    """

    def __init__(self, connection: sqlite3.Connection, stream: Stream) -> None:
        self._connection, self._key = connection, (stream.device, stream.model)

    def told(self) -> dict[int, int]:
        """How often each class is a label here."""
        found = self._connection.execute(
            "select label, count(*) from predictions where device = ? and model = ? and label is not null"
            " group by label",
            self._key,
        )
        return dict(found.fetchall())

    def size(self) -> int:
        """Predictions that are kept."""
        query = "select count(*) from predictions where device = ? and model = ?"
        return int(self._connection.execute(query, self._key).fetchone()[0])

    def recent(self, limit: int) -> list[Sequence[Any]]:
        """The newest predictions: (id, sample, at, version, predicted, confidence, label, label source), newest first."""
        return self._connection.execute(
            "select id, sample, at, version, predicted, confidence, label, label_source from predictions"
            " where device = ? and model = ? order by number desc limit ?",
            (*self._key, limit),
        ).fetchall()

    def predicted(self, id_: str) -> tuple[str, int, int]:
        """Of a prediction: the version that made it, the class, and how many labels were ever given to it."""
        found = self._connection.execute(
            "select version, predicted, (select count(*) from labels where prediction = predictions.number)"
            " from predictions where device = ? and model = ? and id = ?",
            (*self._key, id_),
        ).fetchone()
        return str(found[0]), int(found[1]), int(found[2])

    def first_at(self, since: float) -> float | None:
        """When the first prediction at or after an instant was made; None if there is none."""
        query = "select min(at) from predictions where device = ? and model = ? and at >= ?"
        found = self._connection.execute(query, (*self._key, since)).fetchone()[0]
        return None if found is None else float(found)

    def last(self) -> int:
        """The number of the newest prediction; 0 for none."""
        query = "select max(number) from predictions where device = ? and model = ?"
        return int(self._connection.execute(query, self._key).fetchone()[0] or 0)

    def shift(self, after: int, by_s: float) -> None:
        """Correct the time of the predictions above a number: the clock that they were stamped with was wrong."""
        with transaction(self._connection):
            self._connection.execute(
                "update predictions set at = at + ?, label_at = label_at + ?"
                " where device = ? and model = ? and number > ?",
                (by_s, by_s, *self._key, after),
            )
