"""WISDM activity prediction v1.1, the publisher's own 10-second windows: 36 phone users, 43 features, 6 activities.

Reads the compact npz, and the publisher's ``WISDM_ar_v1.1_transformed.arff``.

Source: Kwapisz, Weiss, Moore 2010, "Activity recognition using cell phone accelerometers", SensorKDD-10. The lab asks
that its readme.txt travels with the data and that the paper is cited.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import DataError
from fedretrain.core.types import Objective
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Channel, Schema
from fedretrain.features.steps import Impute, LocalContext, LogSigned, MissingIndicator
from sim.datasets.base import SensorDataset, Split, Timeline, choose_future, content_digest, rank_fraction
from sim.datasets.files import Source, expect_shape, read_lines, read_npz

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SOURCE = Source(
    "wisdm",
    ("wisdm_v1", "wisdm", "WISDM_ar_v1.1"),
    ("wisdm_v1.npz", "WISDM_ar_v1.1_transformed.arff"),
    "get 'Activity Prediction' v1.1 from the WISDM Lab's data set page (Fordham University)",
)
CLASS_NAMES = ("Downstairs", "Jogging", "Sitting", "Standing", "Upstairs", "Walking")
_BINS = tuple(f"{axis}{i}" for axis in "XYZ" for i in range(10))
_AVERAGES, _PEAKS = ("XAVG", "YAVG", "ZAVG"), ("XPEAK", "YPEAK", "ZPEAK")
_DEVIATIONS = ("XABSOLDEV", "YABSOLDEV", "ZABSOLDEV", "XSTANDDEV", "YSTANDDEV", "ZSTANDDEV")
FEATURES = (*_BINS, *_AVERAGES, *_PEAKS, *_DEVIATIONS, "RESULTANT")
# The phones' accelerometers report -20 to 20 m/s^2; a window lasts 10 s.
SCHEMA = Schema(
    tuple(Channel(name, "1", 0.0, 1.0, missing=True) for name in _BINS)
    + tuple(Channel(name, "m/s^2", -20.0, 20.0, missing=True) for name in _AVERAGES)
    + tuple(Channel(name, "ms", 0.0, 10_000.0, missing=True) for name in _PEAKS)
    + tuple(Channel(name, "m/s^2", 0.0, 20.0, missing=True) for name in _DEVIATIONS)
    + (Channel("RESULTANT", "m/s^2", 0.0, 35.0, missing=True),)
)
CAVEATS = (
    "windows have no dates: instants are assigned in the file's order, class by class",
    "users lack classes (18 of 36 have all six) and no real drift is in these short sessions: it must be injected",
    "XAVG is 0 in every row of the release, and 612 peak distances are missing",
    "research use; cite Kwapisz et al. 2010 and keep the lab's readme.txt with the data",
)


def default_pipeline() -> Pipeline:
    """Logarithms, constants from the units alone, and what is usual on this phone; nothing fitted on pooled data.

    The user's own usual values are worth about ten points: they tell where the phone hangs and how a person walks.
    """
    columns = [
        *[(1.1, 0.7)] * 30,  # log(1 + share / 0.05) of a bin whose even share is 0.1
        *[(0.0, 5.0), (5.0, 5.0), (0.0, 5.0)],  # m/s^2: half of gravity
        *[(2.7, 0.6)] * 3,  # log(1 + ms / 100) of 1.4 s between peaks
        *[(4.0, 3.0)] * 3,
        *[(5.0, 3.0)] * 3,
        (11.0, 4.0),
        *[(0.0, 1.0)] * 3,  # missing
        *[(4.0, 1.5)] * 6,  # log(1 + v / 0.05) of 3 m/s^2
        (5.3, 0.5),
    ]
    center, scale = (tuple(column) for column in zip(*columns, strict=True))
    return Pipeline(
        (
            MissingIndicator(_PEAKS),
            LogSigned(0.05, _BINS),
            LogSigned(100.0, _PEAKS),
            LogSigned(0.05, (*_DEVIATIONS, "RESULTANT"), append=True),
            Scaler("fixed", center, scale, clip=8.0),
            Impute("constant", 0.0),
            LocalContext(),
        )
    )


@dataclass(frozen=True)
class _Table:
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    user: NDArray[np.int64]


def _from_npz(path: Path) -> _Table:
    arrays = read_npz(path, ("X", "y", "user", "feature_names", "activity_names"))
    expect_shape(arrays["X"], (None, len(FEATURES)), "X", path)
    for name in ("y", "user"):
        expect_shape(arrays[name], (len(arrays["X"]),), name, path)
    names = [str(name) for name in arrays["feature_names"]]
    if tuple(names) != FEATURES:
        raise DataError("the features are not those of WISDM v1.1", where=str(path), fix="get the file again")
    activities = [str(name) for name in arrays["activity_names"]]
    y = _encode([activities[i] if 0 <= i < len(activities) else str(i) for i in arrays["y"]], path)
    return _Table(arrays["X"].astype(np.float32), y, arrays["user"].astype(np.int64))


def _from_arff(path: Path) -> _Table:
    """Weka's text format: ``@attribute NAME TYPE`` lines, ``@data``, then rows; ``?`` is missing."""
    lines = [line for line in read_lines(path) if line and not line.startswith("%")]
    names = [_unquoted(line.split()[1]) for line in lines if line.lower().startswith("@attribute")]
    missing = [name for name in ("user", *FEATURES, "class") if name not in names]
    start = next((i for i, line in enumerate(lines) if line.lower().startswith("@data")), None)
    if missing or start is None:
        what = (
            f"the attribute {missing[0]!r} is not in the file" if missing else "the file has no @data section"
        )
        raise DataError(what, where=str(path), fix="give WISDM_ar_v1.1_transformed.arff as it was published")
    rows = [[_unquoted(cell) for cell in line.rstrip(";").split(",")] for line in lines[start + 1 :]]
    for number, row in enumerate(rows):
        if len(row) != len(names):
            raise DataError(
                f"data row {number} has {len(row)} values, expected {len(names)}",
                where=str(path),
                fix="get the file again",
            )
    columns = [names.index(name) for name in FEATURES]
    try:
        x = np.array([[float("nan") if row[c] == "?" else float(row[c]) for c in columns] for row in rows])
        user = np.array([int(float(row[names.index("user")])) for row in rows], dtype=np.int64)
    except ValueError as error:
        raise DataError(
            f"a value is not a number: {error}", where=str(path), fix="get the file again"
        ) from error
    return _Table(x.astype(np.float32), _encode([row[names.index("class")] for row in rows], path), user)


