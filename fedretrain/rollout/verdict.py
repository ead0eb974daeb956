"""What a gate says: PASS, FAIL or INCONCLUSIVE, with a reason for each check.

Rules of this file:
    * INCONCLUSIVE is a verdict of its own: it holds a rollout where it is. Missing telemetry is INCONCLUSIVE, never PASS.
    * A broken metric source is named apart from a bad model: `Reason.DEAD_SOURCE` never fails a candidate.
    * Estimates are *regressions*: positive is worse, whichever way the metric points, and in the unit of the rule's margin (a fraction of the
      control's mean where the margin is relative).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What a check or a whole gate says."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Role(StrEnum):
    """What a metric may do to a rollout."""

    GUARDRAIL = "guardrail"  # decides: its FAIL rolls back, its INCONCLUSIVE holds
    SIGNAL = "signal"  # warns: its FAIL holds the rollout for a person, and that is all
    INFO = "info"  # is reported


class Reason(StrEnum):
    """Why a check says what it says."""

    NOT_INFERIOR = "the regression is below the limit"
    NO_HARM_SEEN = "no harm seen with enough data"
    HARM = "worse than the control"
    BEYOND_LIMIT = "beyond the absolute limit"
    NOT_PROVEN = "not yet shown to be below the limit"
    SUSPICIOUS = "looks worse than the control, not yet significantly"
    TOO_EARLY = "the step has not lasted long enough to pass"
    TOO_FEW_DEVICES = "too few devices"
    TOO_FEW_EVENTS = "too few events"
    NO_DATA = "no measurement"
    NO_CONTROL = "no control group"
    UNPAIRED = "paired evidence whose arms are not the same devices"
    NOT_FINITE = "a device's mean is not a number"
    DEAD_SOURCE = "the metric's source is dead"
    MISSING = "no evidence for this metric"
    REPORTED = "reported only"


@dataclass(frozen=True)
class Check:
    """One metric's part of a gate.

    Attributes:
        metric: Its name.
        role: What it may do to the verdict.
        verdict: What it says by itself.
        reason: Why.
        estimate: The regression, positive is worse; NaN where nothing was measured.
        low: Lower confidence bound of the regression at the look's own level of harm.
        high: Upper confidence bound of the regression at the look's own level of proof.
        margin: The regression from which on the metric is beyond its limit, in the unit of `estimate`.
        num_devices: Devices measured in the treated arm.
        num_events: Events measured in the treated arm.
        cluster: The device cluster that it is about; empty: the fleet.
    """

    metric: str
    role: Role
    verdict: Verdict
    reason: Reason
    estimate: float
    low: float
    high: float
    margin: float
    num_devices: int
    num_events: int
    cluster: str = ""

    @property
    def name(self) -> str:
        """The metric, and where."""
        return f"{self.metric} at {self.cluster}" if self.cluster else self.metric

    @property
    def text(self) -> str:
        """One line for people."""
        return (
            f"{self.name} ({self.role}): {self.verdict.upper()}, {self.reason}; regression {self.estimate:+.4g} "
            f"[{self.low:+.4g}, {self.high:+.4g}], limit {self.margin:.4g}, {self.num_devices} devices, {self.num_events} events"
        )


@dataclass(frozen=True)
class GateReport:
    """The verdict of all checks together.

    Attributes:
        verdict: FAIL where a guardrail fails, PASS where each guardrail passes and no signal objects, else INCONCLUSIVE.
        checks: One per rule, and one per guardrail and judged cluster.
    """

    verdict: Verdict
    checks: tuple[Check, ...] = ()

    @property
    def dead_sources(self) -> tuple[str, ...]:
        """Metrics whose source is dead: the measuring is at fault, not the candidate."""
        return tuple(
            check.metric for check in self.checks if check.reason is Reason.DEAD_SOURCE and not check.cluster
        )

    @property
    def text(self) -> str:
        """The verdict and a line per check."""
        return "\n".join([f"gate: {self.verdict.upper()}", *(f"  {check.text}" for check in self.checks)])


def combine(checks: tuple[Check, ...]) -> GateReport:
    """The verdict of several checks.

    A gate without a single guardrail has nothing that could pass: INCONCLUSIVE.
    """
    guardrails = [check.verdict for check in checks if check.role is Role.GUARDRAIL]
    objects = any(check.role is Role.SIGNAL and check.verdict is Verdict.FAIL for check in checks)
    if Verdict.FAIL in guardrails:
        return GateReport(Verdict.FAIL, checks)
    if guardrails and not objects and all(verdict is Verdict.PASS for verdict in guardrails):
        return GateReport(Verdict.PASS, checks)
    return GateReport(Verdict.INCONCLUSIVE, checks)
