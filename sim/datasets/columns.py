"""The columns of a table file, each held to what it is used for: device, label, features, time.

Rules of this file:
    * Every refusal names the column, the first row at fault, the file, and what to do.
    * Nothing is guessed: text is no feature, fractions are no classes.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.core.types import Objective
from fedretrain.features.scaler import KINDS
from sim.datasets.files import read_npz

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Columns = dict[str, NDArray[Any]]

MOST_CLASSES = 1000


@dataclass(frozen=True)
class TableSpec:
    """Which columns of a table mean what.

    Attributes:
        path: The file.
        device: The column that names the device.
        label: The column to predict.
        time: The column with the instant (seconds, or dates); without it the file's order is time order.
        features: Columns or groups of columns to learn from; empty means every other numeric one.
        task: ``classification`` or ``regression``.
        missing: ``refuse`` NaN in features, or ``impute`` it (by the scaled mean).
        scaler: How features are scaled; with differential privacy on, ``local`` or ``instance``.
        target_scale: Regression: what the label is divided by for training; 0: it is standardised by the training rows
            of all devices, which differential privacy does not allow.
        one_class: Allow devices whose training rows have a single class.
        min_rows: Devices with fewer rows are refused.
    """

    path: str = ""
    device: str = ""
    label: str = ""
    time: str = ""
    features: tuple[str, ...] = ()
    task: str = "classification"
    missing: str = "refuse"
    scaler: str = "standard"
    target_scale: float = 0.0
    one_class: bool = False
    min_rows: int = 2

    def __post_init__(self) -> None:
        choices = (("task", tuple(Objective)), ("missing", ("refuse", "impute")), ("scaler", KINDS))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"table.{name}={getattr(self, name)!r} is not known",
                    fix=f"choose from {', '.join(allowed)}",
                )
        if self.scaler == "fixed":
            raise ConfigError(
                "table.scaler=fixed needs numbers", fix="scaffold a task: python -m sim task new NAME"
            )

    def require_given(self) -> None:
        """Refuse a table that nobody named.

        Raises:
            ConfigError: Naming what is not given.
        """
        for name in ("path", "device", "label"):
            if not getattr(self, name):
                raise ConfigError(f"table.{name} is not given", fix=f"add table.{name}=... to the command")


def read_columns(path: Path) -> Columns:
    """Every column of a file, whatever its format.

    Raises:
        DataError: If the file is missing, damaged, empty, or of another format.
    """
    if path.exists() and not path.is_file():
        raise DataError("the table is no file", where=str(path), fix="mend table.path")
    if not path.is_file():
        near = difflib.get_close_matches(
            path.name, [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else [], 1
        )
        raise DataError(
            "the table does not exist",
            where=str(path),
            fix=f"did you mean {near[0]}?" if near else "mend table.path",
        )
    suffix = path.suffix.lower()
    columns = read_npz(path) if suffix == ".npz" else _read_frame(path, suffix)
    sizes = {name: len(column) if column.ndim else 0 for name, column in columns.items()}
    if not sizes or not max(sizes.values()):
        raise DataError("the table has no rows", where=str(path), fix="give a file with a header and rows")
    return columns


def _read_frame(path: Path, suffix: str) -> Columns:
    """CSV (comma, semicolon or tab, sniffed) or Parquet."""
    import pandas as pd

    if suffix not in {".csv", ".tsv", ".txt", ".parquet", ".pq"}:
        raise DataError(
            f"tables of type {suffix or '(none)'} cannot be read",
            where=str(path),
            fix="give CSV, Parquet or npz",
        )
    try:
        if suffix in {".parquet", ".pq"}:
            frame: Any = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, sep=None, engine="python") if suffix != ".csv" else pd.read_csv(path)
    except Exception as error:  # pyarrow and pandas raise many types for one cause: the file
        raise DataError(
            f"the table cannot be read: {str(error).splitlines()[0][:120]}",
            where=str(path),
            fix="check the file",
        ) from error
    if suffix not in {".parquet", ".pq"}:
        _refuse_twice(path, suffix)
    return {str(name): frame[name].to_numpy() for name in frame.columns}


def _refuse_twice(path: Path, suffix: str) -> None:
    """Refuse two columns of one name: pandas would rename the second, and it would be learnt from."""
    import pandas as pd

    how: Any = {"sep": None, "engine": "python"} if suffix != ".csv" else {}
    (names,) = pd.read_csv(path, header=None, nrows=1, dtype=str, **how).to_numpy().tolist()
    for name in names:
        if names.count(name) > 1 and name == name:  # noqa: PLR0124 - columns without a name are told apart
            raise DataError(f"two columns are named {name!r}", where=str(path), fix="rename one")


def column_of(columns: Columns, name: str, role: str, path: str) -> NDArray[Any]:
    """One named column, with near names in the message where there is none."""
    if name in columns:
        return columns[name]
    near = difflib.get_close_matches(name, columns, 3, 0.5)
    hint = (
        f"did you mean {' or '.join(near)}?" if near else f"the columns are {', '.join(list(columns)[:12])}"
    )
    raise DataError(f"there is no column {name!r} (table.{role})", where=path, fix=hint)


def devices_of(column: NDArray[Any], spec: TableSpec) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Device names, and ``[M]`` which one each row belongs to."""
    if column.ndim != 1:
        raise DataError(
            f"the device column {spec.device!r} has {column.ndim} dimensions",
            where=spec.path,
            fix="name a column",
        )
    _refuse_missing(column, spec.device, "device", spec.path)
    values = column if column.dtype.kind in "iu" else column.astype(str)
    names, stream = np.unique(values, return_inverse=True)
    sizes = np.bincount(stream)
    if sizes.min() < spec.min_rows:
        least = int(np.argmin(sizes))
        raise DataError(
            f"the device {names[least]!s} has {sizes[least]} row(s) (so have {int((sizes < spec.min_rows).sum()) - 1} others); "
            f"a device needs {spec.min_rows}: one to train on and one to score",
            where=spec.path,
            fix="leave such devices out, or allow them with table.min_rows=1",
        )
    return tuple(str(name) for name in names), stream.astype(np.int32)


