"""What is known at a tick: all that `decide` may look at.

Rules of this file:
    * Evidence is a level, not an edge: each tick says what holds *now*; saying it twice changes nothing.
    * Missing is missing: the default of every field is "nothing known", which never passes.
    * Devices count by their own word: confirmed is a device that said which digest it runs, under the present order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fedretrain.rollout.verdict import GateReport, Verdict


class Answer(StrEnum):
    """What a person said."""

    NONE = "none"
    GRANTED = "granted"
    REFUSED = "refused"


@dataclass(frozen=True)
class Approval:
    """A person's answer to the question that is open.

    Attributes:
        answer: What they said.
        by: Who; an answer without a name counts for nothing.
        at: When they said it; an answer from before the question counts for nothing.
        reason: Why, for the audit log.
    """

    answer: Answer = Answer.NONE
    by: str = ""
    at: float = 0.0
    reason: str = ""


class Command(StrEnum):
    """What a person may order at any time."""

    NONE = "none"
    PAUSE = "pause"
    RESUME = "resume"
    ROLL_BACK = "roll_back"
    DE_ESCALATE = "de_escalate"
    FREEZE = "freeze"
    UNFREEZE = "unfreeze"


@dataclass(frozen=True)
class Operator:
    """A person's order; one without a name counts for nothing."""

    command: Command = Command.NONE
    by: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Coverage:
    """What shadow has seen.

    Attributes:
        hours_of_day: Hours (0 to 23) with scored events.
        device_types: Types with scored events.
        all_types: Types that the fleet has.
    """

    hours_of_day: frozenset[int] = frozenset()
    device_types: frozenset[int] = frozenset()
    all_types: frozenset[int] = frozenset()

    @property
    def missing_hours(self) -> tuple[int, ...]:
        """Hours not yet seen."""
        return tuple(sorted(frozenset(range(24)) - self.hours_of_day))

    @property
    def missing_types(self) -> tuple[int, ...]:
        """Types not yet seen."""
        return tuple(sorted(self.all_types - self.device_types))


@dataclass(frozen=True)
class Exposure:
    """What the targets of the present order say of themselves.

    Going up, the targets are the devices that shall run the candidate; going down, all that ever were to run it.

    Attributes:
        num_targets: The sum of the next four.
        num_confirmed: Run the ordered digest, by their own word and after their own health checks.
        num_expired: Stayed silent beyond the order's expiry.
        num_pending: Neither yet.
        num_failed: Said that the digest failed their health check and that they stayed where they were.
        num_offline: Those of the pending that have not been heard of since the order was given.
        counter: The order that these figures are about; None where nothing is known.
    """

    num_targets: int = 0
    num_confirmed: int = 0
    num_expired: int = 0
    num_pending: int = 0
    num_failed: int = 0
    num_offline: int = 0
    counter: int | None = None

    def __post_init__(self) -> None:
        parts = (self.num_confirmed, self.num_expired, self.num_pending, self.num_failed)
        if sum(parts) != self.num_targets or min(parts) < 0 or not 0 <= self.num_offline <= self.num_pending:
            raise ValueError(f"exposure that does not add up: {self}")

    @property
    def num_reachable(self) -> int:
        """Targets that were heard of: offline and expired devices neither block nor dilute."""
        return self.num_targets - self.num_expired - self.num_offline

    @property
    def confirmed_fraction(self) -> float:
        """Share of the reachable targets that confirmed; 0 where none can be reached."""
        return self.num_confirmed / self.num_reachable if self.num_reachable else 0.0

    @property
    def reachable_fraction(self) -> float:
        """Share of the targets that can be reached; 0 without targets."""
        return self.num_reachable / self.num_targets if self.num_targets else 0.0


@dataclass(frozen=True)
class RolloutEvidence:
    """Everything known at a tick.

    Attributes:
        gate: The latest report of the present step; None before there is one (missing telemetry).
        gate_for: ``(step, attempt)`` that `gate` was measured in; None says "the present one". A report of another step or
            attempt counts for nothing.
        coverage: What shadow has seen.
        exposure: What the devices say of the present order.
        approval: A person's answer.
        operator: A person's order.
        validation: The offline verdict on the candidate.
        simulation: The simulation gate's verdict on the campaign that made it; asked where the plan wants it.
        broken_sources: Metric sources known to be broken apart from what the gate says.
        kill: The kill switch for rollouts is on.
        installs_stopped: The kill switch for installs is on: nothing moves up, and going back goes on.
        safe_mode: The fleet is in safe mode.
        champion_withdrawn: The version that the rollout falls back to may no longer be served.
        last_good: The version to fall back to instead; None is the rules baseline, in safe mode.
        superseded_by: A newer candidate that waits, or None. It ends the holdback of a rollout that is through.
    """

    gate: GateReport | None = None
    gate_for: tuple[int, int] | None = None
    coverage: Coverage = field(default_factory=Coverage)
    exposure: Exposure = field(default_factory=Exposure)
    approval: Approval = field(default_factory=Approval)
    operator: Operator = field(default_factory=Operator)
    validation: Verdict = Verdict.INCONCLUSIVE
    simulation: Verdict = Verdict.INCONCLUSIVE
    broken_sources: tuple[str, ...] = ()
    kill: bool = False
    installs_stopped: bool = False
    safe_mode: bool = False
    champion_withdrawn: bool = False
    last_good: int | None = None
    superseded_by: int | None = None
