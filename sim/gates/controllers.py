"""What decides in the Monte-Carlo: our gates, and two that others ship, over the same fleets.

Rules of this file:
    * Ours is `rollout.gate.judge` and the rollout's state machine themselves, look by look, on device means.
    * A static threshold with a failure limit compares each hour's share of successes of the exposed devices with a constant from before.
    * The peeked z-test compares both arms' pooled events at every hour, as if each look were the only one and events were independent.
    * The two peers have no shadow and move on when a step's shortest time is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.rollout.causes import Cause, Phase
from fedretrain.rollout.compose import create
from fedretrain.rollout.evidence import Answer, Approval, Coverage, Exposure, RolloutEvidence
from fedretrain.rollout.gate import judge
from fedretrain.rollout.machine import apply, begin, decide
from fedretrain.rollout.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fedretrain.coordinator.policy import Policy
    from fedretrain.rollout.config import RolloutPolicy
    from fedretrain.rollout.looks import LookPlan
    from fedretrain.rollout.metrics import MetricEvidence
    from fedretrain.rollout.state import RolloutState
    from fedretrain.rollout.verdict import GateReport
    from sim.gates.fleets import Fleet

    Counts = NDArray[np.float64]

_LOOKED_AT = (Phase.SHADOW, Phase.CANARY, Phase.RAMP)
_ALL_SEEN = Coverage(frozenset(range(24)), frozenset({0}), frozenset({0}))
_STEADY_FAILURES = 3  # a static threshold's failure limit
_Z_LIMIT = 1.6449  # one-sided 5 %


class End(StrEnum):
    """How a rollout ended."""

    CHAMPION = "champion"
    ROLLED_BACK = "rolled_back"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Outcome:
    """One rollout.

    Attributes:
        end: How it ended.
        stage: The stage that it ended in.
        at_s: When.
        exposed_s: Fleet-seconds served by the candidate until then: the sum over stages of exposed share times duration.
    """

    end: End
    stage: str
    at_s: float
    exposed_s: float


def ours(fleet: Fleet, policy: Policy, plan: LookPlan) -> Outcome:
    """Our gates, driving the rollout's own state machine; every device confirms at once."""
    rollout = policy.rollout
    state = begin(create(rollout, "rollout", candidate=1, champion=0, now=0.0))
    state = _tick(rollout, state, fleet, None, 0.0)
    now = exposed_s = 0.0
    clusters = fleet.clusters(plan.policy.clusters)
    while state.phase in _LOOKED_AT:
        step, start = state.step, now
        fleet.begin(now)
        for number, look in enumerate(plan.looks):
            if look.stage != step:
                continue
            evidence = _measure(fleet, plan, step, now, start + look.at_s)
            now = start + look.at_s
            state = _tick(
                rollout, state, fleet, judge(rollout.metrics, (evidence,), plan, number, clusters), now
            )
            if state.phase not in _LOOKED_AT or state.step != step:
                break
        else:
            raise RuntimeError(f"the looks of step {step} are over and the rollout is still in {state.phase}")
        exposed_s += plan.stages[step].fraction * (now - start) if step else 0.0
    return Outcome(_end(state), plan.stages[min(state.step, len(plan.stages) - 1)].name, now, exposed_s)


def _measure(fleet: Fleet, plan: LookPlan, step: int, start: float, end: float) -> MetricEvidence:
    """Let time pass and say what was measured since the step began."""
    if step == 0:
        fleet.shadow(start, end)
        return fleet.shadow_evidence()
    fleet.serve(plan.stages[step].fraction, start, end)
    return fleet.evidence(plan.stages[step].fraction)


def _tick(
    policy: RolloutPolicy, state: RolloutState, fleet: Fleet, gate: GateReport | None, now: float
) -> RolloutState:
    """What the machine makes of a look; a second time, so that a new step's devices confirm at once."""
    for report in (gate, None):
        targets = fleet.num_exposed(state.exposure_fraction)
        evidence = RolloutEvidence(
            gate=report,
            coverage=_ALL_SEEN,
            exposure=Exposure(targets, targets, counter=state.counter),
            validation=Verdict.PASS,
            approval=Approval(Answer.GRANTED, "a person", now),
        )
        for event in decide(policy, state, evidence, now):
            state = apply(state, event)
    return state


def _end(state: RolloutState) -> End:
    if state.phase is Phase.CHAMPION:
        return End.CHAMPION
    return End.UNDECIDED if state.cause is Cause.INCONCLUSIVE else End.ROLLED_BACK


def static_threshold(fleet: Fleet, _policy: Policy, plan: LookPlan) -> Outcome:
    """A constant threshold and a failure limit per step."""
    threshold = 0.98 * float(np.nanmean(fleet.before_D))

    def first_abort(counts_H22: Counts) -> int | None:
        won_H, lost_H = counts_H22[:, 0, 0], counts_H22[:, 0, 1]
        measured_H = np.maximum(won_H + lost_H, 1.0)
        failures_H = np.cumsum((won_H / measured_H < threshold) & (won_H + lost_H > 0))
        crossed = np.flatnonzero(failures_H > _STEADY_FAILURES)
        return int(crossed[0]) if len(crossed) else None

    return _steps(fleet, plan, first_abort)


def peeked_z(fleet: Fleet, _policy: Policy, plan: LookPlan) -> Outcome:
    """A fixed-sample two-proportion z-test on events, looked at every hour."""

    def first_abort(counts_H22: Counts) -> int | None:
        won_H2, lost_H2 = counts_H22[..., 0].cumsum(0), counts_H22[..., 1].cumsum(0)
        total_H2 = np.maximum(won_H2 + lost_H2, 1.0)
        pooled_H = won_H2.sum(1) / total_H2.sum(1)
        error_H = np.sqrt(pooled_H * (1.0 - pooled_H) * (1.0 / total_H2).sum(1))
        gap_H = won_H2[:, 1] / total_H2[:, 1] - won_H2[:, 0] / total_H2[:, 0]
        crossed = np.flatnonzero(gap_H > _Z_LIMIT * np.maximum(error_H, 1e-12))
        return int(crossed[0]) if len(crossed) else None

    return _steps(fleet, plan, first_abort)


def _steps(fleet: Fleet, plan: LookPlan, first_abort: Callable[[Counts], int | None]) -> Outcome:
    """Walk the exposure steps; each passes at its shortest time unless the peer aborts within it."""
    now = exposed_s = 0.0
    for stage in plan.stages[1:]:
        hours = round(stage.min_s / 3600.0)
        aborted = first_abort(fleet.totals(stage.fraction, now, hours))
        lasted_s = stage.min_s if aborted is None else 3600.0 * (aborted + 1)
        now += lasted_s
        exposed_s += stage.fraction * lasted_s
        if aborted is not None:
            return Outcome(End.ROLLED_BACK, stage.name, now, exposed_s)
    return Outcome(End.CHAMPION, plan.stages[-1].name, now, exposed_s)


CONTROLLERS: dict[str, Callable[[Fleet, Policy, LookPlan], Outcome]] = {
    "ours": ours,
    "static_threshold": static_threshold,
    "peeked_z": peeked_z,
}
