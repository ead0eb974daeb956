"""What people see: devices, versions of models, a rollout, and who ordered what."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fedretrain.core.errors import ConfigError
from fedretrain.rollout.quarantine import Subject
from fedretrain.server import fleet, keeping_out, orders, policies
from fedretrain.server.database import reading
from fedretrain.server.people import giver, signature_of
from fedretrain.server.signed_records import refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedretrain.coordinator.cycle import CycleState
    from fedretrain.rollout.state import RolloutState
    from fedretrain.server.event_log import EventLog
    from fedretrain.server.models import Models
    from fedretrain.server.validations import Validations


def devices(log: EventLog, models: Models, state: CycleState | None) -> list[dict[str, Any]]:
    """Every device of a population, the version that it says it serves, and why it is kept out where it is.

    Args:
        log: The event log.
        models: Of the population.
        state: Of its loop; None where it has not begun.
    """
    with reading(log.engine) as connection:
        found = fleet.everybody(connection, models.population)
    numbers = {digest: version for version, digest in models.versions.digests.items()}
    return [
        {
            "device": one.device,
            "number": one.number,
            "standing": str(one.standing),
            "quarantine": keeping_out.why(state, one.number),
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
    with reading(log.engine) as connection:
        names = {one.number: one.device for one in fleet.everybody(connection, population)}
    found, passed = [], refused(log, population)
    for stream in (orders.stream(population), policies.stream(population), fleet.stream(population)):
        for entry in log.read(stream):
            record = entry.record
            if not giver(record):
                continue  # what the coordinator wrote itself
            body = record["body"]
            told = _named(record["kind"], body, names)
            said = {key: value for key, value in told.items() if key != "by" and value}
            about = {"at": entry.at, "kind": record["kind"], "by": body["by"], "account": record["account"]}
            why = passed.get(stream, {}).get(entry.number, "")
            found.append({**about, "key": _key(record), "refused": why, "said": said})
    return sorted(found, key=lambda one: one["at"])


def _key(record: dict[str, Any]) -> str:
    """Under which a record says that it was signed; empty where it was not, or nobody can read it."""
    try:
        signature = signature_of(record)
    except ConfigError:
        return ""
    return "" if signature is None else signature.key


def _named(kind: str, body: Mapping[str, Any], names: Mapping[int, str]) -> Mapping[str, Any]:
    """What an order says, with the name of the device in place of its number."""
    key = {"quarantine": "device", "release": "ident"}.get(kind, "")
    is_version = kind == "release" and body.get("subject") != Subject.DEVICE
    if not key or is_version or not isinstance(body.get(key), int):
        return body
    return {"device": names.get(body[key], body[key]), "reason": body.get("reason", "")}


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
