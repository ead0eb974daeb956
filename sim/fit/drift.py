"""What happened to the sensors, from daily telemetry: kind, size, share of devices, onsets.

Rules of this file:
    * A channel of a device has drifted where its telemetry leaves what day-to-day noise explains. The noise is the fleet's own:
      the spread of successive days' differences, so rows that depend on each other do not pass for drift.
    * Kinds are told by what they leave: an offset moves the mean, a gain the mean and the spread alike, noise the spread alone; a stuck or
      dead sensor has no spread, a missing one no values. Around a mean of zero a gain upwards looks like noise and is called so.
    * A drift that was repaired leaves the telemetry as it was before. Missing, stuck and dead are over where healthy days follow.
    * Days are the resolution of onsets and ends.

Shape letters: D devices, W days, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.clock import DAY_S
from sim.fit.courses import LEAST_VARIANCE, Course, course
from sim.sensors.config import DriftKind, DriftShape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.fleetlog.log import FleetLog

    Floats = NDArray[np.float64]

_FAR = 4.5  # standard errors, of noise with its tails, beyond which a channel has drifted: of 100,000 tries less than one by chance
_STRETCHES = (5, 14, 40)  # days of a drift that ended, in the quick look
_NEAR = 3.5  # and below this in every step no ramp is far enough either
_NO_SPREAD = -4.0  # log of a spread that is none (2 % of what it was)
_LOST = 0.01  # share of missing values that counts
_MAD = 1.4826  # of a normal law's median absolute deviation
_RESTLESS = 0.9  # quantile over devices
_JUMPS = 2  # differences of a device that a drift may have made
_ONSETS = (0.05, 0.95)  # quantiles: an onset that was dated wrongly stretches no range
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
        end_at: When it was over; inf where the log does not see that.
    """

    device: int
    channel: int
    kind: DriftKind
    shape: DriftShape
    magnitude: float
    onset_at: float
    time_s: float
    end_at: float = np.inf


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
    whole = (
        weight.sum(axis=1, keepdims=True)
        + np.maximum(days.base_rows, 1.0)[:, None, None] / noise_DC[:, None, :]
    )
    total = (weight * value).sum(axis=1, keepdims=True)
    answer: NDArray[np.bool_] = np.zeros(noise_DC.shape, dtype=bool)
    for length in (*_STRETCHES, days.rows.shape[1]):
        # The normal equations of a stretch that begins on each day, by sums from the end; the longest is a step that stays.
        within, right = (_sums(one, length) for one in (weight, weight * value))
        determinant = np.maximum(within * whole - within**2, 1e-300)
        size = (whole * right - within * total) / determinant
        answer |= (np.abs(size) / np.sqrt(whole / determinant) > _NEAR).any(axis=1)
    return answer


def _sums(values_DWC: Floats, length: int) -> Floats:
    """``[D, W, C]`` sums of each day and those that follow it, so many in all."""
    after = np.cumsum(values_DWC[:, ::-1], axis=1)[:, ::-1]
    later = np.zeros_like(after)
    later[:, : max(after.shape[1] - length, 0)] = after[:, length:]
    return after - later


def _noise(values_DWC: Floats, rows_DW: Floats) -> Floats:
    """``[D, C]`` variance of a day's value times its rows, from successive differences: steps and ramps hardly count.

    It is the fleet's, or the device's own where that is larger (a device with a rare class has restless days), and larger by as
    much as the differences' tails are heavier than a normal law's. Tails are read off each device's third largest difference (the
    two above it may be a drift's onset and end), and the fleet's are those of its most restless tenth.
    """
    change = np.diff(values_DWC, axis=1)
    weight = 1.0 / np.maximum(rows_DW[:, 1:], 1) + 1.0 / np.maximum(rows_DW[:, :-1], 1)
    scaled = np.abs(change) / np.sqrt(weight)[:, :, None]
    found = np.empty((values_DWC.shape[0], values_DWC.shape[2]))
    for channel in range(found.shape[1]):
        mine = scaled[:, :, channel]
        finite = mine[np.isfinite(mine)]
        pooled = _MAD * float(np.median(finite)) if len(finite) else 1.0
        known = [row[np.isfinite(row)] for row in mine]
        own = np.array([_MAD * float(np.median(row)) if len(row) else 0.0 for row in known])
        tails = [_tail(row) / pooled for row in known if len(row) > _JUMPS] if pooled else []
        tail = float(np.quantile(tails, _RESTLESS)) if tails else 1.0
        found[:, channel] = (np.maximum(own, pooled) * max(tail, 1.0)) ** 2
    return np.maximum(found, LEAST_VARIANCE)


