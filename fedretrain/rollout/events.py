"""What happened to a rollout: the log from which its state and its effects follow.

Rules of this file:
    * An event is a frozen fact with its instant, rollout, reason and evidence; it never changes and is never removed.
    * `sequence` counts the rollout's events from 0, so a gap or a doubled record is found by the fold.
    * JSON round trip without loss: `from_record(to_record(event)) == event`. Evidence is plain JSON; a figure that is not finite
      becomes None.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedretrain.core.build import build, plain
from fedretrain.rollout.causes import ApprovalPoint, Cause, Change, EventKind

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Plan:
    """What a rollout set out to do; fixed by its first event.

    Attributes:
        candidate: Version under trial.
        champion: Version that serves; 0 is the rules baseline.
        fractions: Exposure of the canary and of each ramp step; empty only for a tiny fleet.
        approvals: Where people must agree.
        people: How many different ones.
        holdback_fraction: Share that keeps `holdback_version` after the promotion.
        holdback_version: What the holdback serves.
        holdback_s: For how long after the promotion.
        policy: Digest of the policy file; for audit.
        shadow_fraction: Share of the devices that score it in shadow.
        warnings: What a person should know before it starts.
        change: How the candidate came about.
        proposed_by: Who brought it; empty for a retrain's.
        four_eyes: Why two people must agree, neither of whom proposed it; empty where one is enough.
        simulation: Whether the simulation gate must have passed before shadow.
    """

    candidate: int
    champion: int
    fractions: tuple[float, ...]
    approvals: tuple[ApprovalPoint, ...] = ()
    people: int = 1
    holdback_fraction: float = 0.0
    holdback_version: int = 0
    holdback_s: float = 0.0
    policy: str = ""
    shadow_fraction: float = 1.0
    warnings: tuple[str, ...] = ()
    change: Change = Change.INCREMENTAL
    proposed_by: str = ""
    four_eyes: str = ""
    simulation: bool = False

    @property
    def offline(self) -> tuple[str, ...]:
        """The gates that come before any device hears of the candidate."""
        return ("validation", "simulation") if self.simulation else ("validation",)

    @property
    def gates(self) -> tuple[str, ...]:
        """Every gate that must have passed before the candidate is champion, in order."""
        return (*self.offline, *(gate_name(step) for step in range(len(self.fractions) + 1)))


def gate_name(step: int) -> str:
    """The gate of a step: 0 is shadow, 1 the canary, 2 and up the ramp."""
    return ("shadow", "canary")[step] if step < 2 else f"ramp {step}"


@dataclass(frozen=True)
class Order:
    """Who shall run what: the content of an assignment, before it is spread over devices.

    Attributes:
        counter: Grows with every order of the rollout; a confirmation counts for its own order only.
        candidate: Version of the exposed devices.
        fraction: Their share of each stratum.
        fallback: Version of all others.
        holdback_fraction: Share that is kept at `holdback_version`.
        holdback_version: See above.
        expires_at: Devices that stay silent until then are expired.
        shadow_fraction: Share that scores the candidate without serving it.
    """

    counter: int
    candidate: int
    fraction: float
    fallback: int
    holdback_fraction: float
    holdback_version: int
    expires_at: float
    shadow_fraction: float = 0.0


@dataclass(frozen=True)
class RolloutEvent:
    """One fact.

    Attributes:
        kind: What happened.
        rollout: Whose.
        sequence: The rollout's n-th event, from 0.
        at: Instant, seconds.
        step: The step it is about: 0 shadow, 1 canary, 2 and up ramp.
        attempt: Which attempt at the step, from 0.
        reason: One line for people.
        evidence: Figures behind it; plain JSON.
        cause: Of rollbacks and holds.
        by: The person, where one acted.
        until: When what was granted expires; of approvals.
        order: The new assignment, where exposure or the fallback changed.
        plan: Of the first event.
    """

    kind: EventKind
    rollout: str
    sequence: int
    at: float
    step: int = 0
    attempt: int = 0
    reason: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    cause: Cause | None = None
    by: str = ""
    until: float = 0.0
    order: Order | None = None
    plan: Plan | None = None

    def to_record(self) -> dict[str, Any]:
        """JSON-ready."""
        record: dict[str, Any] = jsonable(plain(self))
        return record


def from_record(record: Mapping[str, Any]) -> RolloutEvent:
    """The event of `RolloutEvent.to_record`.

    Raises:
        ConfigError: If a field is missing, unknown or of the wrong type.
    """
    return build(RolloutEvent, dict(record), where="rollout event")


def jsonable(value: Any) -> Any:
    """`value` with each figure that is not finite as None: JSON has no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return value
