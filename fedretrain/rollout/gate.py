"""The gate: what the evidence of one look says about a candidate.

Rules of this file:
    * FAIL: a guardrail is significantly worse than its concurrent control and has not been shown to be below its limit.
    * PASS: the stage has lasted long enough and, where it proves, each guardrail's regression is significantly below its limit; where it does not
      prove, none looks suspicious with enough devices and events. At a stage's last look suspicion alone holds no longer.
    * INCONCLUSIVE otherwise, and always where a measurement, a control or a source is missing. Zero measurements are never success.
    * Each guardrail is asked again of each device cluster, by the rules of `clusters`: what harms one site while the mean improves fails there.
    * Evidence that cannot be judged is refused by name (`Reason`), and can neither pass nor fail a candidate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core import rng
from fedretrain.rollout.clusters import exposed_clusters, is_silenced
from fedretrain.rollout.compare import Contrast, Exactness, align, paired, unpaired
from fedretrain.rollout.metrics import NoData
from fedretrain.rollout.sequential import Sprt
from fedretrain.rollout.verdict import Check, GateReport, Reason, Role, Verdict, combine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedretrain.rollout.clusters import Cluster, ClusterEvidence
    from fedretrain.rollout.looks import GatePolicy, Look, LookPlan
    from fedretrain.rollout.metrics import DeviceMeans, MetricEvidence, MetricRule


@dataclass(frozen=True)
class _Bar:
    """What one check of this look is held to."""

    policy: GatePolicy
    look: Look
    level: float  # of harm, this check's share
    hold_p: float
    exact: Exactness
    proves: bool


def judge(
    rules: Sequence[MetricRule],
    evidence: Sequence[MetricEvidence],
    plan: LookPlan,
    look: int,
    clusters: Sequence[Cluster] = (),
) -> GateReport:
    """Judge one look.

    Args:
        rules: What is demanded; evidence without a rule is ignored.
        evidence: At most one per metric, measured over the look's stage.
        plan: The looks, fixed before the start.
        look: Index of the look in the plan.
        clusters: Devices that are judged apart as well.

    Returns:
        The verdict with a check for each rule, one more for each absolute limit, and one for each guardrail in each cluster that is exposed enough.

    Raises:
        ValueError: If a metric has two rows of evidence, or the plan has no such look.
    """
    found = {row.metric: row for row in evidence}
    if len(found) != len(evidence):
        raise ValueError(f"two rows of evidence for one metric: {[row.metric for row in evidence]}")
    if not 0 <= look < len(plan.looks):
        raise ValueError(f"look {look} of {len(plan.looks)}")
    at, policy = plan.looks[look], plan.policy
    apart = _apart(rules, found, plan, clusters)
    num_apart = sum(len(parts) for parts in apart.values())
    share = policy.clusters.alpha_fraction if num_apart else 0.0
    num = num_shares(rules)

    def bar_of(index: int, level: float, hold_p: float) -> _Bar:
        seed = rng.seed_for(plan.seed, look, index, "permutation")
        exact = Exactness(policy.exact_below, policy.num_permutations, seed)
        return _Bar(policy, at, level, hold_p, exact, plan.stages[at.stage].proves)

    checks: list[Check] = []
    for index, rule in enumerate(rules):
        row = found.get(rule.metric)
        bar = bar_of(index, at.harm_level * (1.0 - share) / num, policy.hold_p)
        checks += [_refusal(rule, Reason.MISSING)] if row is None else _checks(rule, row, bar)
    fails = combine(tuple(checks)).verdict is Verdict.FAIL
    for index, rule in enumerate(rules):
        for number, part in enumerate(apart.get(rule.metric, ())):
            level = at.harm_level * share / num_apart
            bar = bar_of(len(rules) * (number + 1) + index, level, policy.hold_p / num_apart)
            # Where the fleet fails the verdict stands: clusters are named by Student's t alone.
            below = 0 if fails else bar.exact.below
            bar = replace(bar, exact=replace(bar.exact, below=below, proof_below=min(below, _PROVEN_BY_T)))
            checks.append(_cluster_check(rule, found[rule.metric], part, bar))
    return combine(tuple(checks))


def num_shares(rules: Sequence[MetricRule]) -> int:
    """Among how many checks of the fleet a look's level of harm is split: its guardrails and their absolute limits."""
    guardrails = [rule for rule in rules if rule.role is Role.GUARDRAIL]
    return max(1, sum(1 + (rule.limit is not None) for rule in guardrails))


