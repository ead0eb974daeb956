"""What a campaign goes by, as plain data that an event log can hold, and the rules that it makes.

Rules of this file:
    * Everything that a claim of privacy rests on is checked when the rules are made, before anybody is asked.
    * Under the unit `person` the sampler draws persons and asks one device of each: at most one update of a person is in a
      round, so its sensitivity is the clip norm, and each participation of any of their devices is charged to the person.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.aggregation.aggregator import ExampleWeightedMean, FixedDenominatorMean
from fedretrain.aggregation.robust import CoordinateMedian, TrimmedMean
from fedretrain.aggregation.server_optimizer import SGD, Adam, Yogi
from fedretrain.coordinator.charging import CentralDp
from fedretrain.coordinator.persons import OnePerPerson
from fedretrain.coordinator.round import RoundRules
from fedretrain.coordinator.sampling import FixedSize, MinSeparation, Poisson
from fedretrain.core.checks import fraction, not_negative, positive, require
from fedretrain.core.errors import ConfigError
from fedretrain.privacy.adaptive import AdaptiveClip
from fedretrain.privacy.budget import Budget
from fedretrain.privacy.claims import check_claims
from fedretrain.privacy.event import Sampling
from fedretrain.privacy.mechanism import Relation, Unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fedretrain.aggregation.aggregator import Aggregator
    from fedretrain.aggregation.server_optimizer import ServerOptimizer
    from fedretrain.coordinator.sampling import Sampler


class AggregatorName(StrEnum):
    """How updates combine."""

    MEAN = "mean"
    EXAMPLE_WEIGHTED = "example_weighted"
    MEDIAN = "median"
    TRIMMED_MEAN = "trimmed_mean"


class OptimizerName(StrEnum):
    """What the server does with the aggregated update."""

    SGD = "sgd"
    ADAM = "adam"
    YOGI = "yogi"


def members(num_devices: int, outside: Sequence[int]) -> NDArray[np.bool_]:
    """``[N]`` who may be asked in a round at all: everybody but those outside."""
    member_N = np.ones(num_devices, dtype=np.bool_)
    member_N[list(outside)] = False
    return member_N


@dataclass(frozen=True)
class SamplingRule:
    """How cohorts are drawn.

    Attributes:
        kind: See `coordinator.sampling`.
        cohort_size: Replies wanted. Under the unit `person` this, separation and participations count persons.
        over_select: How many times as many are asked.
        separation: Rounds from one participation of a device to its next, at least (`min_separation`).
        max_participations: How often a device may take part; 0: any number of times (`min_separation`).
    """

    kind: Sampling = Sampling.FIXED_SIZE
    cohort_size: int = 10
    over_select: float = 1.0
    separation: int = 1
    max_participations: int = 0

    def make(self, num_devices: int, who: str = "devices") -> Sampler:
        """The sampler for a population of so many; `who` they are, for people."""
        if math.ceil(self.cohort_size * self.over_select - 1e-9) > num_devices:
            raise ConfigError(
                f"a cohort of {self.cohort_size} (asked {self.over_select:g} times) out of {num_devices} {who}",
                where="sampling.cohort_size",
                fix="ask fewer",
            )
        if self.kind is Sampling.POISSON:
            return Poisson(self.cohort_size / num_devices)
        if self.kind is Sampling.FIXED_SIZE:
            return FixedSize(self.cohort_size, self.over_select)
        most = self.max_participations or 2**31 - 1
        return MinSeparation(self.cohort_size, self.separation, most, self.over_select)


@dataclass(frozen=True)
class ServerStep:
    """How the released model follows from the aggregate.

    Attributes:
        aggregator: How updates combine.
        trim_fraction: Of each end (`trimmed_mean`).
        optimizer: What is done with the aggregated update.
        lr: Its learning rate; 0: its own default.
        momentum: Of `sgd`.
    """

    aggregator: AggregatorName = AggregatorName.MEAN
    trim_fraction: float = 0.1
    optimizer: OptimizerName = OptimizerName.SGD
    lr: float = 0.0
    momentum: float = 0.0

    def make_aggregator(self, expected: float, most: int) -> Aggregator[Any]:
        """The aggregator for cohorts of `expected` clients, of which at most `most` are asked."""
        if self.aggregator is AggregatorName.MEAN:
            return FixedDenominatorMean(expected)
        if self.aggregator is AggregatorName.EXAMPLE_WEIGHTED:
            return ExampleWeightedMean()
        if self.aggregator is AggregatorName.MEDIAN:
            return CoordinateMedian(max_clients=max(256, most))
        return TrimmedMean(max_clients=max(256, most), trim_fraction=self.trim_fraction)

    def make_optimizer(self) -> ServerOptimizer:
        """The server optimizer."""
        lr = {"lr": self.lr} if self.lr else {}
        if self.optimizer is OptimizerName.SGD:
            return SGD(momentum=self.momentum, **lr)
        return Adam(**lr) if self.optimizer is OptimizerName.ADAM else Yogi(**lr)


@dataclass(frozen=True)
class PrivacyRule:
    """Central differential privacy of a campaign.

    Attributes:
        noise_multiplier: z of the update.
        clip_norm: C of the first round.
        relation: Neighbouring relation.
        unit: `person` (devices name theirs when they enrol), `device` or `recording`.
        amplified: Whether amplification by Poisson sampling is claimed.
        epsilon: The population's promise; 0: charged without a limit.
        delta: Of the promise.
        adaptive_quantile: Share of updates that adaptive clipping leaves unclipped; 0: the clip norm stays.
        adaptive_lr: Its learning rate.
    """

    noise_multiplier: float
    clip_norm: float
    relation: Relation = Relation.ZERO_OUT
    unit: Unit = Unit.DEVICE
    amplified: bool = False
    epsilon: float = 0.0
    delta: float = 1e-5
    adaptive_quantile: float = 0.0
    adaptive_lr: float = 0.2

    def __post_init__(self) -> None:
        positive("privacy.noise_multiplier", self.noise_multiplier)
        positive("privacy.clip_norm", self.clip_norm)
        not_negative("privacy.epsilon", self.epsilon)
        require(0.0 < self.delta < 1.0, f"{self.delta} is not in (0, 1)", key="privacy.delta")
        fraction("privacy.adaptive_quantile", self.adaptive_quantile)
        positive("privacy.adaptive_lr", self.adaptive_lr)

    def make(self, population: str, campaign: str, expected: float, units: Sequence[int] = ()) -> CentralDp:
        """The claim of a campaign of a population, whose devices belong to `units` (none: to themselves)."""
        adaptive = None
        if self.adaptive_quantile:
            adaptive = AdaptiveClip(
                self.clip_norm,
                max(expected / 20, 1.0),  # the paper's: a twentieth of the cohort
                quantile=self.adaptive_quantile,
                learning_rate=self.adaptive_lr,
            )
        return CentralDp(
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.clip_norm,
            population=population,
            campaign=campaign,
            relation=self.relation,
            unit=self.unit,
            amplified=self.amplified,
            adaptive=adaptive,
            unit_of=np.array(units, dtype=np.int64) if units else None,
        )


@dataclass(frozen=True)
class CampaignRules:
    """What a campaign goes by.

    Attributes:
        sampling: How cohorts are drawn.
        step: How the released model follows from the aggregate.
        quorum: The fewest updates (with DP: answers) that make a release.
        deadline_s: How long a round waits for replies.
        clip_norm: C without DP; 0: updates are not clipped.
        privacy: Central DP; None without.
    """

    sampling: SamplingRule = field(default_factory=SamplingRule)
    step: ServerStep = field(default_factory=ServerStep)
    quorum: int = 1
    deadline_s: float = 600.0
    clip_norm: float = 0.0
    privacy: PrivacyRule | None = None

    def __post_init__(self) -> None:
        least = 1 if self.privacy is None else 0  # with DP nobody's answer may make a release of noise
        require(self.quorum >= least, f"{self.quorum} updates make no release", key="rules.quorum")
        positive("rules.deadline_s", self.deadline_s)
        not_negative("rules.clip_norm", self.clip_norm)

    @property
    def first_clip_norm(self) -> float | None:
        """C of the first round; None: updates are not clipped."""
        if self.privacy is not None:
            return self.privacy.clip_norm
        return self.clip_norm or None

    def make_sampler(
        self, num_devices: int, units: Sequence[int] = (), outside: Sequence[int] = ()
    ) -> Sampler:
        """Draws devices; or where they belong to units, units and one device of each.

        Args:
            num_devices: Of the population.
            units: Unit of each device, under the unit `person`.
            outside: Devices that are asked in no round: `members` leaves them out of those that are eligible.

        Raises:
            ConfigError: If there are too few for a cohort.
        """
        member_N = members(num_devices, outside)
        if not units:
            return self.sampling.make(int(member_N.sum()))
        unit_N = np.array(units, dtype=np.int64)
        known = np.unique(unit_N[member_N])
        # Whose a device outside is does not matter: it is never drawn, and stands in no history.
        person_of = np.searchsorted(known, unit_N).clip(max=max(len(known) - 1, 0))
        return OnePerPerson(self.sampling.make(len(known), "persons"), person_of.astype(np.int64))

    def expected(self, num_devices: int, units: Sequence[int] = (), outside: Sequence[int] = ()) -> float:
        """The public size of a cohort: what an aggregate is divided by. Arguments and errors are `make_sampler`'s."""
        population = num_devices if units else num_devices - len(outside)
        return self.make_sampler(num_devices, units, outside).expected(population)

    def make_rounds(
        self,
        population: str,
        campaign: str,
        num_devices: int,
        units: Sequence[int] = (),
        outside: Sequence[int] = (),
    ) -> RoundRules:
        """How the rounds of a campaign are run.

        Args:
            population: Whose ledger is charged.
            campaign: Its name.
            num_devices: Of the population.
            units: Unit of each device, under the unit `person`.
            outside: Devices that are asked in no round.

        Raises:
            PrivacyError: If the claim would be false.
        """
        expected = self.expected(num_devices, units, outside)
        most = math.ceil(self.sampling.cohort_size * self.sampling.over_select)
        aggregator = self.step.make_aggregator(expected, most)
        dp = None
        if self.privacy is not None:
            self._check_claims(persons_known=len(units) == num_devices)
            dp = self.privacy.make(population, campaign, expected, units)
        return RoundRules(aggregator, self.step.make_optimizer(), self.quorum, self.deadline_s, dp)

    def make_budget(self, num_units: int) -> Budget | None:
        """The promise to so many units of a population; None without one."""
        privacy = self.privacy
        if privacy is None or not privacy.epsilon:
            return None
        return Budget(privacy.epsilon, privacy.delta, num_units)

    def _check_claims(self, *, persons_known: bool) -> None:
        privacy = self.privacy
        assert privacy is not None
        weighted = self.step.aggregator is AggregatorName.EXAMPLE_WEIGHTED
        check_claims(
            relation=privacy.relation,
            unit=privacy.unit,
            sampling=self.sampling.kind,
            amplified=privacy.amplified,
            aggregator=str(self.step.aggregator),
            weights="examples" if weighted else "uniform",
            stop_at_quorum=self.sampling.over_select > 1,
            devices_per_person_known=persons_known,
        )
