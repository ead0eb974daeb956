"""Writes the events: each with its place in the log, its evidence and, where exposure changes, its order.

Rules of this file:
    * An order's counter, step and attempt come from the state, never from a caller.
    * What was seen is written down beside what was decided.
    * What a rollout will not be able to see or to judge is said before it starts, or refuses it.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from fedretrain.core.build import plain
from fedretrain.core.errors import ConfigError
from fedretrain.rollout.causes import Cause, Change, EventKind, Phase, RollbackKind
from fedretrain.rollout.config import OnUnderpowered
from fedretrain.rollout.events import Order, Plan, RolloutEvent, gate_name, jsonable
from fedretrain.rollout.exposure import num_exposed
from fedretrain.rollout.fold import attempt_after, step_after
from fedretrain.rollout.verdict import Role

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from fedretrain.rollout.config import RolloutPolicy
    from fedretrain.rollout.evidence import Exposure
    from fedretrain.rollout.power import ClusterPower
    from fedretrain.rollout.state import RolloutState
    from fedretrain.rollout.verdict import GateReport

TINY_FLEET = "no canary: a tiny fleet goes straight from shadow to champion"


def create(
    policy: RolloutPolicy,
    rollout: str,
    candidate: int,
    champion: int,
    now: float,
    *,
    detectable: Sequence[float] = (),
    clusters: Sequence[ClusterPower] = (),
    num_devices: int | None = None,
    quarantined: Collection[int] = (),
    policy_digest: str = "",
    change: Change = Change.INCREMENTAL,
    proposed_by: str = "",
    decides_otherwise: bool = False,
    simulated: bool = False,
) -> RolloutEvent:
    """The first event of a rollout.

    Args:
        policy: What it is judged by.
        rollout: Its id, never used before.
        candidate: Version under trial, above 0.
        champion: Version that serves; 0 is the rules baseline.
        now: Instant.
        detectable: The smallest relative regression that each step can detect in its time, one per step; empty where nobody has
            computed it, which is a warning of its own.
        clusters: What each step can detect in each cluster.
        num_devices: Devices of the fleet that it may expose; None where nobody has counted them.
        quarantined: Versions that may not be released.
        policy_digest: Of the policy file; for audit.
        change: How the candidate came about.
        proposed_by: Who brought it; empty for a retrain's.
        decides_otherwise: Whether its decision thresholds differ from the champion's.
        simulated: Whether there is a campaign to replay, so that the simulation gate is asked where the policy requires it.

    Raises:
        ConfigError: If the candidate is no candidate, or a step cannot see what it must, or has too few devices to be judged, and the
            policy refuses that.
    """
    require = {
        f"version {candidate} is the champion": candidate == champion,
        f"version {candidate} is no model": candidate <= 0 or champion < 0,
        f"version {candidate} is quarantined": candidate in quarantined,
        f"{len(detectable)} detectable regressions for {len(policy.steps)} steps": len(detectable)
        not in (0, len(policy.steps)),
    }
    for what, wrong in require.items():
        if wrong:
            raise ConfigError(what, where=f"rollout {rollout}")
    kept, agree = policy.holdback, policy.approvals.needed(change, decides_otherwise=decides_otherwise)
    plan = Plan(
        candidate,
        champion,
        tuple(step.exposure_fraction for step in policy.steps),
        agree.before,
        agree.people,
        kept.fraction,
        champion if kept.version is None else kept.version,
        kept.duration_s if kept.fraction else 0.0,
        policy_digest,
        policy.shadow.fraction,
        _warnings(policy, rollout, detectable, clusters, num_devices),
        change,
        proposed_by,
        agree.four_eyes,
        simulated and policy.simulation.required,
    )
    evidence = jsonable(
        {
            "detectable": list(detectable),
            "limit": policy.kpi_regression_limit,
            "num_devices": num_devices,
            "clusters": plain(tuple(clusters)),
        }
    )
    reason = f"version {candidate} against champion {champion}"
    return RolloutEvent(EventKind.CREATED, rollout, 0, now, reason=reason, evidence=evidence, plan=plan)


def _warnings(
    policy: RolloutPolicy,
    rollout: str,
    detectable: Sequence[float],
    clusters: Sequence[ClusterPower],
    num_devices: int | None,
) -> tuple[str, ...]:
    """What a person should know beforehand."""
    said = [TINY_FLEET] if policy.tiny_fleet else []
    if policy.steps and not detectable:
        said.append("nobody has computed what each step can detect")
    weak = _too_few(policy, num_devices) if num_devices is not None else []
    limit = policy.kpi_regression_limit
    weak += [
        f"{gate_name(step)} cannot detect a regression below {smallest:.2%}, the limit is {limit:.2%}"
        for step, smallest in enumerate(detectable, start=1)
        if smallest > limit
    ]
    weak += _blind(clusters)
    if weak and policy.on_underpowered is OnUnderpowered.REFUSE:
        fix = "make the step longer or larger, or the limit or `min_devices` of the metric such as the fleet can meet"
        raise ConfigError(weak[0], where=f"rollout {rollout}", fix=fix)
    alone = list(dict.fromkeys(one.cluster for one in clusters if not one.is_judged))
    if alone:
        said.append(f"too few devices to be judged by themselves: {', '.join(alone)}")
    return (*said, *weak)


def _blind(clusters: Sequence[ClusterPower]) -> list[str]:
    """Clusters that are judged, and by no step finely enough."""
    return [
        f"no step can detect a regression of {one.metric} below {min(one.detectable):.3g} at {one.cluster}, the limit there is {one.limit:.3g}"
        for one in clusters
        if one.is_judged and not one.sees_limit
    ]


def _too_few(policy: RolloutPolicy, num_devices: int) -> list[str]:
    """The gates that can never pass: an arm has fewer devices than a guardrail asks for."""
    said = []
    stages = [policy.shadow.fraction, *(step.exposure_fraction for step in policy.steps)]
    for step, fraction in enumerate(stages):
        treated = num_exposed(num_devices, fraction)
        control = num_devices - treated if step else treated  # shadow compares the same devices
        arm = min(treated, control)
        for rule in policy.metrics:
            if rule.role is Role.GUARDRAIL and arm < rule.min_devices:
                who = "devices" if treated == arm else "devices in control"
                said.append(
                    f"{gate_name(step)} can never pass: {arm} {who} of {num_devices}, {rule.metric} is judged from {rule.min_devices}"
                )
    return said


def write(
    state: RolloutState,
    kind: EventKind,
    now: float,
    reason: str,
    *,
    evidence: dict[str, Any] | None = None,
    cause: Cause | None = None,
    by: str = "",
    until: float = 0.0,
    order: Order | None = None,
) -> RolloutEvent:
    """The next event of a rollout."""
    return RolloutEvent(
        kind,
        state.rollout,
        state.num_events,
        now,
        step_after(state, kind),
        attempt_after(state, kind),
        reason,
        jsonable(evidence or {}),
        cause,
        by,
        until,
        order,
    )


def order_of(
    policy: RolloutPolicy,
    state: RolloutState,
    now: float,
    fraction: float,
    *,
    fallback: int | None = None,
    shadow: bool = False,
    holdback: bool = True,
) -> Order:
    """The next order.

    Args:
        policy: Says how long it is good for.
        state: Whose.
        now: Instant.
        fraction: Share of the exposed.
        fallback: Version of all others; None leaves it.
        shadow: Whether the candidate is scored without being served.
        holdback: Whether the plan's holdback stands.
    """
    plan = state.plan
    return Order(
        state.counter + 1,
        plan.candidate,
        fraction,
        state.fallback if fallback is None else fallback,
        plan.holdback_fraction if holdback else 0.0,
        plan.holdback_version,
        now + policy.installs.expiry_s,
        plan.shadow_fraction if shadow else 0.0,
    )


def take_back(
    policy: RolloutPolicy,
    state: RolloutState,
    now: float,
    cause: Cause,
    reason: str,
    *,
    kind: RollbackKind | None = None,
    fallback: int | None = None,
    evidence: dict[str, Any] | None = None,
    by: str = "",
) -> RolloutEvent:
    """The event that begins to take the candidate back.

    A gradual rollback needs a step to walk down to, a freeze a shadow to freeze in; where there is none (the canary is the lowest step, a champion
    has no shadow any more) the candidate goes back at once.
    """
    kind = policy.rollback_of(cause) if kind is None else kind
    what, order = (
        EventKind.ROLLBACK_STARTED,
        order_of(policy, state, now, 0.0, fallback=fallback, holdback=False),
    )
    if kind is RollbackKind.GRADUAL and state.phase in (Phase.RAMP, Phase.APPROVAL) and state.step >= 2:
        what = EventKind.DE_ESCALATION_STARTED
        order = order_of(policy, state, now, state.plan.fractions[state.step - 2])
    elif kind is RollbackKind.FREEZE and state.phase in (
        Phase.SHADOW,
        Phase.APPROVAL,
        Phase.CANARY,
        Phase.RAMP,
    ):
        what = EventKind.FROZEN
        order = order_of(policy, state, now, 0.0, shadow=True, holdback=False)
    return write(state, what, now, reason, evidence=evidence, cause=cause, by=by, order=order)


def gate_record(state: RolloutState, report: GateReport) -> dict[str, Any]:
    """A gate's report as evidence."""
    record = {"gate": gate_name(state.step), "verdict": report.verdict.value, "checks": plain(report.checks)}
    return dict(jsonable(record))


def exposure_record(exposure: Exposure) -> dict[str, Any]:
    """The devices' word as evidence."""
    return {field.name: getattr(exposure, field.name) for field in fields(exposure)}