def _apart(
    rules: Sequence[MetricRule],
    found: dict[str, MetricEvidence],
    plan: LookPlan,
    clusters: Sequence[Cluster],
) -> dict[str, list[ClusterEvidence]]:
    """The clusters that each guardrail is asked of, where its source is alive."""
    asked = {}
    for rule in rules:
        row = found.get(rule.metric)
        if rule.role is Role.GUARDRAIL and row is not None and row.source_alive:
            asked[rule.metric] = exposed_clusters(plan.policy.clusters, row, clusters)
    return asked


def _cluster_check(rule: MetricRule, row: MetricEvidence, part: ClusterEvidence, bar: _Bar) -> Check:
    """One guardrail in one cluster."""
    wanted = bar.policy.clusters
    # In shadow the arms are the same devices; counted once.
    num_fleet, num = (
        len(treated) + (0 if row.paired else len(control))
        for treated, control in ((row.treated, row.control), (part.treated, part.control))
    )
    mine = replace(
        rule,
        margin=wanted.margin(rule.margin, num_fleet, num),
        min_devices=wanted.min_devices,
        min_events=wanted.min_events,
        limit=None,
        no_data=NoData.HOLD,
    )
    here = replace(row, treated=part.treated, control=part.control)
    check = replace(_checks(mine, here, bar)[0], cluster=part.cluster.name)
    if check.reason in _UNMEASURED and not is_silenced(part):
        return replace(check, role=Role.INFO)
    return check


_PROVEN_BY_T = 20
"""In the last step a cluster's arms are of like size, so that skewness cancels in their difference: from so many devices on Student's t proves."""
_UNMEASURED = frozenset(
    {Reason.TOO_FEW_DEVICES, Reason.TOO_FEW_EVENTS, Reason.NO_DATA, Reason.DEAD_SOURCE, Reason.UNPAIRED}
)
"""A cluster that measures little says nothing of the candidate, unless the candidate's devices alone are silent."""


def _checks(rule: MetricRule, row: MetricEvidence, bar: _Bar) -> list[Check]:
    """The checks of one rule: against the control, and against its absolute limit."""
    if not row.source_alive:
        return [_refusal(rule, Reason.DEAD_SOURCE)]
    treated, control = row.treated.measured(), row.control.measured()
    lacking = _lacking(rule, row, treated, control)
    if lacking is not None:
        broken = lacking is Reason.NO_DATA and rule.no_data is NoData.FAIL and bar.look.last
        return [_refusal(rule, lacking, Verdict.FAIL if broken else Verdict.INCONCLUSIVE, treated)]
    if row.paired:
        treated, control = align(treated, control)
        if len(treated) < rule.min_devices:
            return [_refusal(rule, Reason.UNPAIRED, num=treated)]
    contrast = (paired if row.paired else unpaired)(treated, control, rule.sign)
    checks = [_compare(rule, contrast, treated, bar)]
    if rule.limit is not None:
        checks.append(_limit(rule, rule.limit, treated, bar))
    return checks


def _lacking(
    rule: MetricRule, row: MetricEvidence, treated: DeviceMeans, control: DeviceMeans
) -> Reason | None:
    """What keeps this evidence from being judged, or None."""
    if not len(row.control):
        return Reason.NO_CONTROL
    if not len(treated):
        if np.any(row.treated.weight_K > 0):
            return Reason.NOT_FINITE
        # Nobody measures, the control neither: that is the source, not the candidate.
        return Reason.NO_DATA if len(control) or not len(row.treated) else Reason.DEAD_SOURCE
    if min(len(treated), len(control)) < rule.min_devices:
        return Reason.TOO_FEW_DEVICES
    if min(treated.weight_K.sum(), control.weight_K.sum()) < rule.min_events:
        return Reason.TOO_FEW_EVENTS
    return None


