"""`PrivacyEvent`: the durable fact from which every epsilon is derived.

Rules of this file:
    * An event states what was done (sigma, C, relation, unit, who took part), never an epsilon.
    * An event in which a claim would be false cannot be built (`PrivacyError`).
    * Participation is per *unit* (a person, or a device): a unit listed k times had k devices in the round, and
      moves the sum k times as far.
    * JSON round trip without loss; derived figures are written beside the facts and checked when read.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import PrivacyError
from fedretrain.privacy.mechanism import Relation, Unit, sensitivity_factor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

EVERYBODY = "*"
"""The participation record of an event that charges every unit of the population."""


class Mechanism(StrEnum):
    """What was released."""

    GAUSSIAN_SUM = "gaussian_sum"  # a sum of vectors of norm at most C, plus Gaussian noise


class Sampling(StrEnum):
    """How the cohort came about."""

    POISSON = "poisson"  # a coin of probability q for each unit, independently, every round
    FIXED_SIZE = "fixed_size"
    MIN_SEPARATION = "min_separation"
    EVERYBODY = "everybody"


def encode_units(units: ArrayLike) -> str:
    """A compact record of who took part: sorted ids, differences, zlib, base64.

    Args:
        units: Integer ids of any shape, repeated where a unit has several devices in the round.
    """
    ids = np.sort(np.asarray(units, dtype=np.int64).reshape(-1))
    steps = np.diff(ids, prepend=np.int64(0)).astype("<i8")
    return base64.b64encode(zlib.compress(steps.tobytes(), 6)).decode()


def decode_units(record: str) -> NDArray[np.int64]:
    """The sorted ids of `encode_units`, repeats included.

    Raises:
        ValueError: If the record is damaged or is `EVERYBODY`.
    """
    try:
        steps = np.frombuffer(zlib.decompress(base64.b64decode(record, validate=True)), dtype="<i8")
    except zlib.error as error:
        raise ValueError(f"a participation record cannot be read: {error}") from error
    return np.cumsum(steps, dtype=np.int64)


Rule = tuple[bool, str, str]
"""Whether it is broken, what is wrong, how to mend it."""


def displacement_rule(relation: Relation, sampling: Sampling) -> Rule:
    """Cohorts in which one unit more means another one less."""
    return (
        relation is Relation.ADD_REMOVE and sampling in (Sampling.FIXED_SIZE, Sampling.MIN_SEPARATION),
        f"{sampling} cohorts under add/remove: one unit more displaces another, which moves the sum by 2C",
        "declare the relation zero_out (or replace_one), or draw Poisson cohorts",
    )


def amplification_rules(relation: Relation, unit: Unit, sampling: Sampling) -> list[Rule]:
    """What amplification by sampling needs of relation, unit and sampling."""
    return [
        (
            sampling is not Sampling.POISSON,
            f"amplification claimed for {sampling} cohorts",
            "only a coin for each unit in each round amplifies: set sampling=poisson, or amplified=false",
        ),
        (
            relation is not Relation.ADD_REMOVE,
            f"Poisson amplification claimed under the relation {relation}",
            "claim it under add_remove, or set amplified=false",
        ),
        (
            unit is Unit.RECORDING,
            "Poisson sampling of devices claimed to amplify for a single recording",
            "set amplified=false, or declare the unit device or person",
        ),
    ]


@dataclass(frozen=True)
class PrivacyEvent:
    """One noisy release, charged before it is made.

    Attributes:
        population: The task, device set and ledger that the budget belongs to.
        campaign: Which training campaign.
        round: Round of the campaign, from 0.
        noise_multiplier: Noise standard deviation on the sum of updates divided by the clip norm.
        clip_norm: C of this round.
        relation: Neighbouring relation of the claim.
        sampling: How the cohort came about.
        units: Who is charged: `encode_units(...)` or `EVERYBODY`. Charge everybody who was *asked*: who
            answers may depend on data (number of steps, non-finite updates), who is asked does not.
        unit: Whom the claim protects.
        sampling_fraction: q, for `POISSON`.
        amplified: Whether amplification by Poisson sampling is claimed (then `units` is `EVERYBODY`: the
            coin was tossed for each).
        attempt: From 0; a repeated round is another event.
        max_devices_per_unit: How many devices of one unit may be in one round, each with its own C (and, under Poisson
            sampling, its own coin).
        bit_noise_stddev: Noise standard deviation on adaptive clipping's centred bit sum; 0 without.
        bit_quantile: Its target quantile gamma.
        denominator: The public constant by which the noisy sum was divided; for audit.
        mechanism: What was released.
        purpose: ``"training"``, or which other charged channel.
    """

    population: str
    campaign: str
    round: int
    noise_multiplier: float
    clip_norm: float
    relation: Relation
    sampling: Sampling
    units: str
    unit: Unit = Unit.DEVICE
    sampling_fraction: float = 0.0
    amplified: bool = False
    attempt: int = 0
    max_devices_per_unit: int = 1
    bit_noise_stddev: float = 0.0
    bit_quantile: float = 0.5
    denominator: float = 0.0
    mechanism: Mechanism = Mechanism.GAUSSIAN_SUM
    purpose: str = "training"

    def __post_init__(self) -> None:
        for wrong, what, fix in self._faults():
            if wrong:
                raise PrivacyError(what, where=f"round {self.round} of campaign {self.campaign}", fix=fix)

    def _faults(self) -> list[Rule]:
        positive = all(np.isfinite(v) and v > 0 for v in (self.noise_multiplier, self.clip_norm))
        no_coin = self.sampling is Sampling.POISSON and not 0 < self.sampling_fraction <= 1
        return [
            (not positive, "noise multiplier and clip norm must be positive and finite", "set both"),
            (not 0 <= self.bit_noise_stddev < np.inf, "the bit's noise is negative or infinite", "set it"),
            (not 0 < self.bit_quantile < 1, "the target quantile lies outside (0, 1)", "take 0.5"),
            (self.max_devices_per_unit < 1, "max_devices_per_unit is below 1", "take 1"),
            (no_coin, "Poisson sampling needs its q in (0, 1]", "set it"),
            *amplification_rules(self.relation, self.unit, self.sampling) * self.amplified,
            displacement_rule(self.relation, self.sampling),
            (
                self.amplified and self.units != EVERYBODY,
                "an amplified event names its cohort, which must stay secret",
                "set units=EVERYBODY",
            ),
            (self.units == "", "nobody is charged", "give units=encode_units(...) or EVERYBODY"),
            (self.most_devices > self.max_devices_per_unit, *self._crowded()),
        ]

    def _crowded(self) -> tuple[str, str]:
        return (
            f"{self.most_devices} devices of one {self.unit} in one round, {self.max_devices_per_unit} allowed",
            "ask one device of a person per round, share C among them, or raise max_devices_per_unit",
        )

    @cached_property
    def unit_counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``(ids [U] sorted, devices of each in this round [U])``; empty for `EVERYBODY`."""
        if self.units in ("", EVERYBODY):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        ids, counts = np.unique(decode_units(self.units), return_counts=True)
        return ids, counts.astype(np.int64)

    @property
    def most_devices(self) -> int:
        """The largest number of devices that one unit had in the round."""
        return int(self.unit_counts[1].max(initial=0))

    @property
    def noise_stddev(self) -> float:
        """Sigma: the noise's standard deviation on the sum."""
        return self.noise_multiplier * self.clip_norm

    @property
    def sensitivity(self) -> float:
        """How far one contribution moves the sum under this relation and unit."""
        return sensitivity_factor(self.relation, self.unit) * self.clip_norm

    @property
    def mu_squared(self) -> float:
        """(sensitivity / noise stddev)^2 of one device's contribution, the clipping bit included.

        The update and the bit are two blocks of one Gaussian mechanism; scaled to unit noise, one contribution
        moves the joint vector by sqrt((s C / sigma)^2 + (s_b / sigma_b)^2), which is mu of Gaussian DP
        (arXiv:1905.02383, theorem 2.7; arXiv:1905.03871, theorem 1). The bit moves by max(gamma, 1 - gamma)
        where a unit is taken away, and by 1 where its data are replaced.
        """
        factor = sensitivity_factor(self.relation, self.unit)
        total = (factor / self.noise_multiplier) ** 2
        if self.bit_noise_stddev > 0:
            bit = max(self.bit_quantile, 1 - self.bit_quantile) if factor == 1.0 else 1.0
            total += (bit / self.bit_noise_stddev) ** 2
        return total

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `noise_stddev` and `sensitivity` are written beside the facts, for auditors."""
        return {**asdict(self), "noise_stddev": self.noise_stddev, "sensitivity": self.sensitivity}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> PrivacyEvent:
        """The event of `to_dict`.

        Raises:
            PrivacyError: If a field is missing or unknown, or a derived figure does not follow from the facts.
        """
        facts = {k: v for k, v in record.items() if k not in ("noise_stddev", "sensitivity")}
        try:
            facts["relation"], facts["unit"] = Relation(facts["relation"]), Unit(facts["unit"])
            facts["sampling"] = Sampling(facts["sampling"])
            facts["mechanism"] = Mechanism(facts["mechanism"])
            event = cls(**facts)
            derived = (float(record["noise_stddev"]), float(record["sensitivity"]))
        except (KeyError, TypeError, ValueError) as error:
            known = sorted(f.name for f in fields(cls))
            raise PrivacyError(
                f"no privacy event: {error}", where="ledger", fix=f"fields are {known}"
            ) from error
        if derived != (event.noise_stddev, event.sensitivity):
            raise PrivacyError(
                "sigma or sensitivity does not follow from the event",
                where="ledger",
                fix="the ledger was edited",
            )
        return event
