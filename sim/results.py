"""What a run leaves behind, as values.

Rules of this file:
    * Field documentation *is* the schema of `summary.json` and of the tables (`schema()`); a change of a field's
      name or meaning raises `SCHEMA_VERSION`.
    * A *score* is a device's main metric, as `Summary.metric` says: accuracy (a fraction) or RMSE (the target's
      unit). Devices count alike, however many samples they hold.
    * None means "does not apply" or "not measured". All is the simulator's oracle, outside any epsilon.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  (read at run time by `sim.plain`)
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sim.plain import json_schema

SCHEMA_VERSION = 1


class Metric(StrEnum):
    """The main metric of a run."""

    ACCURACY = "accuracy"
    RMSE = "rmse"

    @property
    def higher_is_better(self) -> bool:
        """Accuracy rises, an error falls."""
        return self is Metric.ACCURACY


class Outcome(StrEnum):
    """How a round ended."""

    COMMITTED = "committed"
    ABANDONED = "abandoned"  # below quorum: nothing released, nothing charged
    STOPPED = "stopped"  # refused before it began: the privacy budget would have been exceeded


@dataclass(frozen=True)
class Spread:
    """A score over devices at one moment.

    Attributes:
        mean: Mean over devices.
        p10: The score that nine devices in ten reach or better (10th percentile of an accuracy, 90th of an error).
        worst: The worst device's score.
    """

    mean: float
    p10: float
    worst: float


@dataclass(frozen=True)
class RoundRecord:
    """One round of one arm with one seed; a row of `rounds.parquet`.

    Attributes:
        arm: Key of the arm.
        seed: Seed of the repetition.
        round: Number of the round, from 0.
        at: Virtual instant at which the round ended, in seconds since the campaign began.
        outcome: How it ended.
        cohort: Clients that were asked.
        replied: Clients whose update was used.
        failures: Clients that contributed nothing, by `FailureKind`; kinds with none may be left out.
        train_loss: Mean training loss over the clients that replied (oracle).
        epsilon: Epsilon spent after this round, at the arm's delta; None without DP.
        clip_norm: Clip norm of this round (L2); None without clipping.
        update_norm: L2 norm of the released aggregate, before the server optimizer.
        bytes_up: Bytes sent by devices.
        bytes_down: Bytes sent to devices.
        seconds: Wall-clock seconds of the round, evaluation included.
        global_score: Score of the global model over the scored devices, where evaluated after this round.
        personalized_score: Score of the personalized models over the same devices, likewise.
        global_macro_f1: Mean over devices of its macro-F1 (classification).
        personalized_macro_f1: Mean over devices of their macro-F1 (classification).
        drift_fraction: Share of the fleet's devices with an injected drift active at `at`.
        labels_fraction: Share of the training rows whose event lies before `at` that are labelled by `at`.
        available_fraction: Share of the fleet that could have been asked at `at`.
    """

    arm: str
    seed: int
    round: int
    at: float
    outcome: Outcome
    cohort: int
    replied: int
    failures: Mapping[str, int] = field(default_factory=dict)
    train_loss: float | None = None
    epsilon: float | None = None
    clip_norm: float | None = None
    update_norm: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    global_score: Spread | None = None
    personalized_score: Spread | None = None
    global_macro_f1: float | None = None
    personalized_macro_f1: float | None = None
    drift_fraction: float | None = None
    labels_fraction: float | None = None
    available_fraction: float | None = None


@dataclass(frozen=True)
class DeviceScore:
    """One device's final scores in one arm with one seed; a row of `devices.parquet`.

    Attributes:
        arm: Key of the arm.
        seed: Seed of the repetition.
        device: Device id; the same id is the same device in every arm.
        is_virtual: True for a device made by re-mounting, sharding or generation, False for a natural client.
        cold_start: True if the device took part in no committed round.
        num_rounds: Committed rounds in which the device's update was used.
        num_scored: Rows the scores rest on.
        global_score: Accuracy or RMSE of the global model; None if there was nothing to score.
        personalized_score: Accuracy or RMSE of the device's personalized model; None in an arm without any.
        global_macro_f1: Macro-F1 of the global model (classification).
        personalized_macro_f1: Macro-F1 of the personalized model (classification).
        global_mae: Mean absolute error of the global model (regression).
        personalized_mae: Mean absolute error of the personalized model (regression).
        global_r2: R squared of the global model (regression).
        personalized_r2: R squared of the personalized model (regression).
        example_epsilon: Example-level epsilon at delta 1e-5 that this device spent; None with example-level DP off.
    """

    arm: str
    seed: int
    device: int
    is_virtual: bool
    cold_start: bool
    num_rounds: int
    num_scored: int
    global_score: float | None
    personalized_score: float | None = None
    global_macro_f1: float | None = None
    personalized_macro_f1: float | None = None
    global_mae: float | None = None
    personalized_mae: float | None = None
    global_r2: float | None = None
    personalized_r2: float | None = None
    example_epsilon: float | None = None

    def gain(self, metric: Metric) -> float | None:
        """How much better the personalized model is than the global one: positive is better, in the score's unit."""
        if self.global_score is None or self.personalized_score is None:
            return None
        return (1.0 if metric.higher_is_better else -1.0) * (self.personalized_score - self.global_score)


