"""A sensor data set as the simulator reads it: raw rows, whose they are, when they happened, which are scored.

Rules of this file:
    * Rows are raw (units of the sensor, NaN where missing): drift is injected on them, the pipeline comes after.
    * Temporal splits by default: a device trains on its past and is scored on its future. A random split must be
      asked for, and the data set's caveats then say so.
    * Virtual time: 0 is the campaign's start; scored rows lie after its end.
    * A data set names its caveats. Reports print them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core import rng
from fedretrain.core.clock import DAY_S
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.core.types import Objective

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from fedretrain.features.pipeline import Pipeline
    from fedretrain.features.schema import Schema


class Split(StrEnum):
    """How scored rows are chosen."""

    TEMPORAL = "temporal"  # the last part of each stream
    RANDOM = "random"  # any rows: neighbours in time end up on both sides, figures are too good


@dataclass(frozen=True)
class Timeline:
    """Where rows without a clock of their own are put in virtual time, and where the split of the others falls.

    Attributes:
        history_s: How long before the campaign the first rows were measured (rows without a clock).
        campaign_s: The campaign's length: scored rows come after it.
        future_s: How long scored rows spread after it (rows without a clock).
        live_fraction: Share of the training rows that are measured during the campaign (rows without a clock).
    """

    history_s: float = 14 * DAY_S
    campaign_s: float = 7 * DAY_S
    future_s: float = 7 * DAY_S
    live_fraction: float = 0.25

    def __post_init__(self) -> None:
        if min(self.history_s, self.campaign_s, self.future_s) <= 0.0 or not 0.0 <= self.live_fraction <= 1.0:
            raise ConfigError(
                f"this timeline is not possible: {self}", fix="lengths above 0, live_fraction between 0 and 1"
            )

    def place(self, stream: NDArray[np.integer[Any]], future: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Instants for rows that have only an order.

        Args:
            stream: ``[M]`` whose row it is; rows stand in time order inside a stream.
            future: ``[M]`` True for scored rows.

        Returns:
            ``[M]`` instants: training rows evenly over the history and, the last `live_fraction` of them, over the
            campaign; scored rows evenly after it.
        """
        at = np.empty(len(stream))
        part = rank_fraction(2 * stream.astype(np.int64) + future)
        early = part < 1.0 - self.live_fraction
        share = np.where(early, part / max(1.0 - self.live_fraction, 1e-9), 0.0)
        live = (part - (1.0 - self.live_fraction)) / max(self.live_fraction, 1e-9)
        at[:] = np.where(early, (share - 1.0) * self.history_s, live * self.campaign_s)
        at[future] = self.campaign_s + part[future] * self.future_s
        return at

    def shift(
        self, seconds: NDArray[np.float64], split_s: NDArray[np.float64] | float
    ) -> NDArray[np.float64]:
        """Instants for rows that have a clock: real spacing (and gaps) kept, the split at the campaign's end."""
        return seconds - split_s + self.campaign_s


