"""The schema of a simulated experiment: one tree of frozen dataclasses.

Rules of this file:
    * Every key that Hydra composes is a field here, with its meaning, unit and default; `core.build` checks it.
    * Parts that a package of `fedretrain` reads (local training, personalization) are that package's own
      dataclasses; parts of the world (fleet, drift, availability, network, labels) are their module's.
    * What needs more than one section to judge is judged in `check`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from fedretrain.core import checks
from fedretrain.core.clock import HOUR_S
from fedretrain.privacy.event import Sampling
from fedretrain.privacy.mechanism import Relation, Unit
from fedretrain.training.config import LocalTraining, MethodConfig
from fedretrain.training.keep import BlendConfig
from sim.availability import AvailabilityConfig
from sim.datasets.columns import TableSpec
from sim.fleet import FleetConfig
from sim.labels import LabelsConfig
from sim.lifetime.config import LifetimeConfig
from sim.network import NetworkConfig
from sim.sabotage.config import SabotageConfig
from sim.sections import DatasetConfig, ModelConfig
from sim.sensors.config import DriftConfig


@dataclass(frozen=True)
class CampaignConfig:
    """When rounds happen and whom they ask.

    Attributes:
        num_rounds: Rounds of the campaign.
        round_interval_s: Virtual seconds between the starts of rounds.
        sampling: How a cohort is drawn.
        cohort_size: Clients that a round needs (fixed size, minimum separation), or expects (Poisson: q times the
            fleet). The fixed denominator of the mean.
        over_selection: How many more clients are asked than needed, as a factor of at least 1.
        quorum_fraction: Below this share of `cohort_size` a round is abandoned.
        deadline_s: Replies later than this are timeouts.
        separation: Rounds between two participations of a client (minimum separation).
        max_participations: The most rounds a client takes part in; 0: no bound.
        evaluate_every: Rounds between two evaluations on the sampled devices; the last round always counts.
        evaluate_devices: How many devices these evaluations score, natural ones first.
        score_devices: How many devices are scored at the end, natural ones first; 0: all.
    """

    num_rounds: int = 30
    round_interval_s: float = HOUR_S
    sampling: Sampling = Sampling.FIXED_SIZE
    cohort_size: int = 20
    over_selection: float = 1.0
    quorum_fraction: float = 0.5
    deadline_s: float = 600.0
    separation: int = 1
    max_participations: int = 0
    evaluate_every: int = 3
    evaluate_devices: int = 200
    score_devices: int = 2000

    def __post_init__(self) -> None:
        for name in ("num_rounds", "cohort_size", "separation", "evaluate_every", "evaluate_devices"):
            checks.require(getattr(self, name) >= 1, "must be at least 1", key=f"campaign.{name}")
        for name in ("round_interval_s", "deadline_s"):
            checks.positive(f"campaign.{name}", getattr(self, name))
        checks.fraction("campaign.quorum_fraction", self.quorum_fraction)
        many = math.isfinite(self.over_selection) and self.over_selection >= 1
        checks.require(many, "must be at least 1", key="campaign.over_selection")
        for name in ("max_participations", "score_devices"):
            checks.require(getattr(self, name) >= 0, "must be 0 or more", key=f"campaign.{name}")
        checks.require(
            self.over_selection == 1 or self.sampling is not Sampling.POISSON,
            "Poisson cohorts use every reply before the deadline: stopping at a quorum is not theirs",
            key="campaign.over_selection",
            fix="set it to 1, or another sampling",
        )
        limited = self.separation > 1 or self.max_participations > 0
        checks.require(
            not limited or self.sampling is Sampling.MIN_SEPARATION,
            f"{self.sampling} cohorts keep no separation and no limit on participations",
            key="campaign.sampling",
            fix="set campaign.separation=1 campaign.max_participations=0, or sampling=min_separation",
        )
        checks.require(
            self.sampling is not Sampling.EVERYBODY,
            "ask everybody with sampling=fixed_size and cohort_size = the fleet",
            key="campaign.sampling",
        )


class AggregatorKind(StrEnum):
    """How client updates are combined."""

    MEAN = "mean"
    EXAMPLE_WEIGHTED = "example_weighted"
    MEDIAN = "median"
    TRIMMED_MEAN = "trimmed_mean"
    CUSTOM = "custom"


class ServerOptimizerKind(StrEnum):
    """What the server does with the aggregate."""

    SGD = "sgd"
    ADAM = "adam"
    YOGI = "yogi"


@dataclass(frozen=True)
class ServerOptimizerConfig:
    """The server's step.

    Attributes:
        kind: `sgd` (with `lr` 1 and no momentum: plain averaging), `adam` or `yogi`.
        lr: Server learning rate; 0: the kind's own default.
        momentum: Of `sgd`.
    """

    kind: ServerOptimizerKind = ServerOptimizerKind.SGD
    lr: float = 0.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        checks.not_negative("aggregation.server.lr", self.lr)
        plain = self.kind is ServerOptimizerKind.SGD or not self.momentum
        checks.require(
            plain, f"{self.kind} takes no momentum", key="aggregation.server.momentum", fix="use kind=sgd"
        )


@dataclass(frozen=True)
class AggregationConfig:
    """How client updates become a new global model.

    Attributes:
        kind: The aggregator; only `mean` goes with DP.
        trim_fraction: Share cut from each end (`trimmed_mean`).
        path: Import path of a user's aggregator (kind `custom`).
        options: Its keyword arguments.
        server: The server optimizer.
    """

    kind: AggregatorKind = AggregatorKind.MEAN
    trim_fraction: float = 0.1
    path: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    server: ServerOptimizerConfig = field(default_factory=ServerOptimizerConfig)


class PrivacyKind(StrEnum):
    """Whether the fleet's releases are differentially private."""

    NONE = "none"
    CENTRAL = "central"


