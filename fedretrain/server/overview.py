"""`fedretrain status`: where a population stands, on one page."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fedretrain.coordinator.cycle import served
from fedretrain.core.build import plain
from fedretrain.server import alerts, fleet, listing, policies, refreshes, troubles
from fedretrain.server.database import reading

if TYPE_CHECKING:
    from fedretrain.server.desk import Desk

_ALERTS = 5


def overview(desk: Desk) -> dict[str, Any]:
    """Where a population stands.

    Args:
        desk: The population's.
    """
    known = desk.memory()
    state = known.state
    with reading(desk.log.engine) as connection:
        devices = fleet.everybody(connection, desk.population)
    heard = sum(time.time() - one.seen_at < 3 * desk.heartbeat_s for one in devices)
    found: dict[str, Any] = {"population": desk.population, "devices": len(devices), "online": heard}
    found["trouble"] = troubles.last(desk.log, desk.population)
    if state is None:
        made = max(desk.models.versions.by_number, default=0)
        waits = f"version {made} waits for the coordinator's next turn"
        return {**found, "state": waits if made else "no model yet: fedretrain models import"}
    found |= {"champion": state.champion, "serves": served(desk.policy, state)}
    if state.rollout is not None:
        found |= listing.rollout(state.rollout)
    if state.training is not None:
        record = desk.models.campaign(state.training.version)
        rounds = 0 if record is None else len(record.rounds)
        found["training"] = f"version {state.training.version}, {rounds} rounds"
    found["evaluation"] = desk.validations().describe()
    found |= {
        "safe_mode": state.safety.safe_mode,
        "stopped": sorted(str(one) for one in state.safety.stopped),
        "drifted": state.monitor.drifted,
        "quarantined": sorted(state.quarantined),
        "kept_devices": sorted(one.device for one in devices if one.number in state.kept_devices),
        "incidents": [plain(one) for one in state.incidents],
        "refresh": refreshes.last(known.refreshes),
        "alerts": alerts.newest(desk.log, desk.population, _ALERTS),
        "policy_waits": policies.waits(desk.policy_book(), desk.roles, time.time()),
    }
    return found
