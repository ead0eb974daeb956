"""What a population's ledger says: what is left of its promise, and what stands beside a package."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.coordinator.sampling import Cohort
from fedretrain.privacy.accountant import Spending
from fedretrain.privacy.claims import scope_text
from fedretrain.server.campaign_rules import members
from fedretrain.server.fleet import outside
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
    units, absent = units_of(devices, privacy), outside(devices)
    unit_N = np.array(units) if units else np.arange(len(devices))
    each = np.unique(unit_N[members(len(devices), absent)])  # a device of every unit that can be asked
    expected = rules.expected(len(devices), units, absent)
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
