"""Where a fleet's loop stands, as the fold of its events.

Rules of this file:
    * Frozen: a state is replaced, never changed; `cycle_fold.apply` is the only way to a new one.
    * Nothing here that the events do not say: replaying the log gives the same state.
    * Two ledgers keep devices out, each with its own way back: the monitor's (a sensor that is an outlier) and the quarantine's
      (a fault that somebody or something else named). Whoever asks, asks for both: `kept_devices`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedretrain.coordinator.policy import OnDecay
from fedretrain.monitoring.state import MonitorState, Streak
from fedretrain.rollout.causes import Change
from fedretrain.rollout.quarantine import QuarantineState
from fedretrain.rollout.safety import SafetyState, Switch
from fedretrain.rollout.stops import RULES_BASELINE

if TYPE_CHECKING:
    from fedretrain.coordinator.policy import Policy
    from fedretrain.retraining.decision import TriggerState
    from fedretrain.rollout.causes import IncidentKind
    from fedretrain.rollout.power import ClusterPower
    from fedretrain.rollout.reconcile import Admission
    from fedretrain.rollout.state import RolloutState


@dataclass(frozen=True)
class Candidate:
    """A version that is being made, or that waits for its rollout.

    Attributes:
        version: Its number.
        retrain: Number of the retrain; 0 where a person brought it.
        detectable: The smallest relative regression that each step could detect; empty if not known.
        clusters: Likewise in each site and device type.
        answer: What it was told last; None before it asked.
        change: How it came about.
        by: Who brought it; empty for a retrain's.
        aggregated: Whether a federated campaign makes it: the simulation gate replays aggregation, and has nothing to replay of
            a version that was trained on a pool or brought.
    """

    version: int
    retrain: int = 0
    detectable: tuple[float, ...] = ()
    clusters: tuple[ClusterPower, ...] = ()
    answer: Admission | None = None
    change: Change = Change.INCREMENTAL
    by: str = ""
    aggregated: bool = False


@dataclass(frozen=True)
class OpenIncident:
    """A trouble that is not over.

    Attributes:
        incident: Its id; of a rollout as its effects name it, of safe mode ``safe_mode/n``.
        kind: Where it lies.
        reason: For people.
        opened_at: Instant, seconds.
    """

    incident: str
    kind: IncidentKind
    reason: str
    opened_at: float


@dataclass(frozen=True)
class CycleState:
    """Where a fleet's loop stands.

    Attributes:
        champion: Version of record; what devices serve is `served`.
        monitor: What monitors remember.
        trigger: What retraining remembers.
        before: Earlier champions that were not taken back, the latest first.
        next_version: Number of the next candidate.
        training: The candidate that is being made.
        waiting: Candidates that exist and wait for the fleet's one place, first come first.
        rollout: The rollout that is on, or the last one.
        num_rollouts: So many were begun.
        rollout_retrain: Number of the retrain that made the rollout's candidate; 0 where a person brought it.
        safety: Safe mode and the kill switches.
        quarantine: Versions, and devices kept out for another reason than the monitor's.
        discarded: Versions that people gave up: they never leave quarantine.
        incidents: Troubles that are not over.
        refresh: Number of the last retrain that is a refresh of personal state on the devices; 0 before the first.
        updated_at: Instant of the last event.
        num_events: How many events made this state.
    """

    champion: int
    monitor: MonitorState
    trigger: TriggerState
    before: tuple[int, ...] = ()
    next_version: int = 2
    training: Candidate | None = None
    waiting: tuple[Candidate, ...] = ()
    rollout: RolloutState | None = None
    num_rollouts: int = 0
    rollout_retrain: int = 0
    safety: SafetyState = field(default_factory=SafetyState)
    quarantine: QuarantineState = field(default_factory=QuarantineState)
    discarded: frozenset[int] = frozenset()
    incidents: tuple[OpenIncident, ...] = ()
    refresh: int = 0
    updated_at: float = -math.inf
    num_events: int = 0

    @property
    def rollout_open(self) -> bool:
        """Whether a rollout occupies the fleet's one place; a holdback does not."""
        return self.rollout is not None and self.rollout.is_open

    @property
    def retrain_running(self) -> bool:
        """Whether a retrain makes its candidate, or has made one that waits."""
        return self.training is not None or any(candidate.retrain for candidate in self.waiting)

    @property
    def quarantined(self) -> frozenset[int]:
        """Versions that may be neither installed nor served."""
        return self.quarantine.versions

    @property
    def kept_devices(self) -> frozenset[int]:
        """Devices whose evidence and updates do not count."""
        return self.quarantine.devices | self.monitor.quarantined

    @property
    def last_good(self) -> int:
        """The latest earlier champion that may still be served; the rules baseline where there is none."""
        good = (version for version in self.before if version not in self.quarantined)
        return next(good, RULES_BASELINE)

    @property
    def in_fallback(self) -> bool:
        """Whether the champion's confidence has decayed, so that a fallback should serve."""
        return self.monitor.decay.decayed


def served(policy: Policy, state: CycleState) -> int:
    """The version that devices serve which no rollout exposes: a level, to be asked after each tick.

    Safe mode serves the rules baseline, to everybody. While confidence has decayed it is what the policy says.
    """
    if state.safety.safe_mode:
        return RULES_BASELINE
    if not state.in_fallback or policy.on_decay is OnDecay.CHAMPION:
        return state.champion
    return state.last_good if policy.on_decay is OnDecay.LAST_GOOD else RULES_BASELINE


def refresh_due(state: CycleState) -> int:
    """The refresh that every device shall have done, each once: a level, like `served`; 0 while training is stopped."""
    return state.refresh if state.safety.allows(Switch.TRAINING) else 0


def fresh_monitor(champion: int, before: MonitorState) -> MonitorState:
    """What monitors remember of a new champion: nothing, but for the devices whose sensors are broken, whichever model serves."""
    kept = before.quarantined
    return MonitorState(champion, quarantined=kept, devices={device: Streak() for device in sorted(kept)})
