"""Budget: the promise (epsilon, delta), and whether one more event keeps it.

Rules of this file:
    * Asked *before* a round: a round that would break the promise is refused, never charged and then regretted.
    * delta is below 1 / (number of units): at 1/N a mechanism that publishes one unit's data outright would pass.
    * A budget holds hyperparameters only; what was spent comes in as `Spending`, a fold over the ledger's events.
    * `Budget` serves a schedule whose noise multipliers and sampling were declared beforehand: that is what
      composition theorems assume. What a *later campaign* does depends on earlier outputs, so across campaigns
      `RenyiFilter` decides, at orders fixed when the population is created (arXiv:2008.11193).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedretrain.core.errors import PrivacyError
from fedretrain.privacy.accountant import ORDERS, AccountantKind, Spending
from fedretrain.privacy.event import EVERYBODY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.privacy.event import PrivacyEvent


@dataclass(frozen=True)
class Decision:
    """Whether an event may be charged.

    Attributes:
        allowed: Whether the promise still holds with it.
        epsilon_after: Epsilon of the most charged unit once charged.
        reason: One line for a person.
    """

    allowed: bool
    epsilon_after: float
    reason: str


class Promise(Protocol):
    """What `Budget` and `RenyiFilter` have in common."""

    @property
    def epsilon(self) -> float:
        """The promised epsilon."""
        ...

    @property
    def delta(self) -> float:
        """The promised delta."""
        ...

    def may_charge(self, spent: Spending, event: PrivacyEvent) -> Decision:
        """Whether `event` may follow what was `spent`."""
        ...


def check_promise(epsilon: float, delta: float, num_units: int) -> None:
    """Refuse promises that promise nothing.

    Raises:
        PrivacyError: If epsilon is not positive and finite, or delta is not in (0, 1 / num_units).
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise PrivacyError(
            f"epsilon is {epsilon}", where="privacy.epsilon", fix="give a positive, finite number"
        )
    if num_units < 1:
        raise PrivacyError(
            f"a population of {num_units} units", where="privacy", fix="say how many units there are"
        )
    if not 0 < delta < 1 / num_units:
        raise PrivacyError(
            f"delta is {delta:g}, not in (0, 1/{num_units})",
            where="privacy.delta",
            fix=f"take {1 / (10 * num_units):.1g} or less: at 1/N, publishing one unit's data would pass",
        )


@dataclass(frozen=True)
class Budget:
    """A promise kept by composing a schedule declared beforehand.

    Attributes:
        epsilon: The limit.
        delta: Its delta.
        num_units: How many units (persons, devices) the population has, N.
        accountant: `pld` (tight) or `rdp` (looser, cheap at any size).
    """

    epsilon: float
    delta: float
    num_units: int
    accountant: AccountantKind = AccountantKind.PLD

    def __post_init__(self) -> None:
        check_promise(self.epsilon, self.delta, self.num_units)

    def may_charge(self, spent: Spending, event: PrivacyEvent) -> Decision:
        """Whether `event` may follow what was `spent`."""
        after = spent.epsilon_with(event, self.delta, self.accountant)
        return _decide(after <= self.epsilon, after, self.epsilon, self.delta)

    def remaining(self, spent: Spending, event: PrivacyEvent) -> int:
        """How many more times this very event, with the very same units, may be charged.

        For Poisson rounds and full participation these are rounds; with rotating cohorts it is what its units
        have left, hence a lower bound on rounds.
        """

        def fits(count: int) -> bool:
            return spent.epsilon_with(event, self.delta, self.accountant, count=count) <= self.epsilon

        if not fits(1):
            return 0
        low, high = 1, 2
        while fits(high) and high < 2**30:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def affordable(self, spent: Spending, event: PrivacyEvent, units: NDArray[np.int64]) -> NDArray[np.bool_]:
        """``[n]`` bool: which units could take part, with one device, in a round like `event` and stay within.

        Participations are public and independent of the data, so a sampler may leave out the others.
        """
        if event.amplified:
            return np.full(len(units), self.may_charge(spent, event).allowed)
        alone = replace(event, units=EVERYBODY, max_devices_per_unit=1)
        charged = spent.of_units(units)[0]
        levels = np.unique(charged)

        def fits(level: float) -> bool:
            unit = Spending(everybody=float(level), coins=spent.coins)
            return unit.charge(alone).epsilon(self.delta, self.accountant) <= self.epsilon

        num_fitting = bisect_left(levels, True, key=lambda level: not fits(level))
        return charged <= levels[num_fitting - 1] if num_fitting else np.zeros(len(units), np.bool_)


