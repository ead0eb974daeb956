"""Smartwatch recordings of seven shoulder exercises: 10 people, two arms, six channels at 50 Hz.

The file is part of the PyPI package ``seglearn``. It is a pickle, and pickles can execute code: its SHA-256 is
checked before it is opened, and ``seglearn`` itself is never imported.

Source: Burns, Leung, Hardisty, Whyne, Henry, McLachlin 2018, "Shoulder physiotherapy exercise recognition: machine
learning the inertial signals from a smartwatch", Physiol. Meas. 39, 075007, https://arxiv.org/abs/1802.01489.
"""

from __future__ import annotations

import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.core.types import Objective
from fedretrain.features.pipeline import Pipeline, windows
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Channel, Schema
from fedretrain.features.steps import ChannelFirst, Clip, Impute, Magnitude, Statistics
from sim.datasets.base import SensorDataset, Split, Timeline, choose_future, file_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
RATE_HZ = 50.0
WINDOW = 200  # samples: 4 seconds
CLASS_NAMES = (
    "pendulum",
    "abduction",
    "forward elevation",
    "internal rotation",
    "external rotation",
    "trapezius extension",
    "row",
)
_ACCELERATION, _ROTATION = ("ax", "ay", "az"), ("wx", "wy", "wz")
# Ranges that consumer six-axis sensors are set to: 8 g and 2,000 degrees per second.
SCHEMA = Schema(
    tuple(Channel(name, "g", -8.0, 8.0, rate_hz=RATE_HZ, missing=True) for name in _ACCELERATION)
    + tuple(Channel(name, "rad/s", -35.0, 35.0, rate_hz=RATE_HZ, missing=True) for name in _ROTATION),
    window=WINDOW,
)
CAVEATS = (
    (
        "10 people of one study, one recording per exercise and arm: each stream's past and future come from the same "
        "recordings, so long-term change is not in the data"
    ),
    "only 1,149 disjoint 4-second windows: one window is 0.2 points of a mean over the scored rows",
    "recordings have no dates: instants are assigned, in order",
)


def default_pipeline() -> Pipeline:
    """Statistics of each window, scaled by what is usual for the person and arm (personal state, under 2 KB).

    Nothing is fitted on pooled data, so it may be used under differential privacy. How a watch is worn moves every
    statistic; the wearer's own scale takes that out.
    """
    return _statistics(Scaler("local", clip=8.0, prior=1.0, floor=0.02))


def fixed_pipeline() -> Pipeline:
    """The same statistics, scaled by one fixed number: nothing of the wearer's, for example-level DP."""
    return _statistics(Scaler("fixed", (0.0,), (0.5,), clip=8.0))


def _statistics(last: Scaler) -> Pipeline:
    functions = ("mean", "std", "quantiles", "min", "max", "jerk", "zero_crossings", "bands", "correlations")
    return Pipeline(
        (
            Clip(),
            Impute("forward"),
            Scaler("fixed", (0.0,) * 6, (0.5, 0.5, 0.5, 1.0, 1.0, 1.0)),
            Magnitude((_ACCELERATION, _ROTATION)),
            Statistics(functions),
            last,
        )
    )


def signal_pipeline() -> Pipeline:
    """The scaled signal itself, ``[6, T]``: for the 1D-CNN and the GRU. Also free of pooled numbers."""
    scale = Scaler("fixed", (0.0,) * 6, (1.0, 1.0, 1.0, 2.0, 2.0, 2.0), clip=8.0)
    return Pipeline((Clip(), Impute("forward"), scale, ChannelFirst()))


PIPELINES = {"statistics": default_pipeline, "fixed": fixed_pipeline, "signal": signal_pipeline}


def locate() -> Path:
    """The file inside the installed package ``seglearn`` (which is not imported).

    Raises:
        DataError: If the package or the file is not there.
    """
    spec = importlib.util.find_spec("seglearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "the smartwatch recordings are not here: the package seglearn is not installed",
            where="experiment=watch",
            fix="pip install 'seglearn>=1.2.5'",
        )
    return Path(next(iter(spec.submodule_search_locations))) / "data" / "watch_dataset.npy"


def read(path: Path) -> dict[str, Any]:
    """The recordings, if the file is the known one.

    Raises:
        DataError: If it is missing or its SHA-256 differs (it is then never opened).
    """
    if not path.is_file():
        raise DataError(
            "the smartwatch file is missing", where=str(path), fix="reinstall the package seglearn 1.2.5"
        )
    content = path.read_bytes()
    if (found := file_digest(path)) != SHA256:
        raise DataError(
            f"the smartwatch file has the SHA-256 {found[:16]}..., expected {SHA256[:16]}...; it was not opened",
            where=str(path),
            fix="reinstall the package: pip install --force-reinstall seglearn==1.2.5",
        )
    recordings: dict[str, Any] = np.load(io.BytesIO(content), allow_pickle=True).item()
    return recordings


