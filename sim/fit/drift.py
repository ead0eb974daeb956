"""What happened to the sensors, from daily telemetry: kind, size, share of devices, onsets.

Rules of this file:
    * A channel of a device has drifted where its telemetry leaves what day-to-day noise explains. The noise is the fleet's own:
      the spread of successive days' differences, so rows that depend on each other do not pass for drift.
    * Kinds are told by what they leave: an offset moves the mean, a gain the mean and the spread alike, noise the spread alone; a stuck or
      dead sensor has no spread, a missing one no values. Around a mean of zero a gain upwards looks like noise and is called so.
    * Days are the resolution of onsets.

Shape letters: D devices, W days, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.clock import DAY_S
from sim.sensors.config import DriftKind, DriftShape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.fleetlog.log import FleetLog

    Floats = NDArray[np.float64]

_FAR = 4.5  # standard errors, of noise with its tails, beyond which a channel has drifted: of 100,000 tries less than one by chance
_NEAR = 3.5  # and below this in every step no ramp is far enough either
_NO_SPREAD = -4.0  # log of a spread that is none (2 % of what it was)
_LOST = 0.01  # share of missing values that counts
_MAD = 1.4826  # of a normal law's median absolute deviation
_TAIL, _NORMAL_TAIL = 0.99, 2.576  # where tails are compared with a normal law's
_LEAST_NOISE = 1e-4
_ONSETS = (0.05, 0.95)  # quantiles: an onset that was dated wrongly stretches no range
_RAMP_COST = 6.0  # squared standard errors that a ramp has to explain beyond a step: one parameter, eight lengths to choose from
_FEWEST = 3  # channels of drifted devices that make a specification
_BOTH_WAYS = 0.15  # share of the rarer sign from which on signs are drawn


@dataclass(frozen=True)
class ChannelDrift:
    """One channel of one device.

    Attributes:
        device: Which device.
        channel: Place of the channel.
        kind: What happened.
        shape: Whether at once or over time.
        magnitude: Signed, in units of `DriftSpec`.
        onset_at: When it began.
        time_s: How long it took to full size; 0 for at once.
    """

    device: int
    channel: int
    kind: DriftKind
    shape: DriftShape
    magnitude: float
    onset_at: float
    time_s: float


@dataclass(frozen=True)
class _Days:
    """Telemetry on a grid; NaN where there is none.

    Attributes:
        shift: ``[D, W, C]``.
        log_std: ``[D, W, C]``.
        missing: ``[D, W, C]``.
        level: ``[D, C]`` the baseline's mean over its spread.
        rows: ``[D, W]``.
        base_rows: ``[D]``.
        start_W: When each day begins.
    """

    shift: Floats
    log_std: Floats
    missing: Floats
    level: Floats
    rows: Floats
    base_rows: Floats
    start_W: Floats


def _grid(log: FleetLog) -> _Days:
    told, header = log.telemetry, log.header
    starts = np.unique(told.from_at)
    place = np.searchsorted(starts, told.from_at)
    num, width = header.num_devices, len(header.channels)

    def filled(values: Floats) -> Floats:
        out = np.full((num, len(starts), width), np.nan)
        out[told.device, place] = values
        return out

    rows = np.zeros((num, len(starts)))
    rows[told.device, place] = told.rows
    level, base = np.zeros((num, width)), np.ones(num)
    level[told.device], base[told.device] = told.level, told.baseline_rows
    # The logarithm of a normal sample's standard deviation is low by 1 / (4 (n - 1)): days are shorter than baselines.
    bias = 0.25 / np.maximum(told.rows - 1, 1) - 0.25 / np.maximum(told.baseline_rows - 1, 1)
    log_std = told.log_std + bias[:, None]
    return _Days(filled(told.shift), filled(log_std), filled(told.missing), level, rows, base, starts)


def channel_drifts(log: FleetLog) -> list[ChannelDrift]:
    """Every drifted channel of every device."""
    if len(log.header.channels) == 0 or not len(log.telemetry):
        return []
    days = _grid(log)
    noise = _noise(days.shift, days.rows), _noise(days.log_std, days.rows)
    worth = _changed(days.shift, days, noise[0]) | _changed(days.log_std, days, noise[1])
    worth |= (np.nan_to_num(days.missing) > _LOST).any(axis=1) | (days.log_std <= _NO_SPREAD).any(axis=1)
    found = (
        _channel(days, device, channel, (float(noise[0][device, channel]), float(noise[1][device, channel])))
        for device, channel in np.argwhere(worth).tolist()
    )
    return [one for one in found if one is not None]


def _changed(values_DWC: Floats, days: _Days, noise_DC: Floats) -> NDArray[np.bool_]:
    """``[D, C]`` whether some step is nearly far enough: a quick look over all series at once, before shapes are tried."""
    known = np.isfinite(values_DWC)
    weight = np.where(known, np.maximum(days.rows, 1.0)[:, :, None] / noise_DC[:, None, :], 0.0)
    value = np.where(known, values_DWC, 0.0)
    # The normal equations of `_fitted` for a step on each day, all by sums from the end.
    after, right = (np.cumsum(one[:, ::-1], axis=1)[:, ::-1] for one in (weight, weight * value))
    whole = (
        weight.sum(axis=1, keepdims=True)
        + np.maximum(days.base_rows, 1.0)[:, None, None] / noise_DC[:, None, :]
    )
    determinant = np.maximum(after * whole - after**2, 1e-300)
    size = (whole * right - after * (weight * value).sum(axis=1, keepdims=True)) / determinant
    far = np.abs(size) / np.sqrt(whole / determinant)
    answer: NDArray[np.bool_] = (far > _NEAR).any(axis=1)
    return answer


def _noise(values_DWC: Floats, rows_DW: Floats) -> Floats:
    """``[D, C]`` variance of a day's value times its rows, from successive differences: steps and ramps hardly count.

    It is the fleet's, or the device's own where that is larger (a device with a rare class has restless days), and larger by as
    much as the differences' tails are heavier than a normal law's.
    """
    change = np.diff(values_DWC, axis=1)
    weight = 1.0 / np.maximum(rows_DW[:, 1:], 1) + 1.0 / np.maximum(rows_DW[:, :-1], 1)
    scaled = np.abs(change) / np.sqrt(weight)[:, :, None]
    found = np.empty((values_DWC.shape[0], values_DWC.shape[2]))
    for channel in range(found.shape[1]):
        mine = scaled[:, :, channel]
        finite = mine[np.isfinite(mine)]
        pooled = _MAD * float(np.median(finite)) if len(finite) else 1.0
        own = np.array(
            [
                _MAD * float(np.median(row[np.isfinite(row)])) if np.isfinite(row).any() else 0.0
                for row in mine
            ]
        )
        tail = float(np.quantile(finite, _TAIL)) / (pooled * _NORMAL_TAIL) if len(finite) and pooled else 1.0
        found[:, channel] = (np.maximum(own, pooled) * max(tail, 1.0)) ** 2
    return np.maximum(found, _LEAST_NOISE)


@dataclass(frozen=True)
class _Course:
    """A step or a ramp fitted to one series.

    Attributes:
        size: Its final size.
        far: Standard errors from nothing.
        first: The first day touched.
        lasts: Days to full size; 0 for a step.
        cost: Weighted squared residuals.
    """

    size: float
    far: float
    first: int
    lasts: int
    cost: float

    @property
    def penalised(self) -> float:
        """What it is chosen by: a ramp has to earn its length."""
        return self.cost + (_RAMP_COST if self.lasts else 0.0)


def _course(value_W: Floats, variance_W: Floats, base_variance: float) -> _Course | None:
    """The best step or ramp of a series that is 0 before it; the baseline's own error is common to all days.

    Before the change the series is not 0 but the baseline's error, which a normal prior of its variance carries.
    """
    known = np.isfinite(value_W)
    days = np.flatnonzero(known)
    if not len(days):
        return None
    value, weight = value_W[known], 1.0 / variance_W[known]
    best: _Course | None = None
    for first in range(max(len(days) - 1, 0)):  # what was seen on one day alone may have been that day
        for lasts in _lengths(len(days) - first):
            shape = np.clip((np.arange(len(days)) - first + 1.0) / max(lasts, 1), 0.0, 1.0)
            one = _fitted(value, weight, shape, base_variance, int(days[first]), lasts)
            if best is None or one.penalised < best.penalised:
                best = one
    return best


def _lengths(left: int) -> list[int]:
    """Lengths of ramps to try, in days: 0 is a step; a ramp of fewer than three days is one too."""
    return [0, *(length for length in (3, 5, 8, 13, 21, 34, 55, 89) if length <= left)]


def _fitted(
    value: Floats, weight: Floats, shape: Floats, base_variance: float, first: int, lasts: int
) -> _Course:
    """Least squares of a shape and the baseline's error, the latter held by its prior."""
    prior = 1.0 / max(base_variance, _LEAST_NOISE)
    a, b, c = (weight * shape * shape).sum(), (weight * shape).sum(), weight.sum() + prior
    right = (weight * shape * value).sum(), (weight * value).sum()
    determinant = a * c - b * b
    if determinant <= 0.0:
        return _Course(0.0, 0.0, first, lasts, float("inf"))
    size = (c * right[0] - b * right[1]) / determinant
    error = (a * right[1] - b * right[0]) / determinant
    rest = value - size * shape - error
    cost = float((weight * rest * rest).sum() + prior * error * error)
    return _Course(float(size), float(abs(size) / np.sqrt(c / determinant)), first, lasts, cost)


