"""Beijing multi-site air quality: 12 stations, hourly, March 2013 to February 2017, with their real outages.

Tasks: ``pm25`` (a virtual sensor: PM2.5 from the other gases and the weather, without PM10), ``exceeds`` (PM2.5 above
75 ug/m3, China's 24-hour limit), ``forecast`` (PM2.5 some hours ahead).

Reads the compact npz, and the publisher's folder of ``PRSA_Data_STATION_20130301-20170228.csv``.

Source: Zhang, Guo, Dong, He, Xu, Chen 2017, Proc. R. Soc. A 473, 20170457, https://doi.org/10.1098/rspa.2017.0457; UCI id
501, https://doi.org/10.24432/C5RK5G, CC BY 4.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.clock import HOUR_S
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.core.types import Objective
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Channel, Schema
from fedretrain.features.steps import Impute, LogSigned, MissingIndicator
from sim.datasets.base import SensorDataset, Split, Timeline, choose_future, content_digest
from sim.datasets.files import Source, expect_shape, read_npz

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SOURCE = Source(
    "beijing_air",
    (
        "beijing_air",
        "PRSA_Data_20130301-20170228",
        "PRSA2017_Data_20130301-20170228/PRSA_Data_20130301-20170228",
    ),
    ("beijing_air.npz", "PRSA_Data_*.csv"),
    "get 'Beijing Multi-Site Air Quality' (UCI id 501, DOI 10.24432/C5RK5G)",
)
VARIABLES = ("PM2.5", "PM10", "SO2", "NO2", "CO", "O3", "TEMP", "PRES", "DEWP", "RAIN", "WSPM")
WINDS = ("N", "NNE", "NE", "ENE", "E", "ESE", "SE", "SSE", "S", "SSW", "SW", "WSW", "W", "WNW", "NW", "NNW")
SUBURBAN = ("Changping", "Dingling", "Huairou", "Shunyi")
LIMIT = 75.0  # ug/m3, China's grade II limit of the 24-hour mean
TARGET_UNIT = 100.0  # targets are PM2.5 in 100 ug/m3, so that a loss is about 1
_GASES = ("SO2", "NO2", "CO", "O3")
_WEATHER = ("TEMP", "PRES", "DEWP", "RAIN", "WSPM")
_DERIVED = ("wind_east", "wind_north", "hour_sin", "hour_cos", "season_sin", "season_cos")
_CHANNELS = {
    "PM2.5": Channel("PM2.5", "ug/m3", 0.0, 1000.0, missing=True),
    "SO2": Channel("SO2", "ug/m3", 0.0, 500.0, missing=True),
    "NO2": Channel("NO2", "ug/m3", 0.0, 500.0, missing=True),
    "CO": Channel("CO", "ug/m3", 0.0, 10_000.0, missing=True),
    "O3": Channel("O3", "ug/m3", 0.0, 1200.0, missing=True),
    "TEMP": Channel("TEMP", "degC", -40.0, 60.0, missing=True),
    "PRES": Channel("PRES", "hPa", 900.0, 1100.0, missing=True),
    "DEWP": Channel("DEWP", "degC", -60.0, 40.0, missing=True),
    "RAIN": Channel("RAIN", "mm", 0.0, 200.0, missing=True),
    "WSPM": Channel("WSPM", "m/s", 0.0, 60.0, missing=True),
} | {name: Channel(name, "1", -1.0, 1.0, missing=name.startswith("wind")) for name in _DERIVED}
# log(1 + v) of a usual value of each, and its usual spread: from the units and the climate, not fitted.
_USUAL = {
    "PM2.5": (3.9, 1.0),
    "SO2": (2.3, 1.0),
    "NO2": (3.7, 0.8),
    "CO": (6.8, 0.8),
    "O3": (3.5, 1.2),
    "TEMP": (1.6, 2.0),
    "PRES": (6.918, 0.01),
    "DEWP": (0.0, 2.5),
    "RAIN": (0.0, 0.5),
    "WSPM": (0.9, 0.4),
}
TASKS = ("pm25", "exceeds", "forecast")
CAVEATS = (
    "12 stations of one city: figures are means over 12, and neighbours share their weather",
    "rows without a measured target are left out (real outages)",
    "drift is moderate: season and a four-year trend",
)


@dataclass(frozen=True)
class _Table:
    """``[12, hours]`` of everything."""

    measured: NDArray[np.float32]  # [S, H, 11]
    wind: NDArray[np.int64]  # [S, H] 0..15, -1 missing
    hours: NDArray[np.int64]  # [H] since 1970-01-01
    stations: tuple[str, ...]


def default_pipeline(schema: Schema) -> Pipeline:
    """Signed logarithm, constants of the climate, and indicators of the gases that are missing."""
    gases = tuple(name for name in schema.names if name in (*_GASES, "PM2.5"))
    usual = [_USUAL.get(name, (0.0, 0.7)) for name in schema.names] + [(0.0, 1.0)] * len(gases)
    center, scale = (tuple(column) for column in zip(*usual, strict=True))
    return Pipeline(
        (
            MissingIndicator(gases),
            LogSigned(1.0),
            Scaler("fixed", center, scale, clip=6.0),
            Impute("constant", 0.0),
        )
    )


def _from_npz(path: Path) -> _Table:
    arrays = read_npz(path, ("X", "wind_dir", "time", "stations", "variables"))
    stations = tuple(str(name) for name in arrays["stations"])
    hours = len(arrays["time"])
    expect_shape(arrays["X"], (len(stations), hours, len(VARIABLES)), "X", path)
    expect_shape(arrays["wind_dir"], (len(stations), hours), "wind_dir", path)
    if tuple(str(name) for name in arrays["variables"]) != VARIABLES:
        raise DataError("the variables are not those of the data set", where=str(path), fix=SOURCE.obtain)
    return _Table(
        arrays["X"].astype(np.float32),
        arrays["wind_dir"].astype(np.int64),
        arrays["time"].astype(np.int64),
        stations,
    )


def _from_csv(paths: Sequence[Path]) -> _Table:
    """The publisher's folder, one file for each station, all over the same hours."""
    parts = [_station(path) for path in paths]
    hours = parts[0][3]
    for path, part in zip(paths, parts, strict=True):
        if not np.array_equal(part[3], hours):
            raise DataError(
                "this station's hours differ from the first station's", where=str(path), fix=SOURCE.obtain
            )
    return _Table(
        np.stack([part[1] for part in parts]),
        np.stack([part[2] for part in parts]),
        hours,
        tuple(p[0] for p in parts),
    )


