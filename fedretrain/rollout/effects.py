"""What follows from an event for the world, and what of it is still to be done.

Rules of this file:
    * Effects follow from the event alone, so a crash between writing and acting loses none: the log says what is due.
    * Each has a key of rollout, step, attempt and the event's place; a shell that remembers keys acts once.
    * Only the newest order of a rollout is due: an older one that was never carried out must not overtake it.
    * Only a fault of the model quarantines the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from fedretrain.core.build import plain
from fedretrain.rollout.causes import MODEL_AT_FAULT, Cause, EventKind, incident_kind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from fedretrain.rollout.events import RolloutEvent

QUIET = frozenset({Cause.SUPERSEDED, Cause.APPROVAL_REFUSED, Cause.APPROVAL_EXPIRED})
"""Causes that are nobody's trouble: no incident."""

_GOES_BACK = frozenset({EventKind.DE_ESCALATION_STARTED, EventKind.FROZEN, EventKind.ROLLBACK_STARTED})


class EffectKind(StrEnum):
    """What a shell has to do."""

    ASSIGN = "assign"  # give the order to the devices
    TAG = "tag"  # set or clear a tag or alias in the registry
    QUARANTINE = "quarantine"  # no device may install the version
    OPEN_INCIDENT = "open_incident"
    CLOSE_INCIDENT = "close_incident"
    ASK = "ask"  # put a question to people
    NOTIFY = "notify"
    SAFE_MODE = "safe_mode"  # the fleet has no model to fall back to: serve the rules


@dataclass(frozen=True)
class Effect:
    """One thing to do.

    Attributes:
        kind: What.
        key: ``rollout/step/attempt/sequence/kind``; the same for the same event, whenever it is asked.
        payload: With what; plain JSON.
    """

    kind: EffectKind
    key: str
    payload: dict[str, Any] = field(default_factory=dict)


def effects(event: RolloutEvent) -> tuple[Effect, ...]:
    """What follows from `event`, in the order in which it is to be done."""
    wanted = (*_orders(event), *_registry(event), *_incidents(event), *_people(event))
    head = f"{event.rollout}/{event.step}/{event.attempt}/{event.sequence}"
    return tuple(Effect(kind, f"{head}/{kind}", payload) for kind, payload in wanted)


def due(events: Iterable[RolloutEvent], done: Collection[str]) -> tuple[Effect, ...]:
    """Effects of a log that have not been carried out.

    Args:
        events: The log of one rollout, oldest first.
        done: Keys that the shell remembers as carried out.
    """
    wanted = [effect for event in events for effect in effects(event)]
    orders = [effect for effect in wanted if effect.kind is EffectKind.ASSIGN]
    stale = {effect.key for effect in orders[:-1]}
    return tuple(effect for effect in wanted if effect.key not in stale and effect.key not in done)


def incident_id(rollout: str, cause: Cause) -> str:
    """One incident per rollout and cause, however many events it takes to go back."""
    return f"{rollout}/{cause}"


_Wanted = list[tuple[EffectKind, dict[str, Any]]]


def _orders(event: RolloutEvent) -> _Wanted:
    """The order, and safe mode where it falls back to the rules because the champion is gone."""
    if event.order is None:
        return []
    wanted: _Wanted = [(EffectKind.ASSIGN, plain(event.order))]
    if event.cause is Cause.CHAMPION_WITHDRAWN and event.order.fallback == 0:
        wanted.append((EffectKind.SAFE_MODE, {"reason": event.reason}))
    return wanted


def _registry(event: RolloutEvent) -> _Wanted:
    """Aliases and tags that people see, and the quarantine of a version at fault."""
    if event.kind is EventKind.CREATED and event.plan is not None:
        return [(EffectKind.TAG, {"version": event.plan.candidate, "alias": "candidate"})]
    if event.order is None:
        return []
    version = event.order.candidate
    if event.kind is EventKind.PROMOTED:
        return [(EffectKind.TAG, {"version": version, "alias": "champion"})]
    if event.kind is EventKind.FROZEN:
        return [(EffectKind.TAG, {"version": version, "tag": "frozen", "cause": str(event.cause)})]
    if event.kind in (EventKind.DE_ESCALATION_STARTED, EventKind.ROLLBACK_STARTED):
        served = {"version": version, "fallback": event.order.fallback}
        wanted: _Wanted = [(EffectKind.TAG, {**served, "tag": "rolled_back", "cause": str(event.cause)})]
        if event.cause in MODEL_AT_FAULT:
            wanted.append((EffectKind.QUARANTINE, {"version": version, "reason": event.reason}))
        return wanted
    return []


def _incidents(event: RolloutEvent) -> _Wanted:
    """An incident for each trouble; the one of a metric source closes when the source is back."""
    overdue = event.kind is EventKind.SOURCE_OVERDUE
    if event.cause is not None and (overdue or (event.kind in _GOES_BACK and event.cause not in QUIET)):
        what = {"incident": incident_id(event.rollout, event.cause), "kind": incident_kind(event.cause).value}
        return [(EffectKind.OPEN_INCIDENT, {**what, "cause": event.cause.value, "reason": event.reason})]
    if event.kind is EventKind.SOURCE_MENDED:
        return [(EffectKind.CLOSE_INCIDENT, {"incident": incident_id(event.rollout, Cause.METRIC_SOURCE)})]
    return []


def _people(event: RolloutEvent) -> _Wanted:
    """Whom it concerns."""
    if event.kind in (EventKind.APPROVAL_ASKED, EventKind.ASKED):
        return [(EffectKind.ASK, {"question": event.reason})]
    told = _GOES_BACK | {
        EventKind.PROMOTED,
        EventKind.ROLLED_BACK,
        EventKind.RETARGETED,
        EventKind.SOURCE_BROKE,
        EventKind.SOURCE_OVERDUE,
        EventKind.HELD,
    }
    said = {"what": event.kind.value, "reason": event.reason}
    return [(EffectKind.NOTIFY, said)] if event.kind in told else []
