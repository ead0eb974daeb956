"""What is sabotaged. See `sim.schema`."""

from __future__ import annotations

from dataclasses import dataclass

from fedretrain.core.checks import as_tuples, positive, require
from fedretrain.core.clock import DAY_S


@dataclass(frozen=True)
class SabotageConfig:
    """Whether this run is one of sabotage, and of which.

    Attributes:
        cases: Names of `sim.sabotage.cases.CASES`, or ``all``; empty: no sabotage.
        horizon_s: How long a rollout has to be decided; exposure to harm is a share of the device-hours of this time.
        rollouts: Above 0 the Monte-Carlo of gates runs instead, with so many rollouts a case: no models, no lives.
        devices: Fleet sizes of the Monte-Carlo.
        correlations: Its between-device correlations.
        events_per_day: Its events per device and day.
    """

    cases: tuple[str, ...] = ()
    horizon_s: float = 14 * DAY_S
    rollouts: int = 0
    devices: tuple[int, ...] = (1000,)
    correlations: tuple[float, ...] = (0.05, 0.1)
    events_per_day: tuple[float, ...] = (24.0,)

    def __post_init__(self) -> None:
        as_tuples(self, ["cases", "devices", "correlations", "events_per_day"])
        positive("sabotage.horizon_s", self.horizon_s)
        require(self.rollouts >= 0, f"{self.rollouts} rollouts", key="sabotage.rollouts")

    @property
    def is_on(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.cases) or self.rollouts > 0
