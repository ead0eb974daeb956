"""How to retrain: the first rule that fits, where it runs, and what that costs.

Rules of this file:
    * Rules are data (`config.StrategyRule`); code knows none by name.
    * `full` and `incremental` run on the server-held pool where there is one, otherwise in a federated campaign: from
      scratch for `full`, from the champion for `incremental`.
    * A plan that the privacy budget does not reach for becomes a refresh on the devices, or says what it lacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedretrain.retraining.budget import BudgetView, afford
from fedretrain.retraining.config import Mode, Strategy, StrategyRule, WhenShort, Where
from fedretrain.retraining.signals import all_hold

if TYPE_CHECKING:
    from fedretrain.retraining.config import Cause, RetrainingPolicy
    from fedretrain.retraining.signals import Signals


@dataclass(frozen=True)
class Plan:
    """A retrain as it would be done.

    Attributes:
        strategy: How.
        where: Where it runs.
        rule: The rule that chose it.
        then_federated: Whether a federated campaign starts from what the pool made.
        epsilon: What it costs of the privacy budget.
        short: What the budget lacks for it; empty where it suffices.
        reason: A sentence for people.
    """

    strategy: Strategy
    where: Where
    rule: StrategyRule
    then_federated: bool
    epsilon: float
    short: str
    reason: str


def choose(policy: RetrainingPolicy, signals: Signals, cause: Cause) -> StrategyRule:
    """The first rule that fits the cause and the signals."""
    if policy.mode is Mode.PERSONAL_ONLY:
        return StrategyRule("personal_only", Strategy.PERSONAL_ONLY)
    for rule in policy.rules:
        if (not rule.causes or cause in rule.causes) and all_hold(rule.when, signals):
            return rule
    return StrategyRule("default", policy.default_strategy)


def place(strategy: Strategy, policy: RetrainingPolicy, signals: Signals) -> Where:
    """Where a strategy runs."""
    if strategy in {Strategy.PERSONAL_ONLY, Strategy.ONLINE}:
        return Where.DEVICE
    has_pool = signals.num_pool_rows >= policy.min_pool_rows
    return Where.POOL if has_pool and strategy is not Strategy.FEDERATED else Where.FEDERATED


def plan(policy: RetrainingPolicy, signals: Signals, cause: Cause) -> Plan:
    """The retrain for a cause: rule, place and cost."""
    rule = choose(policy, signals, cause)
    where = place(rule.strategy, policy, signals)
    paid = afford(BudgetView.of(signals), policy.budget, use_reserve=rule.use_reserve)
    because = _because(rule)
    if where is Where.POOL:
        seeds = rule.then_federated and paid.allowed
        said = f" No campaign follows: {paid.reason}" if rule.then_federated and not seeds else ""
        return Plan(rule.strategy, where, rule, seeds, paid.epsilon if seeds else 0.0, "", because + said)
    if where is Where.DEVICE:
        return Plan(rule.strategy, where, rule, False, 0.0, "", because)
    if paid.allowed:
        return Plan(rule.strategy, where, rule, False, paid.epsilon, "", because)
    when_short = rule.when_short or policy.budget.when_short
    if when_short is WhenShort.PERSONAL_ONLY and signals.can_personalize:
        said = f"{because} {paid.reason} Devices refresh their personal state instead."
        return Plan(Strategy.PERSONAL_ONLY, Where.DEVICE, rule, False, 0.0, "", said)
    return Plan(rule.strategy, where, rule, False, 0.0, paid.reason, because)


def _because(rule: StrategyRule) -> str:
    conditions = " and ".join(str(condition) for condition in rule.when)
    return f"Rule {rule.name}{f' ({conditions})' if conditions else ''}: {rule.strategy.value}."
