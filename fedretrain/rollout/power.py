"""What each stage will be able to see, stated before the rollout starts.

Rules of this file:
    * Computed from the pre-period alone: two halves of the devices' record before, the second adjusted by the first as the gate will adjust.
    * Variance is never assumed to shrink below what the half period showed: device effects wander, and more events do not average that away. Fewer
      events than in the half period make it grow in proportion.
    * A statement, not a promise: it assumes that the fleet behaves as it did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.rollout.adjust import adjust
from fedretrain.rollout.tails import student_quantile

if TYPE_CHECKING:
    from fedretrain.rollout.looks import LookPlan
    from fedretrain.rollout.metrics import DeviceMeans, MetricRule


@dataclass(frozen=True)
class PrePeriod:
    """How a metric spread between devices before the rollout.

    Attributes:
        mean: Of the device means.
        variance: Between devices, after adjustment by each device's own earlier record.
        raw_variance: Without the adjustment.
        span_s: Time that one half covers.
        num_devices: Devices measured in both halves.
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
        detectable: Smallest regression found with the plan's power by the stage's longest time, in the unit of the rule's margin.
        limit: The rule's margin.
    """

    metric: str
    stage: str
    num_treated: int
    num_control: int
    detectable: float
    limit: float

    @property
    def sees_limit(self) -> bool:
        """Whether a regression as small as the limit is found."""
        return self.detectable <= self.limit

    @property
    def text(self) -> str:
        """One line for people."""
        blind = "" if self.sees_limit else " - ABOVE THE LIMIT"
        return (
            f"{self.stage}: {self.metric} regressions of {self.detectable:.3g} and more are seen with {self.num_treated} devices "
            f"against {self.num_control} (limit {self.limit:.3g}){blind}"
        )


def pre_period(first: DeviceMeans, second: DeviceMeans, span_s: float) -> PrePeriod:
    """Measure the pre-period from its two halves.

    Args:
        first: Device means over the first half.
        second: Over the second half; devices that only one half knows are left out.
        span_s: Time that each half covers.

    Raises:
        ValueError: If fewer than 3 devices were measured in both.
    """
    a, b = first.measured(), second.measured()
    _, at_a, at_b = np.intersect1d(a.device_K, b.device_K, return_indices=True)
    if len(at_a) < 3:
        raise ValueError(f"{len(at_a)} devices were measured in both halves of the pre-period")
    later = b.take(at_b)
    known = type(later)(later.device_K, later.value_K, later.weight_K, a.value_K[at_a])
    adjusted = adjust(known, known.take(np.zeros(0, dtype=np.int64)))
    return PrePeriod(
        float(later.value_K.mean()),
        float(adjusted.treated_K.var(ddof=1)),
        float(later.value_K.var(ddof=1)),
        span_s,
        len(at_a),
    )


def detectable(
    rule: MetricRule, before: PrePeriod, plan: LookPlan, num_devices: int, *, num_guardrails: int = 1
) -> tuple[StagePower, ...]:
    """The smallest regression that each exposure stage finds with the plan's power, by its last look.

    Shadow (a stage of all devices) is left out: it is paired, and its differences are not known before.

    Args:
        rule: Whose margin is the limit.
        before: The pre-period.
        plan: The looks.
        num_devices: Size of the fleet.
        num_guardrails: Among which a look's level is split.
    """
    unit = abs(before.mean) if rule.relative else 1.0
    result = []
    for index, stage in enumerate(plan.stages):
        num_treated = round(stage.fraction * num_devices)
        num_control = num_devices - num_treated
        if num_control < 2:
            continue
        if num_treated < 2 or unit == 0.0:
            result.append(
                StagePower(rule.metric, stage.name, num_treated, num_control, math.inf, rule.margin)
            )
            continue
        last = [look for look in plan.looks if look.stage == index][-1]
        variance = before.variance * max(1.0, before.span_s / last.at_s)
        error = math.sqrt(variance * (1.0 / num_treated + 1.0 / num_control))
        dof = float(min(num_treated, num_control) - 1)
        reach = student_quantile(last.harm_level / num_guardrails, dof) + student_quantile(
            1.0 - plan.policy.power, dof
        )
        result.append(
            StagePower(rule.metric, stage.name, num_treated, num_control, reach * error / unit, rule.margin)
        )
    return tuple(result)