@dataclass(frozen=True)
class _Rows:
    """Windows of one recording: samples, scored or not, and the sample at which each begins."""

    x: NDArray[np.float32]
    future: NDArray[np.bool_]
    start: NDArray[np.int64]


def _cut(signal: NDArray[Any], past_fraction: float, train_stride: int) -> _Rows:
    """Disjoint windows of one recording; the past may be cut again with overlap, never into a scored window."""
    disjoint = windows(signal, WINDOW)
    num_past = max(1, round(past_fraction * len(disjoint)))
    past = windows(signal[: num_past * WINDOW], WINDOW, train_stride)
    scored = disjoint[num_past:]
    start = np.concatenate(
        [np.arange(len(past)) * train_stride, (num_past + np.arange(len(scored))) * WINDOW]
    )
    return _Rows(np.concatenate([past, scored]), np.arange(len(start)) >= len(past), start)


def load(
    data_dir: Path | None = None,
    *,
    timeline: Timeline | None = None,
    split: str = Split.TEMPORAL,
    seed: int = 0,
    past_fraction: float = 0.5,
    train_stride: int = WINDOW,
    pipeline: str = "statistics",
    path: Path | None = None,
) -> SensorDataset:
    """The 20 real streams (person and arm) in 4-second windows.

    Args:
        data_dir: Not used: the file comes with an installed package.
        timeline: Where rows are put in virtual time.
        split: Temporal (inside each recording: its first part is trained on) or random.
        seed: For the random split.
        past_fraction: Share of each recording's windows that is trained on.
        train_stride: Samples between the starts of training windows; less than 200 makes them overlap. Scored
            windows are always disjoint, and never overlap a training window.
        pipeline: ``statistics``, ``fixed`` or ``signal``.
        path: Another copy of the file.
    """
    del data_dir
    _check_options(past_fraction, train_stride, pipeline, split)
    recordings = read(path or locate())
    rows, label, stream = _streams(recordings, past_fraction, train_stride)
    sizes = [len(part.start) for part in rows]
    stream_of, y = np.repeat(stream, sizes).astype(np.int32), np.repeat(label, sizes).astype(np.int64)
    future = np.concatenate([part.future for part in rows])
    if split == Split.RANDOM:
        future = choose_future(stream_of * len(CLASS_NAMES) + y, past_fraction, split, seed)
    order = _time_order(rows, stream_of, future)
    x = np.concatenate([part.x for part in rows])[order]
    stream_of, y, future = stream_of[order], y[order], future[order]
    people = np.arange(20) // 2
    return SensorDataset(
        name="watch",
        schema=SCHEMA,
        objective=Objective.CLASSIFICATION,
        num_outputs=len(CLASS_NAMES),
        class_names=CLASS_NAMES,
        x=x,
        y=y,
        stream=stream_of,
        stream_names=tuple(f"person {p + 1} {side}" for p in range(10) for side in ("left", "right")),
        site=people.astype(np.int32),
        device_type=(np.arange(20) % 2).astype(np.int32),
        event_at=(timeline or Timeline()).place(stream_of, future),
        future=future,
        pipeline=PIPELINES[pipeline](),
        digest=SHA256,
        caveats=CAVEATS if split == Split.TEMPORAL else (*CAVEATS, "random split: figures are optimistic"),
        target_name="exercise",
    )


def _check_options(past_fraction: float, train_stride: int, pipeline: str, split: str) -> None:
    """Refuse options that cannot be, or that would score samples that were trained on."""
    if not 0.0 < past_fraction < 1.0:
        raise ConfigError(f"past_fraction is {past_fraction}", where="watch", fix="give a share such as 0.5")
    if not 0 < train_stride <= WINDOW:
        raise ConfigError(f"train_stride is {train_stride}", where="watch", fix=f"give 1 to {WINDOW} samples")
    if split == Split.RANDOM and train_stride != WINDOW:
        raise ConfigError(
            "overlapping windows and a random split would score samples that were trained on",
            fix="split=temporal",
        )
    if pipeline not in PIPELINES:
        raise ConfigError(f"watch has no pipeline {pipeline!r}", fix=f"choose from {', '.join(PIPELINES)}")


def _streams(
    recordings: dict[str, Any], past_fraction: float, train_stride: int
) -> tuple[list[_Rows], NDArray[np.int64], NDArray[np.int64]]:
    """Windows, class and stream (2 x person + arm) of each recording, sorted by stream and class."""
    stream = 2 * (recordings["subject"].astype(np.int64) - 1) + recordings["side"].astype(np.int64)
    label = recordings["y"].astype(np.int64)
    order = np.lexsort((label, stream))
    return [_cut(recordings["X"][i], past_fraction, train_stride) for i in order], label[order], stream[order]


def _time_order(rows: list[_Rows], stream: NDArray[np.int32], future: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Rows by stream, past before future, and inside each by the moment of the recording.

    Exercises alternate: a stream's day holds a bit of each, so that what has arrived at any instant has all classes.
    """
    moment = np.concatenate([part.start for part in rows])
    return np.lexsort((moment, future, stream))
