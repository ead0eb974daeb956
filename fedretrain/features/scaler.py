"""Scalers: ``(x - center) / scale`` for every channel, by where the two numbers come from.

| kind | numbers from | with differential privacy on |
|---|---|---|
| standard, robust, minmax | pooled training data | refused: they would leave the devices without noise |
| range | the schema's declared ranges | allowed: public |
| fixed | what the task's author wrote | allowed: public |
| local | the device's own past data (personal state) | allowed: never leaves the device |
| instance | the window itself | allowed |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.features.frame import Frame
from fedretrain.features.steps import Step, _axes, _numbers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Numbers = tuple[float, ...]

POOLED = ("standard", "robust", "minmax")
KINDS = (*POOLED, "range", "fixed", "local", "instance")
_LEAST = 1e-6  # a channel whose spread is smaller is constant: it is centred, not divided


def moments(x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``[C]`` mean and standard deviation over all other axes, NaN left out (0 and 1 without any value)."""
    known = ~np.isnan(x)
    count = np.maximum(known.sum(axis=_axes(x)), 1)
    mean = np.where(known, x, 0.0).sum(axis=_axes(x), dtype=np.float64) / count
    square = np.where(known, x - mean, 0.0) ** 2
    return mean, np.sqrt(square.sum(axis=_axes(x), dtype=np.float64) / count)


def _spread(kind: str, x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Center and scale of a scaler that looks at data."""
    if kind in {"standard", "local"}:
        return moments(x)
    flat = x.reshape(-1, x.shape[-1]).astype(np.float64)
    low, middle, high = np.nanquantile(
        flat, (0.25, 0.5, 0.75) if kind == "robust" else (0.0, 0.5, 1.0), axis=0
    )
    if kind == "robust":
        return middle, (high - low) / 1.349  # the interquartile range of a standard normal variable
    return low, high - low


@dataclass(frozen=True)
class Scaler(Step):
    """Scale every channel.

    Attributes:
        how: One of `KINDS`.
        center: ``[C]``; frozen by `fit`, or given for ``fixed`` (one number serves all channels).
        scale: ``[C]`` likewise.
        clip: Bound of the absolute result; 0 for none. Keeps one wild value from blowing up a model.
        prior: For ``local``: how many pseudo-samples of the identity (center 0, scale 1) the device's own numbers
            are mixed with, so that a device with three samples does not divide by noise.
        floor: The least scale that is divided by, in the channels' unit; a spread of nothing counts as 1.
    """

    how: str = "standard"
    center: Numbers = ()
    scale: Numbers = ()
    clip: float = 0.0
    prior: float = 0.0
    floor: float = 0.0
    kind: ClassVar[str] = "scaler"

    def __post_init__(self) -> None:
        if self.how not in KINDS:
            raise ConfigError(f"there is no scaler {self.how!r}", fix=f"choose from {', '.join(KINDS)}")
        if self.how == "fixed" and not (self.center and self.scale):
            raise ConfigError("a fixed scaler needs center and scale", fix="write both, or choose how=range")

    @property
    def pooled(self) -> bool:
        """True for the kinds whose numbers come from pooled training data."""
        return self.how in POOLED

    @property
    def local(self) -> bool:
        """True for ``local``."""
        return self.how == "local"

    def fit(self, x: Array, frame: Frame) -> Step:
        """Freeze center and scale (``local``: those of this data, so give it one device's)."""
        if self.how in {"instance", "fixed"}:
            return self
        if self.how == "range":
            return self._frozen(*_range(frame))
        if not len(x) and self.local:
            return self._frozen(np.zeros(x.shape[-1]), np.ones(x.shape[-1]))
        if not len(x):
            raise DataError(f"a {self.how} scaler was given no rows", fix="fit it on a device that has data")
        center, scale = _spread(self.how, x)
        if self.prior and self.local:
            weight = len(x) / (len(x) + self.prior)
            center, scale = weight * center, weight * scale + (1.0 - weight)
        return self._frozen(center, scale)

    def _frozen(self, center: NDArray[Any], scale: NDArray[Any]) -> Scaler:
        safe = np.where(np.isfinite(scale) & (scale > _LEAST), np.maximum(scale, self.floor), 1.0)
        return replace(self, center=_numbers(np.nan_to_num(center)), scale=_numbers(safe))

    def apply(self, x: Array) -> Array:
        """The same shape; NaN stays NaN."""
        if self.how == "instance":
            return self._bounded(_instance(x))
        if not self.scale:
            raise DataError(
                f"this {self.how} scaler has no numbers yet",
                fix="call Pipeline.fit first, or Pipeline.localize with the device's own data",
            )
        center = np.asarray(self.center, dtype=np.float32)
        scale = np.asarray(self.scale, dtype=np.float32)
        if not center.any():
            return self._bounded(np.divide(x, scale))
        scaled: Array = np.subtract(x, center)
        scaled /= scale
        return self._bounded(scaled)

    def _bounded(self, x: Array) -> Array:
        if not self.clip:
            return x
        clipped: Array = np.clip(x, np.float32(-self.clip), np.float32(self.clip))
        return clipped

    def frame(self, frame: Frame) -> Frame:
        """``range`` gives -1 to 1; of the others no range is known."""
        if self.how != "range":
            return frame.unbounded()
        bounded = np.isfinite(frame.lows) & np.isfinite(frame.highs)
        lows, highs = np.where(bounded, -1.0, frame.lows), np.where(bounded, 1.0, frame.highs)
        return Frame(frame.names, lows, highs, frame.rate_hz, frame.length)


def _range(frame: Frame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Center and half-width of each declared range; a channel without limits is left as it is."""
    bounded = np.isfinite(frame.lows) & np.isfinite(frame.highs)
    lows, highs = np.where(bounded, frame.lows, -1.0), np.where(bounded, frame.highs, 1.0)
    return (lows + highs) / 2.0, (highs - lows) / 2.0


def _instance(x: Array) -> Array:
    """Each window's channels to mean 0 and standard deviation 1 (tables: each row over its features)."""
    axis = 1 if x.ndim == 3 else -1
    known = ~np.isnan(x)
    count = np.maximum(known.sum(axis=axis, keepdims=True), 1)
    mean = np.where(known, x, 0.0).sum(axis=axis, keepdims=True) / count
    square = np.where(known, x - mean, 0.0) ** 2
    std = np.sqrt(square.sum(axis=axis, keepdims=True) / count)
    scaled: Array = ((x - mean) / np.where(std > _LEAST, std, 1.0)).astype(np.float32)
    return scaled
