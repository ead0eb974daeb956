"""From a target epsilon to a noise multiplier.

Rules of this file:
    * The answer never exceeds its target: bisection returns the side on which epsilon was computed and fits.
    * What cannot be had at any noise is refused in one line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedretrain.core.errors import PrivacyError
from fedretrain.privacy.accountant import AccountantKind, Spending
from fedretrain.privacy.event import EVERYBODY, PrivacyEvent, Sampling
from fedretrain.privacy.mechanism import Relation, Unit

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_NOISE = 2.0**20


@dataclass(frozen=True)
class Schedule:
    """A campaign declared before it starts.

    Attributes:
        num_rounds: Rounds, abandoned and repeated ones included if they are charged.
        max_participations: Rounds that one unit may take part in (enforced by the sampler); ignored where
            amplification is claimed, since there every round is charged to everybody.
        relation, unit, sampling, sampling_fraction, amplified, max_devices_per_unit, bit_noise_stddev,
            bit_quantile: As in `PrivacyEvent`.
    """

    num_rounds: int
    max_participations: int
    relation: Relation = Relation.ZERO_OUT
    unit: Unit = Unit.DEVICE
    sampling: Sampling = Sampling.FIXED_SIZE
    sampling_fraction: float = 0.0
    amplified: bool = False
    max_devices_per_unit: int = 1
    bit_noise_stddev: float = 0.0
    bit_quantile: float = 0.5

    def __post_init__(self) -> None:
        if self.num_rounds < 1 or self.max_participations < 1:
            raise PrivacyError(
                f"a schedule of {self.num_rounds} rounds, {self.max_participations} for each unit",
                where="campaign",
                fix="at least one of each",
            )

    @property
    def charges(self) -> int:
        """How many events the most charged unit pays for."""
        return self.num_rounds if self.amplified else min(self.max_participations, self.num_rounds)

    def event(self, noise_multiplier: float) -> PrivacyEvent:
        """A round of the schedule, charged to everybody."""
        return PrivacyEvent(
            population="",
            campaign="",
            round=0,
            noise_multiplier=noise_multiplier,
            clip_norm=1.0,
            relation=self.relation,
            sampling=self.sampling,
            units=EVERYBODY,
            unit=self.unit,
            sampling_fraction=self.sampling_fraction,
            amplified=self.amplified,
            max_devices_per_unit=self.max_devices_per_unit,
            bit_noise_stddev=self.bit_noise_stddev,
            bit_quantile=self.bit_quantile,
        )

    def epsilon(
        self,
        noise_multiplier: float,
        delta: float,
        kind: AccountantKind = AccountantKind.PLD,
        spent: Spending | None = None,
    ) -> float:
        """Epsilon of the whole schedule at this noise, on top of what was `spent`."""
        return (spent or Spending()).epsilon_with(
            self.event(noise_multiplier), delta, kind, count=self.charges
        )


def participations_at_most(num_rounds: int, min_separation: int) -> int:
    """How often one unit can be in `num_rounds` rounds if its participations lie `min_separation` rounds apart."""
    return math.ceil(num_rounds / max(min_separation, 1))


def solve_noise_multiplier(
    target_epsilon: float,
    delta: float,
    schedule: Schedule,
    kind: AccountantKind = AccountantKind.PLD,
    *,
    spent: Spending | None = None,
    tolerance: float = 1e-3,
) -> float:
    """The least noise multiplier (within `tolerance`, relative) with which a schedule keeps its target.

    Epsilon falls with noise, so bisection serves: first by a cheap upper bound, then below that answer by the accountant.

    Returns:
        Noise standard deviation on the sum in clip norms; its epsilon was computed and is at most the target.

    Raises:
        PrivacyError: If no noise will do, because of what was spent or of the clipping bit.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise PrivacyError(
            f"the target epsilon is {target_epsilon}",
            where="privacy.target_epsilon",
            fix="give a positive number",
        )

    def fits(z: float) -> bool:
        return schedule.epsilon(z, delta, kind, spent) <= target_epsilon

    if not fits(_MOST_NOISE):
        raise PrivacyError(
            f"epsilon {target_epsilon:g} at delta {delta:g} cannot be had over {schedule.num_rounds} rounds",
            where="privacy.target_epsilon",
            fix="the budget is spent, or the clipping bit alone exceeds it: raise bit_noise_stddev or epsilon",
        )
    start = spent or Spending()
    high = 1.0
    while _bound(start, schedule, high, delta) > target_epsilon and high < _MOST_NOISE:
        high *= 2
    high = _bisect(high, 0.05, lambda z: _bound(start, schedule, z, delta) <= target_epsilon)
    while not fits(high):  # the bound is one up to discretisation: a hair more noise, if at all
        high *= 1 + tolerance
    return _bisect(high, tolerance, fits)


def _bound(start: Spending, schedule: Schedule, z: float, delta: float) -> float:
    return start.charge(schedule.event(z), schedule.charges).quick_bound(delta)


def _bisect(high: float, tolerance: float, fits: Callable[[float], bool]) -> float:
    """The least value that fits, from above: `high` is known to."""
    low = high / 2
    while fits(low) and low > 2.0**-10:
        low, high = low / 2, low
    while high > low * (1 + tolerance):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
