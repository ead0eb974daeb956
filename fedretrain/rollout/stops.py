"""When a candidate is taken back: every cause, in the order in which they are looked at.

Rules of this file:
    * Causes are looked at in each live phase, paused or not: a pause stops the way up, never the way back.
    * A pass is never here. Missing evidence is never a fault of the model: only a FAIL, or devices that refuse, are.
    * A few devices or one error do not abort: a gate has its minimum devices and events, an installation `min_failed`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedretrain.rollout.causes import LIVE, Cause, Phase, RollbackKind
from fedretrain.rollout.compose import exposure_record, gate_record
from fedretrain.rollout.config import OnBrokenSource, OnLimit, OnRetrain
from fedretrain.rollout.evidence import Answer, Command
from fedretrain.rollout.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedretrain.rollout.config import RolloutPolicy, Step
    from fedretrain.rollout.evidence import Approval, RolloutEvidence
    from fedretrain.rollout.state import RolloutState
    from fedretrain.rollout.verdict import Check, GateReport

RULES_BASELINE = 0
"""The version of the conservative rules: what a fleet without a model serves."""


@dataclass(frozen=True)
class Stop:
    """A cause to take the candidate back."""

    cause: Cause
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)
    kind: RollbackKind | None = None
    by: str = ""


def gate_now(state: RolloutState, evidence: RolloutEvidence) -> GateReport | None:
    """The report of the present step, or None: what was measured in another step or attempt is no evidence."""
    here = evidence.gate_for in (None, (state.step, state.attempt))
    return evidence.gate if here else None


def fallback_of(state: RolloutState, evidence: RolloutEvidence) -> int:
    """What the fleet falls back to: the champion, or where it is withdrawn the last good version, or the rules."""
    if not evidence.champion_withdrawn:
        return state.fallback
    good = evidence.last_good
    return RULES_BASELINE if good in (None, state.plan.champion, state.plan.candidate) else int(good or 0)


def step_rule(policy: RolloutPolicy, state: RolloutState) -> Step:
    """The policy's times of the present canary or ramp step."""
    return policy.steps[state.step - 1]


