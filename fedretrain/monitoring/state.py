"""What monitoring remembers of one champion: plain values, rebuilt from the log of its events.

Rules of this file:
    * Everything is bounded: by features, devices, KPIs and windows, never by time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedretrain.monitoring.alerts import Told
from fedretrain.monitoring.kpi import DecayState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedretrain.monitoring.guardrails import KpiEpoch


@dataclass(frozen=True)
class Streak:
    """Windows in a row that said the same about one question.

    Attributes:
        bad: Bad ones.
        quiet: Quiet ones.
    """

    bad: int = 0
    quiet: int = 0

    def after(self, told: Told) -> Streak:
        """With one more window; an unknown one changes nothing."""
        if told is Told.UNKNOWN:
            return self
        return Streak(self.bad + 1, 0) if told is Told.BAD else Streak(0, self.quiet + 1)


@dataclass(frozen=True)
class WindowStreaks:
    """Recipe A on windows of one length.

    Attributes:
        features: By name.
        published: Windows in a row above the limit, by feature, for the published rule.
        drifted: The verdict stands.
        published_on: The published rule's does.
    """

    features: Mapping[str, Streak] = field(default_factory=dict)
    published: Mapping[str, Streak] = field(default_factory=dict)
    drifted: bool = False
    published_on: bool = False


@dataclass(frozen=True)
class MonitorState:
    """What monitoring remembers of one champion.

    Attributes:
        version: The champion.
        counted_at: End of the last counted window, by its length.
        located_at: End of the last window in which outliers were looked for.
        inputs: Recipe A by the window's length.
        decay: Recipe B.
        kpis: Recipe C by KPI.
        epochs: Sequential tests by KPI.
        breached: KPIs that are breached.
        accuracy: What labels said.
        accuracy_fell: The verdict stands.
        pace: What the arrival of labels said.
        pace_changed: The verdict stands.
        devices: Streaks of devices that are, or lately were, outliers.
        quarantined: Devices in quarantine.
        num_alarms: Times recipe A was raised.
        num_published_alarms: Times the published rule would have been.
    """

    version: int
    counted_at: Mapping[float, float] = field(default_factory=dict)
    located_at: float = -math.inf
    inputs: Mapping[float, WindowStreaks] = field(default_factory=dict)
    decay: DecayState = field(default_factory=DecayState)
    kpis: Mapping[str, Streak] = field(default_factory=dict)
    epochs: Mapping[str, KpiEpoch] = field(default_factory=dict)
    breached: frozenset[str] = frozenset()
    accuracy: Streak = field(default_factory=Streak)
    accuracy_fell: bool = False
    pace: Streak = field(default_factory=Streak)
    pace_changed: bool = False
    devices: Mapping[int, Streak] = field(default_factory=dict)
    quarantined: frozenset[int] = frozenset()
    num_alarms: int = 0
    num_published_alarms: int = 0

    @property
    def drifted(self) -> bool:
        """Recipe A stands for windows of some length."""
        return any(streaks.drifted for streaks in self.inputs.values())
