"""Example-level DP on a device: what is refused, and what an update costs before it may leave.

Rules of this file:
    * The server is the adversary: what it says of itself is not trusted, and every refusal of DESIGN section 6 holds here too.
    * Without torch: the process that trains uses it, and so do tests of what the device refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import PrivacyError, UnsupportedModelError
from fedretrain.core.types import MethodKind
from fedretrain.edge.example_ledger import ExampleLedger
from fedretrain.privacy.example import ExampleBudget, ExampleCharge
from fedretrain.training.example_cost import accounting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedretrain.training.config import LocalTraining
    from fedretrain.training.phase import Phase

_WHERE = "training.example_dp"


@dataclass(frozen=True)
class Account:
    """Where a logical device keeps what its examples have cost.

    Attributes:
        ledger: Path of the database.
        epsilon: See `ExampleBudget`.
        delta: Likewise.
        has_local: Whether its inputs are scaled by numbers of its own data.
    """

    ledger: str
    epsilon: float = 0.0
    delta: float = 1e-6
    has_local: bool = False


def is_fitted_jointly(local: LocalTraining, kind: MethodKind) -> bool:
    """Whether personal layers feed noised shared gradients, so that only what was noised too may go into training."""
    return local.example_dp is not None and kind is MethodKind.FEDPER


class Guard:
    """Stands between one training and its answer.

    Args:
        local: With example-level DP.
        phases: Of its method.
        account: The device's; None where the agent keeps none.
        num_examples: That it holds.
        campaign: Which training.
        round_: Its round.
        at: Seconds since the epoch.
        with_statistics: Whether the answer would carry numbers of its own.

    Raises:
        PrivacyError: If the claim would be false, or the budget is spent; nothing was trained.
    """

    def __init__(
        self,
        local: LocalTraining,
        phases: Sequence[Phase],
        account: Account | None,
        *,
        num_examples: int,
        campaign: str,
        round_: int,
        at: float,
        with_statistics: bool,
    ) -> None:
        dp = local.example_dp
        assert dp is not None
        account = _checked(account, with_statistics=with_statistics)
        (cost,) = accounting(local, phases, np.array([num_examples], dtype=np.int64))
        self._charge = ExampleCharge(
            campaign=campaign,
            round=round_,
            num_examples=num_examples,
            num_steps=cost.steps,
            sample_rate=cost.sample_rate,
            noise_multiplier=cost.noise_multiplier,
            clip_norm=dp.clip_norm,
            at=at,
        )
        self._ledger, self._budget = (
            ExampleLedger(account.ledger),
            ExampleBudget(account.epsilon, account.delta),
        )
        self._ledger.check(self._charge, self._budget)

    def charge(self) -> float:
        """Charge the update durably; epsilon after it. Nothing may be sent before this returns."""
        return self._ledger.charge(self._charge, self._budget)


def _checked(account: Account | None, *, with_statistics: bool) -> Account:
    try:
        import dp_accounting  # noqa: F401
    except ImportError:
        raise UnsupportedModelError(
            "this device has nothing to account for example-level DP with",
            where=_WHERE,
            fix="install fedretrain[dp] on it",
        ) from None
    if account is None:
        raise PrivacyError(
            "this agent keeps no ledger of what its examples cost", where=_WHERE, fix="start the agent anew"
        )
    if account.has_local:
        raise PrivacyError(
            "this device's own scaler carries every example into the inputs of all others",
            where=_WHERE,
            fix="release a model whose pipeline has no local numbers",
        )
    if with_statistics:
        raise PrivacyError(
            "the campaign asks for numbers of examples and losses, which would be sent without noise",
            where=_WHERE,
            fix="let the campaign use the aggregator mean",
        )
    return account
