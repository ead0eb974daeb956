"""Gas sensor array drift: 16 metal-oxide sensors, 6 gases, 36 months; real ageing of the sensors.

No device id is published. The array is four sensor types with four physical replicates each, which makes four nodes
of one sensor of each type: the same chemistry, different sensors, each ageing on its own.

Reads the compact npz, and the publisher's ``batchK.dat`` in both forms: ``CLASS 1:v 2:v ...`` (UCI id 224) and
``CLASS;PPM 1:v 2:v ...`` (UCI id 270).

Source: Vergara et al. 2012, Sens. Actuators B 166-167, https://doi.org/10.1016/j.snb.2012.01.074; Rodriguez-Lujan et al.
2014, https://doi.org/10.1016/j.chemolab.2013.10.012.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core import rng
from fedretrain.core.clock import DAY_S
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.core.types import Objective
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Channel, Schema
from fedretrain.features.steps import LogSigned
from sim.datasets.base import SensorDataset, Split, Timeline, choose_future, content_digest, rank_fraction
from sim.datasets.files import Source, expect_shape, read_lines, read_npz

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SOURCE = Source(
    "gas_drift",
    ("gas_drift", "Dataset", "gas+sensor+array+drift+dataset"),
    ("gas_drift.npz", "batch*.dat"),
    "get 'Gas Sensor Array Drift at Different Concentrations' (UCI id 270, DOI 10.24432/C5MK6M) or UCI id 224",
)
CLASS_NAMES = ("Ethanol", "Ethylene", "Ammonia", "Acetaldehyde", "Acetone", "Toluene")
NUM_SENSORS, NUM_FEATURES = 16, 8
# Sensors (counted from 0) of each node: one of each type (the grouping is inferred from response correlations).
NODES = {"node A": (0, 2, 4, 6), "node B": (1, 3, 5, 7), "node C": (8, 10, 12, 14), "node D": (9, 11, 13, 15)}
# The months of each batch, counted from the first: (first, last).
MONTHS = {
    1: (1, 2),
    2: (3, 10),
    3: (11, 13),
    4: (14, 15),
    5: (16, 16),
    6: (17, 20),
    7: (21, 21),
    8: (22, 23),
    9: (24, 30),
    10: (36, 36),
}
_MONTH_S = 30 * DAY_S
_QUANTITIES = (
    ("steady", "ohm", -1e6, 1e6),
    ("steady_normalised", "1", 0.0, 1e5),
    ("rise_0.001", "ohm", 0.0, 1e3),
    ("rise_0.01", "ohm", 0.0, 1e4),
    ("rise_0.1", "ohm", 0.0, 1e5),
    ("decay_0.001", "ohm", -1e3, 1e3),
    ("decay_0.01", "ohm", -1e4, 1e4),
    ("decay_0.1", "ohm", -1e5, 1e5),
)
SCHEMA = Schema(
    tuple(
        Channel(f"sensor{s}_{name}", unit, low, high, missing=True)
        for s in range(1, 5)
        for name, unit, low, high in _QUANTITIES
    )
)


@dataclass(frozen=True)
class _Table:
    x: NDArray[np.float32]  # [rows, 128]
    y: NDArray[np.int64]  # [rows]
    batch: NDArray[np.int64]  # [rows]


def default_pipeline() -> Pipeline:
    """Signed logarithm (values span seven decades), then constants of the usual decade of each quantity."""
    center = (9.5, 1.6, 1.6, 2.1, 2.4, -1.3, -1.6, -2.3) * 4
    scale = (1.5, 0.6, 1.0, 1.0, 1.0, 1.0, 1.0, 1.2) * 4
    return Pipeline((LogSigned(1.0), Scaler("fixed", center, scale, clip=8.0)))


def _from_npz(path: Path) -> _Table:
    arrays = read_npz(path, ("X", "gas", "batch"))
    expect_shape(arrays["X"], (None, NUM_SENSORS * NUM_FEATURES), "X", path)
    for name in ("gas", "batch"):
        expect_shape(arrays[name], (len(arrays["X"]),), name, path)
    return _Table(
        arrays["X"].astype(np.float32), arrays["gas"].astype(np.int64) - 1, arrays["batch"].astype(np.int64)
    )


def _from_dat(paths: Sequence[Path]) -> _Table:
    """The publisher's ``batchK.dat`` files, both forms."""
    rows, labels, batches = [], [], []
    for path in paths:
        number = re.fullmatch(r"batch(\d+)\.dat", path.name)
        if number is None:
            continue
        for i, line in enumerate(read_lines(path)):
            if line:
                label, row = _line(line, path, i)
                rows.append(row)
                labels.append(label)
                batches.append(int(number.group(1)))
    if not rows:
        raise DataError("no batch1.dat, batch2.dat ... here", where=str(paths[0].parent), fix=SOURCE.obtain)
    order = np.argsort(batches, kind="stable")  # batch10 sorts before batch2 by name
    return _Table(
        np.array(rows, dtype=np.float32)[order],
        np.array(labels, dtype=np.int64)[order],
        np.array(batches, dtype=np.int64)[order],
    )


def _line(line: str, path: Path, number: int) -> tuple[int, list[float]]:
    """``CLASS[;PPM] 1:v 2:v ... 128:v``."""
    head, *cells = line.split()
    try:
        label = int(float(head.split(";")[0])) - 1
        pairs = [cell.split(":") for cell in cells]
        indices, values = [int(index) for index, _ in pairs], [float(value) for _, value in pairs]
    except ValueError as error:
        raise DataError(
            f"line {number + 1} is not 'class[;ppm] 1:value ...'", where=str(path), fix=SOURCE.obtain
        ) from error
    if indices != list(range(1, NUM_SENSORS * NUM_FEATURES + 1)):
        raise DataError(
            f"line {number + 1} has {len(indices)} features, expected 1 to {NUM_SENSORS * NUM_FEATURES} in order",
            where=str(path),
            fix=SOURCE.obtain,
        )
    return label, values