@dataclass(frozen=True)
class RenyiFilter:
    """A promise kept when what comes next was chosen after seeing what came before.

    For each order alpha of a set fixed at the start, the divergence of every unit is limited to the rho(alpha) with
    ``c(alpha) exp((alpha - 1) (rho - epsilon)) = delta / len(orders)``, where c(alpha) = (1 - 1/alpha)^(alpha - 1) /
    alpha; an event may be charged if at one order at least the sum stays within. With one order this is the Renyi
    filter of Feldman and Zrnic (arXiv:2008.11193, theorem 4.5) and the conversion of arXiv:2004.00010, proposition
    12. With several: let A be the event that the sum is within at order a when the process ends. The process
    stopped where order a would be exceeded agrees with it on A, and (1 - e^-x)+ <= c(a) e^((a-1) x), so
    ``E[(1 - e^(epsilon - L))+ 1_A] <= delta / len(orders)`` for the privacy loss L; summing over the orders gives
    delta. (Which order ends up within may depend on the data; that is why delta is split.)

    Attributes:
        epsilon: The limit over the population's life.
        delta: Its delta.
        num_units: N.
        orders: Few, fixed when the population is created: `best_orders`.
    """

    epsilon: float
    delta: float
    num_units: int
    orders: tuple[float, ...]

    def __post_init__(self) -> None:
        check_promise(self.epsilon, self.delta, self.num_units)
        if not self.orders or min(self.orders) <= 1:
            raise PrivacyError(
                "a Renyi filter needs orders above 1", where="privacy.orders", fix="take (8.0,)"
            )
        if max(self.limits) <= 0:
            raise PrivacyError(
                f"orders {self.orders} leave nothing of epsilon {self.epsilon:g}",
                where="privacy.orders",
                fix="take higher orders: see best_orders",
            )

    @cached_property
    def limits(self) -> tuple[float, ...]:
        """rho(alpha) of each order."""
        return tuple(_rho_limit(order, self.epsilon, self.delta / len(self.orders)) for order in self.orders)

    def may_charge(self, spent: Spending, event: PrivacyEvent) -> Decision:
        """Whether `event`, chosen in view of all releases so far, may follow what was `spent`."""
        divergences = spent.charge(event).rdp(self.orders)
        allowed = bool(np.any(divergences <= np.asarray(self.limits)))
        share = self.delta / len(self.orders)
        offset = [self.epsilon - _rho_limit(order, self.epsilon, share) for order in self.orders]
        return _decide(allowed, float(np.min(divergences + offset)), self.epsilon, self.delta)


def best_orders(epsilon: float, delta: float, event: PrivacyEvent) -> tuple[float, ...]:
    """The one order at which the most events like `event` fit into (epsilon, delta)."""
    rdp = Spending().charge(event).rdp(ORDERS)
    limits = np.array([_rho_limit(order, epsilon, delta) for order in ORDERS])
    return (ORDERS[int(np.argmax(limits / rdp))],)


def _rho_limit(order: float, epsilon: float, delta: float) -> float:
    return epsilon - math.log1p(-1 / order) + math.log(delta * order) / (order - 1)


def _decide(allowed: bool, after: float, limit: float, delta: float) -> Decision:
    if allowed:
        return Decision(True, after, f"epsilon {after:.3g} of {limit:g} at delta {delta:g}")
    return Decision(
        False,
        after,
        f"one more round would take epsilon to {after:.3g}, above the budget of {limit:g} at delta {delta:g}",
    )
