"""Incidents of a population: what went wrong with a version, on what evidence, and whether it may try again.

Rules of this file:
    * A bundle is made from the event log and the version's package alone; it can be made again at any time and says the same.
    * Trying again and giving up are orders like any other: a name and a reason, and every gate from the first on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.coordinator import cycle
from fedretrain.coordinator.cycle import Discard, Resubmit
from fedretrain.coordinator.cycle_events import KINDS
from fedretrain.core.build import plain
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.core.frozen import thaw
from fedretrain.rollout.effects import EffectKind, effects
from fedretrain.rollout.events import RolloutEvent, jsonable
from fedretrain.rollout.exposure import exposed
from fedretrain.server import fleet, memory
from fedretrain.server.ranked import Ranked

if TYPE_CHECKING:
    from fedretrain.coordinator.cycle import CycleEvent
    from fedretrain.server.desk import Desk


def list_incidents(desk: Desk) -> list[dict[str, Any]]:
    """Every incident of every rollout, oldest first, and whether it is over."""
    log = _log(desk)
    return [_headline(cycle.incident_of(log, one)) for one in _known(log)]


def show_incident(desk: Desk, which: str) -> dict[str, Any]:
    """The bundle of an incident.

    Args:
        desk: The population's.
        which: Its id, or the number of its version: then the last one of that version.

    Raises:
        DataError: If there is no such incident.
    """
    log = _log(desk)
    name = which if which in _known(log) else _of_version(log, which)
    rollout = name.rpartition("/")[0]
    incident = cycle.incident_of(log, name, _exposed(desk, log, rollout))
    state, version = desk.memory().begun, incident.candidate
    names = {one.number: one.device for one in _devices(desk)}
    made = desk.models.versions.by_number.get(version)
    return {
        **jsonable(incident.to_record()),
        "text": incident.text,
        "devices": [names.get(number, str(number)) for number in incident.devices],
        "package": "" if made is None else made.package,
        "origin": "" if made is None else made.origin,
        "training": {} if made is None else jsonable(plain(desk.models.package(version).manifest.training)),
        "quarantined": version in state.quarantined,
        "discarded": version in state.discarded,
    }


def resubmit(desk: Desk, which: str, by: str, reason: str) -> int:
    """Order that a failed version tries again; its number.

    Raises:
        ConfigError: If this person may not order it, or gives no reason.
        DataError: If no version failed under this name.
    """
    version = _failed(desk, which)
    desk.give(Resubmit(version, by, _said(reason)))
    return version


def discard(desk: Desk, which: str, by: str, reason: str) -> int:
    """Order that a failed version is given up for good; its number. Raises as `resubmit`."""
    version = _failed(desk, which)
    desk.give(Discard(version, by, _said(reason)))
    return version


def _said(reason: str) -> str:
    if not reason.strip():
        raise ConfigError("it needs a reason", where="--reason", fix="say why: it goes into the audit log")
    return reason


def _failed(desk: Desk, which: str) -> int:
    """The version of an incident, or one in quarantine by its number."""
    state = desk.memory().state
    if state is not None and which.isdecimal() and int(which) in state.quarantined:
        return int(which)  # withdrawn by a person: there is no incident of a rollout
    log = _log(desk)
    name = which if which in _known(log) else _of_version(log, which)
    return cycle.incident_of(log, name).candidate


def _log(desk: Desk) -> list[CycleEvent]:
    entries = desk.log.read(memory.stream(desk.population))
    return [cycle.from_record(one.record) for one in entries if one.record.get("kind") in KINDS]


def _known(log: list[CycleEvent]) -> list[str]:
    """Ids of the incidents, in the order in which they were opened, each once."""
    events = (one.body for one in log if isinstance(one.body, RolloutEvent))
    opened = (one for event in events for one in effects(event) if one.kind is EffectKind.OPEN_INCIDENT)
    return list(dict.fromkeys(str(one.payload["incident"]) for one in opened))


def _of_version(log: list[CycleEvent], which: str) -> str:
    """The last incident of a version that is named by its number."""
    known = _known(log)
    candidates = {name: str(cycle.incident_of(log, name).candidate) for name in known}
    found = [name for name in known if candidates[name] == which]
    if not found:
        raise DataError(
            f"there is no incident {which!r}, and none of a version {which}",
            where="incident",
            fix="see `fedretrain incident show`",
        )
    return found[-1]


def _exposed(desk: Desk, log: list[CycleEvent], rollout: str) -> list[int]:
    """Numbers of the devices that were ever to run the candidate of a rollout."""
    bodies = [one.body for one in log if isinstance(one.body, RolloutEvent)]
    begun = [one.rollout for one in bodies if one.plan is not None]
    orders = [one.order for one in bodies if one.rollout == rollout and one.order is not None]
    peak = max((order.fraction for order in orders), default=0.0)
    notes = [
        one.record["blob"]
        for one in desk.log.read(memory.stream(desk.population))
        if one.record.get("kind") == memory.RANKS
    ]
    rank_D = thaw(Ranked, desk.models.stores.campaigns.get(notes[begun.index(rollout)])).rank_D
    return np.flatnonzero(exposed(rank_D, peak)).tolist() if peak else []


def _devices(desk: Desk) -> list[fleet.Device]:
    with desk.log.engine.connect() as connection:
        return fleet.everybody(connection, desk.population)


def _headline(incident: Any) -> dict[str, Any]:
    return {
        "incident": incident.incident,
        "kind": str(incident.kind),
        "version": incident.candidate,
        "opened_at": incident.opened_at,
        "closed_at": incident.closed_at,
        "reason": incident.reason,
    }