class Over(StrEnum):
    """What an interval was taken over."""

    NOTHING = "nothing"
    SEEDS = "seeds"  # Student's t over repetitions
    DEVICES = "devices"  # bootstrap over devices of one repetition


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval.

    Attributes:
        value: The estimate: a mean over seeds where there are several.
        low: Lower end of the 95 % interval; None where there is none.
        high: Upper end, likewise.
        num: How many values the interval rests on.
        over: What these values are.
    """

    value: float
    low: float | None = None
    high: float | None = None
    num: int = 1
    over: Over = Over.NOTHING


@dataclass(frozen=True)
class SpreadEstimate:
    """A metric over devices, each part with its interval.

    Attributes:
        mean: Mean over devices.
        p10: The score that nine devices in ten reach or better.
        worst: The worst device.
    """

    mean: Estimate
    p10: Estimate
    worst: Estimate


@dataclass(frozen=True)
class ModelScores:
    """What one kind of model (global or personalized) reaches on one population.

    Attributes:
        score: Accuracy or RMSE, as `Summary.metric` says.
        macro_f1: Macro-F1 (classification).
        mae: Mean absolute error (regression).
        r2: R squared (regression).
    """

    score: SpreadEstimate
    macro_f1: SpreadEstimate | None = None
    mae: SpreadEstimate | None = None
    r2: SpreadEstimate | None = None


class Population(StrEnum):
    """Which devices a figure is about: cold-start devices are never mixed with those that trained."""

    REAL = "real"  # natural clients that took part
    VIRTUAL = "virtual"  # made devices that took part
    COLD_START_REAL = "cold_start_real"  # natural clients that never took part
    COLD_START_VIRTUAL = "cold_start_virtual"  # made devices that never took part


@dataclass(frozen=True)
class PopulationScores:
    """One population's scores.

    Attributes:
        population: Which devices.
        num_devices: How many devices, mean over seeds.
        global_model: Scores of the global model.
        personalized: Scores of the personalized models; None in an arm without any.
        gain: Personalized minus global, device by device, positive is better; None in an arm without any.
    """

    population: Population
    num_devices: float
    global_model: ModelScores
    personalized: ModelScores | None = None
    gain: Estimate | None = None


@dataclass(frozen=True)
class PrivacySummary:
    """What the released weights of an arm reveal, and under which claim.

    Attributes:
        epsilon: Epsilon spent, of the most charged unit, the largest over the seeds.
        delta: Delta.
        sampling: Cohort sampling the figure rests on: `poisson`, `fixed_size` or `min_separation`.
        relation: Neighbouring relation: `zero_out`, `add_remove` or `replace_one`.
        unit: Whom the figure protects: `person`, `device` or `recording`.
        accountant: `pld` or `rdp`.
        noise_multiplier: Standard deviation of the noise divided by the clip norm.
        clip_norm: The (first) clip norm, L2.
        scope: What the figure covers and what it does not, in a sentence.
        target_epsilon: The budget, if one was given.
        advice: What to do about a fleet that is too small; may be empty.
    """

    epsilon: float
    delta: float
    sampling: str
    relation: str
    unit: str
    accountant: str
    noise_multiplier: float
    clip_norm: float
    scope: str
    target_epsilon: float | None = None
    advice: str = ""


@dataclass(frozen=True)
class ArmSummary:
    """One arm of an experiment: a way to train, compared with the others on the same fleet and seeds.

    Attributes:
        arm: Key, as in the records.
        title: Name for people.
        method: What a device computes: `fedavg`, `finetune`, `fedper`, `fedrep`, `apfl`, `ditto`.
        populations: Scores by population; those without devices are left out.
        privacy: The fleet's DP figure; None without DP.
        example_epsilon: Example-level epsilon at delta 1e-5 of the most charged device, scored or not; None if off.
        rounds: Rounds committed, mean over seeds.
        abandoned: Rounds abandoned or refused, mean over seeds.
        replied: Updates used, all rounds, mean over seeds.
        dropouts: Clients that contributed nothing, by `FailureKind`, mean over seeds.
        bytes_up: Bytes sent by devices, mean over seeds.
        bytes_down: Bytes sent to devices, mean over seeds.
        seconds: Wall-clock seconds, mean over seeds.
        peak_memory_bytes: Peak resident memory of this process and its workers.
        weights_digests: sha256 of the final weights by seed.
    """

    arm: str
    title: str
    method: str
    populations: tuple[PopulationScores, ...]
    privacy: PrivacySummary | None
    example_epsilon: float | None
    rounds: float
    abandoned: float
    replied: float
    dropouts: Mapping[str, float]
    bytes_up: float
    bytes_down: float
    seconds: float
    peak_memory_bytes: int
    weights_digests: Mapping[str, str]

    @property
    def headline(self) -> PopulationScores | None:
        """The population that heads a table: real devices that trained, else the next in order."""
        return next(iter(self.populations), None)


@dataclass(frozen=True)
class Environment:
    """Where a run was made.

    Attributes:
        code_version: `git describe` of the code, or the installed version.
        python: Version of Python.
        packages: Versions of the libraries that matter.
        cores: Processor cores that this process may use.
        platform: Operating system and processor.
    """

    code_version: str
    python: str
    packages: Mapping[str, str]
    cores: int
    platform: str = ""


@dataclass(frozen=True)
class Summary:
    """A run in one page: `summary.json`.

    Attributes:
        experiment: Name of the experiment.
        started_at: When the run began, ISO 8601 with its zone.
        metric: The main metric of every score.
        metric_unit: Unit of the score: empty for a fraction, the target's unit for an error.
        dataset: Name of the data set.
        num_devices: Devices in the fleet.
        num_virtual_devices: Of these, how many are made.
        seeds: Seeds of the repetitions.
        seconds: Wall-clock seconds of the whole run.
        environment: Where it was made.
        data_digest: sha256 of the source data.
        config_digest: sha256 of the resolved configuration.
        caveats: What a reader must know before trusting a figure.
        arms: The arms, in the order in which they are shown.
        files: sha256 of every other file of the run folder, by name; filled in by `sim.outputs`.
        schema_version: Version of this schema.
    """

    experiment: str
    started_at: str
    metric: Metric
    metric_unit: str
    dataset: str
    num_devices: int
    num_virtual_devices: int
    seeds: tuple[int, ...]
    seconds: float
    environment: Environment
    data_digest: str
    config_digest: str
    caveats: tuple[str, ...]
    arms: tuple[ArmSummary, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Run:
    """A finished run: everything but its weights.

    Attributes:
        summary: The page that heads it.
        rounds: Rounds of every arm and seed.
        devices: Final scores of every device, arm and seed.
        config: The resolved configuration, as YAML text.
    """

    summary: Summary
    rounds: tuple[RoundRecord, ...]
    devices: tuple[DeviceScore, ...]
    config: str


def schema() -> dict[str, Any]:
    """JSON Schema of `summary.json`, and under ``x-tables`` that of a row of each table."""
    tables = {"rounds.parquet": json_schema(RoundRecord), "devices.parquet": json_schema(DeviceScore)}
    return {**json_schema(Summary), "x-tables": tables}
