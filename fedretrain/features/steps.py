"""The steps of a pipeline: small frozen dataclasses, each a named, declarative function of samples.

Rules of this file:
    * `fit(x, frame)` returns the step with its numbers frozen in it; `apply(x)` is pure and changes no input.
    * Steps act on the last axis (channels) of ``[N, T, C]`` windows or ``[N, C]`` tables alike, unless they say so.
    * Numbers taken from pooled training data would leak it under differential privacy: a step that holds any says
      so (`pooled`). Numbers from the schema, from the device itself or from the window are free of that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.features import statistics
from fedretrain.features.frame import Frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.features.schema import Schema

    Array = NDArray[np.float32]
    Numbers = tuple[float, ...]


def _axes(x: NDArray[Any]) -> tuple[int, ...]:
    """Every axis but the channels'."""
    return tuple(range(x.ndim - 1))


def _numbers(values: NDArray[Any]) -> Numbers:
    """Frozen float32 numbers, as JSON holds them exactly."""
    return tuple(float(v) for v in np.asarray(values, dtype=np.float32))


@dataclass(frozen=True)
class Step:
    """The base of every step: nothing to fit, nothing done, the frame unchanged."""

    kind: ClassVar[str] = "identity"

    @property
    def pooled(self) -> bool:
        """True if the step holds numbers that were taken from pooled training data."""
        return False

    @property
    def local(self) -> bool:
        """True if the step holds numbers of the device's own (personal state)."""
        return False

    def fit(self, x: Array, frame: Frame) -> Step:  # noqa: ARG002
        """The step with its numbers, given training data ``[N, ..., C]`` and its frame."""
        return self

    def apply(self, x: Array) -> Array:
        """The step done to ``[N, ..., C]``."""
        return x

    def frame(self, frame: Frame) -> Frame:
        """What comes out, given what goes in."""
        return frame


@dataclass(frozen=True)
class Select(Step):
    """Keep the named channels, in the order given."""

    channels: tuple[str, ...]
    at: tuple[int, ...] = ()
    kind: ClassVar[str] = "select"

    def fit(self, x: Array, frame: Frame) -> Step:  # noqa: ARG002
        """Look up where the channels stand."""
        return replace(self, at=tuple(frame.indices(self.channels)))

    def apply(self, x: Array) -> Array:
        """``[..., C]`` to ``[..., len(channels)]``."""
        return x[..., list(self.at)]

    def frame(self, frame: Frame) -> Frame:
        """The frame of the chosen channels."""
        return frame.take(frame.indices(self.channels))


@dataclass(frozen=True)
class MissingIndicator(Step):
    """Append one channel for each named channel: 1 where it is missing (NaN), else 0."""

    channels: tuple[str, ...]
    at: tuple[int, ...] = ()
    kind: ClassVar[str] = "missing_indicator"

    def fit(self, x: Array, frame: Frame) -> Step:  # noqa: ARG002
        """Look up where the channels stand."""
        return replace(self, at=tuple(frame.indices(self.channels)))

    def apply(self, x: Array) -> Array:
        """``[..., C]`` to ``[..., C + len(channels)]``."""
        return np.concatenate([x, np.isnan(x[..., list(self.at)]).astype(np.float32)], axis=-1)

    def frame(self, frame: Frame) -> Frame:
        """The frame with the indicators at its end."""
        return frame.plus([f"missing({name})" for name in self.channels], 0.0, 1.0)


IMPUTATIONS = ("forward", "constant", "mean")


@dataclass(frozen=True)
class Impute(Step):
    """Fill missing values.

    Attributes:
        how: ``forward`` (the last value before, along time; then `value`), ``constant`` (`value`), or ``mean`` (of
            the training data: pooled numbers).
        value: What constant fills; also what a window or channel without any value becomes.
        means: ``[C]`` frozen by `fit`.
    """

    how: str = "forward"
    value: float = 0.0
    means: Numbers = ()
    kind: ClassVar[str] = "impute"

    def __post_init__(self) -> None:
        if self.how not in IMPUTATIONS:
            raise ConfigError(
                f"there is no imputation {self.how!r}", fix=f"choose from {', '.join(IMPUTATIONS)}"
            )

    @property
    def pooled(self) -> bool:
        """True for ``mean``."""
        return self.how == "mean"

    def fit(self, x: Array, frame: Frame) -> Step:  # noqa: ARG002
        """Take the channels' means, if asked."""
        if self.how != "mean":
            return self
        known = ~np.isnan(x)
        total = np.where(known, x, 0.0).sum(axis=_axes(x), dtype=np.float64)
        count = known.sum(axis=_axes(x))
        return replace(self, means=_numbers(np.where(count > 0, total / np.maximum(count, 1), self.value)))

    def apply(self, x: Array) -> Array:
        """The same shape, without NaN."""
        if not np.isnan(x).any():
            return x
        if self.how == "forward" and x.ndim == 3:
            x = _forward_fill(x)
        fill = np.asarray(self.means if self.how == "mean" else self.value, dtype=np.float32)
        return np.where(np.isnan(x), fill, x)


