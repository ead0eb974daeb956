"""What a population's ledger says: what is left of its promise, and what stands beside a package."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.coordinator.sampling import Cohort
from fedretrain.privacy.accountant import Spending
from fedretrain.privacy.claims import scope_text
from fedretrain.server.persons import units_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedretrain.privacy.event import PrivacyEvent
    from fedretrain.server.fleet import Device
    from fedretrain.server.training_file import TrainingFile


@dataclass(frozen=True)
class BudgetLeft:
    """What a population may still spend.

    Attributes:
        remaining: Epsilon that is left of the promise; None without one.
        campaign: What another campaign would add for the most charged device.
    """

    remaining: float | None = None
    campaign: float = 0.0


def budget_left(
    population: str, events: Sequence[PrivacyEvent], training: TrainingFile | None, devices: Sequence[Device]
) -> BudgetLeft:
    """What may still be spent, and what a campaign would.

    Args:
        population: Whose.
        events: Of its ledger.
        training: The population's training file.
        devices: Of the population.
    """
    if training is None or training.rules.privacy is None:
        return BudgetLeft()
    privacy, rules = training.rules.privacy, training.rules
    spent = Spending.of(events)
    units = units_of(devices, privacy)
    each = np.unique(units) if units else np.arange(len(devices))  # a device of every unit
    expected = rules.make_sampler(len(devices), units).expected(len(devices))
    event = privacy.make(population, "next", expected, units).event(
        Cohort(each, str(rules.sampling.kind), int(expected), 0),
        round_=0,
        attempt=0,
        clip_norm=privacy.clip_norm,
        denominator=expected,
    )
    times = max(1, math.ceil(training.num_rounds * expected / len(each)))
    now = spent.epsilon(privacy.delta)
    more = spent.epsilon_with(event, privacy.delta, count=times) - now
    return BudgetLeft(max(privacy.epsilon - now, 0.0) if privacy.epsilon else None, more)


def spent_text(events: Sequence[PrivacyEvent], delta: float) -> tuple[float, str]:
    """Epsilon, and its scope."""
    epsilon = Spending.of(events).epsilon(delta)
    return epsilon, scope_text(epsilon, delta, events)
