"""What each stage will be able to see, stated before the rollout starts.

Rules of this file:
    * Computed from the pre-period alone: device means over windows as long as the looks, each adjusted by the devices' record before the window, as the
      gate will adjust.
    * Variance is never assumed to shrink below what the longest measured window showed: device effects wander, and more events do not average that
      away. A look earlier than the shortest window has a variance greater in proportion.
    * A stage sees a regression if one of its looks does, with the plan's power.
    * A cluster is taken to spread as the fleet does. Where a permutation decides, a level below the smallest p-value that it can give is never met:
      that cluster is seen by nobody, and said so.
    * A statement, not a promise: it assumes that the fleet behaves as it did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.rollout.adjust import adjust
from fedretrain.rollout.compare import MOST_PERMUTATIONS
from fedretrain.rollout.exposure import num_exposed
from fedretrain.rollout.tails import student_quantile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedretrain.rollout.clusters import Cluster
    from fedretrain.rollout.looks import Look, LookPlan
    from fedretrain.rollout.metrics import DeviceMeans, MetricRule


@dataclass(frozen=True)
class PrePeriod:
    """How a metric spread between devices over one window before the rollout.

    Attributes:
        mean: Of the device means.
        variance: Between devices, after adjustment by each device's own earlier record.
        raw_variance: Without the adjustment.
        span_s: Length of the window.
        num_devices: Devices measured in the window and before it.
    """

    mean: float
    variance: float
    raw_variance: float
    span_s: float
    num_devices: int


@dataclass(frozen=True)
class StagePower:
    """What one stage can see of one metric.

    Attributes:
        metric: Its name.
        stage: Its name.
        num_treated: Devices that run the candidate.
        num_control: Devices that do not.
        detectable: Smallest regression found with the plan's power at one of the stage's looks, in the unit of the rule's margin.
        limit: The rule's margin.
        min_devices: With fewer in either arm the gate does not judge, and never passes.
    """

    metric: str
    stage: str
    num_treated: int
    num_control: int
    detectable: float
    limit: float
    min_devices: int = 2

    @property
    def sees_limit(self) -> bool:
        """Whether a regression as small as the limit is found."""
        return self.detectable <= self.limit

    @property
    def is_judged(self) -> bool:
        """Whether both arms have devices enough for a verdict."""
        return min(self.num_treated, self.num_control) >= self.min_devices

    @property
    def text(self) -> str:
        """One line for people."""
        if not self.is_judged:
            return (
                f"{self.stage}: {self.metric} is never judged with {self.num_treated} devices against {self.num_control}, "
                f"which takes {self.min_devices} - THE GATE CANNOT PASS"
            )
        blind = "" if self.sees_limit else " - ABOVE THE LIMIT"
        return (
            f"{self.stage}: {self.metric} regressions of {self.detectable:.3g} and more are seen with {self.num_treated} devices "
            f"against {self.num_control} (limit {self.limit:.3g}){blind}"
        )


@dataclass(frozen=True)
class ClusterPower:
    """What a rollout can see of one metric in one cluster.

    Attributes:
        metric: Its name.
        cluster: Its name.
        num_devices: Devices of the cluster.
        limit: The margin there, in the unit of the rule's.
        detectable: The smallest regression that each exposure step finds with the plan's power, in that unit; infinite where the step exposes too few
            of its devices to judge them.
    """

    metric: str
    cluster: str
    num_devices: int
    limit: float
    detectable: tuple[float, ...]

    @property
    def is_judged(self) -> bool:
        """Whether any step sees it at all."""
        return any(math.isfinite(smallest) for smallest in self.detectable)

    @property
    def sees_limit(self) -> bool:
        """Whether some step finds a regression as small as the limit."""
        return min(self.detectable, default=math.inf) <= self.limit

    @property
    def text(self) -> str:
        """One line for people."""
        seen = ", ".join(f"{one:.3g}" if math.isfinite(one) else "-" for one in self.detectable)
        blind = "" if self.sees_limit else " - ABOVE THE LIMIT"
        if not self.is_judged:
            blind = " - NEVER JUDGED BY ITSELF"
        return (
            f"{self.cluster}: {self.metric} regressions of {seen} and more are seen step by step with {self.num_devices} devices "
            f"(limit {self.limit:.3g}){blind}"
        )


def pre_period(earlier: DeviceMeans, window: DeviceMeans, span_s: float) -> PrePeriod:
    """Measure one window of the pre-period.

    Args:
        earlier: Device means over the record before the window.
        window: Over the window; devices that only one of both knows are left out.
        span_s: Length of the window.

    Raises:
        ValueError: If fewer than 3 devices were measured in both.
    """
    a, b = earlier.measured(), window.measured()
    _, at_a, at_b = np.intersect1d(a.device_K, b.device_K, return_indices=True)
    if len(at_a) < 3:
        raise ValueError(f"{len(at_a)} devices were measured in the window and before it")
    found = b.take(at_b)
    known = replace(found, before_K=a.value_K[at_a])
    adjusted = adjust(known, known.take(np.zeros(0, dtype=np.int64)))
    return PrePeriod(
        float(found.value_K.mean()),
        float(adjusted.treated_K.var(ddof=1)),
        float(found.value_K.var(ddof=1)),
        span_s,
        len(at_a),
    )


def detectable(
    rule: MetricRule,
    before: Sequence[PrePeriod],
    plan: LookPlan,
    num_devices: int,
    *,
    num_guardrails: int = 1,
    clusters: Sequence[Cluster] = (),
) -> tuple[StagePower, ...]:
    """The smallest regression that each exposure step finds with the plan's power at one of its looks.

    Shadow (stage 0) is left out: it is paired, and its differences are not known before.

    Args:
        rule: Whose margin is the limit.
        before: Windows of the pre-period, at least one; the longest that is no longer than a look's time counts for it.
        plan: The looks.
        num_devices: Size of the fleet.
        num_guardrails: Among which a look's level is split.
        clusters: Devices that are judged apart: where they are, the fleet's level is smaller.

    Returns:
        One per exposure step; infinite where an arm has fewer devices than the rule asks for, or nothing was measured.

    Raises:
        ValueError: If there is no window.
    """
    unit = _unit(rule, before)
    result = []
    for index, stage in enumerate(plan.stages[1:], start=1):
        num_treated = num_exposed(num_devices, stage.fraction)
        arms = num_treated, num_devices - num_treated
        apart = _judged(plan, clusters, stage.fraction)
        share = (1.0 - (plan.policy.clusters.alpha_fraction if apart else 0.0)) / num_guardrails
        found = math.inf
        if min(arms) >= rule.min_devices and unit > 0.0:
            found = _smallest(plan, index, before, arms, share) / unit
        result.append(StagePower(rule.metric, stage.name, *arms, found, rule.margin, rule.min_devices))
    return tuple(result)


def detectable_in_clusters(
    rule: MetricRule,
    before: Sequence[PrePeriod],
    plan: LookPlan,
    num_devices: int,
    clusters: Sequence[Cluster],
    *,
    num_guardrails: int = 1,
) -> tuple[ClusterPower, ...]:
    """The smallest regression that each exposure step finds in each cluster.

    Args:
        rule: Whose margin the clusters' limits follow from.
        before: Windows of the pre-period, at least one.
        plan: The looks.
        num_devices: Size of the fleet.
        clusters: Devices that are judged apart.
        num_guardrails: That clusters are asked of.

    Raises:
        ValueError: If there is no window.
    """
    unit, rules, result = _unit(rule, before), plan.policy.clusters, []
    judged = [_judged(plan, clusters, stage.fraction) for stage in plan.stages[1:]]
    for cluster in clusters:
        seen = []
        for index, (stage, apart) in enumerate(zip(plan.stages[1:], judged, strict=True), start=1):
            found = math.inf
            if cluster.name in apart and unit > 0.0:
                share = rules.alpha_fraction / (num_guardrails * len(apart))
                found = _smallest(plan, index, before, _arms(cluster, stage.fraction), share) / unit
            seen.append(found)
        limit = rules.margin(rule.margin, num_devices, max(len(cluster), 1))
        result.append(ClusterPower(rule.metric, cluster.name, len(cluster), limit, tuple(seen)))
    return tuple(result)


def _unit(rule: MetricRule, before: Sequence[PrePeriod]) -> float:
    """What a regression is a fraction of."""
    if not before:
        raise ValueError("no window of the pre-period")
    return abs(before[0].mean) if rule.relative else 1.0


def _arms(cluster: Cluster, fraction: float) -> tuple[int, int]:
    """Devices of a cluster that a step exposes, and those that it does not: exposure is stratified, within a device."""
    num = min(round(fraction * len(cluster)), len(cluster))
    return num, len(cluster) - num


def _judged(plan: LookPlan, clusters: Sequence[Cluster], fraction: float) -> frozenset[str]:
    """Clusters with devices enough in both arms of a step."""
    least = plan.policy.clusters.min_devices
    return frozenset(one.name for one in clusters if min(_arms(one, fraction)) >= least)


def _smallest(
    plan: LookPlan, stage: int, before: Sequence[PrePeriod], arms: tuple[int, int], share: float
) -> float:
    """The smallest regression that one of a stage's looks finds with the plan's power, in the metric's own unit.

    `share` is that of each look's level of harm.
    """
    looks = [look for look in plan.looks if look.stage == stage]
    return min(_reach(plan, look, before, arms, look.harm_level * share) for look in looks)


def _reach(
    plan: LookPlan, look: Look, before: Sequence[PrePeriod], arms: tuple[int, int], level: float
) -> float:
    """The smallest regression that one look finds at a level."""
    if min(arms) < plan.policy.exact_below and level < _least_p(*arms):
        return math.inf
    error = math.sqrt(_variance(before, look.at_s) * (1.0 / arms[0] + 1.0 / arms[1]))
    dof = float(min(arms) - 1)
    return (student_quantile(level, dof) + student_quantile(1.0 - plan.policy.power, dof)) * error


def _least_p(num_treated: int, num_control: int) -> float:
    """The smallest p-value of a permutation test: one relabelling of all, or of as many as are drawn."""
    return 1.0 / min(math.comb(num_treated + num_control, num_treated), MOST_PERMUTATIONS + 1)


def _variance(before: Sequence[PrePeriod], span_s: float) -> float:
    """Between devices, over a window of `span_s`."""
    ordered = sorted(before, key=lambda window: window.span_s)
    fitting = [window for window in ordered if window.span_s <= span_s] or ordered[:1]
    return fitting[-1].variance * max(1.0, fitting[-1].span_s / span_s)
