"""What people see: devices, versions of models, a rollout, and who ordered what."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fedretrain.core.errors import ConfigError
from fedretrain.server import fleet, orders, policies
from fedretrain.server.database import reading
from fedretrain.server.people import giver, signature_of
from fedretrain.server.signed_records import refused

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
    """Everything that people ordered and answered, oldest first: who, from which account, with which key, and what.

    What the coordinator found to be nobody's word says why under ``refused``.
    """
    found, passed = [], refused(log, population)
    for stream in (orders.stream(population), policies.stream(population), fleet.stream(population)):
        for entry in log.read(stream):
            record = entry.record
            if not giver(record):
                continue  # what the coordinator wrote itself
            body = record["body"]
            said = {key: value for key, value in body.items() if key != "by" and value}
            told = {"at": entry.at, "kind": record["kind"], "by": body["by"], "account": record["account"]}
            why = passed.get(stream, {}).get(entry.number, "")
            found.append({**told, "key": _key(record), "refused": why, "said": said})
    return sorted(found, key=lambda one: one["at"])


def _key(record: dict[str, Any]) -> str:
    """Under which a record says that it was signed; empty where it was not, or nobody can read it."""
    try:
        signature = signature_of(record)
    except ConfigError:
        return ""
    return "" if signature is None else signature.key


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
