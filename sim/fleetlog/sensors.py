"""A device's daily summary of its sensors, beside its own past: what telemetry would report.

Rules of this file:
    * Statistics are of the raw channels as the (drifted) sensors report them; a baseline is the device's own rows from before the log.
    * Sums run over rows and the samples of a window alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.clock import DAY_S
from fedretrain.wire.fleet_log import Telemetered
from sim.arm import timeline
from sim.sensors.plan import DriftPlan
from sim.sources import DatasetSource, GeneratedSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fedretrain.wire.fleet_log import Header
    from sim.arm import Arm

    Ids = NDArray[np.int64]
    Floats = NDArray[np.float64]

EVERY_S = DAY_S
_FEWEST_BASELINE_ROWS = 2  # a standard deviation needs two


def telemetered(arm: Arm, header: Header, devices: Ids) -> Iterator[Telemetered]:
    """The daily summaries of devices ``[K]`` over the log.

    Args:
        arm: The world.
        header: The log's.
        devices: Whom.
    """
    config, dataset = arm.config, arm.setting.dataset
    source = (
        GeneratedSource(config.fleet, arm.seed, timeline(config))
        if dataset is None
        else DatasetSource(dataset, config.fleet, arm.seed)
    )
    plan = DriftPlan(config.drift, arm.seed, source.stats)
    raw, traits = source.raw(devices), source.traits(devices)
    x = plan.apply(raw.x, raw.rows, traits)
    at = plan.reported_at(raw.rows, traits)
    past = (at < header.begin_at) & ~raw.future
    for place, device in enumerate(devices.tolist()):
        mine = raw.rows.owner == place
        base = _Moments.of(x[mine & past])
        if base.rows < _FEWEST_BASELINE_ROWS:
            continue
        for start in np.arange(header.begin_at, header.end_at, EVERY_S).tolist():
            end = min(start + EVERY_S, header.end_at)
            today = _Moments.of(x[mine & (at >= start) & (at < end)])
            if today.rows:
                yield _summary(device, start, end, today, base)


@dataclass(frozen=True)
class _Moments:
    """Count, mean and standard deviation of each channel.

    Attributes:
        rows: Rows seen.
        mean: ``[C]``; NaN where nothing was measured.
        std: ``[C]`` likewise.
        missing: ``[C]`` share of values that are NaN.
    """

    rows: int
    mean: Floats
    std: Floats
    missing: Floats

    @classmethod
    def of(cls, x: NDArray[np.float32]) -> _Moments:
        """Of rows ``[N, T, C]``."""
        flat = x.reshape(-1, x.shape[-1]).astype(np.float64)
        known = ~np.isnan(flat)
        count = known.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(known, flat, 0.0).sum(axis=0) / count
            # Over count - 1: the spread of a few rows would else look narrower than that of many.
            variance = np.where(known, (flat - mean) ** 2, 0.0).sum(axis=0) / np.maximum(count - 1, 1)
        missing = 1.0 - count / max(len(flat), 1)
        return cls(len(x), mean, np.sqrt(variance), missing)


def _summary(device: int, start: float, end: float, today: _Moments, base: _Moments) -> Telemetered:
    scale = np.where(base.std > 0, base.std, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_std = np.log(today.std / scale)
    # One row has no spread worth a logarithm; a dead sensor has none either, and says so by its floor.
    log_std = np.where(today.rows > 1, np.maximum(log_std, _FLOOR), np.nan)
    return Telemetered(
        device,
        end,
        start,
        today.rows,
        base.rows,
        tuple(np.nan_to_num(base.mean / scale).tolist()),
        _known((today.mean - base.mean) / scale),
        _known(log_std),
        tuple(today.missing.tolist()),
    )


_FLOOR = -9.0  # e**-9: a spread ten thousand times smaller than it was is none


def _known(values: Floats) -> tuple[float | None, ...]:
    return tuple(value if np.isfinite(value) else None for value in values.tolist())
