"""A file of annotations: CSV with a header, or one JSON object on each line; ``device``, ``prediction`` (or ``sample``), ``label``.

Rules of this file:
    * Read as a whole before anything is kept: a mistake names its line, and nothing of the file counts.
    * A label is the name of an output, or its index.
"""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

from fedretrain.core.errors import DataError
from fedretrain.server.annotation_store import Annotation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_NAME = 200
_NAMES = ("prediction", "sample")


def read_annotations(content: bytes, where: str, outputs: Sequence[str]) -> list[Annotation]:
    """The annotations of a file.

    Args:
        content: Of the file.
        where: Its name, for messages.
        outputs: Names of the champion's outputs.

    Raises:
        DataError: If a line is not what it should be, or two lines contradict each other.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            "these annotations are no text", where=where, fix="write CSV or JSON lines"
        ) from error
    rows = _json_lines(text, where) if text.lstrip().startswith("{") else _csv_lines(text, where)
    found: dict[tuple[str, str], Annotation] = {}
    for number, row in rows:
        one = _annotation(row, f"{where}, line {number}", outputs)
        before = found.setdefault((one.device, one.of), one)
        if before != one:
            raise DataError(
                f"{one.of!r} of {one.device} has another label above",
                where=f"{where}, line {number}",
                fix="leave one of them",
            )
    if not found:
        raise DataError("there is no annotation", where=where, fix="give device, prediction and label")
    return list(found.values())


def _json_lines(text: str, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"no JSON: {error}", where=f"{where}, line {number}") from error
        if not isinstance(row, dict):
            raise DataError("no JSON object", where=f"{where}, line {number}")
        yield number, row


def _csv_lines(text: str, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text))
    try:
        for row in reader:
            yield reader.line_num, {str(key).strip(): value for key, value in row.items() if key is not None}
    except csv.Error as error:
        raise DataError(f"no CSV: {error}", where=f"{where}, line {reader.line_num}") from error


def _annotation(row: dict[str, Any], where: str, outputs: Sequence[str]) -> Annotation:
    named = [key for key in _NAMES if row.get(key) not in (None, "")]
    if len(named) != 1:
        raise DataError("neither a prediction nor a sample, or both", where=where, fix="name one of them")
    device, of = (str(row.get(key) or "").strip() for key in ("device", named[0]))
    if not device or not of or len(device) > MAX_NAME or len(of) > MAX_NAME:
        raise DataError(
            "a device or an id that is none", where=where, fix="give the names that the device uses"
        )
    return Annotation(device, of, _label(row.get("label"), where, outputs))


def _label(said: Any, where: str, outputs: Sequence[str]) -> int:
    text = str(said).strip()
    if text in outputs:
        return outputs.index(text)
    if text.isdecimal() and int(text) < len(outputs) and not isinstance(said, bool):
        return int(text)
    raise DataError(
        f"{said!r} is no label", where=where, fix=f"one of {', '.join(outputs)}, or an index from 0"
    )