def _channel(days: _Days, device: int, channel: int, noise: tuple[float, float]) -> ChannelDrift | None:
    """What happened to one channel; None if nothing did."""
    rows = np.maximum(days.rows[device], 1.0)
    base_rows = max(float(days.base_rows[device]), 1.0)
    lost = _lost(days, device, channel)
    if lost is not None:
        return lost
    spread, shift = days.log_std[device, :, channel], days.shift[device, :, channel]
    flat = np.flatnonzero(spread <= _NO_SPREAD)
    level = float(days.level[device, channel])
    if len(flat):
        first = int(flat[0])
        rests_at = float(np.median(shift[flat]))
        dead = abs(rests_at + level) < 0.05
        kind = DriftKind.DEAD if dead else DriftKind.STUCK
        return _told(days, device, channel, kind, 0.0 if dead else rests_at, _Course(0.0, 0.0, first, 0, 0.0))
    moved = _course(shift, noise[0] / rows, noise[0] / base_rows)
    widened = _course(spread, noise[1] / rows, noise[1] / base_rows)
    shifts, widens = moved is not None and moved.far > _FAR, widened is not None and widened.far > _FAR
    if widens and widened is not None:
        return _widened(days, device, channel, widened, moved, noise[0] / base_rows)
    if shifts and moved is not None:
        return _told(days, device, channel, DriftKind.OFFSET, moved.size, moved)
    return None


