"""Who is asked: cohorts drawn from a population, as pure functions.

Rules of this file:
    * State in, state out: a draw depends on (seed, round), the eligible devices and the participation history alone.
    * What is recorded is what was done: under Poisson sampling the coin q; amplification is never claimed for the others.
    * Nothing here loops over the population in Python: a million devices are a few array passes, and a cohort drawn
      from everybody costs only its own size.
    * If the eligible devices cannot fill the cohort, the answer says so (`Cohort.shortfall`); nobody is asked twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedretrain.core.errors import ConfigError
from fedretrain.core.rng import generator, seed_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_NEVER = -(2**30)


@dataclass(frozen=True)
class Participation:
    """Which devices took part in charged or released rounds; N devices.

    Attributes:
        last_round: ``[N]`` int32 the latest such round, a large negative number where there is none.
        count: ``[N]`` int32 how many.
    """

    last_round: NDArray[np.int32]
    count: NDArray[np.int32]

    @classmethod
    def none(cls, population: int) -> Participation:
        """Nobody took part yet."""
        return cls(np.full(population, _NEVER, dtype=np.int32), np.zeros(population, dtype=np.int32))

    def __len__(self) -> int:
        return len(self.count)

    def record(self, clients: NDArray[np.int64], round_: int) -> Participation:
        """The history after `clients` (no repeats) took part in a round; the old one is left alone."""
        last_round, count = self.last_round.copy(), self.count.copy()
        last_round[clients] = np.maximum(last_round[clients], round_)
        count[clients] += 1
        return Participation(last_round, count)

    def to_arrays(self) -> dict[str, NDArray[np.int32]]:
        """For a checkpoint."""
        return {"last_round": self.last_round, "count": self.count}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.int32]]) -> Participation:
        """From a checkpoint."""
        return cls(arrays["last_round"].astype(np.int32), arrays["count"].astype(np.int32))


@dataclass(frozen=True)
class Cohort:
    """The clients asked in a round.

    Attributes:
        clients: ``[K]`` int64, sorted, no repeats.
        sampling: ``"poisson"``, ``"fixed_size"`` or ``"min_separation"``.
        expected: The public cohort size fixed before the draw: n, or q times the population.
        num_eligible: How many devices could have been asked.
        fraction: q under Poisson sampling, else 0.
        stop_after: The runner may stop after this many replies; None: it must use every reply.
        shortfall: Why fewer than wanted were asked; empty if they were not.
    """

    clients: NDArray[np.int64]
    sampling: str
    expected: float
    num_eligible: int
    fraction: float = 0.0
    stop_after: int | None = None
    shortfall: str = ""

    def __len__(self) -> int:
        return len(self.clients)


class Sampler(Protocol):
    """Draws cohorts. A frozen dataclass of hyperparameters."""

    def expected(self, population: int) -> float:
        """The public cohort size: the denominator of the mean."""
        ...

    def cohort(
        self,
        seed: int,
        round_: int,
        history: Participation,
        eligible: NDArray[np.bool_] | None = None,
    ) -> Cohort:
        """Draw a cohort.

        Args:
            seed: The run's seed.
            round_: Index of the round.
            history: Who took part before; its length is the population N.
            eligible: ``[N]`` bool: who may be asked now (enrolled, online, ...); None for everybody. It must be independent of
                the devices' data.
        """
        ...


@dataclass(frozen=True)
class Poisson:
    """A coin of probability q for every eligible device, independently.

    The number of heads is drawn first and then which devices they are: the same distribution as tossing every coin,
    in time proportional to the cohort.

    Attributes:
        q: The probability of the coin.
    """

    q: float

    def __post_init__(self) -> None:
        if not 0.0 < self.q <= 1.0:
            raise ConfigError(
                f"the coin's probability is {self.q}", where="sampling.q", fix="give one in (0, 1]"
            )

    def expected(self, population: int) -> float:
        """Q times the population."""
        return self.q * population

    def cohort(
        self,
        seed: int,
        round_: int,
        history: Participation,
        eligible: NDArray[np.bool_] | None = None,
    ) -> Cohort:
        """Toss the coins. An empty cohort is a possible and proper outcome."""
        num_eligible = _num_eligible(history, eligible)
        rng = generator(seed_for(seed, round_, -1, "cohort"))
        clients = _choose(rng, int(rng.binomial(num_eligible, self.q)), num_eligible, eligible)
        return Cohort(clients, "poisson", self.expected(len(history)), num_eligible, fraction=self.q)


@dataclass(frozen=True)
class FixedSize:
    """n devices, uniformly and without replacement.

    Attributes:
        n: The replies wanted.
        over_select: How many times n are asked, so that n still reply when some drop out.
    """

    n: int
    over_select: float = 1.0

    def __post_init__(self) -> None:
        _check_size(self.n, self.over_select)

    def expected(self, population: int) -> float:
        """N, whatever the population."""
        del population
        return float(self.n)

    def cohort(
        self,
        seed: int,
        round_: int,
        history: Participation,
        eligible: NDArray[np.bool_] | None = None,
    ) -> Cohort:
        """Draw the devices."""
        return _fixed_cohort(self, seed, round_, history, eligible)


@dataclass(frozen=True)
class MinSeparation:
    """n devices, none of which took part in the last `separation` - 1 rounds or too often already.

    Both limits are enforced here, from the history, and accounted for by the ledger device by device.

    Attributes:
        n: The replies wanted.
        separation: Rounds from one participation of a device to its next, at least.
        max_participations: How often a device may take part at all.
        over_select: How many times n are asked.
    """

    n: int
    separation: int = 1
    max_participations: int = 2**31 - 1
    over_select: float = 1.0

    def __post_init__(self) -> None:
        _check_size(self.n, self.over_select)
        if self.separation < 1 or self.max_participations < 1:
            raise ConfigError(
                f"separation {self.separation}, at most {self.max_participations} participations",
                where="sampling",
                fix="give at least 1 for both",
            )

    def expected(self, population: int) -> float:
        """N, whatever the population."""
        del population
        return float(self.n)

    def cohort(
        self,
        seed: int,
        round_: int,
        history: Participation,
        eligible: NDArray[np.bool_] | None = None,
    ) -> Cohort:
        """Draw the devices among those that have rested long enough."""
        rested = history.last_round <= round_ - self.separation
        rested &= history.count < self.max_participations
        if eligible is not None:
            rested &= eligible
        return _fixed_cohort(self, seed, round_, history, rested)


def _fixed_cohort(
    sampler: FixedSize | MinSeparation,
    seed: int,
    round_: int,
    history: Participation,
    eligible: NDArray[np.bool_] | None,
) -> Cohort:
    n, over_select = sampler.n, sampler.over_select
    num_eligible = _num_eligible(history, eligible)
    wanted = math.ceil(n * over_select - 1e-9)
    rng = generator(seed_for(seed, round_, -1, "cohort"))
    clients = _choose(rng, min(wanted, num_eligible), num_eligible, eligible)
    short = num_eligible < wanted
    return Cohort(
        clients,
        "min_separation" if isinstance(sampler, MinSeparation) else "fixed_size",
        float(n),
        num_eligible,
        stop_after=n if over_select > 1.0 else None,
        shortfall=f"{wanted} wanted, {num_eligible} of {len(history)} devices eligible" if short else "",
    )


def _num_eligible(history: Participation, eligible: NDArray[np.bool_] | None) -> int:
    if eligible is None:
        return len(history)
    if eligible.shape != (len(history),):
        raise ValueError(f"eligibility of shape {eligible.shape} for {len(history)} devices")
    return int(np.count_nonzero(eligible))


def _choose(
    rng: np.random.Generator, size: int, num_eligible: int, eligible: NDArray[np.bool_] | None
) -> NDArray[np.int64]:
    """`size` of the eligible devices, sorted."""
    chosen = np.sort(rng.choice(num_eligible, size=size, replace=False, shuffle=False)).astype(np.int64)
    return chosen if eligible is None else np.flatnonzero(eligible)[chosen].astype(np.int64)


def _check_size(n: int, over_select: float) -> None:
    if n < 1:
        raise ConfigError(f"a cohort of {n} devices", where="sampling.n", fix="give at least 1")
    if not (np.isfinite(over_select) and over_select >= 1.0):
        raise ConfigError(
            f"over-selection by {over_select}",
            where="sampling.over_select",
            fix="give a number of at least 1",
        )
