"""What a rollout will be able to see, of the fleet and of each cluster, stated before it starts.

Rules of this file:
    * Computed from what devices reported before it (`rollout.power`), the same on a server and in the simulator.
    * Of accuracy: the guardrail that labels speak to. Where it is none, or too little was measured, nothing is stated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedretrain.rollout.gate import num_shares
from fedretrain.rollout.power import detectable, detectable_in_clusters
from fedretrain.rollout.verdict import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from fedretrain.coordinator.policy import Policy
    from fedretrain.coordinator.trial import Trial
    from fedretrain.rollout.clusters import Cluster
    from fedretrain.rollout.power import ClusterPower

METRIC = "accuracy"


@dataclass(frozen=True)
class Foreseen:
    """What can be detected.

    Attributes:
        detectable: The smallest relative regression of each exposure step; empty if not known.
        clusters: Likewise in each cluster.
    """

    detectable: tuple[float, ...] = ()
    clusters: tuple[ClusterPower, ...] = ()


def foresee(
    policy: Policy, trial: Trial, clusters: Sequence[Cluster], counted_D: NDArray[np.bool_], now: float
) -> Foreseen:
    """What each step of a rollout could see, by the fleet as it has been.

    Args:
        policy: Guardrails and steps.
        trial: What devices reported.
        clusters: Devices that are judged apart.
        counted_D: ``[D]`` devices that count.
        now: The instant.
    """
    rollout = policy.rollout
    guardrails = [rule for rule in rollout.metrics if rule.role is Role.GUARDRAIL]
    rule = next((one for one in guardrails if one.metric == METRIC and one.relative), None)
    spans = sorted({span for step in rollout.steps for span in (step.min_s, step.max_s)})
    before = [trial.pre_period(METRIC, span, now, counted_D) for span in spans] if rule is not None else []
    known = [window for window in before if window is not None]
    if rule is None or not known:
        return Foreseen()
    plan, num = policy.look_plan(), int(counted_D.sum())
    fleet = detectable(rule, known, plan, num, num_guardrails=num_shares(rollout.metrics), clusters=clusters)
    apart = detectable_in_clusters(rule, known, plan, num, clusters, num_guardrails=len(guardrails))
    return Foreseen(tuple(one.detectable for one in fleet), apart)
