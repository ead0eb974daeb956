"""Everything that a rollout is told in the simulation: its gate's looks, coverage, exposure and validation.

Rules of this file:
    * Looks are fixed before the rollout starts (`Policy.look_plan`); each is taken once, when it is due.
    * Gates, tests and reports are the library's; here evidence is gathered.
    * Devices that are kept out are no evidence: neither in gates nor in the offline validation nor in what shadow has seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedretrain.coordinator.foreseeing import foresee
from fedretrain.coordinator.looking import Looking
from fedretrain.coordinator.trial import Arms
from fedretrain.core.rng import seed_for
from fedretrain.rollout.causes import Phase
from fedretrain.rollout.evidence import Answer, Approval, RolloutEvidence
from fedretrain.rollout.verdict import Verdict
from fedretrain.validation.report import Verdict as Validated

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.coordinator.foreseeing import Foreseen
    from fedretrain.coordinator.policy import Policy
    from fedretrain.rollout.metrics import MetricEvidence
    from fedretrain.rollout.state import RolloutState
    from fedretrain.validation.report import EvaluationReport
    from sim.lifetime.examine import Examiner
    from sim.lifetime.field import Field
    from sim.lifetime.release import Release

_VERDICTS = {
    Validated.PASS: Verdict.PASS,
    Validated.FAIL: Verdict.FAIL,
    Validated.INCONCLUSIVE: Verdict.INCONCLUSIVE,
}
REVALIDATE_S = 86_400.0
"""A candidate whose validation is inconclusive is validated again with the labels of another day."""


class Judge:
    """Gathers evidence for the rollout that is on.

    Args:
        policy: Rules and looks.
        release: Who was told what.
        field: What both arms measured.
        examiner: The offline validation.
        seed: Of permutations.
    """

    def __init__(
        self,
        policy: Policy,
        release: Release,
        field: Field,
        examiner: Examiner,
        seed: int,
    ) -> None:
        self._policy, self._release, self._field, self._examiner = policy, release, field, examiner
        self._seed = seed
        self._looking = Looking(policy)
        self.validation: EvaluationReport | None = None
        self._validated_at = -np.inf

    def begin(self, rollout: int) -> None:
        """A new rollout."""
        self._looking.begin(seed_for(self._seed, rollout, -1, "looks"))
        self.validation, self._validated_at = None, -np.inf

    def foresee(self, now: float, counted: NDArray[np.bool_]) -> Foreseen:
        """What each step of a rollout could see, by the devices that count ``[D]`` as they have been."""
        clusters = self._field.clusters(self._policy.gate.clusters, counted)
        return foresee(self._policy, self._field.trial, clusters, counted, now)

    def evidence(self, state: RolloutState, now: float, counted: NDArray[np.bool_]) -> RolloutEvidence:
        """What is known of an open rollout, by the devices that count ``[D]``."""
        verdict = self._validated(state, now, counted)
        clusters = self._field.clusters(self._policy.gate.clusters, counted)
        self._looking.take(
            state, now, lambda start_at: self._measure(state, start_at, now, counted), clusters
        )
        coverage = self._field.covered(state.entered_at, now, counted)
        return RolloutEvidence(
            gate=self._looking.gate,
            gate_for=self._looking.gate_for,
            coverage=coverage,
            exposure=self._release.exposure(now),
            validation=verdict,
            approval=agreeing(state, now),
            simulation=Verdict.PASS,  # every life is a simulation: there is none beside it to replay the campaign in
        )

    def _validated(self, state: RolloutState, now: float, counted: NDArray[np.bool_]) -> Verdict:
        """The offline verdict: taken when the rollout begins, and again while it is undecided."""
        if state.phase is Phase.PENDING and now - self._validated_at >= REVALIDATE_S:
            undecided = self.validation is None or self.validation.verdict is Validated.INCONCLUSIVE
            if undecided:
                plan = state.plan
                self.validation = self._examiner.report(plan.candidate, plan.champion, now, counted)
                self._validated_at = now
        return Verdict.INCONCLUSIVE if self.validation is None else _VERDICTS[self.validation.verdict]

    def _measure(
        self, state: RolloutState, start_at: float, now: float, counted: NDArray[np.bool_]
    ) -> list[MetricEvidence]:
        """Evidence for every metric that has a rule."""
        shadow = state.phase is Phase.SHADOW
        treated = self._release.shadowing if shadow else self._release.treated
        names = [rule.metric for rule in self._policy.rollout.metrics]
        return self._field.measure(names, Arms(treated, counted, shadow), state, start_at, now)


def agreeing(state: RolloutState, now: float) -> Approval:
    """The simulated people, who agree to everything at once, one at a tick: what a policy asks of people costs no virtual time."""
    have = {consent.by for consent in state.consents_at(now)}
    names = (f"person {number}" for number in range(1, state.plan.people + 1))
    by = next((name for name in names if name not in have), "")
    return Approval(Answer.GRANTED, by, now) if by else Approval()
