"""From statistics and inspections to one `EvaluationReport`.

Rules of this file:
    * `evaluate` is given numbers, never a model: statistics that were counted on devices or in a pool, and what
      inspections of the candidate itself found.
    * What was not inspected is INCONCLUSIVE, never PASS; what is not a number where a number must be is FAIL.
    * Statistics of two sources are judged apart, and all checks on both must hold: a fleet's loss is not made up for by the
      laboratory's gain. The questions of both share one alpha.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
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
    from collections.abc import Sequence

    from fedretrain.validation.config import ValidationPolicy
    from fedretrain.validation.questions import Question
    from fedretrain.validation.replay import ReplayOutcome
    from fedretrain.validation.report import Gap
    from fedretrain.validation.sanity import SanityOutcome
    from fedretrain.validation.statistics import DeviceStatistics

BESIDE = "pool "
"""Before the part of a check on the server's pool, where devices were asked too."""


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
class Answered:
    """What became of asking devices.

    Attributes:
        num_asked: Devices.
        num_counted: Those whose counts came and could be counted.
        num_rows: Rows of them.
        quorum: The fewest devices that decide.
        min_rows: The fewest rows that do.
        failures: Why the others did not count, by name, with how many.
    """

    num_asked: int
    num_counted: int
    num_rows: int
    quorum: int
    min_rows: int
    failures: tuple[tuple[str, int], ...] = ()

    @property
    def is_enough(self) -> bool:
        """Whether anything may be decided on them."""
        return self.num_counted >= self.quorum and self.num_rows >= self.min_rows


@dataclass(frozen=True)
class Inspection:
    """What was found by looking at the candidate itself; None: nobody looked.

    Attributes:
        nonfinite_weights: Weights that are NaN or infinite.
        sanity: Of the sanity vectors.
        replay: Of the replay test.
        footprint: The candidate's.
        champion_footprint: The champion's.
        answered: Of the devices that were asked; None: none was, and nothing is checked.
    """

    nonfinite_weights: int | None = None
    sanity: SanityOutcome | None = None
    replay: ReplayOutcome | None = None
    footprint: Footprint | None = None
    champion_footprint: Footprint | None = None
    answered: Answered | None = None


def evaluate(
    policy: ValidationPolicy,
    stats: DeviceStatistics,
    inspection: Inspection,
    *,
    candidate: int,
    champion: int,
    beside: DeviceStatistics | None = None,
) -> EvaluationReport:
    """The verdict on a candidate.

    Args:
        policy: Margins and required checks.
        stats: Both models' statistics on the same rows, of all devices.
        inspection: What was found on the candidate itself.
        candidate: Its version.
        champion: The version that serves.
        beside: Statistics of the server's pool, where `stats` are of devices and both must hold.
    """
    sources = [("", stats)] if beside is None else [("", stats), (BESIDE, beside)]
    gaps: list[Gap] = []
    segments: list[Check] = []
    asked: list[Question] = []
    for name, one in sources:
        found, fairness = compare_parts(policy, one)
        gaps += [replace(gap, part=name + gap.part) for gap in found]
        segments += [replace(check, part=name + check.part) for check in check_segments(policy, one)]
        asked += [replace(one, part=name + one.part) for one in (*ask(policy, one), *fairness)]
    checks = (
        _finite(policy, [one for _, one in sources], inspection),
        _sanity(policy, inspection.sanity),
        _replay(policy, inspection.replay),
        *_costs(policy, inspection),
        *_answers(inspection.answered),
        *segments,
        *answer(policy, asked),
    )
    used = _data(policy, [one for _, one in sources])
    return EvaluationReport(candidate, champion, policy_digest(policy), used, checks, tuple(gaps))


def policy_digest(policy: ValidationPolicy) -> str:
    """SHA-256 of the policy, in hex."""
    return hashlib.sha256(json.dumps(plain(policy), sort_keys=True).encode()).hexdigest()


def _data(policy: ValidationPolicy, sources: Sequence[DeviceStatistics]) -> DataUsed:
    """Of all sources; the digest of one is its own, of two the digest of both."""
    digests = [one.digest for one in sources]
    period = np.concatenate([one.period_D2 for one in sources])
    return DataUsed(
        digest=digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest(),
        num_devices=sum(one.num_devices for one in sources),
        num_groups=sum(len(np.unique(one.group_D)) for one in sources),
        num_rows=sum(one.num_rows for one in sources),
        num_late=sum(int(one.paired_DSTM4[:, :, LATE].sum()) for one in sources),
        first_at=float(period[:, 0].min()) if len(period) else math.nan,
        last_at=float(period[:, 1].max()) if len(period) else math.nan,
        unit=policy.unit,
    )


def _check(policy: ValidationPolicy, name: CheckName, verdict: Verdict, reason: str) -> Check:
    return Check(name, "", verdict, reason, required=name in policy.required)


def _passed(ok: bool) -> Verdict:
    return Verdict.PASS if ok else Verdict.FAIL


def _finite(policy: ValidationPolicy, sources: Sequence[DeviceStatistics], inspection: Inspection) -> Check:
    broken = np.sum([one.broken_D2.sum(axis=0) for one in sources], axis=0)
    num_rows = sum(one.num_rows for one in sources)
    weights = inspection.nonfinite_weights
    reason = (
        f"{'unknown' if weights is None else weights} weights and {broken[CANDIDATE]:,} of {num_rows:,} predictions "
        f"are no numbers or no distribution (champion: {broken[CHAMPION]:,} predictions)"
    )
    if weights or broken[CANDIDATE]:
        return _check(policy, CheckName.FINITE, Verdict.FAIL, reason)
    unseen = weights is None or not num_rows
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


def _answers(found: Answered | None) -> tuple[Check, ...]:
    """Whether enough devices answered: required wherever devices were asked."""
    if found is None:
        return ()
    failures = ", ".join(f"{count} {name}" for name, count in found.failures) or "none"
    reason = (
        f"{found.num_counted:,} of {found.num_asked:,} devices with {found.num_rows:,} rows (at least {found.quorum:,} "
        f"and {found.min_rows:,}); failures: {failures}"
    )
    verdict = Verdict.PASS if found.is_enough else Verdict.INCONCLUSIVE
    check = Check(CheckName.ANSWERS, "", verdict, reason, required=True)
    return (replace(check, num_devices=found.num_counted, num_rows=found.num_rows),)


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
