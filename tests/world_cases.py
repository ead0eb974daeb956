"""Small worlds for the simulator's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.clock import DAY_S
from fedretrain.core.types import Objective
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.schema import Channel, Schema
from fedretrain.features.steps import Flatten, Impute
from sim.datasets.base import SensorDataset, Timeline
from sim.sensors.effects import SignalStats
from sim.sensors.plan import RawRows

if TYPE_CHECKING:
    from sim.fleet import DeviceStream

NAMES = ("ax", "ay", "az", "temperature")
SCHEMA = Schema(
    (
        *(Channel(name, "g", -8.0, 8.0, missing=True) for name in NAMES[:3]),
        Channel("temperature", "C", -40.0, 60.0, missing=True),
    ),
    window=5,
)
STATS = SignalStats(
    NAMES, SCHEMA.lows, SCHEMA.highs, mean=np.array([0.0, 0.5, 1.0, 20.0]), std=np.array([1.0, 2.0, 3.0, 4.0])
)


def small_dataset(
    num_streams: int = 4, rows: int = 30, num_classes: int = 3, *, table: bool = False, seed: int = 0
) -> SensorDataset:
    """Streams of random windows, the last third of each to be scored; x holds its row number nowhere twice."""
    draws = np.random.default_rng(seed)
    count = num_streams * rows
    stream = np.repeat(np.arange(num_streams), rows).astype(np.int32)
    future = np.tile(np.arange(rows) >= rows * 2 // 3, num_streams)
    schema = Schema(SCHEMA.channels, window=0) if table else SCHEMA
    return SensorDataset(
        name="small",
        schema=schema,
        objective=Objective.CLASSIFICATION,
        num_outputs=num_classes,
        class_names=tuple(f"c{i}" for i in range(num_classes)),
        x=draws.normal(size=(count, *schema.row_shape)).astype(np.float32),
        y=draws.integers(0, num_classes, count),
        stream=stream,
        stream_names=tuple(f"s{i}" for i in range(num_streams)),
        site=(np.arange(num_streams) % 2).astype(np.int32),
        device_type=(np.arange(num_streams) % 3).astype(np.int32),
        event_at=Timeline(14 * DAY_S, 7 * DAY_S, 7 * DAY_S, 0.25).place(stream, future),
        future=future,
        pipeline=Pipeline((Impute("constant"), Flatten()) if not table else (Impute("constant"),)),
        digest="0" * 64,
    )


def raw_rows(num_devices: int, each: int, start: float, end: float) -> RawRows:
    """`each` rows per device, evenly from `start` to `end`."""
    return RawRows(
        np.repeat(np.arange(num_devices), each),
        np.tile(np.arange(each), num_devices),
        np.tile(np.linspace(start, end, each), num_devices),
    )


def raw_signal(count: int, seed: int = 0) -> np.ndarray:
    """``[count, 5, 4]`` float32."""
    return np.random.default_rng(seed).normal(size=(count, 5, len(NAMES))).astype(np.float32)


def assert_same_stream(a: DeviceStream, b: DeviceStream) -> None:
    """Equal bit for bit."""
    for name in ("x", "y", "event_at", "label_at", "future"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
