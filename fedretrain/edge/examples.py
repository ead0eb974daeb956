"""What a device predicted, and the labels that came for it: its own training data, which never leaves it.

Rules of this file:
    * A stream is one logical device with one model; an agent may hold several in one database, and they never mix.
    * A label is for a prediction or for all predictions of a sample. One for neither is refused by name.
    * Labels are only ever added. Of those by people (a user, the local API) the last one counts, a withdrawal included; a heuristic's
      counts only where people said nothing, and can never undo what they said.
    * The buffer is bounded by rows, bytes and age. What has no label goes first, as long as it fills more than half of the room: labels are
      few and late, and must still meet their prediction.
    * Held out is the newest part of the labelled examples: a random one would let a fit see the future of a drifting sensor.

Shapes: N examples; F model inputs.
"""

from __future__ import annotations

import math
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.checks import positive, require
from fedretrain.core.errors import DataError
from fedretrain.core.types import ClientData
from fedretrain.edge.transaction import overwrite_erased, transaction

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from fedretrain.training.keep import BlendConfig

USER, API, HEURISTIC = "user", "api", "heuristic:"
_ROW_BYTES = 400  # what a row costs beside its inputs: measured, columns and indexes
TABLES = """
create table if not exists predictions (
    number integer primary key autoincrement,
    device text not null, model text not null, id text not null, sample text,
    at real not null, inputs blob not null, shape text not null,
    version text not null, predicted integer not null, confidence real not null, entropy real not null,
    latency_s real not null,
    sensor text not null, calibration_epoch integer not null, firmware text not null, preprocessing text not null,
    label integer, label_source text, label_confidence real, label_at real, is_reported integer not null default 0,
    size integer not null,
    unique (device, model, id)
);
create index if not exists predictions_by_age on predictions (device, model, label is null, at, size);
create index if not exists predictions_by_sample on predictions (device, model, sample);
create index if not exists predictions_by_arrival on predictions (device, model, label_at) where label is not null;
create table if not exists labels (
    number integer primary key autoincrement,
    prediction integer not null references predictions (number) on delete cascade,
    label integer, source text not null, confidence real not null, at real not null
);
create index if not exists labels_by_prediction on labels (prediction, number);
"""


@dataclass(frozen=True)
class Stream:
    """One logical device with one model.

    Attributes:
        device: The logical device's name on this agent.
        model: The model's name.
    """

    device: str
    model: str


@dataclass(frozen=True)
class Origin:
    """What an example was measured and prepared with.

    Attributes:
        sensor: The sensor's name or serial number.
        calibration_epoch: Counts the sensor's calibrations.
        firmware: Of the sensor's board.
        preprocessing: Version of the preprocessing; examples of different versions are never trained on together.
    """

    sensor: str
    calibration_epoch: int
    firmware: str
    preprocessing: str


@dataclass(frozen=True)
class Prediction:
    """One prediction, with what it was made from.

    Attributes:
        id: Unique in its stream.
        at: Seconds since the epoch.
        inputs: ``[*F]`` float32 model inputs, finite.
        version: Digest of the package that made it.
        predicted: The class, or -1 where the model gave none.
        confidence: 0 to 1.
        entropy: Over the log of the number of classes, 0 to 1.
        latency_s: How long it took.
        origin: What the inputs were measured and prepared with.
        sample: The sample that it is about, if the device names those.
    """

    id: str
    at: float
    inputs: NDArray[np.float32]
    version: str
    predicted: int
    confidence: float
    entropy: float
    latency_s: float
    origin: Origin
    sample: str | None = None


@dataclass(frozen=True)
class Label:
    """What somebody says about a prediction or a sample.

    Attributes:
        of: Id of the prediction or of the sample.
        label: The class; None withdraws what was said before.
        source: ``user``, ``api`` or ``heuristic:NAME``.
        at: When it arrived, seconds since the epoch.
        confidence: 0 to 1.
    """

    of: str
    label: int | None
    source: str
    at: float
    confidence: float = 1.0


@dataclass(frozen=True)
class Room:
    """The bounds of one stream's buffer.

    Attributes:
        rows: The most predictions.
        size_bytes: The most bytes, inputs and columns (about; the file is some per cent larger).
        age_s: The oldest prediction.
    """

    rows: int = 50_000
    size_bytes: int = 64 * 2**20
    age_s: float = 60 * 86_400.0

    def __post_init__(self) -> None:
        require(self.rows >= 2, f"{self.rows} rows are no buffer", key="examples.rows")
        require(self.size_bytes >= 2**14, f"{self.size_bytes} bytes are no buffer", key="examples.size_bytes")
        positive("examples.age_s", self.age_s)