def _unquoted(text: str) -> str:
    return text.strip().strip("\"'").strip()


def _encode(labels: list[str], path: Path) -> NDArray[np.int64]:
    for row, label in enumerate(labels):
        if label not in CLASS_NAMES:
            raise DataError(
                f"the activity of row {row} is {label!r}",
                where=str(path),
                fix=f"known: {', '.join(CLASS_NAMES)}",
            )
    return np.array([CLASS_NAMES.index(label) for label in labels], dtype=np.int64)


def load(
    data_dir: Path | str | None = None,
    *,
    timeline: Timeline | None = None,
    split: str = Split.TEMPORAL,
    seed: int = 0,
    past_fraction: float = 0.5,
) -> SensorDataset:
    """The 36 users; the first part of each class of each user is the past.

    Args:
        data_dir: The folder with the file; else FEDRETRAIN_DATA.
        timeline: Where rows are put in virtual time.
        split: Temporal or random.
        seed: For the random split.
        past_fraction: Share of each class of each user that is trained on.
    """
    path = SOURCE.find(data_dir)[0]
    table = _from_arff(path) if path.suffix == ".arff" else _from_npz(path)
    users, stream = np.unique(table.user, return_inverse=True)
    group = stream * len(CLASS_NAMES) + table.y
    future = choose_future(group, past_fraction, split, seed)
    # Classes alternate inside past and future, so that what has arrived at any instant is not one activity alone.
    order = np.lexsort((rank_fraction(2 * group + future), future, stream))
    stream_of, future = stream[order].astype(np.int32), future[order]
    return SensorDataset(
        name="wisdm",
        schema=SCHEMA,
        objective=Objective.CLASSIFICATION,
        num_outputs=len(CLASS_NAMES),
        class_names=CLASS_NAMES,
        x=table.x[order],
        y=table.y[order],
        stream=stream_of,
        stream_names=tuple(f"user {user}" for user in users),
        site=np.zeros(len(users), dtype=np.int32),
        device_type=np.zeros(len(users), dtype=np.int32),
        event_at=(timeline or Timeline()).place(stream_of, future),
        future=future,
        pipeline=default_pipeline(),
        digest=content_digest(table.x, table.y, table.user),
        caveats=CAVEATS if split == Split.TEMPORAL else (*CAVEATS, "random split: figures are optimistic"),
        target_name="activity",
    )
