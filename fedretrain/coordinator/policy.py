"""The policy file: everything that a person decides about a fleet beforehand, typed and versioned.

Rules of this file:
    * The simulator and the server read the same file unchanged; its digest says what ran.
    * The digest is of the meaning, not of the text: comments, order and defaults that are spelt out do not change it.
    * Whatever a package decides by is that package's own configuration; here they are put together and checked
      against each other.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from fedretrain.coordinator.signals import FIGURES
from fedretrain.core.build import build, plain
from fedretrain.core.checks import require
from fedretrain.monitoring.config import MonitoringPolicy
from fedretrain.retraining.config import RetrainingPolicy
from fedretrain.rollout.config import OnRetrain, OnSecond, RolloutPolicy
from fedretrain.rollout.looks import GatePolicy, LookPlan, Stage, plan_looks
from fedretrain.rollout.quarantine import QuarantineRules
from fedretrain.rollout.safety import SafetyRules
from fedretrain.validation.config import Source, ValidationPolicy

if TYPE_CHECKING:
    from fedretrain.retraining.config import Mode

FORMAT = 1
"""The format that this release reads."""

MEASURED = ("accuracy", "confidence", "latency", "log_loss", "rmse")
"""What a gate can measure without being told by a KPI."""


class OnDecay(StrEnum):
    """What serves while the champion's confidence has decayed (recipe B)."""

    CHAMPION = "champion"  # it goes on: the alert and its retrain are all
    LAST_GOOD = "last_good"  # the champion before it; the rules where there is none
    RULES = "rules"


class TelemetryMode(StrEnum):
    """What devices may say of their inputs, predictions and labels, and of an evaluation on their own rows."""

    OFF = "off"  # nothing but alerts: nobody watches, and nothing that needs a fleet's word is released
    OPERATIONAL = "operational"  # counts without noise; never called differential privacy
    NOISED = "noised"  # refused: see `Policy`


