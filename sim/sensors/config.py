"""What drift to inject: one `DriftSpec` per effect, applied in the order listed.

Rules of this file:
    * A specification targets devices by site, type, id and a fraction of what is left; each targeted device
      draws its own onset, sign and size.
    * Magnitudes: `gain` is relative (0.2 multiplies by 1.2); `offset`, `noise` and `stuck` are in units of the
      channel's standard deviation (`unit: std`, over the past rows of the data) or of its range in the schema
      (`unit: range`) or in the channel's own unit (`unit: raw`); `missing` is the fraction of stretches lost;
      `clip` is the fraction of the schema's range that is left; `clock_skew` is in seconds; `dead` and
      `recalibration` have none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from fedretrain.core.checks import as_tuples, finite, fraction, not_negative, positive, require
from fedretrain.core.clock import DAY_S


class DriftKind(StrEnum):
    """What happens to the signal."""

    GAIN = "gain"  # multiplied
    OFFSET = "offset"  # shifted
    NOISE = "noise"  # noise added
    STUCK = "stuck"  # reads one value: mean + magnitude x unit
    DEAD = "dead"  # reads zero
    MISSING = "missing"  # stretches are NaN
    CLIP = "clip"  # saturates before the end of the schema's range, or at it
    CLOCK_SKEW = "clock_skew"  # the device's clock is ahead (or behind): event_at shifts
    RECALIBRATION = "recalibration"  # ends gain, offset, noise, clock skew and custom drift begun before it
    CUSTOM = "custom"  # the user's


class DriftShape(StrEnum):
    """How gain, offset, noise and clock skew grow from the onset on."""

    ABRUPT = "abrupt"  # at once
    LINEAR = "linear"  # to full size over `time_s`, then held
    SEASONAL = "seasonal"  # a sine of period `time_s`, zero at the onset
    RANDOM_WALK = "random_walk"  # Brownian; standard deviation 1 (times magnitude) at `time_s`, then held


class MagnitudeUnit(StrEnum):
    """What an offset, noise or stuck level is measured in."""

    STD = "std"
    RANGE = "range"
    RAW = "raw"


RESTORED = frozenset(
    {DriftKind.GAIN, DriftKind.OFFSET, DriftKind.NOISE, DriftKind.CLOCK_SKEW, DriftKind.CUSTOM}
)
"""Kinds that a recalibration ends; the others are faults that need a new sensor."""

SHAPED = frozenset({DriftKind.GAIN, DriftKind.OFFSET, DriftKind.NOISE, DriftKind.CLOCK_SKEW})
"""Kinds that have a shape in time."""


@dataclass(frozen=True)
class DriftSpec:
    """One effect on part of the fleet.

    Attributes:
        kind: What happens.
        shape: How it grows.
        magnitude: How large it gets; see the units above.
        unit: What the magnitude is measured in, where there is a choice.
        random_sign: Each device draws a sign.
        spread: Lognormal spread of the size over devices.
        channels: Names of the channels that can be hit; empty for all.
        num_channels: How many of them each device draws; 0 for all.
        device_fraction: Each targeted device is hit with this probability.
        devices: Only these device ids; empty for all.
        sites: Only devices of these sites; empty for all.
        device_types: Only devices of these types; empty for all.
        onset_from_s: The onset is drawn uniformly from here ...
        onset_to_s: ... to here.
        duration_s: How long it lasts; 0 for ever.
        time_s: Time scale: see `DriftShape`; for `missing` the length of a stretch.
        path: Custom: ``package.module:factory`` of a `CustomDrift`.
        options: Custom: keyword arguments of the factory.
    """

    kind: DriftKind = DriftKind.OFFSET
    shape: DriftShape = DriftShape.ABRUPT
    magnitude: float = 1.0
    unit: MagnitudeUnit = MagnitudeUnit.STD
    random_sign: bool = False
    spread: float = 0.0
    channels: tuple[str, ...] = ()
    num_channels: int = 0
    device_fraction: float = 1.0
    devices: tuple[int, ...] = ()
    sites: tuple[int, ...] = ()
    device_types: tuple[int, ...] = ()
    onset_from_s: float = 0.0
    onset_to_s: float = 0.0
    duration_s: float = 0.0
    time_s: float = DAY_S
    path: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        as_tuples(self, ["channels", "devices", "sites", "device_types"])
        for name in ("magnitude", "onset_from_s", "onset_to_s"):
            finite(name, getattr(self, name))
        for name in ("spread", "num_channels", "duration_s"):
            not_negative(name, getattr(self, name))
        fraction("device_fraction", self.device_fraction)
        positive("time_s", self.time_s)
        require(self.onset_from_s <= self.onset_to_s, "the onset window is empty", key="onset_to_s")
        self._check_kind()

    def _check_kind(self) -> None:
        """What each kind asks for."""
        if self.kind not in SHAPED:
            require(self.shape == DriftShape.ABRUPT, f"{self.kind} has no shape {self.shape}", key="shape")
        if self.kind == DriftKind.MISSING:
            fraction("magnitude", self.magnitude)
        if self.kind == DriftKind.CLIP:
            require(0.0 < self.magnitude <= 1.0, "a clip keeps a fraction of the range", key="magnitude")
        if self.kind in (DriftKind.MISSING, DriftKind.CLIP):
            plain = not self.random_sign and not self.spread
            require(plain, f"{self.kind} takes a fraction: no sign, no spread", key="random_sign")
        is_custom = self.kind == DriftKind.CUSTOM
        require(bool(self.path) == is_custom, "a path and kind=custom go together", key="path")


@dataclass(frozen=True)
class DriftConfig:
    """A drift plan.

    Attributes:
        specs: Applied in this order.
    """

    specs: tuple[DriftSpec, ...] = ()

    def __post_init__(self) -> None:
        as_tuples(self, ["specs"])