@dataclass(frozen=True)
class PrivacyConfig:
    """Central DP over client updates. DESIGN section 6 says what is claimed.

    Attributes:
        kind: `none` or `central`.
        clip_norm: C, the largest norm of a client update. 0 without DP: no clipping.
        noise_multiplier: Noise standard deviation on the sum, in clip norms; 0: solved from `target_epsilon`.
        target_epsilon: The budget; rounds stop before it would be exceeded. 0: no budget, the noise as given.
        delta: 0: a tenth of one over the number of units, at most 1e-5.
        relation: Neighbouring relation of the claim.
        unit: Whom it protects.
        devices_per_person: With unit `person`: how many neighbouring devices belong to one; a round asks one of them. It
            has to be said (0: not known): nothing in the data tells whose a device is.
        amplified: Claim Poisson amplification (needs Poisson sampling and its conditions, checked).
        adaptive_clip: Move the clip norm to a quantile of the update norms (arXiv 1905.03871), charged.
        clip_quantile: That quantile.
        clip_lr: Step of the geometric update.
    """

    kind: PrivacyKind = PrivacyKind.NONE
    clip_norm: float = 0.0
    noise_multiplier: float = 0.0
    target_epsilon: float = 0.0
    delta: float = 0.0
    relation: Relation = Relation.ZERO_OUT
    unit: Unit = Unit.DEVICE
    devices_per_person: int = 0
    amplified: bool = False
    adaptive_clip: bool = False
    clip_quantile: float = 0.5
    clip_lr: float = 0.2

    def __post_init__(self) -> None:
        for name in ("clip_norm", "noise_multiplier", "target_epsilon", "clip_lr"):
            checks.not_negative(f"privacy.{name}", getattr(self, name))
        checks.fraction("privacy.delta", self.delta)
        checks.not_negative("privacy.devices_per_person", self.devices_per_person)
        if self.kind is PrivacyKind.CENTRAL:
            checks.positive("privacy.clip_norm", self.clip_norm)
            checks.require(
                self.noise_multiplier > 0 or self.target_epsilon > 0,
                "DP needs noise",
                key="privacy.noise_multiplier",
                fix="set privacy.target_epsilon, or privacy.noise_multiplier",
            )
            checks.require(
                self.unit is not Unit.PERSON or self.devices_per_person >= 1,
                "the unit is a person, and nothing says how many devices a person has",
                key="privacy.devices_per_person",
                fix="say it (watch_streams: 2), or claim for unit=device",
            )
            checks.require(
                self.unit is not Unit.RECORDING or self.delta > 0,
                "the unit is a recording, and nothing says how many there are",
                key="privacy.delta",
                fix="give a delta well below one over the number of recordings",
            )