def find_stop(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> Stop | None:
    """The first cause to take the candidate back, limits apart (`find_limit`), or None."""
    if state.phase in LIVE:
        rules = _ALL
    elif state.phase is Phase.DE_ESCALATING:
        rules = _HARM
    elif state.phase is Phase.CHAMPION:
        rules = _OF_A_CHAMPION
    else:
        return None
    for rule in rules:
        stop = rule(policy, state, evidence, now)
        if stop is not None and (state.phase is not Phase.DE_ESCALATING or _hastens(policy, state, stop)):
            return stop
    return None


def _hastens(policy: RolloutPolicy, state: RolloutState, stop: Stop) -> bool:
    """Whether a cause turns a gradual rollback into an immediate one: a new cause, or a person's word, that wants that."""
    at_once = (stop.kind or policy.rollback_of(stop.cause)) is RollbackKind.IMMEDIATE
    return at_once and (stop.cause is not state.cause or bool(stop.by))


def _emergency(
    _policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, _now: float
) -> Stop | None:
    if evidence.kill:
        return Stop(Cause.KILL, "the kill switch for rollouts is on")
    if evidence.safe_mode:
        return Stop(Cause.SAFE_MODE, "the fleet is in safe mode")
    if evidence.champion_withdrawn:
        to = fallback_of(state, evidence)
        reason = f"champion {state.plan.champion} is withdrawn, back to version {to}"
        return Stop(Cause.CHAMPION_WITHDRAWN, reason, {"fallback": to})
    return None


def _ordered(
    _policy: RolloutPolicy, _state: RolloutState, evidence: RolloutEvidence, _now: float
) -> Stop | None:
    kinds = {
        Command.ROLL_BACK: RollbackKind.IMMEDIATE,
        Command.DE_ESCALATE: RollbackKind.GRADUAL,
        Command.FREEZE: RollbackKind.FREEZE,
    }
    ask = evidence.operator
    if ask.command not in kinds or not ask.by:
        return None
    return Stop(
        Cause.OPERATOR, ask.reason or f"{ask.command} by {ask.by}", kind=kinds[ask.command], by=ask.by
    )


def _invalid(
    _policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, _now: float
) -> Stop | None:
    if evidence.validation is Verdict.FAIL:
        return Stop(Cause.VALIDATION_FAILED, "the offline validation fails", {"validation": "fail"})
    if state.plan.simulation and evidence.simulation is Verdict.FAIL:
        return Stop(Cause.SIMULATION_FAILED, "the simulation gate fails", {"simulation": "fail"})
    return None


def _beyond(policy: RolloutPolicy, check: Check) -> bool:
    """Whether a check shows a KPI beyond its limit: a signal's whole interval must lie there."""
    failed = check.metric in policy.kpis and check.verdict is Verdict.FAIL and not check.cluster
    return failed and check.low > policy.kpi_regression_limit


def _gate_failed(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, _now: float
) -> Stop | None:
    report = gate_now(state, evidence)
    unwatched = state.phase is Phase.CHAMPION and not state.holdback_open
    if report is None or state.phase is Phase.PENDING or unwatched:
        return None
    beyond = [check.metric for check in report.checks if _beyond(policy, check)]
    if report.verdict is not Verdict.FAIL and not beyond:
        return None
    failed = [check for check in report.checks if check.verdict is Verdict.FAIL]
    kpis = [check for check in failed if check.metric in policy.kpis]
    cause = Cause.KPI_REGRESSION if kpis else Cause.GATE_FAILED
    named = ", ".join(check.name for check in kpis or failed)
    return Stop(cause, f"worse in {named}", gate_record(state, report))


def _refused_by_devices(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, _now: float
) -> Stop | None:
    seen, rules = evidence.exposure, policy.installs
    answered = seen.num_confirmed + seen.num_failed
    if seen.counter != state.counter or state.step == 0 or seen.num_failed < rules.min_failed:
        return None
    if seen.num_failed <= rules.max_failed_fraction * answered:
        return None
    reason = f"{seen.num_failed} of {answered} devices refuse it by their own health check"
    return Stop(Cause.INSTALL_FAILED, reason, exposure_record(seen))


def _superseded(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, _now: float
) -> Stop | None:
    newer = evidence.superseded_by
    if newer is None or newer == state.plan.candidate or policy.on_retrain is OnRetrain.FINISH:
        return None
    return Stop(Cause.SUPERSEDED, f"version {newer} takes its place", {"superseded_by": newer})


def answer_to(state: RolloutState, approval: Approval, now: float) -> Answer:
    """A person's answer to the question that is open now.

    NONE where nobody was asked, where it has no name, is older than the question, or comes from the future.
    """
    since = state.entered_at if state.phase is Phase.APPROVAL else state.asked_at
    if since is None or not approval.by or not since <= approval.at <= now:
        return Answer.NONE
    return approval.answer


def _answered_no(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> Stop | None:
    if answer_to(state, evidence.approval, now) is Answer.REFUSED:
        by, why = evidence.approval.by, evidence.approval.reason
        return Stop(Cause.APPROVAL_REFUSED, f"refused by {by}{f': {why}' if why else ''}", by=by)
    if state.phase is Phase.APPROVAL and now - state.entered_at >= policy.approvals.wait_s:
        return Stop(Cause.APPROVAL_EXPIRED, f"nobody agreed in {policy.approvals.wait_s:.0f} s")
    return None


def _source_overdue(
    policy: RolloutPolicy, state: RolloutState, _evidence: RolloutEvidence, now: float
) -> Stop | None:
    wanted = policy.on_broken_source is OnBrokenSource.ROLL_BACK
    if not wanted or state.broken_at is None or now - state.broken_at < policy.source_limit_s:
        return None
    return Stop(Cause.METRIC_SOURCE, "a metric source stays broken; the model is not at fault")


def past_limit(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> Cause | None:
    """What is still missing at the present step's limit, or None before it.

    The clock of a step runs from its devices' confirmation, and stands still while a metric source is broken.
    """
    lasted = now - state.entered_at
    if state.phase is Phase.PENDING:
        return _pending_too_long(policy, state, evidence, lasted)
    if state.gate_passed or state.broken_at is not None:
        return None
    if state.phase is Phase.SHADOW:
        due = lasted - state.broken_s >= policy.shadow.max_s
        return missing_in_shadow(policy, evidence) or Cause.INCONCLUSIVE if due else None
    if state.phase not in (Phase.CANARY, Phase.RAMP):
        return None
    if state.installed_at is None:
        if evidence.installs_stopped:
            return None
        return Cause.NOT_INSTALLED if lasted - state.broken_s >= policy.installs.limit_s else None
    measured = now - state.installed_at - state.broken_s
    return Cause.INCONCLUSIVE if measured >= step_rule(policy, state).max_s else None


def _pending_too_long(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, lasted: float
) -> Cause | None:
    """What a candidate that no device has heard of still lacks at its limit; the simulation gate has one of its own."""
    waits = state.plan.simulation and evidence.simulation is not Verdict.PASS
    if evidence.validation is Verdict.PASS and waits and lasted >= policy.simulation.limit_s:
        return Cause.NOT_SIMULATED
    return Cause.INCONCLUSIVE if lasted >= policy.pending_limit_s else None


def missing_in_shadow(policy: RolloutPolicy, evidence: RolloutEvidence) -> Cause | None:
    """Whether shadow lacks hours of the day or device types. A fleet that names no types has none to miss, and has not been seen."""
    seen = evidence.coverage
    hours = policy.shadow.every_hour and seen.missing_hours
    types = policy.shadow.every_type and (seen.missing_types or not seen.all_types)
    return Cause.NOT_COVERED if hours or types else None


def may_ask(policy: RolloutPolicy, state: RolloutState) -> bool:
    """Whether a person may be asked for one more attempt."""
    more = state.extensions < policy.max_extensions
    return policy.on_inconclusive is OnLimit.ASK and more and state.phase is not Phase.PENDING


def find_limit(
    policy: RolloutPolicy, state: RolloutState, evidence: RolloutEvidence, now: float
) -> Stop | None:
    """The candidate's time is over. Asked after the way up, so that a PASS at the last look, at the limit itself, still counts."""
    lacking = past_limit(policy, state, evidence, now)
    if lacking is None:
        return None
    if state.asked_at is not None:
        overdue = now - state.asked_at >= policy.approvals.wait_s
        return Stop(lacking, "still undecided, and nobody answered") if overdue else None
    return None if may_ask(policy, state) else Stop(lacking, "still undecided at its limit")


_HARM: tuple[Callable[[RolloutPolicy, RolloutState, RolloutEvidence, float], Stop | None], ...] = (
    _emergency,
    _ordered,
    _invalid,
    _gate_failed,
    _refused_by_devices,
)
"""What may also hasten a gradual rollback."""
_ALL = (*_HARM, _superseded, _answered_no, _source_overdue)
_OF_A_CHAMPION = (_ordered, _gate_failed)
"""Safe mode and the kill switch act on the fleet; a champion goes back by a person, or by a gate against its holdback."""