def _tail(change_N: Floats) -> float:
    """The largest difference but two, over what only the most restless tenth of normal devices of variance one would exceed.

    Source: David and Nagaraja 2003, Order Statistics, section 2.1 (an order statistic of uniform numbers has a beta law).
    """
    from scipy.special import betaincinv

    share = float(betaincinv(len(change_N) - _JUMPS, _JUMPS + 1, _RESTLESS))
    return float(np.sort(change_N)[-_JUMPS - 1]) / NormalDist().inv_cdf(0.5 + 0.5 * share)


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
        rests_at = float(np.median(shift[flat]))
        dead = abs(rests_at + level) < 0.05
        kind = DriftKind.DEAD if dead else DriftKind.STUCK
        faulty, known = spread <= _NO_SPREAD, np.isfinite(spread)
        return _told(days, device, channel, kind, 0.0 if dead else rests_at, _stretch(faulty, known))
    moved = course(shift, noise[0] / rows, noise[0] / base_rows)
    widened = course(spread, noise[1] / rows, noise[1] / base_rows)
    shifts, widens = moved is not None and moved.clear > _FAR, widened is not None and widened.clear > _FAR
    if widens and widened is not None:
        return _widened(days, device, channel, widened, moved, noise[0] / base_rows)
    if shifts and moved is not None:
        return _told(days, device, channel, DriftKind.OFFSET, moved.size, moved)
    return None


def _widened(
    days: _Days, device: int, channel: int, widened: Course, moved: Course | None, shift_variance: float
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
    known = np.isfinite(days.missing[device, :, channel])
    missing = np.nan_to_num(days.missing[device, :, channel])
    touched = missing > _LOST
    if touched.sum() < 2:
        return None
    lasted = _stretch(touched, known)
    hit = slice(lasted.first, lasted.until)
    share = float(np.average(missing[hit], weights=np.maximum(days.rows[device, hit], 1e-9)))
    return _told(days, device, channel, DriftKind.MISSING, share, lasted)


def _stretch(faulty_W: NDArray[np.bool_], known_W: NDArray[np.bool_]) -> Course:
    """From the first faulty day on; over where more healthy days follow than ever lay between two faulty ones, twice as many."""
    seen = np.flatnonzero(known_W | faulty_W)
    hit = np.flatnonzero(faulty_W[seen])
    quiet = len(seen) - 1 - hit[-1]
    between = int(np.diff(hit).max(initial=1)) - 1
    over = quiet >= max(2, 2 * between + 1)
    return Course(0.0, 0.0, int(seen[hit[0]]), 0, 0.0, int(seen[hit[-1] + 1]) if over else None)


def _told(
    days: _Days, device: int, channel: int, kind: DriftKind, magnitude: float, lasted: Course
) -> ChannelDrift:
    shaped = kind in (DriftKind.OFFSET, DriftKind.GAIN, DriftKind.NOISE) and lasted.lasts > 0
    return ChannelDrift(
        device,
        channel,
        kind,
        DriftShape.LINEAR if shaped else DriftShape.ABRUPT,
        magnitude,
        float(days.start_W[lasted.first]),
        lasted.lasts * DAY_S if shaped else 0.0,
        np.inf if lasted.until is None else float(days.start_W[lasted.until]),
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
        duration_s: Median time from onset to end, where most were seen to end; 0 where they last.
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
    duration_s: float
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
        if self.duration_s:
            values["duration_s"] = self.duration_s
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
    lasted = np.array([one.end_at - one.onset_at for one in found])
    over = lasted[np.isfinite(lasted)]
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
        duration_s=float(np.median(over)) if len(over) > 0.5 * len(lasted) else 0.0,
        num_devices=hit,
        per_day=hit / header.num_devices / days,
    )