def rank_fraction(group: NDArray[np.int64]) -> NDArray[np.float64]:
    """``[M]`` in (0, 1): each row's rank inside its group, in the order in which the rows stand, over its size."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    starts = (
        np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        if len(group)
        else np.zeros(0, int)
    )
    sizes = np.diff(np.append(starts, len(group)))
    rank = np.arange(len(group)) - np.repeat(starts, sizes)
    fraction = np.empty(len(group))
    fraction[order] = (rank + 0.5) / np.repeat(sizes, sizes)
    return fraction


def choose_future(
    group: NDArray[np.integer[Any]], past_fraction: float, split: Split | str = Split.TEMPORAL, seed: int = 0
) -> NDArray[np.bool_]:
    """Which rows are scored.

    Args:
        group: ``[M]`` what is split on its own (a stream, or a class of a stream); rows in time order inside it.
        past_fraction: Share of each group that is trained on. A group of one row is trained on.
        split: Temporal, or random if asked for.
        seed: For the random split.

    Returns:
        ``[M]`` True for scored rows.
    """
    if not 0.0 < past_fraction < 1.0:
        raise ConfigError(
            f"past_fraction is {past_fraction}", fix="give a share between 0 and 1, such as 0.5"
        )
    groups = group.astype(np.int64)
    if Split(split) is Split.RANDOM:
        draw = rng.uniforms(rng.seeds_for(seed, -1, np.arange(len(groups)), "split"), 1)[:, 0]
        shuffled = np.argsort(draw, kind="stable")
        future = np.empty(len(groups), dtype=bool)
        future[shuffled] = choose_future(groups[shuffled], past_fraction)
        return future
    sizes = np.bincount(groups - groups.min())[groups - groups.min()] if len(groups) else groups
    rank = np.round(rank_fraction(groups) * sizes - 0.5)  # whole numbers again
    return rank >= np.maximum(np.round(past_fraction * sizes), 1)


@dataclass(frozen=True)
class SensorDataset:
    """Raw rows of a fleet's natural devices.

    Attributes:
        name: The data set's name.
        schema: What a raw row holds.
        objective: Classification or regression.
        num_outputs: Classes, or 1.
        class_names: Of a classification.
        x: ``[M, T, C]`` raw windows, or ``[M, C]`` rows of a table; float32.
        y: ``[M]`` int64 classes, or float32 targets.
        stream: ``[M]`` int32: the natural device of each row, 0 .. S-1. Inside a stream rows stand in time order.
        stream_names: ``[S]``.
        site: ``[S]`` int32.
        device_type: ``[S]`` int32.
        event_at: ``[M]`` virtual seconds.
        future: ``[M]`` True for rows that are scored and never trained on.
        pipeline: The default preprocessing, not yet fitted.
        digest: SHA-256 of the source's content.
        caveats: What a reader of any figure on this data must know.
        target_name: What y is, with its unit in brackets.
        target_scale: How many of these units 1.0 of a regression's y is: errors are reported in units.
        server_held: True if the rows are the server's own: numbers taken from them may ride in a package under a claim of privacy.
        target_pooled: True if y was scaled by numbers taken from the devices' data: not with differential privacy.
    """

    name: str
    schema: Schema
    objective: Objective
    num_outputs: int
    class_names: tuple[str, ...]
    x: NDArray[np.float32]
    y: NDArray[Any]
    stream: NDArray[np.int32]
    stream_names: tuple[str, ...]
    site: NDArray[np.int32]
    device_type: NDArray[np.int32]
    event_at: NDArray[np.float64]
    future: NDArray[np.bool_]
    pipeline: Pipeline
    digest: str
    caveats: tuple[str, ...] = ()
    target_name: str = "class"
    target_scale: float = 1.0
    target_pooled: bool = False
    server_held: bool = False

    def __post_init__(self) -> None:
        self._check_shapes()
        self.schema.validate(self.x, where=self.name)
        self._check_labels()
        self._check_streams()

    def __len__(self) -> int:
        return len(self.y)

    @property
    def num_streams(self) -> int:
        """S, the number of natural devices."""
        return len(self.stream_names)

    def rows_of(self, stream: int, *, future: bool | None = None) -> NDArray[np.int64]:
        """Row numbers of one stream in time order: all, the past's (False) or the scored ones (True)."""
        mine = self.stream == stream
        if future is not None:
            mine = mine & (self.future == future)
        return np.flatnonzero(mine)

    def _check_shapes(self) -> None:
        rows = {
            "x": len(self.x),
            "stream": len(self.stream),
            "event_at": len(self.event_at),
            "future": len(self.future),
        }
        for name, size in rows.items():
            if size != len(self.y):
                raise DataError(
                    f"{name} has {size} rows and y has {len(self.y)}",
                    where=self.name,
                    fix="give one of each a row",
                )
        if not len(self.y):
            raise DataError(
                "the data set has no rows", where=self.name, fix="check the file and the columns named"
            )
        for name in ("site", "device_type"):
            if getattr(self, name).shape != (self.num_streams,):
                raise DataError(
                    f"{name} needs one number for each of {self.num_streams} devices", where=self.name
                )
        if self.x.dtype != np.float32:
            raise DataError(f"x has the type {self.x.dtype}", where=self.name, fix="give float32")

    def _check_labels(self) -> None:
        if self.objective is Objective.REGRESSION:
            if self.y.dtype != np.float32 or self.num_outputs != 1:
                raise DataError("a regression needs float32 targets and one output", where=self.name)
            if not np.isfinite(self.y).all():
                row = int(np.argmin(np.isfinite(self.y)))
                raise DataError(
                    f"the target of row {row} is {self.y[row]}",
                    where=self.name,
                    fix="drop rows without a finite target",
                )
            return
        if self.y.dtype != np.int64:
            raise DataError(
                f"labels have the type {self.y.dtype}", where=self.name, fix="give int64 class numbers"
            )
        bad = (self.y < 0) | (self.y >= self.num_outputs)
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(
                f"the label of row {row} is {self.y[row]}, outside 0 .. {self.num_outputs - 1}",
                where=self.name,
                fix="number the classes from 0, and name them all in class_names",
            )
        if len(self.class_names) != self.num_outputs or self.num_outputs < 2:
            raise DataError(
                f"{self.num_outputs} classes and {len(self.class_names)} class names",
                where=self.name,
                fix="a classification needs at least two classes and a name for each",
            )

    def _check_streams(self) -> None:
        sizes = np.bincount(self.stream, minlength=self.num_streams)
        if self.stream.min() < 0 or len(sizes) > self.num_streams:
            raise DataError("a row belongs to a stream that has no name", where=self.name)
        if (sizes == 0).any():
            empty = self.stream_names[int(np.argmin(sizes))]
            raise DataError(
                f"the device {empty!r} has no samples", where=self.name, fix="leave the device out"
            )
        if not np.isfinite(self.event_at).all():
            raise DataError("event_at has NaN or infinity", where=self.name, fix="give every row its instant")
        same = self.stream[1:] == self.stream[:-1]
        back = same & (np.diff(self.event_at) < 0.0)
        if back.any():
            row = int(np.argmax(back)) + 1
            raise DataError(
                f"row {row} of device {self.stream_names[int(self.stream[row])]!r} is earlier than the row before it",
                where=self.name,
                fix="sort the rows by device and time",
            )
        if not self.future.any() or self.future.all():
            raise DataError(
                "every row is on the same side of the split", where=self.name, fix="change past_fraction"
            )


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(*arrays: NDArray[Any]) -> str:
    """SHA-256 over types, shapes and bytes of arrays: the same whatever file format they came in."""
    state = hashlib.sha256()
    for array in arrays:
        contiguous = np.ascontiguousarray(array)
        state.update(f"{contiguous.dtype.str}|{contiguous.shape}|".encode())
        state.update(contiguous.tobytes())
    return state.hexdigest()