@dataclass(frozen=True)
class Policy:
    """A policy file.

    Noised telemetry is refused until it is charged: monitors, gates and validation rest on each device's own counts (the device is
    the unit of analysis), and no noised form of those is in the privacy ledger.

    Attributes:
        format: Of the file; another one than `FORMAT` is refused.
        name: For people.
        monitoring: What is watched, and what raises an alert.
        retraining: When to retrain and how.
        validation: What a candidate must hold before anything ships.
        rollout: Shadow, canary, ramp, approvals, rollback.
        gate: How gates spend their error rate; its `alpha` is the rollout's.
        safety: Limits that enter safe mode by themselves.
        quarantine: The way back of versions, and of devices that something else than a monitor kept out.
        on_decay: What serves while the champion's confidence has decayed.
        telemetry: What devices may say.
    """

    format: int = FORMAT
    name: str = "default"
    monitoring: MonitoringPolicy = field(default_factory=MonitoringPolicy)
    retraining: RetrainingPolicy = field(default_factory=RetrainingPolicy)
    validation: ValidationPolicy = field(default_factory=ValidationPolicy)
    rollout: RolloutPolicy = field(default_factory=RolloutPolicy)
    gate: GatePolicy = field(default_factory=GatePolicy)
    safety: SafetyRules = field(default_factory=SafetyRules)
    quarantine: QuarantineRules = field(default_factory=QuarantineRules)
    on_decay: OnDecay = OnDecay.LAST_GOOD
    telemetry: TelemetryMode = TelemetryMode.OPERATIONAL

    def __post_init__(self) -> None:
        require(
            self.format == FORMAT,
            f"this release reads policy files of format {FORMAT}, not {self.format}",
            key="format",
        )
        require(bool(self.name), "a policy without a name", key="name")
        require(
            self.gate.alpha == self.rollout.alpha,
            f"gate.alpha={self.gate.alpha} and rollout.alpha={self.rollout.alpha}: a rollout has one alpha",
            key="gate.alpha",
            fix="set both alike",
        )
        self._check_kpis()
        self._check_safety()
        self._check_second()
        self._check_telemetry()

    def _check_kpis(self) -> None:
        """A KPI of the rollout is one that devices report, and points the same way for monitors and gates."""
        monitored = {kpi.name: kpi for kpi in self.monitoring.kpis}
        for name in self.rollout.kpis:
            require(
                not monitored or name in monitored or name in MEASURED,
                f"the rollout's KPI {name!r} is not monitored: no device reports it",
                key="rollout.kpis",
                fix=f"add it to monitoring.kpis, or name one of {', '.join((*monitored, *MEASURED))}",
            )
        for rule in self.rollout.metrics:
            kpi = monitored.get(rule.metric)
            require(
                kpi is None or kpi.better.value == rule.better.value,
                f"{rule.metric!r} is better {rule.better} for the rollout and not for monitoring",
                key="rollout.metrics",
                fix="set `better` alike in both",
            )

    def _check_safety(self) -> None:
        """A safety limit is about something that is read."""
        known = (*FIGURES, *(kpi.name for kpi in self.monitoring.kpis))
        for limit in self.safety.limits:
            require(
                limit.metric in known,
                f"nobody reads {limit.metric!r}, so the limit {limit.name!r} could never be broken",
                key="safety.limits.metric",
                fix=f"monitor it as a KPI, or name one of {', '.join(known)}",
            )

    def _check_second(self) -> None:
        """A retrain that may stop a rollout must not be thrown away because of it."""
        stopping = [rule.name for rule in self.retraining.rules if rule.supersede]
        loses = self.rollout.on_retrain is OnRetrain.FINISH and self.rollout.on_second is OnSecond.REFUSE
        require(
            not (loses and stopping),
            f"a retrain by the rule {', '.join(stopping)} begins while a rollout is on, and its candidate would be refused",
            key="rollout.on_second",
            fix="set on_second: queue or on_retrain: supersede, or take `supersede` from the rules",
        )

    def _check_telemetry(self) -> None:
        """Nobody is asked what the policy does not let them say, and no candidate is given up while devices still answer."""
        require(
            self.telemetry is not TelemetryMode.NOISED,
            "noised telemetry is not charged to the privacy ledger yet",
            key="telemetry",
            fix="say operational (counts without noise, outside every epsilon) or off",
        )
        asks = self.validation.source is not Source.POOL
        require(
            not asks or self.telemetry is not TelemetryMode.OFF,
            "devices shall evaluate candidates, and telemetry is off",
            key="validation.source",
            fix="validate on the pool, or set telemetry: operational",
        )
        require(
            not asks or self.validation.field.deadline_s < self.rollout.pending_limit_s,
            "a candidate would be given up before the devices' deadline",
            key="validation.field.deadline_s",
            fix="give less than rollout.pending_limit_s",
        )

    @property
    def digest(self) -> str:
        """SHA-256 of its meaning, in hex."""
        return hashlib.sha256(json.dumps(plain(self), sort_keys=True).encode()).hexdigest()

    def with_mode(self, mode: Mode) -> Policy:
        """The same policy retraining in another mode."""
        return replace(self, name=str(mode), retraining=replace(self.retraining, mode=mode))

    def look_plan(self, *, seed: int = 0) -> LookPlan:
        """Every look of a rollout under this policy, fixed before it starts.

        The last exposure step proves; a tiny fleet, which has none, proves in shadow.
        """
        shadow, steps = self.rollout.shadow, self.rollout.steps
        stages = [Stage("shadow", shadow.fraction, shadow.min_s, shadow.max_s, proves=not steps)]
        stages += [
            Stage(f"step {at + 1}", step.exposure_fraction, step.min_s, step.max_s, proves=step is steps[-1])
            for at, step in enumerate(steps)
        ]
        return plan_looks(self.gate, stages, seed=seed)


def read_policy(values: dict[str, Any], *, where: str = "policy") -> Policy:
    """The policy of a file's content.

    Args:
        values: Plain values, as YAML or JSON gives them.
        where: The file, for messages.

    Raises:
        ConfigError: If a key is unknown or a value impossible.
    """
    return build(Policy, values, where=where)
