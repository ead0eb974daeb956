"""Anybody's table: a CSV, Parquet or npz file with a device, a label and features.

In an npz each array is a column; a two-dimensional one is a group of features, named ``NAME[0]``, ``NAME[1]`` ...,
and asked for by its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import DataError
from fedretrain.core.types import Objective
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Channel, Schema
from fedretrain.features.steps import Impute, Step
from sim.datasets.base import SensorDataset, Split, Timeline, choose_future, content_digest, rank_fraction
from sim.datasets.columns import (
    TableSpec,
    column_of,
    devices_of,
    features_of,
    labels_of,
    read_columns,
    seconds_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["TableSpec", "load"]


def _refuse_one_class(
    y: NDArray[np.int64],
    stream: NDArray[np.int32],
    future: NDArray[np.bool_],
    names: Sequence[str],
    path: str,
) -> None:
    """Refuse devices whose training rows are all of one class."""
    pairs = np.unique(np.stack([stream[~future], y[~future].astype(np.int32)]), axis=1)
    alone = np.flatnonzero(np.bincount(pairs[0], minlength=len(names)) == 1)
    if len(alone):
        raise DataError(
            f"the device {names[int(alone[0])]} has one class only in its training rows (so have {len(alone) - 1} others)",
            where=path,
            fix="give it rows of other classes, leave it out, or allow it with table.one_class=true",
        )


def _roles(
    columns: dict[str, NDArray[Any]], spec: TableSpec
) -> tuple[tuple[str, ...], NDArray[np.int32], NDArray[Any]]:
    """Names of the devices, whose each row is, and the label column."""
    device, label = (column_of(columns, getattr(spec, role), role, spec.path) for role in ("device", "label"))
    names, stream = devices_of(device, spec)
    if len(label) != len(stream):
        raise DataError(
            f"{len(stream)} devices and {len(label)} labels", where=spec.path, fix="give one of each a row"
        )
    return names, stream, label


def _pipeline(spec: TableSpec) -> Pipeline:
    """Scale, then put missing values on the scaler's center."""
    fill: tuple[Step, ...] = (Impute("constant", 0.0),) if spec.missing == "impute" else ()
    return Pipeline((Scaler(spec.scaler, clip=8.0), *fill))


def load(
    data_dir: Path | str | None = None,
    *,
    spec: TableSpec,
    timeline: Timeline | None = None,
    split: str = Split.TEMPORAL,
    seed: int = 0,
    past_fraction: float = 0.7,
) -> SensorDataset:
    """A table as a data set.

    Args:
        data_dir: Where a relative `spec.path` is looked for if it is not in the working folder.
        spec: Which columns mean what.
        timeline: Where rows are put in virtual time; with a time column, real spacing is kept and each device's split
            falls on the campaign's end.
        split: Temporal (the last rows of each device are scored) or random.
        seed: For the random split.
        past_fraction: Share of each device's rows that is trained on.
    """
    spec.require_given()
    columns = read_columns(_resolved(spec.path, data_dir))
    names, stream, label = _roles(columns, spec)
    y, class_names = labels_of(label, spec)
    x, features = features_of(columns, spec, len(y))
    seconds = seconds_of(columns, spec, len(y))
    order = np.lexsort((np.arange(len(y)) if seconds is None else seconds, stream))
    x, y, stream = x[order], y[order], stream[order]
    future = choose_future(stream, past_fraction, split, seed)
    if class_names and not spec.one_class:
        _refuse_one_class(y, stream, future, names, spec.path)
    y, scale = _scaled(y, ~future, spec)
    when = timeline or Timeline()
    at = when.place(stream, future) if seconds is None else _shifted(when, seconds[order], stream, future)
    return SensorDataset(
        name=Path(spec.path).stem,
        schema=Schema(
            tuple(Channel(n, "1", -np.inf, np.inf, missing=spec.missing == "impute") for n in features)
        ),
        objective=Objective(spec.task),
        num_outputs=len(class_names) or 1,
        class_names=class_names,
        x=x,
        y=y,
        stream=stream,
        stream_names=names,
        site=np.zeros(len(names), dtype=np.int32),
        device_type=np.zeros(len(names), dtype=np.int32),
        event_at=at,
        future=future,
        pipeline=_pipeline(spec),
        digest=content_digest(x, y, stream),
        caveats=("ranges and units of the columns are not declared",)
        + (() if split == Split.TEMPORAL else ("random split: neighbours in time are on both sides",)),
        target_name=spec.label,
        target_scale=scale,
        target_pooled=not class_names and not spec.target_scale,
    )


def _scaled(y: NDArray[Any], past: NDArray[np.bool_], spec: TableSpec) -> tuple[NDArray[Any], float]:
    """Targets as a model is trained on them, and how many of the column's units 1.0 is; classes as they are.

    Without a scale of the user's, targets get mean 0 and standard deviation 1 over the past rows.
    """
    if spec.task != Objective.REGRESSION:
        return y, 1.0
    if spec.target_scale:
        return (y / spec.target_scale).astype(np.float32), spec.target_scale
    scale = float(np.std(y[past], dtype=np.float64)) or 1.0
    return ((y - np.mean(y[past], dtype=np.float64)) / scale).astype(np.float32), scale


def _resolved(given: str, data_dir: Path | str | None) -> Path:
    """The file: as given, or below the data folder."""
    path = Path(given).expanduser()
    if data_dir and not path.is_absolute() and not path.exists():
        return Path(data_dir) / path
    return path


def _shifted(
    when: Timeline, seconds: NDArray[np.float64], stream: NDArray[np.int32], future: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Each device's clock moved so that its first scored row falls on the campaign's end.

    Rows that span less than the campaign would then all be measured during it, most of them after its last round. So
    the past of such a device is moved back further, until all but the live fraction of it lies before the campaign.
    """
    first = np.full(int(stream.max()) + 1, np.inf)
    np.minimum.at(first, stream[future], seconds[future])
    last = np.full(len(first), -np.inf)
    np.maximum.at(last, stream, seconds)
    at = when.shift(seconds, np.where(np.isfinite(first), first, last + 1.0)[stream])
    early = ~future & (rank_fraction(2 * stream.astype(np.int64) + future) <= 1.0 - when.live_fraction)
    until = np.zeros(len(first))
    np.maximum.at(until, stream[early], at[early])
    return np.where(future, at, at - until[stream])