@dataclass(frozen=True)
class Trainable:
    """Labelled examples, older ones to fit on and the newest to judge by.

    Attributes:
        fit_ids: Ids of the examples of `fit`, in its order.
        fit: To train on, in the order of time.
        held: To judge by, newer than all of `fit`.
    """

    fit_ids: tuple[str, ...]
    fit: ClientData
    held: ClientData


def tables(connection: sqlite3.Connection) -> None:
    """Make the tables where they are not there yet, and turn on what the buffer relies on."""
    connection.execute("pragma foreign_keys = on")
    connection.execute("pragma secure_delete = on")  # what is erased is overwritten, not only unlinked
    for statement in TABLES.split(";"):
        connection.execute(statement)


class Examples:
    """The buffer of one stream.

    Args:
        connection: An open database; `tables` was called on it.
        stream: Whose examples.
        room: The bounds.
    """

    def __init__(self, connection: sqlite3.Connection, stream: Stream, room: Room | None = None) -> None:
        self._connection, self._room = connection, room or Room()
        self._key = (stream.device, stream.model)

    def add(self, predictions: Iterable[Prediction], now: float) -> None:
        """Keep predictions, all or none, and make room for them.

        Raises:
            DataError: If an id was there before, or inputs are not finite.
        """
        with transaction(self._connection):
            for one in predictions:
                self._insert(one)
            self._tidy(now)

    def _insert(self, one: Prediction) -> None:
        inputs = np.ascontiguousarray(one.inputs, dtype="<f4")
        if not np.isfinite(inputs).all():
            raise DataError(f"the inputs of prediction {one.id!r} are not finite", where="examples")
        origin, shape = one.origin, ",".join(str(n) for n in inputs.shape)
        values = (
            *(*self._key, one.id, one.sample, one.at, inputs.tobytes(), shape),
            *(one.version, one.predicted, one.confidence, one.entropy, one.latency_s),
            *(origin.sensor, origin.calibration_epoch, origin.firmware, origin.preprocessing),
            _ROW_BYTES + inputs.nbytes,
        )
        try:
            self._connection.execute(
                "insert into predictions (device, model, id, sample, at, inputs, shape, version, predicted, confidence,"
                " entropy, latency_s, sensor, calibration_epoch, firmware, preprocessing, size)"
                " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )
        except sqlite3.IntegrityError as error:
            raise DataError(
                f"prediction {one.id!r} was kept before", where="examples", fix="give a new id"
            ) from error

    def _tidy(self, now: float) -> None:
        """Drop what is too old, then what is too much."""
        self._connection.execute(
            "delete from predictions where device = ? and model = ? and at < ?",
            (*self._key, now - self._room.age_s),
        )
        while True:
            rows, size, bare_rows, bare_size = self._usage()
            if rows <= self._room.rows and size <= self._room.size_bytes:
                return
            too_bare = 2 * bare_rows > self._room.rows or 2 * bare_size > self._room.size_bytes
            over = max(rows - self._room.rows, 1)
            if size > self._room.size_bytes:
                over = max(over, (size - self._room.size_bytes) * rows // size)
            # In steps that pass no border: the next look decides anew who goes.
            spare = bare_rows - self._room.rows // 2 if 2 * bare_rows > self._room.rows else over
            self._connection.execute(
                "delete from predictions where number in (select number from predictions"
                " where device = ? and model = ? and (label is null) = ? order by at limit ?)",
                (*self._key, int(too_bare or bare_rows == rows), max(1, min(over, spare))),
            )

    def _usage(self) -> tuple[int, int, int, int]:
        """Rows and bytes, of all and of those without a label."""
        found = self._connection.execute(
            "select label is null, count(*), sum(size) from predictions where device = ? and model = ?"
            " group by label is null",
            self._key,
        ).fetchall()
        bare = next(((rows, size) for is_bare, rows, size in found if is_bare), (0, 0))
        return sum(row[1] for row in found), sum(row[2] for row in found), *bare

    def label(self, label: Label) -> tuple[str, ...]:
        """Add what somebody says; it counts at once.

        Returns:
            Ids of the predictions that it is about.

        Raises:
            DataError: If there is no such prediction or sample, or no such kind of source.
        """
        if label.source not in {USER, API} and not label.source.removeprefix(HEURISTIC).strip():
            raise DataError("a heuristic without a name", where="label.source", fix="say heuristic:NAME")
        if label.source not in {USER, API} and not label.source.startswith(HEURISTIC):
            raise DataError(
                f"{label.source!r} labels nothing",
                where="label.source",
                fix="say user, api or heuristic:NAME",
            )
        with transaction(self._connection):
            found = self._connection.execute(
                "select number, id from predictions where device = ? and model = ? and id = ? union"
                " select number, id from predictions where device = ? and model = ? and sample = ?",
                (*self._key, label.of, *self._key, label.of),
            ).fetchall()
            if not found:
                raise DataError(
                    f"there is no prediction or sample {label.of!r}",
                    where=f"labels of {self._key[0]}/{self._key[1]}",
                    fix="label what was predicted here and is still kept",
                )
            for number, _ in found:
                self._connection.execute(
                    "insert into labels (prediction, label, source, confidence, at) values (?, ?, ?, ?, ?)",
                    (number, label.label, label.source, label.confidence, label.at),
                )
                self._connection.execute(_COUNT_LABEL, (number, number))
        return tuple(id_ for _, id_ in found)

    def history(self, id_: str) -> tuple[Label, ...]:
        """Everything that was said about a prediction, in the order of arrival."""
        found = self._connection.execute(
            "select l.label, l.source, l.at, l.confidence from labels l join predictions p on p.number = l.prediction"
            " where p.device = ? and p.model = ? and p.id = ? order by l.number",
            (*self._key, id_),
        )
        return tuple(Label(id_, *row) for row in found)

    def labelled(
        self, now: float, preprocessing: str, min_confidence: float = 0.0
    ) -> tuple[tuple[str, ...], ClientData]:
        """Ids and arrays of the examples whose label is known at `now`, in the order of time.

        Args:
            now: Labels that arrived later are left out.
            preprocessing: Only examples prepared by this version.
            min_confidence: Only labels at least so sure.
        """
        found = self._connection.execute(
            "select id, inputs, shape, label from predictions where device = ? and model = ? and label is not null"
            " and label_at <= ? and at between ? and ? and preprocessing = ? and label_confidence >= ? order by at, number",
            (*self._key, now, now - self._room.age_s, now, preprocessing, min_confidence),
        ).fetchall()
        if len({row[2] for row in found}) > 1:
            raise DataError(
                "examples of one preprocessing version differ in shape",
                where=f"preprocessing {preprocessing}",
                fix="give changed preprocessing a new version",
            )
        shape = tuple(int(n) for n in found[0][2].split(",") if n) if found else (0,)
        x = np.frombuffer(b"".join(row[1] for row in found), dtype="<f4").astype(np.float32)
        y = np.array([row[3] for row in found], dtype=np.int64)
        return tuple(row[0] for row in found), ClientData(x.reshape(len(found), *shape), y)

    def trainable(
        self, now: float, config: BlendConfig, preprocessing: str, min_confidence: float = 0.0
    ) -> Trainable | None:
        """What can be trained on, with the newest part held out; None if there is too little."""
        ids, data = self.labelled(now, preprocessing, min_confidence)
        split = config.split(data)
        return None if split is None else Trainable(ids[: len(split[0])], *split)

    def erase(self) -> None:
        """Forget the stream: predictions, inputs and labels are overwritten (`transaction.overwrite_erased`)."""
        with transaction(self._connection):
            self._connection.execute("delete from predictions where device = ? and model = ?", self._key)
        overwrite_erased(self._connection)

    def made(self, begin: float, end: float) -> list[Sequence[Any]]:
        """Rows of the predictions with ``begin <= at < end`` for `edge.counts`: (at, inputs, version, predicted, confidence, entropy, latency)."""
        return self._connection.execute(
            "select at, inputs, version, predicted, confidence, entropy, latency_s from predictions"
            " where device = ? and model = ? and at >= ? and at < ? order by number",
            (*self._key, begin, end),
        ).fetchall()

    def arrived(self, now: float, before: float = math.inf) -> list[Sequence[Any]]:
        """Labels that were never reported: (number, at, version, predicted, confidence, label, label_at).

        Args:
            now: Labels that arrived later are left out.
            before: Likewise those of predictions that were made at or after it.
        """
        return self._connection.execute(
            "select number, at, version, predicted, confidence, label, label_at from predictions"
            " where device = ? and model = ? and label is not null and label_at <= ? and not is_reported"
            " and predicted >= 0 and at < ? order by number",
            (*self._key, now, before),
        ).fetchall()

    def reported(self, numbers: Iterable[int]) -> None:
        """Mark labels as reported; a later correction stays on the device, because counts that were sent cannot be taken back."""
        with transaction(self._connection):
            self._connection.executemany(
                "update predictions set is_reported = 1 where number = ?", ((number,) for number in numbers)
            )


# The last word of people, or of a heuristic where people said nothing; a withdrawal leaves no label.
_COUNT_LABEL = """
update predictions set (label, label_source, label_confidence, label_at) = (
    select label, source, confidence, at from labels
    where prediction = ? order by source not like 'heuristic:%' desc, number desc limit 1
) where number = ?
"""
