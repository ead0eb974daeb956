"""Rollouts for tests: a short policy, evidence that is all well, and a driver that keeps the log."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedretrain.rollout.causes import Change
from fedretrain.rollout.compose import create
from fedretrain.rollout.config import HOUR_S, ApprovalRules, RolloutPolicy, Step
from fedretrain.rollout.evidence import Answer, Approval, Coverage, Exposure, Operator, RolloutEvidence
from fedretrain.rollout.fold import begin
from fedretrain.rollout.metrics import MetricRule
from fedretrain.rollout.reconcile import tick
from fedretrain.rollout.verdict import Check, GateReport, Reason, Role, Verdict

if TYPE_CHECKING:
    from fedretrain.rollout.causes import Phase
    from fedretrain.rollout.effects import Effect, EffectKind
    from fedretrain.rollout.events import RolloutEvent
    from fedretrain.rollout.state import RolloutState

DAY_S = 24 * HOUR_S
STEPS = (Step(0.02, HOUR_S, DAY_S), Step(0.1, HOUR_S, DAY_S), Step(0.5, HOUR_S, DAY_S))
NOBODY = ApprovalRules(waived=(Change.INCREMENTAL, Change.FULL, Change.IMPORTED))
"""Rollouts of these policies ask nobody: what is tested is elsewhere."""
POLICY = RolloutPolicy(steps=STEPS, metrics=(MetricRule("hits"),), kpis=("hits",), approvals=NOBODY)
COVERED = Coverage(frozenset(range(24)), frozenset({0, 1}), frozenset({0, 1}))


def check_of(verdict: Verdict, reason: Reason, metric: str = "hits", **changes: Any) -> Check:
    base = Check(metric, Role.GUARDRAIL, verdict, reason, 0.0, -0.01, 0.01, 0.02, 50, 5000)
    return replace(base, **changes)


def gate_of(
    verdict: Verdict, reason: Reason | None = None, metric: str = "hits", **changes: Any
) -> GateReport:
    usual = {
        Verdict.PASS: Reason.NOT_INFERIOR,
        Verdict.FAIL: Reason.HARM,
        Verdict.INCONCLUSIVE: Reason.NOT_PROVEN,
    }
    return GateReport(verdict, (check_of(verdict, reason or usual[verdict], metric, **changes),))


PASS, FAIL, UNSURE = (gate_of(v) for v in (Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE))
DEAD = gate_of(Verdict.INCONCLUSIVE, Reason.DEAD_SOURCE)


def confirmed(state: RolloutState, num: int = 100) -> Exposure:
    return Exposure(num, num, counter=state.counter)


def well(state: RolloutState, **changes: Any) -> RolloutEvidence:
    """Everything as one wishes."""
    base = RolloutEvidence(
        gate=PASS,
        gate_for=(state.step, state.attempt),
        coverage=COVERED,
        exposure=confirmed(state),
        validation=Verdict.PASS,
    )
    return replace(base, **changes)


class Drive:
    """A rollout whose log is kept."""

    def __init__(self, policy: RolloutPolicy = POLICY, now: float = 0.0, **created: Any) -> None:
        self.policy, self.now = policy, now
        self.log: list[RolloutEvent] = [
            create(policy, "r1", created.pop("candidate", 7), created.pop("champion", 3), now, **created)
        ]
        self.state = begin(self.log[0])
        self.effects: list[Effect] = []

    def tick(self, hours: float = 0.0, **changes: Any) -> list[str]:
        """Let time pass, then one tick with evidence that is well but for `changes`; the kinds of its events."""
        self.now += hours * HOUR_S
        done = tick(self.policy, self.state, well(self.state, **changes), self.now)
        self.state = done.state
        self.log += done.events
        self.effects += done.effects
        return [event.kind.value for event in done.events]

    def to(self, phase: Phase, step: int | None = None, **changes: Any) -> Drive:
        """Tick hourly, all well, until `phase` (and `step`)."""
        for _ in range(400):
            if self.state.phase is phase and step in (None, self.state.step):
                return self
            self.tick(1.0, **changes)
        raise AssertionError(f"{phase} is not reached from {self.state}")

    def kinds(self) -> list[str]:
        return [event.kind.value for event in self.log]

    def payloads(self, kind: EffectKind) -> list[dict[str, Any]]:
        return [effect.payload for effect in self.effects if effect.kind is kind]


def said(command: Any, by: str = "ada", reason: str = "") -> Operator:
    return Operator(command, by, reason)


def yes(by: str, at: float) -> Approval:
    return Approval(Answer.GRANTED, by, at)


def no(by: str, at: float) -> Approval:
    return Approval(Answer.REFUSED, by, at)
