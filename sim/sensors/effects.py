"""What drift does to the raw signal.

Rules of this file:
    * An effect is a function of a row and its own draws: rows of other devices never matter, nor does order.
    * Only touched rows are rewritten: a row before the onset or after the end keeps its bits.
    * Arithmetic is float32, as the sensors' data is.

Shape letters: n touched rows, T samples of a window (1 for tables), C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedretrain.core import rng
from sim.noise import gaussian
from sim.sensors.config import DriftKind, DriftShape, DriftSpec, MagnitudeUnit

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Signal = NDArray[np.float32]

_WALK_TERMS = 32  # of the Karhunen-Loeve series; the variance left out is below 1 % of the whole


@dataclass(frozen=True)
class SignalStats:
    """What is known of each channel: the scale of magnitudes.

    Attributes:
        names: Channel names.
        low: ``[C]`` the schema's range; may be -inf.
        high: ``[C]`` may be inf.
        mean: ``[C]`` over the past rows of the data, before any drift.
        std: ``[C]`` likewise.
    """

    names: tuple[str, ...]
    low: Floats
    high: Floats
    mean: Floats
    std: Floats


@dataclass(frozen=True)
class Touched:
    """What an effect is told of the rows it changes.

    Attributes:
        age_s: ``[n]`` seconds since the device's onset, at least 0.
        level: ``[n]`` the shape at that age: 1 is full size.
        magnitude: ``[n]`` the device's own, signed.
        device_seeds: ``[n]`` uint64, equal for the rows of one device.
        row_seeds: ``[n]`` uint64, one for each row.
        scale: ``[C]`` size of a magnitude of 1, in the channels' own units.
        stats: The channels.
    """

    age_s: Floats
    level: Floats
    magnitude: Floats
    device_seeds: NDArray[np.uint64]
    row_seeds: NDArray[np.uint64]
    scale: Floats
    stats: SignalStats


class CustomDrift(Protocol):
    """Drift of the user's; `tests/contract/drift_contract.py` holds its contract."""

    def apply(self, x: Signal, rows: Touched) -> Signal:
        """The drifted signal.

        Args:
            x: ``[n, T, C]`` raw samples; not to be written to.
            rows: What is known of each row. All randomness comes from its seeds by `core.rng`.

        Returns:
            ``[n, T, C]`` float32; NaN means missing. Channels that the specification does not name are ignored.
        """
        ...


def level(spec: DriftSpec, age_s: Floats, device_seeds: NDArray[np.uint64]) -> Floats:
    """The shape in time: 1 is full size."""
    if spec.shape == DriftShape.ABRUPT:
        return np.ones_like(age_s)
    if spec.shape == DriftShape.LINEAR:
        return np.minimum(age_s / spec.time_s, 1.0)
    if spec.shape == DriftShape.SEASONAL:
        wave: Floats = np.sin(2.0 * np.pi * age_s / spec.time_s)
        return wave
    return _walk(np.minimum(age_s / spec.time_s, 1.0), device_seeds)


def _walk(tau: Floats, device_seeds: NDArray[np.uint64]) -> Floats:
    """A Brownian path at times in 0..1, by its Karhunen-Loeve series: any instant without the ones before."""
    unique, inverse = np.unique(device_seeds, return_inverse=True)
    half = np.arange(_WALK_TERMS) + 0.5
    weights = np.sqrt(2.0) * rng.normals(unique, _WALK_TERMS) / (half * np.pi)
    path: Floats = np.einsum("nk,nk->n", weights[inverse], np.sin(tau[:, None] * half * np.pi))
    return path


def unit_scale(spec: DriftSpec, stats: SignalStats) -> Floats:
    """``[C]`` what a magnitude of 1 is in each channel's own unit."""
    if spec.unit == MagnitudeUnit.STD:
        return stats.std
    return stats.high - stats.low if spec.unit == MagnitudeUnit.RANGE else np.ones_like(stats.std)


def _f32(values: Floats) -> NDArray[np.float32]:
    return values.astype(np.float32)


def _gain(x: Signal, rows: Touched) -> Signal:
    return x * _f32(1.0 + rows.magnitude * rows.level)[:, None, None]


def _offset(x: Signal, rows: Touched) -> Signal:
    return x + _f32((rows.magnitude * rows.level)[:, None] * rows.scale)[:, None, :]


def _noise(x: Signal, rows: Touched) -> Signal:
    drawn = gaussian(rows.row_seeds, x.shape[1] * x.shape[2]).reshape(x.shape)
    size = _f32(np.abs(rows.magnitude * rows.level)[:, None] * rows.scale)[:, None, :]
    noisy: Signal = x + drawn * size
    return noisy


def _stuck(x: Signal, rows: Touched) -> Signal:
    value = _f32(rows.stats.mean + rows.magnitude[:, None] * rows.scale)
    return np.broadcast_to(value[:, None, :], x.shape)


def _dead(x: Signal, rows: Touched) -> Signal:  # noqa: ARG001 - the form of an effect
    return np.zeros_like(x)


def _clip(x: Signal, rows: Touched) -> Signal:
    middle = 0.5 * (rows.stats.low + rows.stats.high)
    reach = rows.magnitude[:, None] * 0.5 * (rows.stats.high - rows.stats.low)
    low, high = _f32(middle - reach)[:, None, :], _f32(middle + reach)[:, None, :]
    return np.clip(x, low, high)


def _missing(x: Signal, rows: Touched, time_s: float) -> Signal:
    """Stretches of `time_s` from the onset on, each lost with the probability `magnitude`."""
    stretch = np.floor(rows.age_s / time_s)
    lost = rng.uniforms_at(rows.device_seeds, stretch) < rows.magnitude
    return np.where(lost[:, None, None], np.float32(np.nan), x)


def effect(spec: DriftSpec) -> Callable[[Signal, Touched], Signal]:
    """The function of a specification's kind (custom drift is loaded by the plan)."""
    if spec.kind == DriftKind.MISSING:
        return lambda x, rows: _missing(x, rows, spec.time_s)
    return {
        DriftKind.GAIN: _gain,
        DriftKind.OFFSET: _offset,
        DriftKind.NOISE: _noise,
        DriftKind.STUCK: _stuck,
        DriftKind.DEAD: _dead,
        DriftKind.CLIP: _clip,
    }[DriftKind(spec.kind)]
