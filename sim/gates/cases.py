"""The cases of the Monte-Carlo of gates, and what their rollouts add up to.

Rules of this file:
    * Every rate comes with its one-sided 95 % Clopper-Pearson bounds.
    * Exposure to harm is the share of the fleet's device-hours that the candidate served, over the fourteen days in which a rollout has to be decided; a
      candidate that is promoted serves the rest of them. `own_exposure` is over the rollout's own duration.
    * The same seeds make the same fleets for every controller.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.coordinator.policy import Policy
from fedretrain.core import rng
from fedretrain.core.checks import as_tuples, require
from fedretrain.rollout.config import RolloutPolicy, ShadowRules, Step
from fedretrain.rollout.metrics import MetricRule
from sim.gates.controllers import CONTROLLERS, End, Outcome
from sim.gates.fleets import CANDIDATE_EQUAL, DAY_S, METRIC, Candidate, Fleet, FleetModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HORIZON_S = 14 * DAY_S

CANDIDATES = (
    CANDIDATE_EQUAL,
    Candidate("one point better", failure_factor=0.9),
    Candidate("2 % worse", success_factor=0.98, harmful=True),
    Candidate("2 % worse, only when served", success_factor=0.98, in_shadow=False, harmful=True),
    Candidate("5 points worse", success_factor=1.0 - 0.05 / 0.9, harmful=True),
    Candidate(
        "5 points worse, only when served", success_factor=1.0 - 0.05 / 0.9, in_shadow=False, harmful=True
    ),
    Candidate(
        "one site 20 % worse, when served",
        success_factor=0.8,
        in_shadow=False,
        harmful=True,
        site=0,
        elsewhere_factor=0.7,
    ),
)
"""Factors that move a fleet mean of 90 % by exactly that much. The last harms a tenth of the devices while the mean gains: 0.9 (0.03) - 0.1 (0.18)."""


@dataclass(frozen=True)
class GatesConfig:
    """What is simulated.

    Attributes:
        num_rollouts: Per case.
        num_devices: Sizes of the fleet.
        correlations: Between-device correlations.
        events_per_day: Per device: hourly, and few.
        persistence: See `FleetModel`.
        controllers: Who decides.
        seed: Of everything.
    """

    num_rollouts: int = 1000
    num_devices: tuple[int, ...] = (1000, 5000)
    correlations: tuple[float, ...] = (0.05, 0.1)
    events_per_day: tuple[float, ...] = (24.0, 4.0)
    persistence: float = 0.9
    controllers: tuple[str, ...] = tuple(CONTROLLERS)
    seed: int = 0

    def __post_init__(self) -> None:
        as_tuples(self, ["num_devices", "correlations", "events_per_day", "controllers"])
        require(self.num_rollouts >= 1, f"{self.num_rollouts} rollouts", key="gates.num_rollouts")
        for name in self.controllers:
            require(
                name in CONTROLLERS,
                f"no controller {name!r}",
                key="gates.controllers",
                fix=f"known: {', '.join(CONTROLLERS)}",
            )


def default_policy() -> Policy:
    """Steps and times with which the shipped figures are reached: two weeks at most."""
    hour = 3600.0
    rollout = RolloutPolicy(
        shadow=ShadowRules(max_s=48 * hour),
        steps=(
            Step(0.02, 12 * hour, 48 * hour),
            Step(0.24, 24 * hour, 48 * hour),
            Step(0.5, 48 * hour, 192 * hour),
        ),
        metrics=(MetricRule(METRIC),),
        kpis=(METRIC,),
    )
    return Policy(rollout=rollout)


@dataclass(frozen=True)
class Case:
    """One cell: a fleet, a candidate, a controller."""

    controller: str
    model: FleetModel
    candidate: Candidate


@dataclass(frozen=True)
class Summary:
    """What the rollouts of a case add up to.

    Attributes:
        case: Which.
        num_rollouts: How many.
        ends: Counts by how they ended.
        days_median: To the decision.
        days_p90: Likewise.
        exposure_median: Share of the fleet's device-hours in fourteen days.
        exposure_mean: Likewise.
        own_exposure_median: Share of those of the rollout's own duration.
        stages: Counts by ``end at stage``.
    """

    case: Case
    num_rollouts: int
    ends: dict[str, int]
    days_median: float
    days_p90: float
    exposure_median: float
    exposure_mean: float
    own_exposure_median: float
    stages: dict[str, int] = field(default_factory=dict)

    def rate(self, end: End) -> tuple[float, float, float]:
        """Share of the rollouts that ended so, with its lower and upper bound."""
        count = self.ends.get(str(end), 0)
        return count / self.num_rollouts, *clopper_pearson(count, self.num_rollouts)

    def to_record(self) -> dict[str, Any]:
        """Plain values for a JSON line."""
        model = self.case.model
        record: dict[str, Any] = {
            "controller": self.case.controller,
            "candidate": self.case.candidate.name,
            "harmful": self.case.candidate.harmful,
            "devices": model.num_devices,
            "correlation": model.correlation,
            "events_per_day": model.events_per_day,
            "persistence": model.persistence,
            "rollouts": self.num_rollouts,
        }
        for end in End:
            rate, low, high = self.rate(end)
            record[str(end)] = {"rate": rate, "low": round(low, 5), "high": round(high, 5)}
        record |= {
            "days_median": self.days_median,
            "days_p90": self.days_p90,
            "exposure_median": round(self.exposure_median, 6),
            "exposure_mean": round(self.exposure_mean, 6),
            "own_exposure_median": round(self.own_exposure_median, 6),
            "stages": self.stages,
        }
        return record


def clopper_pearson(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """One-sided lower and upper bounds of a share, each at `confidence`."""
    from scipy import stats

    low = float(stats.beta.ppf(1.0 - confidence, count, total - count + 1)) if count else 0.0
    high = float(stats.beta.ppf(confidence, count + 1, total - count)) if count < total else 1.0
    return low, high


def cases(config: GatesConfig) -> Iterator[Case]:
    """Every case of a configuration. Where harm shows matters to ours only: the peers have no shadow."""
    for events in config.events_per_day:
        for num in config.num_devices:
            for correlation in config.correlations:
                model = FleetModel(num, correlation, events_per_day=events, persistence=config.persistence)
                for candidate in CANDIDATES:
                    for controller in config.controllers:
                        if controller == "ours" or candidate.in_shadow:
                            yield Case(controller, model, candidate)


def run_case(case: Case, policy: Policy, num_rollouts: int, seed: int) -> Summary:
    """Simulate a case."""
    decide = CONTROLLERS[case.controller]
    outcomes = []
    for index in range(num_rollouts):
        fleet = Fleet(case.model, case.candidate, rng.seed_for(seed, -1, index, "fleet"))
        plan = policy.look_plan(seed=rng.seed_for(seed, -1, index, "looks"))
        outcomes.append(decide(fleet, policy, plan))
    return summarise(case, outcomes)


def summarise(case: Case, outcomes: Sequence[Outcome]) -> Summary:
    """Add up the rollouts of a case."""
    ends: dict[str, int] = {}
    stages: dict[str, int] = {}
    for outcome in outcomes:
        ends[str(outcome.end)] = ends.get(str(outcome.end), 0) + 1
        at = f"{outcome.end} at {outcome.stage}"
        stages[at] = stages.get(at, 0) + 1
    at_s = np.array([outcome.at_s for outcome in outcomes])
    exposed_s = np.array([outcome.exposed_s for outcome in outcomes])
    promoted = np.array([outcome.end is End.CHAMPION for outcome in outcomes])
    exposure = (exposed_s + np.where(promoted, np.maximum(HORIZON_S - at_s, 0.0), 0.0)) / HORIZON_S
    return Summary(
        case,
        len(outcomes),
        ends,
        float(np.median(at_s)) / DAY_S,
        float(np.quantile(at_s, 0.9)) / DAY_S,
        float(np.median(exposure)),
        float(exposure.mean()),
        float(np.median(exposed_s / at_s)),
        stages,
    )
