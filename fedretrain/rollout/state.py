"""`RolloutState`: a rollout as the fold of its events.

Rules of this file:
    * Frozen: a state is replaced, never changed. `fold.apply` is the only way to a new one.
    * Nothing here that the events do not say: replaying the log gives the same state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedretrain.rollout.causes import OPEN, Phase

if TYPE_CHECKING:
    from fedretrain.rollout.causes import Cause
    from fedretrain.rollout.events import Plan


@dataclass(frozen=True)
class Consent:
    """A person's approval that was recorded: who, and until when it is good."""

    by: str
    until: float


@dataclass(frozen=True)
class RolloutState:
    """Where one rollout is.

    Attributes:
        rollout: Its id.
        plan: What it set out to do.
        phase: Where it is.
        step: 0 shadow, 1 canary, 2 and up ramp; one beyond the last step once champion.
        attempt: Grows with every repetition, so that effects of a repeated step are new ones.
        entered_at: When the present phase, step or attempt began.
        created_at: When the rollout began.
        updated_at: When the last event happened.
        passed: Gates that have passed, in order; always a beginning of ``plan.gates``.
        exposure_fraction: Share that is ordered to serve the candidate.
        peak_fraction: The largest share ever ordered.
        fallback: Version that all others serve, and to which a rollback goes.
        counter: The last order's.
        installed_at: When the step's devices had confirmed; None before.
        held: Why the step does not move on, or None.
        extensions: Further attempts that people granted.
        asked_at: When a person was asked what to do with an inconclusive step; None when nobody is asked.
        consents: Approvals for what comes next.
        paused_by: Who paused it; empty where nobody did.
        broken_at: When a metric source broke; None while all are alive.
        broken_s: How long sources were broken in this attempt; does not count towards its limits.
        overdue: Whether the broken source has become an incident.
        cause: Why it is going or went back.
        promoted_at: When it became champion.
        holdback_open: Whether a holdback still serves its own version.
        num_events: How many events made this state.
    """

    rollout: str
    plan: Plan
    phase: Phase = Phase.PENDING
    step: int = 0
    attempt: int = 0
    entered_at: float = 0.0
    created_at: float = 0.0
    updated_at: float = 0.0
    passed: tuple[str, ...] = ()
    exposure_fraction: float = 0.0
    peak_fraction: float = 0.0
    fallback: int = 0
    counter: int = 0
    installed_at: float | None = None
    held: Cause | None = None
    extensions: int = 0
    asked_at: float | None = None
    consents: tuple[Consent, ...] = ()
    paused_by: str = ""
    broken_at: float | None = None
    broken_s: float = 0.0
    overdue: bool = False
    cause: Cause | None = None
    promoted_at: float | None = None
    holdback_open: bool = False
    num_events: int = 0

    @property
    def is_open(self) -> bool:
        """Whether it still occupies the fleet's place for a rollout."""
        return self.phase in OPEN

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know of this rollout."""
        return self.plan.warnings

    @property
    def gate_passed(self) -> bool:
        """Whether every gate up to the present step's has passed."""
        return self.passed == self.plan.gates[: len(self.plan.offline) + self.step + 1]

    @property
    def last_step(self) -> int:
        """The step after which the candidate is champion."""
        return len(self.plan.fractions)

    def consents_at(self, now: float) -> tuple[Consent, ...]:
        """Approvals still good at `now`, one for each person."""
        good = {consent.by: consent for consent in self.consents if consent.until > now}
        return tuple(good.values())

    def broken_for(self, now: float) -> float:
        """How long, in seconds, metric sources have been broken in this attempt, the present outage included."""
        return self.broken_s + (now - self.broken_at if self.broken_at is not None else 0.0)