def _station(path: Path) -> tuple[str, NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Name, ``[H, 11]`` values, ``[H]`` wind and ``[H]`` hours of one station's file."""
    import pandas as pd

    try:
        table: Any = pd.read_csv(path, na_values=["NA", " ", ""], keep_default_na=True)
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise DataError(f"the file is not a table: {error}", where=str(path), fix=SOURCE.obtain) from error
    for name in ("year", "month", "day", "hour", *VARIABLES, "wd", "station"):
        if name not in table.columns:
            raise DataError(f"the column {name!r} is not in the file", where=str(path), fix=SOURCE.obtain)
    try:
        values = table[list(VARIABLES)].to_numpy(dtype=np.float32)
        stamps = pd.to_datetime(table[["year", "month", "day", "hour"]]).to_numpy().astype("datetime64[h]")
    except (ValueError, TypeError) as error:
        raise DataError(
            f"a value is not a number or date: {error}", where=str(path), fix=SOURCE.obtain
        ) from error
    index = {name: i for i, name in enumerate(WINDS)}
    wind = np.array([index.get(name, -1) for name in table["wd"]], dtype=np.int64)
    return str(table["station"].iloc[0]), values, wind, stamps.astype(np.int64)


def _features(table: _Table, names: Sequence[str]) -> NDArray[np.float32]:
    """``[S, H, C]`` of the named channels."""
    stations, hours, _ = table.measured.shape
    angle = np.where(table.wind >= 0, table.wind * (2.0 * np.pi / len(WINDS)), np.nan)
    day, year = (2.0 * np.pi * ((table.hours % period) / period) for period in (24.0, 24.0 * 365.25))
    clock = {
        "hour_sin": np.sin(day),
        "hour_cos": np.cos(day),
        "season_sin": np.sin(year),
        "season_cos": np.cos(year),
    }
    columns: dict[str, NDArray[Any]] = {name: table.measured[..., i] for i, name in enumerate(VARIABLES)}
    columns |= {"wind_east": np.sin(angle), "wind_north": np.cos(angle)}
    columns |= {name: np.broadcast_to(value, (stations, hours)) for name, value in clock.items()}
    return np.stack([columns[name] for name in names], axis=-1).astype(np.float32)


def load(
    data_dir: Path | str | None = None,
    *,
    timeline: Timeline | None = None,
    split: str = Split.TEMPORAL,
    seed: int = 0,
    task: str = "pm25",
    every_hours: int = 6,
    horizon_hours: int = 1,
    past_fraction: float = 0.75,
) -> SensorDataset:
    """The 12 stations; the first years are trained on, the last one is scored.

    Args:
        data_dir: The folder with the file or files; else FEDRETRAIN_DATA.
        timeline: Its campaign's end falls on the split's instant; instants and outages are real.
        split: Temporal (one instant for all stations) or random.
        seed: For the random split.
        task: ``pm25``, ``exceeds`` or ``forecast``.
        every_hours: Keep one hour of so many.
        horizon_hours: How far ahead ``forecast`` looks.
        past_fraction: Share of the time that is trained on: 0.75 is three years of four.
    """
    if task not in TASKS:
        raise ConfigError(f"beijing_air has no task {task!r}", fix=f"choose from {', '.join(TASKS)}")
    if every_hours < 1 or horizon_hours < 1:
        raise ConfigError("every_hours and horizon_hours count whole hours from 1", where="beijing_air")
    paths = SOURCE.find(data_dir)
    table = _from_npz(paths[0]) if paths[0].suffix == ".npz" else _from_csv(paths)
    names = (("PM2.5",) if task == "forecast" else ()) + _GASES + _WEATHER + _DERIVED
    schema = Schema(tuple(_CHANNELS[name] for name in names))
    station, hour, target = _rows(table, task, every_hours, horizon_hours)
    split_s = float(np.quantile(table.hours, past_fraction)) * HOUR_S
    # A forecast's row is complete, and placed in time, when what it foretells was measured.
    ahead = horizon_hours if task == "forecast" else 0
    seconds = (table.hours[hour] + ahead).astype(np.float64) * HOUR_S
    future = (
        seconds >= split_s if split == Split.TEMPORAL else choose_future(station, past_fraction, split, seed)
    )
    classify = task == "exceeds"
    return SensorDataset(
        name="beijing_air",
        schema=schema,
        objective=Objective.CLASSIFICATION if classify else Objective.REGRESSION,
        num_outputs=2 if classify else 1,
        class_names=(f"at most {LIMIT:g} ug/m3", f"above {LIMIT:g} ug/m3") if classify else (),
        x=_features(table, names)[station, hour],
        y=(target > LIMIT).astype(np.int64) if classify else (target / TARGET_UNIT).astype(np.float32),
        stream=station.astype(np.int32),
        stream_names=table.stations,
        site=np.array([name in SUBURBAN for name in table.stations], dtype=np.int32),
        device_type=np.zeros(len(table.stations), dtype=np.int32),
        event_at=(timeline or Timeline()).shift(seconds, split_s),
        future=future,
        pipeline=default_pipeline(schema),
        digest=content_digest(table.measured, table.wind, table.hours),
        caveats=CAVEATS if split == Split.TEMPORAL else (*CAVEATS, "random split: figures are optimistic"),
        target_name="PM2.5 above 75 ug/m3" if classify else "PM2.5 (ug/m3)",
        target_scale=1.0 if classify else TARGET_UNIT,
    )


def _rows(
    table: _Table, task: str, every_hours: int, horizon_hours: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Station, hour and target (ug/m3) of every kept row whose target was measured, by station and time."""
    target = table.measured[..., 0]
    if task == "forecast":
        ahead = np.full_like(target, np.nan)
        ahead[:, :-horizon_hours] = target[:, horizon_hours:]
        target = ahead
    kept = np.isfinite(target)
    kept[:, np.arange(kept.shape[1]) % every_hours != 0] = False
    station, hour = np.nonzero(kept)
    return station, hour, target[station, hour]