def _widened(
    days: _Days, device: int, channel: int, widened: _Course, moved: _Course | None, shift_variance: float
) -> ChannelDrift:
    """A changed spread: a gain where the mean went along, else noise."""
    gain, level = float(np.expm1(widened.size)), float(days.level[device, channel])
    expected = gain * level
    seen = moved.size if moved is not None else 0.0
    # Nothing but a gain narrows a spread. Upwards the mean tells, where a gain would have moved it enough to see.
    visible = abs(expected) > 3.0 * np.sqrt(shift_variance)
    if gain < 0.0 or (visible and abs(seen - expected) <= abs(seen)):
        return _told(days, device, channel, DriftKind.GAIN, gain, widened)
    size = float(np.sqrt(max(np.exp(2.0 * widened.size) - 1.0, 0.0)))
    return _told(days, device, channel, DriftKind.NOISE, size, widened)


def _lost(days: _Days, device: int, channel: int) -> ChannelDrift | None:
    """Missing values, from the first day on that has more than chance would lose."""
    missing = np.nan_to_num(days.missing[device, :, channel])
    touched = np.flatnonzero(missing > _LOST)
    if len(touched) < 2:
        return None
    first = int(touched[0])
    share = float(np.average(missing[first:], weights=np.maximum(days.rows[device, first:], 1e-9)))
    return _told(days, device, channel, DriftKind.MISSING, share, _Course(share, 0.0, first, 0, 0.0))


