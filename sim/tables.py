"""Records to Parquet and back: one row per record, one column per number.

Rules of this file:
    * A nested record's fields become columns ``<field>_<part>`` (``global_score_p10``); all are null where it is None.
    * A mapping becomes one JSON column: its keys may differ from row to row.
    * The schema comes from the annotations alone, so an empty table has its columns too.
"""

from __future__ import annotations

import io
import json
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from sim.plain import from_plain, hints, is_record, optional, to_plain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

R = TypeVar("R")


def table_bytes(cls: type[R], records: Sequence[R]) -> bytes:
    """A Parquet file of `records`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = dict(_column_values(cls, records))
    table = pa.table(columns, schema=pa.schema([(n, _arrow(h)) for n, h in _columns(cls).items()]))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_table(cls: type[R], file: Path) -> tuple[R, ...]:
    """The records of a Parquet file.

    Raises:
        ValueError: If a column is missing, unknown or of another type.
    """
    import pyarrow.parquet as pq

    rows = pq.read_table(file).to_pylist()
    return tuple(from_plain(cls, _nest(cls, row), f"row {i}") for i, row in enumerate(rows))


def _columns(cls: type) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, hint in hints(cls).items():
        bare, _ = optional(hint)
        if is_record(bare):
            columns.update({f"{name}_{part}": part_hint for part, part_hint in hints(bare).items()})
        else:
            columns[name] = bare
    return columns


def _arrow(hint: Any) -> Any:
    import pyarrow as pa

    if typing.get_origin(hint) is Mapping or (isinstance(hint, type) and issubclass(hint, Enum)):
        return pa.string()
    return {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}[hint]


def _column_values(cls: type, records: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Each column with its values: a column at a time, since a fleet's scores may be a million rows."""
    for name, hint in hints(cls).items():
        bare, _ = optional(hint)
        values = [getattr(record, name) for record in records]
        if is_record(bare):
            for part in hints(bare):
                yield f"{name}_{part}", [None if v is None else to_plain(getattr(v, part)) for v in values]
        elif typing.get_origin(bare) is Mapping:
            yield name, [json.dumps(to_plain(v), sort_keys=True) for v in values]
        else:
            yield name, [to_plain(v) for v in values]


def _nest(cls: type, row: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, hint in hints(cls).items():
        bare, _ = optional(hint)
        if is_record(bare):
            parts = {part: row.pop(f"{name}_{part}") for part in hints(bare)}
            plain[name] = None if all(v is None for v in parts.values()) else parts
        else:
            value = row.pop(name)
            plain[name] = json.loads(value) if typing.get_origin(bare) is Mapping else value
    return plain | row  # what is left over is unknown, and is refused as such
