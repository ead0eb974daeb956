"""What a sensor measures: the schema of raw samples, versioned, and the checks that hold data to it.

Rules of this file:
    * A schema is a value. Two schemas with the same channels have the same digest, whatever their version.
    * NaN means "missing" and is allowed in channels that declare it; infinity is never allowed.
    * A failed check names the device, the row, the time step and the channel.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Channel:
    """One measured quantity.

    Attributes:
        name: Unique inside its schema.
        unit: For example ``"m/s^2"``; ``"1"`` for a pure number.
        low: The least value that the sensor can report, or -inf where no limit is known.
        high: The greatest value that it can report, or inf.
        dtype: How the sensor reports it: ``float32``, ``int16``, ...
        rate_hz: Samples per second; 0 where samples are not regular in time.
        missing: True if NaN (missing) is allowed.
    """

    name: str
    unit: str
    low: float
    high: float
    dtype: str = "float32"
    rate_hz: float = 0.0
    missing: bool = False

    def __post_init__(self) -> None:
        for field in ("low", "high", "rate_hz"):  # so that 8 and 8.0 give one digest
            object.__setattr__(self, field, float(getattr(self, field)))
        if not self.name:
            raise ConfigError("a channel has no name", fix="name every channel of the schema")
        if not self.low < self.high:
            raise ConfigError(
                f"the range of channel {self.name!r} is empty: {self.low} to {self.high}",
                fix="give low < high, in the channel's own unit",
            )
        if self.rate_hz < 0.0 or not math.isfinite(self.rate_hz):
            raise ConfigError(f"channel {self.name!r} has the rate {self.rate_hz} Hz", fix="give 0 or more")
        try:
            np.dtype(self.dtype)
        except TypeError:
            raise ConfigError(
                f"channel {self.name!r} has the unknown type {self.dtype!r}", fix="give a numpy type name"
            ) from None


class Compatibility(StrEnum):
    """What a change of schema means for a model trained on the older one."""

    SAME = "same"  # nothing changed that a model can feel
    WIDER = "wider"  # ranges grew or missing values became possible: new bins, the model may stay
    BROKEN = "broken"  # names, order, units, types or rates changed: a full retrain


@dataclass(frozen=True)
class Schema:
    """The channels of a raw sample, in order.

    Attributes:
        channels: In the order of the last axis of the data.
        version: Counts up when the channels change; not part of the digest.
        window: Samples in a raw window ``[T, C]``; 0 for tables ``[C]``.
    """

    channels: tuple[Channel, ...]
    version: int = 1
    window: int = 0

    def __post_init__(self) -> None:
        if not self.channels:
            raise ConfigError("a schema has no channels", fix="declare at least one Channel")
        names = [channel.name for channel in self.channels]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(
                f"channel {twice[0]!r} is declared twice", fix="give every channel its own name"
            )
        if self.version < 1 or self.window < 0:
            raise ConfigError(f"schema version {self.version}, window {self.window}: not possible")

    def __len__(self) -> int:
        return len(self.channels)

    @property
    def names(self) -> tuple[str, ...]:
        """The channels' names, in order."""
        return tuple(channel.name for channel in self.channels)

    @property
    def lows(self) -> NDArray[np.float64]:
        """``[C]`` least possible values."""
        return np.array([channel.low for channel in self.channels])

    @property
    def highs(self) -> NDArray[np.float64]:
        """``[C]`` greatest possible values."""
        return np.array([channel.high for channel in self.channels])

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one raw row: ``(T, C)`` or ``(C,)``."""
        return (self.window, len(self)) if self.window else (len(self),)

    @property
    def digest(self) -> str:
        """SHA-256 over channels and window."""
        content = json.dumps([[asdict(c) for c in self.channels], self.window], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can hold (infinite limits become ``None``)."""
        channels = [asdict(channel) for channel in self.channels]
        for channel in channels:
            for limit in ("low", "high"):
                channel[limit] = channel[limit] if math.isfinite(channel[limit]) else None
        return {"version": self.version, "window": self.window, "channels": channels}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Schema:
        """The inverse of `to_dict`.

        Raises:
            DataError: If the content is not a schema.
        """
        try:
            channels = [dict(channel) for channel in content["channels"]]
            for channel in channels:
                channel["low"] = -math.inf if channel["low"] is None else float(channel["low"])
                channel["high"] = math.inf if channel["high"] is None else float(channel["high"])
            return cls(tuple(Channel(**c) for c in channels), int(content["version"]), int(content["window"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"this is not a schema: {error}", fix="write it with Schema.to_dict") from error

    def compare(self, newer: Schema) -> tuple[Compatibility, tuple[str, ...]]:
        """What changed from this schema to a newer one, and what it means for a model.

        Returns:
            The verdict, and one line for each difference.
        """
        if self.names != newer.names:
            return Compatibility.BROKEN, (f"channels: {list(self.names)} -> {list(newer.names)}",)
        broken = [] if self.window == newer.window else [f"window: {self.window} -> {newer.window} samples"]
        wider: list[str] = []
        for old, new in zip(self.channels, newer.channels, strict=True):
            _compare_channel(old, new, broken, wider)
        verdict = Compatibility.BROKEN if broken else Compatibility.WIDER if wider else Compatibility.SAME
        return verdict, (*broken, *wider)

    def validate(self, x: NDArray[Any], *, device: str = "", where: str = "", ranges: bool = False) -> None:
        """Hold raw data to the schema.

        Args:
            x: ``[N, T, C]`` or ``[N, C]`` raw samples.
            device: Whose data it is, for the message.
            where: The file or stream, for the message.
            ranges: Check the channels' ranges too. Off by default: a value outside is a fact about the sensor
                (drift, a fault) that a fleet must survive; it is on for what a person supplies.

        Raises:
            DataError: Naming the device, the row, the time step and the channel.
        """
        place = ", ".join(part for part in (where, f"device {device}" if device else "") if part)
        if x.dtype.kind not in "fiu":
            raise DataError(f"samples have the type {x.dtype}", where=place, fix="give numbers")
        if x.ndim != len(self.row_shape) + 1 or x.shape[1:] != self.row_shape:
            raise DataError(
                f"samples have the shape {x.shape}; the schema says [rows, {', '.join(map(str, self.row_shape))}]",
                where=place,
                fix=f"give the channels {', '.join(self.names[:8])}{' ...' if len(self) > 8 else ''} in this order",
            )
        self._refuse(np.isinf(x), x, "infinity", place, "mend or drop the row; write missing values as NaN")
        allowed = np.array([channel.missing for channel in self.channels])
        self._refuse(
            np.isnan(x) & ~allowed, x, "NaN", place, "drop the row, or declare the channel with missing=True"
        )
        if ranges:
            with np.errstate(invalid="ignore"):
                outside = (x < self.lows) | (x > self.highs)
            self._refuse(outside, x, "a value outside its range", place, "mend the value, unit or range")

    def _refuse(self, bad: NDArray[np.bool_], x: NDArray[Any], what: str, place: str, fix: str) -> None:
        """Raise for the first row that is bad."""
        if not bad.any():
            return
        at = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape))
        channel = self.channels[at[-1]]
        step = f", step {at[1]}" if len(at) == 3 else ""
        detail = (
            f" ({x[at]:g} is not in {channel.low:g}..{channel.high:g} {channel.unit})"
            if "range" in what
            else ""
        )
        raise DataError(
            f"{what} in channel {channel.name!r}, row {at[0]}{step}{detail}; "
            f"{int(bad.sum())} such values in all",
            where=place,
            fix=fix,
        )


def _compare_channel(old: Channel, new: Channel, broken: list[str], wider: list[str]) -> None:
    """Add a line for each difference to the list where it belongs."""
    broken.extend(
        f"{old.name}.{field}: {getattr(old, field)} -> {getattr(new, field)}"
        for field in ("unit", "dtype", "rate_hz")
        if getattr(old, field) != getattr(new, field)
    )
    if (new.low, new.high) != (old.low, old.high):
        grew = new.low <= old.low and new.high >= old.high
        line = f"{old.name}: range {old.low}..{old.high} -> {new.low}..{new.high}"
        (wider if grew else broken).append(line)
    if new.missing != old.missing:
        (wider if new.missing else broken).append(f"{old.name}.missing: {old.missing} -> {new.missing}")
