"""What the simulation gate of a rollout demands: the `rollout.simulation` part of a policy file."""

from __future__ import annotations

from dataclasses import dataclass

from fedretrain.core.checks import fraction, positive, require
from fedretrain.core.clock import DAY_S, HOUR_S


@dataclass(frozen=True)
class SimulationRules:
    """The simulation gate: the campaign that made a candidate is replayed in a simulated fleet that was fitted to this one's log.

    Attributes:
        required: Whether a candidate of a federated campaign needs its PASS before shadow.
        seeds: Repetitions of every replay.
        most_seeds: While undecided, so many more at a time, up to so many.
        accuracy_margin: The mean score over devices may be worse than the champion's by so much.
        worst_margin: Likewise over the worst tenth of the devices.
        stress: The second condition has so many times the observed drop-outs and label delay.
        num_devices: Of the simulated fleet, at most.
        max_s: A job that takes longer is ended; there is no verdict then.
        memory_bytes: The most private memory of a job.
        retry_s: Wait before a job that gave no PASS or FAIL is repeated.
        limit_s: A candidate that is undecided for this long after its validation is given up, without blame.
    """

    required: bool = False
    seeds: int = 5
    most_seeds: int = 15
    accuracy_margin: float = 0.02
    worst_margin: float = 0.05
    stress: float = 2.0
    num_devices: int = 500
    max_s: float = 2 * HOUR_S
    memory_bytes: int = 8 * 2**30
    retry_s: float = HOUR_S
    limit_s: float = 2 * DAY_S

    def __post_init__(self) -> None:
        require(
            5 <= self.seeds <= self.most_seeds,
            f"{self.seeds} seeds, and {self.most_seeds} at most",
            key="simulation.seeds",
            fix="give 5 or more, and most_seeds no fewer",
        )
        for key in ("accuracy_margin", "worst_margin"):
            fraction(f"simulation.{key}", getattr(self, key))
        require(self.stress >= 1, f"a stress of {self.stress}", key="simulation.stress", fix="1 or more")
        require(self.num_devices >= 2, f"{self.num_devices} devices", key="simulation.num_devices")
        for key in ("max_s", "memory_bytes", "retry_s", "limit_s"):
            positive(f"simulation.{key}", getattr(self, key))
