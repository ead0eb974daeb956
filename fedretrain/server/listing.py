"""What people see: devices, versions of models, a rollout, and who ordered what."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fedretrain.server import fleet, orders, policies
from fedretrain.server.database import reading

if TYPE_CHECKING:
    from fedretrain.coordinator.cycle import CycleState
    from fedretrain.rollout.state import RolloutState
    from fedretrain.server.event_log import EventLog
    from fedretrain.server.models import Models
    from fedretrain.server.validations import Validations


def devices(log: EventLog, models: Models) -> list[dict[str, Any]]:
    """Every device of a population, and the version that it says it serves."""
    with reading(log.engine) as connection:
        found = fleet.everybody(connection, models.population)
    numbers = {digest: version for version, digest in models.versions.digests.items()}
    return [
        {
            "device": one.device,
            "number": one.number,
            "standing": str(one.standing),
            "site": one.traits.site,
            "device_type": one.traits.device_type,
            "serves": numbers.get(one.heartbeat.get("serves", ""), 0) or None,
            "seen": "never" if not one.seen_at else f"{max(0.0, time.time() - one.seen_at):.0f} s ago",
        }
        for one in found
    ]


def versions(models: Models, state: CycleState | None, known: Validations) -> list[dict[str, Any]]:
    """Every version, what it is now, and what was said of it.

    Args:
        models: Of the population.
        state: Of its loop; None where it has not begun.
        known: Its offline validations.
    """
    return [
        {
            "version": number,
            "package": one.package,
            "role": _role(number, state),
            "origin": one.origin,
            "validation": known.judged[number].verdict if number in known.judged else "",
            "simulation": models.simulations.of(number).said,
        }
        for number, one in sorted(models.versions.by_number.items())
    ]


def _role(number: int, state: CycleState | None) -> str:
    if state is None:
        return ""
    if number in state.quarantined:
        return "quarantined"
    if number == state.champion:
        return "champion"
    rollout = state.rollout
    on_its_way = rollout is not None and rollout.is_open and rollout.plan.candidate == number
    return "candidate" if on_its_way else ""


def ordered(log: EventLog, population: str) -> list[dict[str, Any]]:
    """Everything that people ordered and answered, oldest first: who, from which account, and what."""
    found = []
    for stream in (orders.stream(population), policies.stream(population), fleet.stream(population)):
        for entry in log.read(stream):
            record = entry.record
            body = record.get("body", record)
            if not isinstance(body.get("by"), str):
                continue  # what the coordinator wrote itself
            said = {key: value for key, value in body.items() if key not in ("by", "account") and value}
            told = {"at": entry.at, "kind": record.get("kind", "device"), "by": body["by"]}
            found.append({**told, "account": record.get("account", ""), "said": said})
    return sorted(found, key=lambda one: one["at"])


def rollout(known: RolloutState) -> dict[str, Any]:
    """Where a rollout stands, in words."""
    return {
        "candidate": known.plan.candidate,
        "phase": str(known.phase),
        "step": known.step,
        "asks": known.phase.name == "APPROVAL",
        "people": known.plan.people,
        "four_eyes": known.plan.four_eyes,
        "agreed": [consent.by for consent in known.consents_at(time.time())],
    }
