"""Epsilon, derived from privacy events.

Rules of this file:
    * Events are facts; `Spending` is the fold over them; epsilon is a function of the fold. Nothing else is kept.
    * Convert before you ask: relation, unit, devices per unit and the clipping bit are folded into mu, the
      shift of one unit in standard deviations of the noise, and dp-accounting is asked about a plain Gaussian
      of sensitivity 1. (Its own replace-one differs between its accountants: 19.05 and 46.21 for one event.)
    * Without amplification each unit is charged for its own participations, and epsilon is that of the most
      charged unit: composed Gaussians are one Gaussian of mu = sqrt(sum of mu_i^2) (arXiv:1905.02383,
      corollary 3.3), whose epsilon has a closed form (arXiv:1805.06530, theorem 8).
    * Amplification by Poisson sampling is charged to every unit alike: RDP of the sampled Gaussian
      (arXiv:1908.10530), or its privacy loss distribution (arXiv:2207.04380), both from dp-accounting.
    * RDP is never below PLD; a contract test holds it for every event and relation that is used.
"""

from __future__ import annotations

import logging
import math
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import PrivacyError
from fedretrain.privacy.event import EVERYBODY, PrivacyEvent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from fedretrain.privacy.mechanism import Relation, Unit

ORDERS: tuple[float, ...] = (
    *(1 + x / 10 for x in range(1, 100)),
    *(float(x) for x in range(11, 64)),
    128.0,
    256.0,
    512.0,
    1024.0,
)
"""Renyi orders; our own list (dp-accounting's of 0.6), so that an upgrade cannot change an old epsilon."""


WHOLE_ORDERS: tuple[float, ...] = tuple(order for order in ORDERS if order == int(order))
"""Those at which the divergence of a sampled Gaussian is a finite sum."""


class AccountantKind(StrEnum):
    """How events become epsilon."""

    PLD = "pld"  # privacy loss distributions: tight
    RDP = "rdp"  # Renyi differential privacy: an upper bound on it, and cheap


Coin = tuple[float, float]
"""A Poisson round: its q, and its effective noise multiplier 1 / mu."""


