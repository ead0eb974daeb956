"""From statistics and inspections to one `EvaluationReport`.

Rules of this file:
    * `evaluate` is given numbers, never a model: statistics that were counted on devices or in a pool, and what
      inspections of the candidate itself found.
    * What was not inspected is INCONCLUSIVE, never PASS; what is not a number where a number must be is FAIL.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.build import plain
from fedretrain.validation.backtest import check_segments
from fedretrain.validation.config import CheckName
from fedretrain.validation.fairness import compare_parts
from fedretrain.validation.questions import answer, ask
from fedretrain.validation.report import Check, DataUsed, EvaluationReport, Verdict
from fedretrain.validation.statistics import CANDIDATE, CHAMPION, LATE

if TYPE_CHECKING:
    from fedretrain.validation.config import ValidationPolicy
    from fedretrain.validation.replay import ReplayOutcome
    from fedretrain.validation.sanity import SanityOutcome
    from fedretrain.validation.statistics import DeviceStatistics


@dataclass(frozen=True)
class Footprint:
    """What a model costs a device.

    Attributes:
        latency_s: Of one prediction; NaN: not measured.
        size_bytes: Of the package.
    """

    latency_s: float
    size_bytes: int


@dataclass(frozen=True)
class Inspection:
    """What was found by looking at the candidate itself; None: nobody looked.

    Attributes:
        nonfinite_weights: Weights that are NaN or infinite.
        sanity: Of the sanity vectors.
        replay: Of the replay test.
        footprint: The candidate's.
        champion_footprint: The champion's.
    """

    nonfinite_weights: int | None = None
    sanity: SanityOutcome | None = None
    replay: ReplayOutcome | None = None
    footprint: Footprint | None = None
    champion_footprint: Footprint | None = None


def evaluate(
    policy: ValidationPolicy,
    stats: DeviceStatistics,
    inspection: Inspection,
    *,
    candidate: int,
    champion: int,
) -> EvaluationReport:
    """The verdict on a candidate.

    Args:
        policy: Margins and required checks.
        stats: Both models' statistics on the same rows, of all devices.
        inspection: What was found on the candidate itself.
        candidate: Its version.
        champion: The version that serves.
    """
    gaps, fairness = compare_parts(policy, stats)
    checks = (
        _finite(policy, stats, inspection),
        _sanity(policy, inspection.sanity),
        _replay(policy, inspection.replay),
        *_costs(policy, inspection),
        *check_segments(policy, stats),
        *answer(policy, [*ask(policy, stats), *fairness]),
    )
    return EvaluationReport(candidate, champion, policy_digest(policy), _data(policy, stats), checks, gaps)


def policy_digest(policy: ValidationPolicy) -> str:
    """SHA-256 of the policy, in hex."""
    return hashlib.sha256(json.dumps(plain(policy), sort_keys=True).encode()).hexdigest()


def _data(policy: ValidationPolicy, stats: DeviceStatistics) -> DataUsed:
    period = stats.period_D2
    return DataUsed(
        digest=stats.digest,
        num_devices=stats.num_devices,
        num_groups=len(np.unique(stats.group_D)),
        num_rows=stats.num_rows,
        num_late=int(stats.paired_DSTM4[:, :, LATE].sum()),
        first_at=float(period[:, 0].min()) if len(period) else math.nan,
        last_at=float(period[:, 1].max()) if len(period) else math.nan,
        unit=policy.unit,
    )


def _check(policy: ValidationPolicy, name: CheckName, verdict: Verdict, reason: str) -> Check:
    return Check(name, "", verdict, reason, required=name in policy.required)


def _passed(ok: bool) -> Verdict:
    return Verdict.PASS if ok else Verdict.FAIL


def _finite(policy: ValidationPolicy, stats: DeviceStatistics, inspection: Inspection) -> Check:
    broken = stats.broken_D2.sum(axis=0)
    weights = inspection.nonfinite_weights
    reason = (
        f"{'unknown' if weights is None else weights} weights and {broken[CANDIDATE]:,} of {stats.num_rows:,} predictions "
        f"are no numbers or no distribution (champion: {broken[CHAMPION]:,} predictions)"
    )
    if weights or broken[CANDIDATE]:
        return _check(policy, CheckName.FINITE, Verdict.FAIL, reason)
    unseen = weights is None or not stats.num_rows
    return _check(policy, CheckName.FINITE, Verdict.INCONCLUSIVE if unseen else Verdict.PASS, reason)


def _sanity(policy: ValidationPolicy, found: SanityOutcome | None) -> Check:
    if found is None or not found.num_vectors:
        return _check(policy, CheckName.SANITY, Verdict.INCONCLUSIVE, "no sanity vectors were run")
    reason = (
        f"{found.num_vectors} vectors ({found.digest[:12]}): {found.num_wrong} wrong decisions, {found.num_off} off by more "
        f"than the tolerance (largest {found.largest_error:.2g}), {found.num_nonfinite} without numbers, "
        f"{'the same' if found.repeatable else 'not the same'} bits twice"
    )
    return _check(policy, CheckName.SANITY, _passed(found.ok), reason)


def _replay(policy: ValidationPolicy, found: ReplayOutcome | None) -> Check:
    if found is None or not found.num_events or not found.num_replays:
        return _check(policy, CheckName.REPLAY, Verdict.INCONCLUSIVE, "nothing was replayed")
    reason = f"{found.num_replays} replays of {found.num_events:,} events, {len(found.mismatches)} left another state"
    if found.mismatches:
        first = found.mismatches[0]
        reason += f", the first: {first.fold}, {first.disorder}, seed {first.seed}"
    return _check(policy, CheckName.REPLAY, _passed(found.ok), reason)


def _costs(policy: ValidationPolicy, inspection: Inspection) -> tuple[Check, Check]:
    one, other = inspection.footprint, inspection.champion_footprint
    latency = _cost(
        policy,
        CheckName.LATENCY,
        (one.latency_s if one else math.nan, other.latency_s if other else math.nan),
        (policy.latency_budget_s, policy.max_slowdown),
        "s",
    )
    size = _cost(
        policy,
        CheckName.SIZE,
        (one.size_bytes if one else math.nan, other.size_bytes if other else math.nan),
        (policy.size_budget_bytes, policy.max_growth),
        "bytes",
    )
    return latency, size


def _cost(
    policy: ValidationPolicy,
    name: CheckName,
    costs: tuple[float, float],
    limits: tuple[float | None, float],
    unit: str,
) -> Check:
    """A cost (candidate's, champion's) against its budget and against the champion's cost times a factor.

    A champion that costs nothing (rules) is no measure; the budget is the only one then.
    """
    (cost, before), (budget, factor) = costs, limits
    reason = f"{cost:g} {unit}, champion {before:g}; at most {factor:g} times as much"
    reason += "" if budget is None else f" and {budget:g}"
    if (budget is not None and cost > budget) or (before > 0.0 and cost > factor * before):
        return _check(policy, name, Verdict.FAIL, reason)
    unknown = math.isnan(cost) or (budget is None and not before > 0.0)
    return _check(policy, name, Verdict.INCONCLUSIVE if unknown else Verdict.PASS, reason)
