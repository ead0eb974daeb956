"""Whether a federated campaign can be paid for, and what to do if not.

Rules of this file:
    * Numbers in, an answer out. What is left, and whether a chosen-afterwards campaign may follow what was released,
      is the privacy ledger's and its filter's to say; nothing here adds up epsilons.
    * Only a federated campaign costs budget. A pool that was consented to, and a device that trains for itself, do not.
    * The filter's word, where it was asked, beats the difference of two epsilons: epsilon does not add linearly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedretrain.retraining.config import BudgetRules
    from fedretrain.retraining.signals import Signals


@dataclass(frozen=True)
class BudgetView:
    """What a decision knows of the privacy budget.

    Attributes:
        remaining_epsilon: What the promise has left; None where nothing was promised.
        campaign_epsilon: What one campaign would add.
        filter_allows: The filter's own answer; None where it was not asked.
    """

    remaining_epsilon: float | None = None
    campaign_epsilon: float = 0.0
    filter_allows: bool | None = None

    @classmethod
    def of(cls, signals: Signals) -> BudgetView:
        """The budget's part of the signals."""
        return cls(signals.remaining_epsilon, signals.campaign_epsilon, signals.filter_allows)


@dataclass(frozen=True)
class Affordance:
    """Whether a campaign can be paid for.

    Attributes:
        allowed: Whether it can.
        reason: A sentence for people.
        epsilon: What it would cost.
    """

    allowed: bool
    reason: str
    epsilon: float


def afford(view: BudgetView, rules: BudgetRules, *, use_reserve: bool = False) -> Affordance:
    """Whether one federated campaign can be paid for.

    Args:
        view: What is left and what a campaign costs.
        rules: The reserve.
        use_reserve: Whether the reserve may be spent too.
    """
    cost = view.campaign_epsilon
    if view.remaining_epsilon is None:
        if view.filter_allows is False:
            return Affordance(False, "The privacy filter refuses another campaign.", cost)
        return Affordance(True, "No privacy budget was promised.", cost)
    kept = 0.0 if use_reserve else rules.reserve_epsilon
    left = f"epsilon {view.remaining_epsilon:.3g} is left" + (
        f", {kept:.3g} of it in reserve" if kept else ""
    )
    if view.filter_allows is False:
        return Affordance(False, f"The privacy filter refuses another campaign ({left}).", cost)
    # Without a reserve to keep the filter alone decides; with one the difference must leave it untouched.
    if (view.filter_allows and not kept) or cost <= view.remaining_epsilon - kept:
        return Affordance(True, f"A campaign costs epsilon {cost:.3g}; {left}.", cost)
    return Affordance(False, f"A campaign costs epsilon {cost:.3g}, but {left}.", cost)