def caveats(batches: Sequence[int]) -> tuple[str, ...]:
    """What a reader must know, given the batches that are there."""
    missing = [b for b in MONTHS if b not in batches]
    here = f"{len(batches)} of 10 batches: {', '.join(map(str, batches))}"
    lines = [
        f"{here}; missing {', '.join(map(str, missing))}: not comparable with published means over all batches"
        if missing
        else here,
        "four nodes inferred from the array's replicates; all of them meet the same exposures at the same time",
        "rows have no dates inside a batch: instants are spread evenly over its months, and row order is not time",
        "gases come and go between batches (no toluene in 3 to 5): label shift beside sensor drift",
        "its publisher's text limits it to research",
    ]
    return tuple(lines)


def _split(table: _Table, first_future_batch: int, split: str, seed: int) -> NDArray[np.bool_]:
    """``[rows]`` scored or not; all nodes of an exposure fall on the same side."""
    if Split(split) is Split.RANDOM:
        return choose_future(table.batch, 0.5, split, seed)
    future = table.batch >= first_future_batch
    if future.all() or not future.any():
        raise ConfigError(
            f"first_future_batch is {first_future_batch}; the file has the batches {np.unique(table.batch).tolist()}",
            where="gas_drift",
            fix="give a batch that leaves some before it and some after it",
        )
    return future


def _begins(first_s: float, clock: str) -> float:
    """Where the scored time begins: at its first row, or where that row's batch begins, so that periods are batches."""
    return float(np.floor(first_s / _MONTH_S) * _MONTH_S) if clock == "batches" else first_s


def _seconds(batch: NDArray[np.int64], clock: str) -> NDArray[np.float64]:
    """``[rows]`` seconds since the first month: evenly over the months of the row's batch, or a month for each batch."""
    if clock == "batches":
        return (np.unique(batch, return_inverse=True)[1] + rank_fraction(batch)) * _MONTH_S
    first = np.array([MONTHS[int(b)][0] - 1 for b in batch], dtype=np.float64)
    last = np.array([MONTHS[int(b)][1] for b in batch], dtype=np.float64)
    return (first + (last - first) * rank_fraction(batch)) * _MONTH_S


def _shuffled(table: _Table, seed: int) -> _Table:
    """The rows of each batch in a seeded order: as they stand in the files they are partly grouped by gas."""
    draw = rng.uniforms(rng.seeds_for(seed, -1, np.arange(len(table.y)), "gas_drift/order"), 1)[:, 0]
    order = np.lexsort((draw, table.batch))
    return _Table(table.x[order], table.y[order], table.batch[order])


def load(
    data_dir: Path | str | None = None,
    *,
    timeline: Timeline | None = None,
    split: str = Split.TEMPORAL,
    seed: int = 0,
    first_future_batch: int = 8,
    order: str = "file",
    clock: str = "months",
) -> SensorDataset:
    """Four nodes of four sensors; earlier batches are trained on, later ones scored.

    Args:
        data_dir: The folder with the file or files; else FEDRETRAIN_DATA.
        timeline: Its campaign's end falls on the first scored row's month.
        split: Temporal (by batch) or random (by exposure, alike on all nodes).
        seed: For the random split, and for a seeded order.
        first_future_batch: This batch and later ones are scored.
        order: Of the rows inside a batch: ``file``, or ``seeded`` (alike on all nodes).
        clock: ``months``: batches last as long as they did. ``batches``: one after the other, a month each.
    """
    if order not in ("file", "seeded") or clock not in ("months", "batches"):
        raise ConfigError(
            f"order={order} clock={clock}", where="gas_drift", fix="order=file|seeded clock=months|batches"
        )
    paths = SOURCE.find(data_dir)
    table = _from_npz(paths[0]) if paths[0].suffix == ".npz" else _from_dat(paths)
    table = _shuffled(table, seed) if order == "seeded" else table
    if unknown := sorted(set(table.batch.tolist()) - set(MONTHS)):
        raise DataError(f"there is no batch {unknown[0]}", where=str(paths[0]), fix="batches are 1 to 10")
    future, seconds = _split(table, first_future_batch, split, seed), _seconds(table.batch, clock)
    in_time = np.argsort(seconds, kind="stable")
    at = (timeline or Timeline()).shift(seconds, _begins(float(seconds[future].min()), clock))
    by_sensor = table.x.reshape(-1, NUM_SENSORS, NUM_FEATURES)[in_time]
    rows = len(in_time)
    return SensorDataset(
        name="gas_drift",
        schema=SCHEMA,
        objective=Objective.CLASSIFICATION,
        num_outputs=len(CLASS_NAMES),
        class_names=CLASS_NAMES,
        x=np.concatenate([by_sensor[:, list(sensors)].reshape(rows, -1) for sensors in NODES.values()]),
        y=np.tile(table.y[in_time], len(NODES)),
        stream=np.repeat(np.arange(len(NODES), dtype=np.int32), rows),
        stream_names=tuple(NODES),
        site=np.zeros(len(NODES), dtype=np.int32),
        device_type=np.zeros(len(NODES), dtype=np.int32),
        event_at=np.tile(at[in_time], len(NODES)),
        future=np.tile(future[in_time], len(NODES)),
        pipeline=default_pipeline(),
        digest=content_digest(table.x, table.y, table.batch),
        caveats=caveats(sorted(set(table.batch.tolist())))
        + (
            () if split == Split.TEMPORAL else ("random split: figures are far too good (99 % against 80 %)",)
        ),
        target_name="gas",
    )
