"""Differential privacy of a round: what is claimed, what is charged, where the noise comes from.

Rules of this file:
    * `CentralDp` is configuration and refuses combinations in which its claim would be false.
    * `Purse` is the shell around the ledger: it asks the budget first and appends (fsync) before noise is drawn. Between the
      two a crash wastes budget; it can never overspend.
    * Everybody who was *asked* is charged: who answers may depend on data.
    * A repeated round is another attempt, with a charge and a noise stream of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedretrain.coordinator.sampling import Cohort
from fedretrain.core.errors import PrivacyError
from fedretrain.core.rng import seed_for
from fedretrain.privacy.accountant import Spending
from fedretrain.privacy.claims import check_claims
from fedretrain.privacy.event import EVERYBODY, PrivacyEvent, Sampling, encode_units
from fedretrain.privacy.mechanism import Relation, SeededNoise, SystemNoise, Unit, noise_stddev

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.privacy.adaptive import AdaptiveClip
    from fedretrain.privacy.budget import Budget, Decision, Promise
    from fedretrain.privacy.ledger import Ledger
    from fedretrain.privacy.mechanism import NoiseSource


@dataclass(frozen=True, eq=False)
class CentralDp:
    """Central differential privacy of a campaign's rounds.

    Attributes:
        noise_multiplier: z: noise standard deviation on the sum over the clip norm.
        clip_norm: C of the first round (of all, without `adaptive`).
        population: Task, device set and ledger that the budget belongs to.
        campaign: Which campaign.
        relation: Neighbouring relation.
        unit: Whom the claim protects.
        amplified: Whether amplification by Poisson sampling is claimed.
        adaptive: Rule of an adaptive clip norm; its bit is charged with the round.
        unit_of: ``[N]`` int64 the person of each device, for the unit person; None: the device itself.
        max_devices_per_unit: How many devices of one person may be in one round.
    """

    noise_multiplier: float
    clip_norm: float
    population: str = "default"
    campaign: str = "default"
    relation: Relation = Relation.ZERO_OUT
    unit: Unit = Unit.DEVICE
    amplified: bool = False
    adaptive: AdaptiveClip | None = None
    unit_of: NDArray[np.int64] | None = None
    max_devices_per_unit: int = 1

    def __post_init__(self) -> None:
        noise_stddev(self.clip_norm, self.noise_multiplier)

    def event(
        self, cohort: Cohort, *, round_: int, attempt: int, clip_norm: float, denominator: float
    ) -> PrivacyEvent:
        """What charging this round means.

        Raises:
            PrivacyError: If the claim would be false for a cohort drawn like this.
        """
        check_claims(
            relation=self.relation,
            unit=self.unit,
            sampling=cohort.sampling,
            amplified=self.amplified,
            stop_at_quorum=cohort.stop_after is not None,
            devices_per_person_known=self.unit_of is not None,
        )
        return PrivacyEvent(
            population=self.population,
            campaign=self.campaign,
            round=round_,
            noise_multiplier=self.noise_multiplier,
            clip_norm=clip_norm,
            relation=self.relation,
            sampling=Sampling(cohort.sampling),
            units=self._units(cohort),
            unit=self.unit,
            sampling_fraction=cohort.fraction,
            amplified=self.amplified,
            attempt=attempt,
            max_devices_per_unit=self.max_devices_per_unit,
            bit_noise_stddev=self.adaptive.bit_noise_stddev if self.adaptive else 0.0,
            bit_quantile=self.adaptive.quantile if self.adaptive else 0.5,
            denominator=denominator,
        )

    def _units(self, cohort: Cohort) -> str:
        """Who is charged: everybody who was asked; under amplification the whole population."""
        if self.amplified:
            return EVERYBODY
        return encode_units(cohort.clients if self.unit_of is None else self.unit_of[cohort.clients])


def can_pay(
    dp: CentralDp,
    budget: Budget,
    spent: Spending,
    *,
    sampling: str,
    expected: float,
    clip_norm: float,
    num_devices: int,
) -> NDArray[np.bool_]:
    """``[N]``: whose unit has budget left for one more round. Participations are public, so a sampler may leave out others.

    Args:
        dp: The claim.
        budget: The promise.
        spent: What the ledger adds up to.
        sampling: How cohorts are drawn.
        expected: Their public size.
        clip_norm: C of the next round.
        num_devices: N.
    """
    everybody = Cohort(np.zeros(0, dtype=np.int64), sampling, expected, 0)
    event = dp.event(everybody, round_=0, attempt=0, clip_norm=clip_norm, denominator=expected)
    units = np.arange(num_devices) if dp.unit_of is None else dp.unit_of
    return budget.affordable(spent, event, units)


class Noises(Protocol):
    """Makes a noise source for each release."""

    def __call__(self, round_: int, attempt: int, purpose: str) -> NoiseSource:
        """The source of one release's noise; different for each round, attempt and purpose."""
        ...


@dataclass(frozen=True)
class SeededNoises:
    """Reproducible noise, for simulation only.

    Attributes:
        seed: The run's seed.
    """

    seed: int

    def __call__(self, round_: int, attempt: int, purpose: str) -> NoiseSource:
        """A source seeded by run, round, attempt and purpose."""
        return SeededNoise(seed_for(self.seed, round_, -1, f"noise/{purpose}/{attempt}"))


@dataclass(frozen=True)
class SystemNoises:
    """Noise of the operating system's entropy: production."""

    def __call__(self, round_: int, attempt: int, purpose: str) -> NoiseSource:
        """A source that nobody can replay."""
        del round_, attempt, purpose
        return SystemNoise()


class Purse:
    """A population's ledger, what it adds up to, and the promise it must keep.

    Args:
        ledger: Where charges are made durable.
        noises: Where noise comes from.
        promise: The budget; None charges without a limit.
    """

    def __init__(self, ledger: Ledger, noises: Noises, promise: Promise | None = None) -> None:
        self.noises = noises
        self._ledger, self._promise = ledger, promise
        self._attempts: dict[tuple[str, int], int] = {}
        self.spent = Spending()
        for event in ledger.events():
            self._count(event)

    def attempt(self, campaign: str, round_: int) -> int:
        """How often this round was charged already."""
        return self._attempts.get((campaign, round_), 0)

    def may_charge(self, event: PrivacyEvent) -> Decision | None:
        """The budget's decision; None without a budget."""
        return None if self._promise is None else self._promise.may_charge(self.spent, event)

    def charge(self, event: PrivacyEvent) -> None:
        """Make the charge durable. Nothing may be released before this returns.

        Raises:
            PrivacyError: If the budget does not allow it, or it cannot be written.
        """
        decision = self.may_charge(event)
        if decision is not None and not decision.allowed:
            raise PrivacyError(decision.reason, where="privacy.budget", fix="release nothing")
        self._ledger.append(event)
        self._count(event)

    def _count(self, event: PrivacyEvent) -> None:
        self.spent = self.spent.charge(event)
        key = (event.campaign, event.round)
        self._attempts[key] = max(self._attempts.get(key, 0), event.attempt + 1)
