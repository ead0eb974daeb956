"""`fedretrain rollout start`: a version that is registered and valid begins its rollout by a person's word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.coordinator.cycle import Propose
from fedretrain.core.errors import DataError
from fedretrain.rollout.stops import RULES_BASELINE
from fedretrain.rollout.verdict import Verdict
from fedretrain.server.examining import pool_verdict

if TYPE_CHECKING:
    from fedretrain.server.desk import Desk


def start(desk: Desk, version: int, by: str, reason: str) -> None:
    """Order the rollout of a version that is registered and valid.

    Args:
        desk: The population's.
        version: Which.
        by: Who orders it.
        reason: Why.

    Raises:
        ConfigError: If this person may not.
        DataError: If there is no such version, it is what serves, it failed, or the pool does not pass it.
    """
    desk.check(Propose(version, by, reason))
    desk.models.versions.package_of(version)
    state = desk.memory().state
    if state is None:
        raise DataError("there is no champion yet", where=desk.population, fix="fedretrain models import")
    if version in (state.champion, RULES_BASELINE):
        raise DataError(f"version {version} is what serves", where=desk.population, fix="name another")
    if version in state.quarantined:
        raise DataError(
            f"version {version} is in quarantine",
            where=desk.population,
            fix="fedretrain incident resubmit",
        )
    verdict = pool_verdict(desk.models, version, state.champion)
    if verdict not in (None, Verdict.PASS):
        raise DataError(
            f"the offline validation of version {version} says {verdict}",
            where=desk.population,
            fix="retrain, or mend the pool that it is judged on",
        )
    desk.give(Propose(version, by, reason))