def _told(
    days: _Days, device: int, channel: int, kind: DriftKind, magnitude: float, course: _Course
) -> ChannelDrift:
    shaped = kind in (DriftKind.OFFSET, DriftKind.GAIN, DriftKind.NOISE) and course.lasts > 0
    return ChannelDrift(
        device,
        channel,
        kind,
        DriftShape.LINEAR if shaped else DriftShape.ABRUPT,
        magnitude,
        float(days.start_W[course.first]),
        course.lasts * DAY_S if shaped else 0.0,
    )


@dataclass(frozen=True)
class FittedDrift:
    """One kind of drift over the fleet: a `DriftSpec` and what it rests on.

    Attributes:
        kind: What happened.
        shape: At once or growing.
        magnitude: Median size.
        spread: Lognormal spread of the sizes over devices.
        random_sign: Whether both signs were seen.
        num_channels: Median channels of a device that was hit; 0 where all were.
        device_fraction: Share of the devices.
        onset_from_s: From the log's beginning to the first onsets (their 5 % quantile) ...
        onset_to_s: ... and to the last (95 %).
        time_s: Median time to full size.
        num_devices: How many were hit.
        per_day: Devices newly hit per device and day.
    """

    kind: DriftKind
    shape: DriftShape
    magnitude: float
    spread: float
    random_sign: bool
    num_channels: int
    device_fraction: float
    onset_from_s: float
    onset_to_s: float
    time_s: float
    num_devices: int
    per_day: float

    def config(self) -> dict[str, Any]:
        """The keys of a `DriftSpec`."""
        values: dict[str, Any] = {
            "kind": str(self.kind),
            "shape": str(self.shape),
            "magnitude": float(f"{self.magnitude:.4g}"),
            "device_fraction": float(f"{self.device_fraction:.4g}"),
            "num_channels": self.num_channels,
            "onset_from_s": self.onset_from_s,
            "onset_to_s": self.onset_to_s,
        }
        if self.kind is not DriftKind.MISSING:
            values |= {"random_sign": self.random_sign, "spread": float(f"{self.spread:.4g}")}
        if self.shape is DriftShape.LINEAR:
            values["time_s"] = self.time_s
        return values


def fit_drift(log: FleetLog) -> tuple[FittedDrift, ...]:
    """The kinds of drift that at least three channels show."""
    found = channel_drifts(log)
    kinds = sorted({one.kind for one in found})
    fitted = [_summary(log, [one for one in found if one.kind is kind]) for kind in kinds]
    return tuple(one for one in fitted if one is not None)


def _summary(log: FleetLog, found: list[ChannelDrift]) -> FittedDrift | None:
    if len(found) < _FEWEST:
        return None
    header = log.header
    size = np.array([abs(one.magnitude) for one in found])
    sign = np.array([one.magnitude < 0 for one in found])
    device = np.array([one.device for one in found])
    onset = np.array([one.onset_at for one in found]) - header.begin_at
    growing = np.array([one.time_s for one in found])
    rarer = min(float(sign.mean()), 1.0 - float(sign.mean()))
    channels = float(np.median(np.unique(device, return_counts=True)[1]))
    linear = float((growing > 0).mean()) > 0.5
    days = (header.end_at - header.begin_at) / DAY_S
    hit = len(np.unique(device))
    logs = np.log(np.maximum(size, 1e-6))
    spread = _MAD * float(np.median(np.abs(logs - np.median(logs))))
    low, high = (float(one) for one in np.quantile(onset, _ONSETS, method="nearest"))
    one_way = -1.0 if sign.mean() > 0.5 and rarer < _BOTH_WAYS else 1.0
    return FittedDrift(
        kind=found[0].kind,
        shape=DriftShape.LINEAR if linear else DriftShape.ABRUPT,
        magnitude=one_way * float(np.median(size)),
        spread=spread,
        random_sign=rarer >= _BOTH_WAYS,
        num_channels=0 if channels >= len(header.channels) else int(channels),
        device_fraction=hit / header.num_devices,
        onset_from_s=low,
        onset_to_s=high,
        time_s=float(np.median(growing[growing > 0])) if linear else 0.0,
        num_devices=hit,
        per_day=hit / header.num_devices / days,
    )
