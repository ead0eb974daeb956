"""A rollout's looks at its gate: fixed before it starts, each taken once, when it is due.

Rules of this file:
    * When to look is the plan's word (`Policy.look_plan`), not the data's: looking more often would spend error rate that
      nobody counted.
    * A step's evidence begins where its devices confirmed what they run; shadow's where shadow began.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.rollout.causes import Phase
from fedretrain.rollout.gate import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fedretrain.coordinator.policy import Policy
    from fedretrain.rollout.clusters import Cluster
    from fedretrain.rollout.looks import LookPlan
    from fedretrain.rollout.metrics import MetricEvidence
    from fedretrain.rollout.state import RolloutState
    from fedretrain.rollout.verdict import GateReport


class Looking:
    """The looks of the rollout that is on. Mutable.

    Args:
        policy: Rules of the gate.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._plan: LookPlan | None = None
        self._taken: int | None = None
        self.gate: GateReport | None = None
        self.gate_for = (0, 0)

    def begin(self, seed: int) -> None:
        """A new rollout; `seed` is of its permutations."""
        self._plan = self._policy.look_plan(seed=seed)
        self._taken, self.gate, self.gate_for = None, None, (0, 0)

    def restore(self, seed: int, taken: int | None, gate_for: tuple[int, int]) -> None:
        """Go on where another process stopped: what it had looked at is not looked at again."""
        self.begin(seed)
        self._taken, self.gate_for = taken, gate_for

    @property
    def taken(self) -> int | None:
        """The last look that was taken in the present step."""
        return self._taken

    def take(
        self,
        state: RolloutState,
        now: float,
        measure: Callable[[float], Sequence[MetricEvidence]],
        clusters: Sequence[Cluster] = (),
    ) -> None:
        """Take the newest look, if one is due that was not taken.

        Args:
            state: Of the rollout.
            now: Instant.
            measure: Evidence from an instant on.
            clusters: Devices that are judged apart.
        """
        if (state.step, state.attempt) != self.gate_for:
            self._taken, self.gate, self.gate_for = None, None, (state.step, state.attempt)
        start_at = state.entered_at if state.phase is Phase.SHADOW else state.installed_at
        looking = state.phase in (Phase.SHADOW, Phase.CANARY, Phase.RAMP)
        if not looking or start_at is None or self._plan is None:
            return
        due = self._plan.due(state.step, now - start_at)
        if due is None or due == self._taken:
            return
        self._taken = due
        self.gate = judge(self._policy.rollout.metrics, measure(start_at), self._plan, due, clusters)