def _compare(rule: MetricRule, contrast: Contrast, treated: DeviceMeans, bar: _Bar) -> Check:
    """Against the control."""
    unit = abs(contrast.reference) if rule.relative else 1.0
    margin = rule.margin * unit
    proof_level = bar.look.proof_level
    harm_p = contrast.harm_p(bar.level, bar.exact)
    proved = proof_level > 0.0 and contrast.proof_p(margin, proof_level, bar.exact) <= proof_level
    high = contrast.estimate + contrast.bound(proof_level if proof_level > 0.0 else bar.level)
    if rule.role is Role.INFO:
        verdict, reason = Verdict.INCONCLUSIVE, Reason.REPORTED
    elif harm_p <= bar.level and high >= margin:
        verdict, reason = Verdict.FAIL, Reason.HARM
    else:
        verdict, reason = _spared(harm_p, proved, bar)
    scale = unit if unit > 0.0 else math.nan
    return Check(
        rule.metric,
        rule.role,
        verdict,
        reason,
        contrast.estimate / scale,
        (contrast.estimate - contrast.bound(bar.level)) / scale,
        high / scale,
        rule.margin,
        len(treated),
        int(treated.weight_K.sum()),
    )


def _spared(harm_p: float, proved: bool, bar: _Bar) -> tuple[Verdict, Reason]:
    """What a look says that found no significant harm."""
    if proved:
        return Verdict.PASS, Reason.NOT_INFERIOR
    if not bar.look.may_pass:
        return Verdict.INCONCLUSIVE, Reason.TOO_EARLY
    if bar.proves:
        return Verdict.INCONCLUSIVE, Reason.NOT_PROVEN
    if harm_p < bar.hold_p and not bar.look.last:
        return Verdict.INCONCLUSIVE, Reason.SUSPICIOUS
    return Verdict.PASS, Reason.NO_HARM_SEEN


def _limit(rule: MetricRule, limit: float, treated: DeviceMeans, bar: _Bar) -> Check:
    """Against the absolute limit: one summary per device, in the devices' (random) order of exposure."""
    margin = rule.margin * abs(limit) if rule.relative else rule.margin
    worse_K = rule.sign * treated.value_K
    spread = float(worse_K.std(ddof=1))
    mean, null = float(worse_K.mean()), rule.sign * limit
    if spread == 0.0:
        verdict = Verdict.FAIL if mean > null else Verdict.PASS
    else:
        test = Sprt(null, null + margin, spread, bar.level, bar.policy.sprt_miss)
        # Ids are not random, their hashed order is; the same at every look.
        order = np.argsort(rng.seeds_for(0, -1, treated.device_K, "limit"), kind="stable")
        verdict = test.verdict(test.update(test.init(), worse_K[order]))
    reason = {
        Verdict.FAIL: Reason.BEYOND_LIMIT,
        Verdict.PASS: Reason.NOT_INFERIOR,
        Verdict.INCONCLUSIVE: Reason.NOT_PROVEN,
    }[verdict]
    if verdict is Verdict.PASS and not bar.look.may_pass:
        verdict, reason = Verdict.INCONCLUSIVE, Reason.TOO_EARLY
    if rule.role is Role.INFO:
        verdict, reason = Verdict.INCONCLUSIVE, Reason.REPORTED
    half = 2.0 * spread / math.sqrt(len(worse_K))
    over = mean - null
    name = f"{rule.metric}:limit"
    num, events = len(treated), int(treated.weight_K.sum())
    return Check(name, rule.role, verdict, reason, over, over - half, over + half, margin, num, events)


def _refusal(
    rule: MetricRule,
    reason: Reason,
    verdict: Verdict = Verdict.INCONCLUSIVE,
    num: DeviceMeans | None = None,
) -> Check:
    """Evidence that cannot be judged."""
    devices, events = (0, 0) if num is None else (len(num), int(num.weight_K.sum()))
    nan = math.nan
    return Check(rule.metric, rule.role, verdict, reason, nan, nan, nan, rule.margin, devices, events)
