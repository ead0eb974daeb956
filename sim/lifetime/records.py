"""What a simulated lifetime leaves behind: plain records, one table each.

Rules of this file:
    * Scores are fractions; instants are seconds from the beginning of the life; fleet-wide means are over devices.
    * What only a simulator can know (true labels of every row, injected drift) is named `oracle` or `truth`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedretrain.core.clock import HOUR_S


@dataclass(frozen=True)
class StepRecord:
    """The fleet between two instants, under one policy with one seed.

    Attributes:
        policy: Name of the policy.
        seed: Of the repetition.
        at: The end of the step.
        rows: Predictions made.
        accuracy: Oracle: mean over devices of the served models' accuracy; NaN without rows.
        worst_decile: Oracle: mean accuracy of the worst tenth of the devices.
        observed_accuracy: What the labels that came back say by now of the monitor's long window; NaN if unknown.
        completeness: Share of that window's predictions that have a label.
        estimated_accuracy: From calibrated confidence, an estimate; NaN if unknown.
        bad_devices: Oracle: devices served by a bad model through this step.
        drifted_devices: Truth: devices with an injected drift active.
        psi_max: The largest PSI of the monitor's short window; NaN without one.
        low_confidence: Share of low-confidence predictions.
        champion: Version that is champion.
        phase: Phase of the rollout under way; empty without one.
        exposure: Share of devices that serve the candidate.
        training: Whether a campaign is under way.
        epsilon: Spent by now; NaN without DP.
        safe_mode: Whether the fleet is in safe mode.
        personal_gain: What devices say their personal models gain over the global one, in the monitor's long window; NaN if
            nobody said anything.
        refused_fraction: Share of the devices asked in that window that refused a new global model; NaN likewise.
    """

    policy: str
    seed: int
    at: float
    rows: int
    accuracy: float
    worst_decile: float
    observed_accuracy: float
    completeness: float
    estimated_accuracy: float
    bad_devices: int
    drifted_devices: int
    psi_max: float
    low_confidence: float
    champion: int
    phase: str
    exposure: float
    training: bool
    epsilon: float
    safe_mode: bool
    personal_gain: float = float("nan")
    refused_fraction: float = float("nan")


@dataclass(frozen=True)
class FeatureRecord:
    """One feature in one window of the monitor.

    Attributes:
        policy: Name of the policy.
        seed: Of the repetition.
        at: The end of the window.
        feature: Its name.
        psi: Against the champion's baseline.
        significant: Beyond its empirical null, false discoveries controlled.
    """

    policy: str
    seed: int
    at: float
    feature: str
    psi: float
    significant: bool


@dataclass(frozen=True)
class LifeEvent:
    """Something that was decided or that happened.

    Attributes:
        policy: Name of the policy.
        seed: Of the repetition.
        at: When.
        kind: For example `drifted`, `retrain`, `deferred`, `candidate`, `shadow`, `canary`, `ramp`, `champion`,
            `rolled_back`, `quarantined`, `personal_refresh`, `safe_mode`, `fallback_serves`; `warned` of what a rollout will
            not be able to do.
        text: One line for people, with its reason.
        version: The version that it is about; -1 for none.
        evidence: The numbers that it rests on.
    """

    policy: str
    seed: int
    at: float
    kind: str
    text: str
    version: int = -1
    evidence: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class TruthRecord:
    """One injected drift of one group of devices (truth).

    Attributes:
        seed: Of the repetition.
        kind: What happened to the sensors, for example `gain linear`.
        onset_at: The first device's onset.
        num_devices: How many were hit.
    """

    seed: int
    kind: str
    onset_at: float
    num_devices: int


@dataclass(frozen=True)
class DetectionRecord:
    """What became of one injected drift under one policy.

    Attributes:
        policy: Name of the policy.
        seed: Of the repetition.
        kind: As in the truth.
        onset_at: When it began.
        detected_after_s: From the onset to the first alert; NaN if there was none.
        restored_after_s: From the onset until the hit devices' accuracy was back within the bad margin, for good; 0 if it was
            never outside of it, NaN if it was not back by `watched_s`.
        watched_s: From the onset to the next drift's onset, the drift's own end or the life's, whichever is first: what is
            not restored by then is censored there.
        cost: Accuracy of the hit devices in the week before the onset less that over the time it was watched: what it cost
            although the policy did what it could. NaN without rows.
    """

    policy: str
    seed: int
    kind: str
    onset_at: float
    detected_after_s: float
    restored_after_s: float
    watched_s: float
    cost: float


@dataclass(frozen=True)
class DeviceScore:
    """One device in one named part of a life.

    Attributes:
        policy: Name of the policy.
        seed: Of the repetition.
        device: Its number.
        segment: Name of the part.
        rows: Scored predictions.
        accuracy: Oracle: of those; NaN without any.
    """

    policy: str
    seed: int
    device: int
    segment: str
    rows: int
    accuracy: float


@dataclass(frozen=True)
class PolicySummary:
    """One policy with one seed, in figures.

    Attributes:
        policy: Name of the policy.
        seed: Of the repetition.
        accuracy: Oracle: mean over all scored rows.
        by_segment: Accuracy in each named part of the life (for example a batch of the data).
        worst_decile: Oracle: mean accuracy of the worst tenth of devices over the life.
        retrains: Campaigns that were begun.
        personal_refreshes: Refreshes of personal layers alone.
        deferred: Retrains that were deferred.
        promoted: Candidates that became champion.
        rolled_back: Candidates that were taken back.
        bytes_up: Sent by devices: updates and telemetry.
        bytes_down: Sent to devices.
        epsilon: Spent; None without DP.
        labels_used: Labels that came back.
        bad_device_hours: Device-hours served by a bad model.
        device_hours: All device-hours.
        false_alarms: Drift alerts without an active injected drift.
        feature_years: Watched features x years without active drift, the denominator of the false-alarm rate.
        wall_s: Seconds that the simulation of this life took.
        digest: SHA-256 of its event log, each event's chained to those before it.
        privacy_scope: Whom `epsilon` protects, at which delta, and what it covers; empty without DP.
    """

    policy: str
    seed: int
    accuracy: float
    by_segment: dict[str, float]
    worst_decile: float
    retrains: int
    personal_refreshes: int
    deferred: int
    promoted: int
    rolled_back: int
    bytes_up: int
    bytes_down: int
    epsilon: float | None
    labels_used: int
    bad_device_hours: float
    device_hours: float
    false_alarms: int
    feature_years: float
    wall_s: float
    digest: str
    privacy_scope: str


@dataclass(frozen=True)
class Life:
    """Everything that one policy with one seed left behind."""

    summary: PolicySummary
    steps: tuple[StepRecord, ...]
    features: tuple[FeatureRecord, ...]
    events: tuple[LifeEvent, ...]
    detections: tuple[DetectionRecord, ...]
    devices: tuple[DeviceScore, ...] = ()


@dataclass(frozen=True)
class LifetimeRun:
    """Several policies side by side on the same fleets and seeds.

    Attributes:
        experiment: Name.
        policies: In the order in which they are shown.
        seeds: Of the repetitions.
        lives: One for each policy and seed.
        truth: What was injected.
        segments: Named parts of the life: name -> (from, to) in seconds.
        caveats: Of the data.
        num_devices: Of the fleet.
        num_virtual: How many of them are virtual.
        duration_s: Of the life.
        policy_digest: Policy -> SHA-256 of its policy file's content.
        versions: Of the software.
        seconds: Wall time of the whole run.
        metric: What the score is, for people.
        slot_s: The telemetry's slot.
    """

    experiment: str
    policies: tuple[str, ...]
    seeds: tuple[int, ...]
    lives: tuple[Life, ...]
    truth: tuple[TruthRecord, ...]
    segments: dict[str, tuple[float, float]]
    caveats: tuple[str, ...]
    num_devices: int
    num_virtual: int
    duration_s: float
    policy_digest: dict[str, str]
    versions: dict[str, str]
    seconds: float
    metric: str = "accuracy"
    slot_s: float = HOUR_S