@dataclass(frozen=True, eq=False)
class Spending:
    """What a population's events add up to.

    Attributes:
        ids: ``[U]`` int64, sorted: every unit ever named.
        mu_squared: ``[U]`` float64: the sum of its squared shifts, amplified rounds apart.
        participations: ``[U]`` int64: in how many charged rounds it took part.
        everybody: Squared shifts charged to every unit of the population.
        everybody_rounds: In how many events.
        coins: How many rounds of each kind of Poisson sampling.
        claim: The one relation and unit of all events; None before the first.
        num_events: Events folded in.
    """

    ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    mu_squared: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    participations: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    everybody: float = 0.0
    everybody_rounds: int = 0
    coins: tuple[tuple[Coin, int], ...] = ()
    claim: tuple[Relation, Unit] | None = None
    num_events: int = 0

    @classmethod
    def of(cls, events: Iterable[PrivacyEvent]) -> Spending:
        """The fold over events, oldest first."""
        spent = cls()
        for event in events:
            spent = spent.charge(event)
        return spent

    def charge(self, event: PrivacyEvent, count: int = 1) -> Spending:
        """The spending after `event` has happened `count` times.

        Raises:
            PrivacyError: If the event's relation or unit differs from that of the events before it.
        """
        claim = self._checked_claim(event)
        if event.amplified:
            coins = dict(self.coins)
            coins[_coin(event)] = coins.get(_coin(event), 0) + count
            spent = replace(self, coins=tuple(sorted(coins.items())))
        elif event.units == EVERYBODY:
            shift = count * event.mu_squared * event.max_devices_per_unit**2
            spent = replace(
                self, everybody=self.everybody + shift, everybody_rounds=self.everybody_rounds + count
            )
        else:
            spent = self._charge_units(event, count)
        return replace(spent, claim=claim, num_events=self.num_events + count)

    def _checked_claim(self, event: PrivacyEvent) -> tuple[Relation, Unit]:
        claim = (event.relation, event.unit)
        if self.claim not in (None, claim):
            raise PrivacyError(
                f"events under {self.claim} followed by one under {claim}",
                where=f"population {event.population}",
                fix="one population has one relation and one unit; start another population to change them",
            )
        return claim

    def _charge_units(self, event: PrivacyEvent, count: int) -> Spending:
        units, devices = event.unit_counts
        at = np.searchsorted(self.ids, units)
        known = np.zeros(len(units), np.bool_)
        inside = at < len(self.ids)
        known[inside] = self.ids[at[inside]] == units[inside]
        fresh = ~known
        ids = np.insert(self.ids, at[fresh], units[fresh])
        mu_squared = np.insert(self.mu_squared, at[fresh], 0.0)
        participations = np.insert(self.participations, at[fresh], 0)
        at = np.searchsorted(ids, units)
        mu_squared[at] += count * event.mu_squared * devices.astype(np.float64) ** 2
        participations[at] += count
        return replace(self, ids=ids, mu_squared=mu_squared, participations=participations)

    def of_units(self, units: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """``([n] squared shifts, [n] participations)`` of the given units, what everybody pays included."""
        mu, rounds = np.full(len(units), self.everybody), np.full(len(units), self.everybody_rounds)
        if len(self.ids):
            at = np.minimum(np.searchsorted(self.ids, units), len(self.ids) - 1)
            known = self.ids[at] == units
            mu[known] += self.mu_squared[at[known]]
            rounds[known] += self.participations[at[known]]
        return mu, rounds

    @property
    def most_charged(self) -> float:
        """The largest sum of squared shifts of any unit, amplified rounds apart."""
        return self.everybody + float(self.mu_squared.max(initial=0.0))

    @property
    def most_participations(self) -> int:
        """The largest number of charged rounds of any unit, amplified rounds apart."""
        return self.everybody_rounds + int(self.participations.max(initial=0))

    def epsilon(self, delta: float, kind: AccountantKind = AccountantKind.PLD) -> float:
        """Epsilon at `delta` of the most charged unit."""
        return _epsilon(self.coins, self.most_charged, delta, kind)

    def epsilon_with(
        self, event: PrivacyEvent, delta: float, kind: AccountantKind = AccountantKind.PLD, *, count: int = 1
    ) -> float:
        """Epsilon if `event` happened `count` times more."""
        return self.charge(event, count).epsilon(delta, kind)

    def quick_bound(self, delta: float) -> float:
        """An upper bound on epsilon in about a millisecond: RDP at whole orders."""
        return _quick_bound(self.coins, self.most_charged, delta)

    def rdp(self, orders: Iterable[float] = ORDERS) -> NDArray[np.float64]:
        """Renyi divergence of the most charged unit at each order."""
        return _rdp(self.coins, self.most_charged, tuple(orders))


def epsilon(
    events: Iterable[PrivacyEvent], delta: float, kind: AccountantKind | str = AccountantKind.PLD
) -> float:
    """Epsilon at `delta` of everything in `events`, for the most charged unit.

    Raises:
        PrivacyError: If the events mix relations or units.
        ValueError: If delta is not in (0, 1), or `kind` is unknown.
    """
    return Spending.of(events).epsilon(delta, AccountantKind(kind))


def gaussian_epsilon(mu_squared: float, delta: float) -> float:
    """Epsilon of the Gaussian mechanism with shift mu, in closed form (arXiv:1805.06530, theorem 8)."""
    from dp_accounting import get_epsilon_gaussian

    if mu_squared == 0:
        return 0.0
    return float(get_epsilon_gaussian(1 / math.sqrt(mu_squared), delta))


def rdp_epsilon(orders: Iterable[float], divergences: NDArray[np.float64], delta: float) -> float:
    """The least epsilon that Renyi divergences give (arXiv:2004.00010, proposition 12)."""
    from dp_accounting.rdp import compute_epsilon

    return float(compute_epsilon(tuple(orders), divergences, delta)[0])


def _coin(event: PrivacyEvent) -> Coin:
    """The sampled Gaussian that a round costs every unit.

    A person with k devices, each with a coin of its own, moves the sum by Binomial(k, q) devices. That is at most k with
    probability 1 - (1 - q)^k and else 0, and sampled Gaussians are monotone in their random shift (first-order
    dominance; arXiv:2310.15526, section 4): so this also covers one coin for the whole person.
    """
    devices = event.max_devices_per_unit
    q = event.sampling_fraction if devices == 1 else 1 - (1 - event.sampling_fraction) ** devices
    return q, 1 / (math.sqrt(event.mu_squared) * devices)


def _rdp(
    coins: tuple[tuple[Coin, int], ...], mu_squared: float, orders: tuple[float, ...]
) -> NDArray[np.float64]:
    total = np.asarray(orders) * mu_squared / 2
    for (q, z), count in coins:
        total = total + count * poisson_rdp(q, z, orders)
    return total


def _epsilon(
    coins: tuple[tuple[Coin, int], ...], mu_squared: float, delta: float, kind: AccountantKind
) -> float:
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}, not in (0, 1)")
    if kind is AccountantKind.PLD and not coins:
        return gaussian_epsilon(mu_squared, delta)
    if kind is AccountantKind.RDP:
        return rdp_epsilon(ORDERS, _rdp(coins, mu_squared, ORDERS), delta)
    bound = _quick_bound(coins, mu_squared, delta)
    return _pld_epsilon(
        coins, mu_squared, delta, 2.0 ** math.floor(math.log2(min(max(bound * 1e-4, 2e-5), 1e-2)))
    )


