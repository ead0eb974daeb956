"""What a retraining decision says, how a retrain ends, and what the trigger remembers of both.

Rules of this file:
    * Values only, which `core.build.plain` writes to a log and `core.build.build` reads back.
    * A decision carries its reason, a sentence for people, and its evidence, the numbers it rests on.
    * Instants are seconds, as everywhere; the log keeps each value with the instant at which it was applied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fedretrain.retraining.config import Cause, Strategy, Where


class Action(StrEnum):
    """What a decision says."""

    NONE = "none"
    RETRAIN = "retrain"
    DEFER = "defer"


class Obstacle(StrEnum):
    """What stands in the way of a wanted retrain."""

    NONE = "none"
    BUDGET = "budget"
    RUNNING = "running"
    SAFE_MODE = "safe_mode"
    KILL_SWITCH = "kill_switch"
    NOT_POSSIBLE = "not_possible"
    ROLLOUT = "rollout"
    COOL_DOWN = "cool_down"
    LABELS = "labels"


class Ending(StrEnum):
    """What became of a retrain: it took effect, a gate refused its candidate, or nothing was trained."""

    DONE = "done"
    REJECTED = "rejected"
    FAILED = "failed"


@dataclass(frozen=True)
class Decision:
    """One decision with its grounds.

    Attributes:
        action: What to do.
        reason: A sentence or two for people.
        evidence: The numbers and names that it rests on.
        cause: Why a retrain is wanted; NONE if it is not.
        strategy: How to retrain; None unless one is wanted.
        where: Where that runs; None unless one is wanted.
        then_federated: Whether a federated campaign starts from what the pool made.
        supersedes: Whether the rollout in progress ends for it.
        epsilon: What it costs of the privacy budget: 0 unless a campaign runs.
        obstacle: What forbids it now, for DEFER.
        fired: Triggers that fire.
        rearmed: Triggers whose signal is back beyond the lower level.
        skipped: Whether a scheduled retrain was due and is skipped.
        num_labels: Labels that had come back when a retrain was decided.
        number: The how manieth retrain it is, from 1; 0 for other actions.
    """

    action: Action
    reason: str
    evidence: dict[str, float | str] = field(default_factory=dict)
    cause: Cause = Cause.NONE
    strategy: Strategy | None = None
    where: Where | None = None
    then_federated: bool = False
    supersedes: bool = False
    epsilon: float = 0.0
    obstacle: Obstacle = Obstacle.NONE
    fired: tuple[str, ...] = ()
    rearmed: tuple[str, ...] = ()
    skipped: bool = False
    num_labels: int = 0
    number: int = 0

    @property
    def from_scratch(self) -> bool:
        """Whether training begins with fresh parameters instead of the champion's."""
        return self.strategy is Strategy.FULL


@dataclass(frozen=True)
class Outcome:
    """How a retrain ended.

    Attributes:
        number: Which: `Decision.number`.
        ending: What became of it.
        reason: For people.
    """

    number: int
    ending: Ending
    reason: str = ""


@dataclass(frozen=True)
class Before:
    """What a retrain that came to nothing gives back.

    Attributes:
        schedule_from_at: Since when the interval had been running.
        num_labels: Labels that were counted as used.
        fired: The triggers it answered.
        follow_from_at: The retrain that it followed up, or made needless to; None for none.
    """

    schedule_from_at: float
    num_labels: int
    fired: tuple[str, ...]
    follow_from_at: float | None = None


@dataclass(frozen=True)
class TriggerState:
    """What a decision remembers of those before.

    Attributes:
        schedule_from_at: When the interval of the schedule began.
        seen_at: The latest instant that was applied.
        retrained_at: When the last retrain was decided; None before the first.
        labels_used: Labels that had come back at the last retrain.
        disarmed: Triggers that wait for their lower level, sorted.
        num_retrains: So many so far.
        before: What the last retrain gives back if it comes to nothing; None once it has ended.
        num_failures: Retrains in a row that came to nothing.
        failed_at: When the last of them ended.
        obstacle: What the standing DEFER waits for.
        deferred_at: Since when.
        follow_from_at: When the retrain was decided that is to be followed up; None for none.
    """

    schedule_from_at: float = 0.0
    seen_at: float = 0.0
    retrained_at: float | None = None
    labels_used: int = 0
    disarmed: tuple[str, ...] = ()
    num_retrains: int = 0
    before: Before | None = None
    num_failures: int = 0
    failed_at: float | None = None
    obstacle: Obstacle = Obstacle.NONE
    deferred_at: float | None = None
    follow_from_at: float | None = None

    @classmethod
    def first(cls, at: float, num_labels: int = 0) -> TriggerState:
        """The state when a champion begins to serve, with the labels it was trained on."""
        return cls(schedule_from_at=at, seen_at=at, labels_used=num_labels)