class RunnerKind(StrEnum):
    """Where a cohort trains."""

    LOCAL = "local"
    RAY = "ray"
    FLOWER = "flower"


class ExecutorKind(StrEnum):
    """How a worker trains its clients."""

    BATCHED = "batched"
    EACH = "each"


@dataclass(frozen=True)
class RunnerConfig:
    """Where and how simulated clients train.

    Attributes:
        kind: `local` (this process), `ray` (sharded over actors) or `flower` (Flower's own simulation: slow).
        num_workers: Ray actors; 0: one for each core, or for each CPU of the cluster.
        address: Ray cluster to join; empty: this machine.
        executor: `batched`, or `each` for models that cannot be batched.
        cache_bytes: Memory for materialised device streams, per worker.
        checkpoint_s: Seconds between two checkpoints, written after a round; 0: after every round. Ctrl-C and errors
            leave one in any case.
    """

    kind: RunnerKind = RunnerKind.RAY
    num_workers: int = 0
    address: str = ""
    executor: ExecutorKind = ExecutorKind.BATCHED
    cache_bytes: int = 1 << 30
    checkpoint_s: float = 20.0

    def __post_init__(self) -> None:
        for name in ("num_workers", "cache_bytes", "checkpoint_s"):
            checks.not_negative(f"runner.{name}", getattr(self, name))


@dataclass(frozen=True)
class ArmConfig:
    """One way to train, beside others on the same fleet and seeds.

    Attributes:
        title: Name for people.
        overrides: What it changes, as ``key=value`` words.
    """

    title: str = ""
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Config:
    """A whole experiment.

    Attributes:
        name: Name of the experiment and of its output folder.
        seed: Of everything random.
        seeds: Repetitions, with seeds `seed`, `seed` + 1, ...; several give intervals.
        data_dir: Folder of data sets that no package ships; empty: the environment's FEDRETRAIN_DATA.
        output_dir: Where runs are written.
        tracking_uri: MLflow's tracking server; empty: a SQLite file in `output_dir`; ``off``: none.
        resume: A checkpoint folder to continue; everything else then comes from there.
    """

    name: str = "watch"
    seed: int = 0
    seeds: int = 1
    data_dir: str = ""
    output_dir: str = "outputs"
    tracking_uri: str = ""
    resume: str = ""
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    table: TableSpec = field(default_factory=TableSpec)
    fleet: FleetConfig = field(default_factory=FleetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: LocalTraining = field(default_factory=LocalTraining)
    personalization: MethodConfig = field(default_factory=MethodConfig)
    blend: BlendConfig = field(default_factory=BlendConfig)
    campaign: CampaignConfig = field(default_factory=CampaignConfig)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    availability: AvailabilityConfig = field(default_factory=AvailabilityConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    runner: RunnerConfig = field(default_factory=RunnerConfig)
    lifetime: LifetimeConfig = field(default_factory=LifetimeConfig)
    sabotage: SabotageConfig = field(default_factory=SabotageConfig)
    arms: dict[str, ArmConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.require(self.seeds >= 1, "must be at least 1", key="seeds")
        fits = -(2**63) <= self.seed <= 2**63 - 1 - self.seeds
        checks.require(fits, "is no number of 64 bits", key="seed", fix="take a smaller one")
        named = bool(self.name.strip(".")) and "/" not in self.name
        checks.require(named, "must be a file name", key="name")
        taken = self.name in {"latest", "mlartifacts"}
        checks.require(not taken, f"{self.name!r} means something else in the output folder", key="name")