def _refuse_missing(column: NDArray[Any], name: str, role: str, path: str) -> None:
    """Refuse empty cells in a column that must be full."""
    empty = np.isnan(column) if column.dtype.kind == "f" else np.array([v is None or v != v for v in column])  # noqa: PLR0124
    if column.dtype.kind in "mM":
        empty = np.isnat(column)
    if empty.any():
        raise DataError(
            f"row {int(np.argmax(empty))} has no {role} (column {name!r}; {int(empty.sum())} such rows)",
            where=path,
            fix="fill it in, or drop the rows",
        )


def labels_of(column: NDArray[Any], spec: TableSpec) -> tuple[NDArray[Any], tuple[str, ...]]:
    """``[M]`` targets, and the class names (none for a regression)."""
    if column.ndim != 1:
        raise DataError(
            f"the label column {spec.label!r} has {column.ndim} dimensions",
            where=spec.path,
            fix="name a column",
        )
    _refuse_missing(column, spec.label, "label", spec.path)
    if spec.task == Objective.REGRESSION:
        return _targets(column, spec), ()
    if column.dtype.kind == "f" and np.any(column != np.round(column)):
        raise DataError(
            f"the label column {spec.label!r} holds fractions such as {column[column != np.round(column)][0]:g}",
            where=spec.path,
            fix="use table.task=regression, or give classes",
        )
    values = column.astype(np.int64) if column.dtype.kind in "fb" else column
    values = values if values.dtype.kind in "iu" else values.astype(str)
    names, y = np.unique(values, return_inverse=True)
    if len(names) < 2:
        raise DataError(
            f"every row has the same label, {names[0]!s}", where=spec.path, fix="name another label column"
        )
    if len(names) > MOST_CLASSES:
        raise DataError(
            f"the label column {spec.label!r} has {len(names)} classes",
            where=spec.path,
            fix="use table.task=regression",
        )
    return y.astype(np.int64), tuple(str(name) for name in names)


def _targets(column: NDArray[Any], spec: TableSpec) -> NDArray[np.float32]:
    """The targets of a regression: numbers, all finite."""
    if column.dtype.kind not in "fiub":
        raise DataError(
            f"the label column {spec.label!r} holds text",
            where=spec.path,
            fix="use table.task=classification",
        )
    target = column.astype(np.float32)
    if not np.isfinite(target).all():
        raise DataError(
            f"the label of row {int(np.argmin(np.isfinite(target)))} is infinite",
            where=spec.path,
            fix="mend or drop it",
        )
    return target


