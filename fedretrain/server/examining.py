"""What is asked of a candidate before any device hears of it: the offline validation, on labelled rows of the server's pool.

Rules of this file:
    * A verdict is taken once for each rollout; an undecided one is asked for again after a day.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.core.clock import DAY_S
from fedretrain.rollout.causes import Phase
from fedretrain.rollout.verdict import Verdict

if TYPE_CHECKING:
    from fedretrain.rollout.state import RolloutState
    from fedretrain.server.models import Models


class Examiner:
    """Of one rollout. Mutable: it remembers what was found.

    Args:
        models: Versions, and the pool.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self._known: tuple[int, Verdict, float] | None = None

    def validated(self, rollout: RolloutState, now: float) -> Verdict:
        """The offline verdict on a rollout's candidate.

        Args:
            rollout: Which is open.
            now: Instant, seconds since the epoch.

        Raises:
            DataError: If a package is damaged; it is not asked again before a day has passed.
        """
        candidate, known = rollout.plan.candidate, self._known
        fresh = known is not None and known[0] == candidate
        if known is not None and fresh and (known[1] is not Verdict.INCONCLUSIVE or now - known[2] < DAY_S):
            return known[1]
        if rollout.phase is not Phase.PENDING:
            return Verdict.PASS if known is None else known[1]
        self._known = candidate, Verdict.INCONCLUSIVE, now
        self._known = candidate, self._models.validate(candidate, rollout.plan.champion), now
        return self._known[1]