def _forward_fill(x: Array) -> Array:
    """``[N, T, C]``: each NaN becomes the last value before it in its window; leading NaNs stay."""
    steps = np.arange(x.shape[1])[None, :, None]
    last = np.maximum.accumulate(np.where(np.isnan(x), -1, steps), axis=1)
    filled: Array = np.take_along_axis(x, np.maximum(last, 0), axis=1)
    return filled


@dataclass(frozen=True)
class Clip(Step):
    """Clip every channel to its declared range (an unbounded side stays open); NaN stays NaN."""

    lows: Numbers = ()
    highs: Numbers = ()
    kind: ClassVar[str] = "clip"

    def fit(self, x: Array, frame: Frame) -> Step:  # noqa: ARG002
        """Take the ranges from the frame."""
        return replace(self, lows=_limits(frame.lows), highs=_limits(frame.highs))

    def apply(self, x: Array) -> Array:
        """The same shape."""
        clipped: Array = np.clip(x, np.array(self.lows, np.float32), np.array(self.highs, np.float32))
        return clipped


def _limits(values: NDArray[np.float64]) -> Numbers:
    """Finite limits: the largest float32 stands for infinity, since JSON has none."""
    most = float(np.finfo(np.float32).max)
    return tuple(float(v) for v in np.clip(values, -most, most))


@dataclass(frozen=True)
class LogSigned(Step):
    """``sign(x) log(1 + |x| / scale)``: tames values that span decades, whatever their sign.

    Attributes:
        scale: The size below which the function is about linear, in the channels' unit.
        channels: Which ones; empty for all.
        append: Keep the channels as they are, and append the logarithms.
    """

    scale: float = 1.0
    channels: tuple[str, ...] = ()
    append: bool = False
    at: tuple[int, ...] = ()
    kind: ClassVar[str] = "log_signed"

    def __post_init__(self) -> None:
        if not self.scale > 0.0:
            raise ConfigError(f"log_signed needs a scale above 0, not {self.scale}")

    def fit(self, x: Array, frame: Frame) -> Step:  # noqa: ARG002
        """Look up where the channels stand."""
        return replace(self, at=tuple(frame.indices(self.channels or frame.names)))

    def apply(self, x: Array) -> Array:
        """``[..., C]``, or with `append` ``[..., C + len(channels)]``."""
        values = x[..., list(self.at)]
        logs = np.copysign(np.log1p(np.abs(values) / np.float32(self.scale)), values)
        if self.append:
            return np.concatenate([x, logs], axis=-1)
        out = np.array(x)
        out[..., list(self.at)] = logs
        return out

    def frame(self, frame: Frame) -> Frame:
        """The same names with transformed ranges; appended ones are called ``log(NAME)``."""
        at = frame.indices(self.channels or frame.names)
        lows, highs = (np.copysign(np.log1p(np.abs(v) / self.scale), v) for v in (frame.lows, frame.highs))
        if self.append:
            for i in at:
                frame = frame.plus([f"log({frame.names[i]})"], float(lows[i]), float(highs[i]))
            return frame
        mine = np.isin(np.arange(len(frame.names)), at)
        lows, highs = np.where(mine, lows, frame.lows), np.where(mine, highs, frame.highs)
        return Frame(frame.names, lows, highs, frame.rate_hz, frame.length)


@dataclass(frozen=True)
class Magnitude(Step):
    """Append the Euclidean norm of groups of channels: what a re-mounted sensor still measures alike."""

    groups: tuple[tuple[str, ...], ...]
    at: tuple[tuple[int, ...], ...] = ()
    kind: ClassVar[str] = "magnitude"

    def fit(self, x: Array, frame: Frame) -> Step:  # noqa: ARG002
        """Look up where the channels stand."""
        return replace(self, at=tuple(tuple(frame.indices(group)) for group in self.groups))

    def apply(self, x: Array) -> Array:
        """``[..., C]`` to ``[..., C + len(groups)]``."""
        norms = [np.sqrt(np.square(x[..., list(at)]).sum(axis=-1, keepdims=True)) for at in self.at]
        return np.concatenate([x, *norms], axis=-1)

    def frame(self, frame: Frame) -> Frame:
        """The frame with the norms at its end."""
        for group in self.groups:
            at = frame.indices(group)
            most = float(np.sqrt(np.square(np.maximum(-frame.lows[at], frame.highs[at])).sum()))
            frame = frame.plus([f"norm({','.join(group)})"], 0.0, most)
        return frame