def features_of(columns: Columns, spec: TableSpec, rows: int) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """``[M, C]`` features and their names."""
    taken = {spec.device, spec.label, spec.time}
    asked = spec.features or [
        n for n, c in columns.items() if n not in taken and c.dtype.kind in "fiub" and c.ndim in {1, 2}
    ]
    if not spec.features:
        for name in columns.keys() - taken:
            _refuse_stray_text(columns[name], name, spec.path)
    if not asked:
        raise DataError(
            "the table has no numeric column left for features",
            where=spec.path,
            fix="name some in table.features=[...]",
        )
    parts, names = [], []
    for name in asked:
        if name in taken:
            raise ConfigError(
                f"the column {name!r} is a feature and the device, label or time too",
                where="table.features",
                fix="take it out",
            )
        column = column_of(columns, name, "features", spec.path)
        parts.append(_feature(column, name, spec, rows))
        names.extend([name] if column.ndim == 1 else [f"{name}[{i}]" for i in range(parts[-1].shape[1])])
    return np.concatenate(parts, axis=1), tuple(names)


def _refuse_stray_text(column: NDArray[Any], name: str, path: str) -> None:
    """Refuse a column of numbers in which some text stands: nobody means it to be left out for that."""
    import pandas as pd

    if column.ndim != 1 or column.dtype.kind not in "OUT":
        return
    stray = pd.to_numeric(pd.Series(column), errors="coerce").isna().to_numpy() & ~pd.isna(column)
    if 2 * stray.sum() < len(column) and stray.any():
        row = int(np.argmax(stray))
        raise DataError(
            f"the column {name!r} has the text {str(column[row])[:40]!r} in row {row}, among numbers; {int(stray.sum())} such values",
            where=path,
            fix="mend or drop the rows, or name the columns to learn from in table.features=[...]",
        )


def _feature(column: NDArray[Any], name: str, spec: TableSpec, rows: int) -> NDArray[np.float32]:
    """``[M, k]`` of one column or group, finite (or NaN where that was allowed)."""
    if column.ndim not in {1, 2} or len(column) != rows:
        raise DataError(
            f"the feature {name!r} has the shape {column.shape}; expected {rows} rows and one or two dimensions",
            where=spec.path,
            fix="windows need a task of their own: python -m sim task new NAME",
        )
    if column.dtype.kind not in "fiub":
        raise DataError(
            f"the feature {name!r} holds text or dates, such as {column.flat[0]!r}",
            where=spec.path,
            fix="encode it as numbers, or leave it out",
        )
    with np.errstate(over="ignore"):
        values = column.astype(np.float32).reshape(rows, -1)
    bad = ~np.isfinite(values) if spec.missing == "refuse" else np.isinf(values)
    if bad.any():
        row, at = (int(i) for i in np.argwhere(bad)[0])
        what = "NaN" if np.isnan(values[row, at]) else "infinity"
        fix = (
            "drop or mend the rows, or allow missing values with table.missing=impute"
            if what == "NaN"
            else "mend or drop the rows"
        )
        raise DataError(
            f"the feature {name!r} has {what} in row {row}; {int(bad.sum())} such values",
            where=spec.path,
            fix=fix,
        )
    return values


def seconds_of(columns: Columns, spec: TableSpec, rows: int) -> NDArray[np.float64] | None:
    """``[M]`` seconds, or None where the file's order is all there is."""
    if not spec.time:
        return None
    column = column_of(columns, spec.time, "time", spec.path)
    if column.ndim != 1 or len(column) != rows:
        raise DataError(
            f"the time column {spec.time!r} has the shape {column.shape}",
            where=spec.path,
            fix="name a column",
        )
    _refuse_missing(column, spec.time, "time", spec.path)
    seconds = column.astype(np.float64) if column.dtype.kind in "fiu" else _dates(column, spec)
    if not np.isfinite(seconds).all():
        raise DataError(
            f"the time of row {int(np.argmin(np.isfinite(seconds)))} is infinite",
            where=spec.path,
            fix="mend or drop it",
        )
    return seconds


def _dates(column: NDArray[Any], spec: TableSpec) -> NDArray[np.float64]:
    """Dates or text as seconds since 1970."""
    import pandas as pd

    try:
        stamps: Any = pd.to_datetime(pd.Series(column), utc=True)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"the time column {spec.time!r} is neither seconds nor dates: {str(error).splitlines()[0][:80]}",
            where=spec.path,
            fix="write dates as 2024-01-31 12:00:00, or seconds as numbers",
        ) from error
    return stamps.dt.tz_localize(None).to_numpy().astype("datetime64[us]").astype(np.int64) / 1e6
