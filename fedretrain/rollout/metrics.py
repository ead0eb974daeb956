"""What a gate measures: one number per device, in two arms at the same time.

Rules of this file:
    * The device is the unit of analysis. Events of one device are not independent: with a between-device correlation of 0.05 an event-level
      sequential test aborts 35 % of good candidates, with one summary per device 0.4 %.
    * Both arms are measured over the *same* window (since the step began, for a step), so that what moves both cancels.
    * A device's own record from before ends where the rollout begins, so that no exposure leaks into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.checks import positive, require
from fedretrain.rollout.verdict import Role

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Better(StrEnum):
    """Which way a metric improves."""

    HIGHER = "higher"
    LOWER = "lower"


class NoData(StrEnum):
    """What no measurement of the candidate means, once the step should have brought some."""

    HOLD = "hold"
    FAIL = "fail"


@dataclass(frozen=True)
class DeviceMeans:
    """One arm: a row per device.

    Attributes:
        device_K: ``[K]`` int64 device ids, each once.
        value_K: ``[K]`` float64 the device's mean over the window; NaN where it measured nothing.
        weight_K: ``[K]`` float64 its events in the window.
        before_K: ``[K]`` float64 its own mean before the rollout, NaN where it has none.
    """

    device_K: NDArray[np.int64]
    value_K: NDArray[np.float64]
    weight_K: NDArray[np.float64]
    before_K: NDArray[np.float64]

    def __post_init__(self) -> None:
        shapes = {np.shape(array) for array in (self.device_K, self.value_K, self.weight_K, self.before_K)}
        if len(shapes) != 1 or np.ndim(self.device_K) != 1:
            raise ValueError(f"device means of unlike shapes: {sorted(map(str, shapes))}")

    def __len__(self) -> int:
        return len(self.device_K)

    def take(self, at_K: NDArray[np.int64] | NDArray[np.bool_]) -> DeviceMeans:
        """Some of the rows."""
        return DeviceMeans(self.device_K[at_K], self.value_K[at_K], self.weight_K[at_K], self.before_K[at_K])

    def measured(self) -> DeviceMeans:
        """The devices that measured something: a finite value and at least one event."""
        keep_K = (self.weight_K > 0) & np.isfinite(self.value_K)
        return self if keep_K.all() else self.take(keep_K)


@dataclass(frozen=True)
class MetricEvidence:
    """What is known of one metric at a look.

    Attributes:
        metric: Its name.
        treated: Devices that run the candidate (in shadow: every shadowing device, scored with the candidate).
        control: Concurrent control (in shadow: the same devices, scored with the champion).
        paired: Whether both arms are the same devices on the same input.
        source_alive: False where the source of the metric itself is known to be broken.
    """

    metric: str
    treated: DeviceMeans
    control: DeviceMeans
    paired: bool
    source_alive: bool = True


@dataclass(frozen=True)
class MetricRule:
    """What a gate demands of one metric.

    Attributes:
        metric: Its name.
        role: What it may do to the verdict.
        better: Which way it improves.
        margin: The regression that is too much.
        relative: Whether `margin` is a fraction of the control's mean.
        min_devices: Fewer measured devices in either arm are INCONCLUSIVE.
        min_events: Fewer measured events in either arm are INCONCLUSIVE.
        no_data: What no measurement of the candidate means at the last look of a step.
        limit: Absolute limit on the device mean (judged by a sequential probability ratio test), or None.
    """

    metric: str = "kpi"
    role: Role = Role.GUARDRAIL
    better: Better = Better.HIGHER
    margin: float = 0.02
    relative: bool = True
    min_devices: int = 10
    min_events: int = 50
    no_data: NoData = NoData.HOLD
    limit: float | None = None

    def __post_init__(self) -> None:
        require(bool(self.metric), "a rule without a metric", key="gate.metric")
        positive("gate.margin", self.margin)
        require(
            self.min_devices >= 2,
            f"{self.min_devices} devices have no spread to judge by",
            key="gate.min_devices",
            fix="give at least 2",
        )
        require(
            self.min_events >= 1, f"{self.min_events} events", key="gate.min_events", fix="give at least 1"
        )

    @property
    def sign(self) -> float:
        """What turns (treated - control) into a regression, positive where worse."""
        return -1.0 if self.better is Better.HIGHER else 1.0
