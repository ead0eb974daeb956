"""Looks at a stream's buffer that are not for training: what was labelled, what is newest, and the mending of its time.

Rules of this file:
    * Nothing here leaves the device.
    * Functions of `examples.Examples`' tables; whoever calls them holds the database's mutex.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.edge.transaction import transaction

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Container, Sequence

    from numpy.typing import NDArray

    from fedretrain.edge.examples import Stream


@dataclass(frozen=True, eq=False)
class HeldRows:
    """Labelled examples with their instants, in the order of time.

    Attributes:
        at_N: float64 instant of the prediction.
        label_at_N: float64 instant at which the label came.
        x: ``[N, *F]`` float32 model inputs.
        y: ``[N]`` int64 classes.
    """

    at_N: NDArray[np.float64]
    label_at_N: NDArray[np.float64]
    x: NDArray[np.float32]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)


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

    def held(
        self,
        from_at: float,
        until_at: float,
        preprocessing: str,
        *,
        known_at: float,
        learnt_at: float,
        min_confidence: float,
        without: Container[str],
        most: int,
    ) -> HeldRows | None:
        """The newest labelled predictions of a period; None if there are none.

        Args:
            from_at: Made at it or later.
            until_at: Made before it.
            preprocessing: Only those prepared by this version.
            known_at: Labels that arrived later are left out.
            learnt_at: Likewise labels that arrived no later than it.
            min_confidence: Likewise labels that are less sure.
            without: Ids that are left out.
            most: At most so many.
        """
        found = self._connection.execute(
            "select id, at, label_at, inputs, shape, label from predictions where device = ? and model = ?"
            " and label is not null and label_at <= ? and label_at > ? and at >= ? and at < ? and preprocessing = ?"
            " and label_confidence >= ? order by at, number",
            (*self._key, known_at, learnt_at, from_at, until_at, preprocessing, min_confidence),
        )
        rows = [row[1:] for row in found if row[0] not in without][-most:]
        if not rows:
            return None
        at, label_at, inputs, shapes, label = zip(*rows, strict=True)
        shape = tuple(int(n) for n in shapes[0].split(",") if n)
        return HeldRows(
            np.array(at, dtype=np.float64),
            np.array(label_at, dtype=np.float64),
            np.frombuffer(b"".join(inputs), dtype="<f4").astype(np.float32).reshape(len(rows), *shape),
            np.array(label, dtype=np.int64),
        )

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