@dataclass(frozen=True)
class Statistics(Step):
    """Windows to a table of named statistics: ``[N, T, C]`` to ``[N, F]``."""

    functions: tuple[str, ...]
    kind: ClassVar[str] = "statistics"

    def __post_init__(self) -> None:
        statistics.check(self.functions)

    def apply(self, x: Array) -> Array:
        """``[N, F]``."""
        if x.ndim != 3:
            raise DataError(
                f"statistics need windows [N, T, C], not {x.shape}", fix="drop the step: this is a table"
            )
        return statistics.compute(x, self.functions)

    def frame(self, frame: Frame) -> Frame:
        """The statistics' names."""
        names = [name for function in self.functions for name in statistics.names_of(function, frame.names)]
        return frame.unbounded(names, table=True)


@dataclass(frozen=True)
class Flatten(Step):
    """``[N, T, C]`` to ``[N, T * C]``."""

    kind: ClassVar[str] = "flatten"

    def apply(self, x: Array) -> Array:
        """One row for each window."""
        return x.reshape(len(x), int(np.prod(x.shape[1:])))

    def frame(self, frame: Frame) -> Frame:
        """``name@t`` for every time step."""
        if not frame.length:
            return frame
        names = tuple(f"{name}@{t}" for t in range(frame.length) for name in frame.names)
        return Frame(names, np.tile(frame.lows, frame.length), np.tile(frame.highs, frame.length))


@dataclass(frozen=True)
class ChannelFirst(Step):
    """``[N, T, C]`` to ``[N, C, T]``, the form that convolutions read. The last step, if it is used."""

    kind: ClassVar[str] = "channel_first"

    def apply(self, x: Array) -> Array:
        """The last two axes swapped."""
        return np.ascontiguousarray(np.swapaxes(x, -1, -2))


def check_schema(x: NDArray[Any], schema: Schema) -> None:
    """Refuse data that has not the schema's row shape (cheap: looks at shapes alone)."""
    if x.shape[1:] != schema.row_shape:
        raise DataError(
            f"the pipeline was given rows of shape {x.shape[1:]}; its schema says {schema.row_shape}",
            fix=f"give the channels {', '.join(schema.names[:8])} in this order",
        )


@dataclass(frozen=True)
class LocalContext(Step):
    """Append what is usual on this device: the mean of each channel over its own past, labelled or not.

    A model that reads it can tell a change of activity from a way of wearing the sensor. The numbers are personal
    state: they stay on the device. A device without a past reads 0, so put the step after a scaler.

    Attributes:
        prior: Pseudo-samples of 0 that the mean is shrunk by, for devices with a short past.
        means: ``[C]`` frozen by `fit`.
    """

    prior: float = 0.0
    means: Numbers = ()
    kind: ClassVar[str] = "local_context"

    @property
    def local(self) -> bool:
        """True: the numbers are the device's own."""
        return True

    def fit(self, x: Array, frame: Frame) -> Step:  # noqa: ARG002
        """Take the means of one device's past rows (windows: over time too)."""
        known = ~np.isnan(x)
        total = np.where(known, x, 0.0).sum(axis=_axes(x), dtype=np.float64)
        count = known.sum(axis=_axes(x)) / max(1, int(np.prod(x.shape[1:-1])))
        return replace(
            self, means=_numbers(total / np.maximum(known.sum(axis=_axes(x)), 1) * _weight(count, self.prior))
        )

    def apply(self, x: Array) -> Array:
        """``[..., C]`` to ``[..., 2 C]``."""
        if not self.means:
            raise DataError(
                "this device's context is not known yet",
                fix="call Pipeline.localize with the device's own past rows",
            )
        means = np.asarray(self.means, dtype=np.float32)
        return np.concatenate([x, np.broadcast_to(means, x.shape)], axis=-1)

    def frame(self, frame: Frame) -> Frame:
        """The frame with ``usual(NAME)`` at its end."""
        names = tuple(f"usual({name})" for name in frame.names)
        lows, highs = np.tile(frame.lows, 2), np.tile(frame.highs, 2)
        return Frame((*frame.names, *names), lows, highs, frame.rate_hz, frame.length)


def _weight(count: NDArray[np.float64], prior: float) -> NDArray[np.float64]:
    """The share of the device's own numbers beside `prior` pseudo-samples; 0 without any sample."""
    return np.where(count > 0.0, count / np.maximum(count + prior, 1e-9), 0.0)