def _quick_bound(coins: tuple[tuple[Coin, int], ...], mu_squared: float, delta: float) -> float:
    total = np.asarray(WHOLE_ORDERS) * mu_squared / 2
    for (q, z), count in coins:
        total = total + count * sampled_rdp(q, z)
    return rdp_epsilon(WHOLE_ORDERS, total, delta)


@lru_cache(maxsize=256)
def poisson_rdp(q: float, z: float, orders: tuple[float, ...] = ORDERS) -> NDArray[np.float64]:
    """Renyi divergences of one Poisson-sampled Gaussian (arXiv:1908.10530), from dp-accounting."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(orders)
    with _quiet():
        accountant.compose(PoissonSampledDpEvent(q, GaussianDpEvent(z)))
    # The vector has no public name; tests hold it against Opacus and against numerical integration.
    divergences = np.array(accountant._rdp, dtype=np.float64)  # noqa: SLF001
    divergences.flags.writeable = False
    return divergences


@lru_cache(maxsize=4096)
def sampled_rdp(q: float, z: float) -> NDArray[np.float64]:
    """`poisson_rdp` at `WHOLE_ORDERS` in one expression, thirty times as fast: for thousands of devices.

    arXiv:1908.10530, section 3.3: exp((a - 1) rdp(a)) = sum over i of C(a, i) (1 - q)^(a - i) q^i exp(i (i - 1) / (2 z^2)).
    """
    orders = np.array(WHOLE_ORDERS)
    if q == 1.0:
        return orders / (2 * z * z)
    i = np.arange(orders.max() + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = _log_binomials() + i * math.log(q) + (orders[:, None] - i) * math.log1p(-q)
    terms += i * (i - 1) / (2 * z * z)
    top = terms.max(axis=1)
    return np.maximum(top + np.log(np.exp(terms - top[:, None]).sum(axis=1)), 0.0) / (orders - 1)


@lru_cache(maxsize=1)
def _log_binomials() -> NDArray[np.float64]:
    """Log C(a, i) for each whole order a and i up to the largest; -infinity beyond a."""
    orders = np.array(WHOLE_ORDERS, dtype=np.int64)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, orders.max() + 1)))])
    i = np.arange(orders.max() + 1)
    beyond = i > orders[:, None]
    rest = np.where(beyond, 0, orders[:, None] - i)
    logs = log_factorial[orders][:, None] - log_factorial[i] - log_factorial[rest]
    return np.where(beyond, -np.inf, logs)


@lru_cache(maxsize=4096)
def _pld_epsilon(
    coins: tuple[tuple[Coin, int], ...], mu_squared: float, delta: float, interval: float
) -> float:
    """Epsilon by privacy loss distributions, rounded up (pessimistic connect-the-dots, arXiv:2207.04380).

    The loss is discretised at about 1e-4 of the epsilon that RDP gives: relative error about 1e-5, upwards, at a cost that
    does not grow with epsilon.
    """
    total: Any = None
    for (q, z), count in coins:
        part = _one_round(q, z, interval).self_compose(count)
        total = part if total is None else total.compose(part)
    if mu_squared > 0:
        total = total.compose(_one_round(1.0, 1 / math.sqrt(mu_squared), interval))
    return float(total.get_epsilon_for_delta(delta))


@lru_cache(maxsize=32)
def _one_round(q: float, z: float, interval: float) -> Any:
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    return from_gaussian_mechanism(z, sampling_prob=q, value_discretization_interval=interval)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence dp-accounting where it says that a fractional order did not converge: that order is left out."""

    def converged(record: logging.LogRecord) -> bool:
        return "failed to converge" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(converged)
    try:
        yield
    finally:
        logger.removeFilter(converged)
