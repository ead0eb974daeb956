"""Safe mode and the kill switch: a fold over events, for the fleet and for a single device that is offline.

Rules of this file:
    * A named safety limit enters safe mode by itself; leaving needs a person, and a limit that is no longer broken.
    * The kill switch has three parts that know nothing of each other: training, rollouts, installs.
    * Going back is never stopped: a device may always return to a version that it verified before.
    * A reading that is missing, not finite or of too few devices trips nothing, and clears nothing either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from fedretrain.core.build import build, plain
from fedretrain.core.checks import as_tuples, require
from fedretrain.core.errors import FedretrainError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class Switch(StrEnum):
    """A part of the kill switch."""

    TRAINING = "training"
    ROLLOUTS = "rollouts"
    INSTALLS = "installs"


@dataclass(frozen=True)
class SafetyLimit:
    """A figure that may not be crossed.

    Attributes:
        name: What people call it.
        metric: What is read.
        below: Safe mode below this; None is no such limit.
        above: Safe mode above this; None is no such limit.
        min_devices: A reading of fewer devices says nothing.
    """

    name: str
    metric: str
    below: float | None = None
    above: float | None = None
    min_devices: int = 1

    def __post_init__(self) -> None:
        require(bool(self.name and self.metric), "a limit without a name or metric", key="safety.limits")
        one_side = self.below is not None or self.above is not None
        require(one_side, f"{self.name} limits nothing", key="safety.limits", fix="give below, above or both")
        require(self.min_devices >= 1, f"{self.min_devices} devices", key="safety.limits.min_devices")

    def judge(self, value: float) -> bool:
        """Whether `value` lies beyond the limit."""
        low = self.below is not None and value < self.below
        return low or (self.above is not None and value > self.above)


@dataclass(frozen=True)
class SafetyRules:
    """All safety limits."""

    limits: tuple[SafetyLimit, ...] = ()

    def __post_init__(self) -> None:
        as_tuples(self, ["limits"])
        names = [limit.name for limit in self.limits]
        require(len(set(names)) == len(names), "two limits of one name", key="safety.limits")


@dataclass(frozen=True)
class Reading:
    """A metric as it stands: its value over `num_devices` devices."""

    metric: str
    value: float
    num_devices: int = 1


class SafetyCommand(StrEnum):
    """What a person may order."""

    ENTER = "enter"
    LEAVE = "leave"
    STOP = "stop"
    START = "start"


@dataclass(frozen=True)
class SafetyOrder:
    """A person's order; one without a name counts for nothing. `switch` is for STOP and START."""

    command: SafetyCommand
    by: str
    switch: Switch | None = None
    reason: str = ""


class SafetyEventKind(StrEnum):
    """What happened."""

    ENTERED = "entered"
    LEFT = "left"
    STOPPED = "stopped"
    STARTED = "started"


@dataclass(frozen=True)
class SafetyEvent:
    """One fact."""

    kind: SafetyEventKind
    at: float
    reason: str = ""
    limits: tuple[str, ...] = ()
    switch: Switch | None = None
    by: str = ""

    def to_record(self) -> dict[str, Any]:
        """JSON-ready."""
        record: dict[str, Any] = plain(self)
        return record


def safety_event(record: Mapping[str, Any]) -> SafetyEvent:
    """The event of `SafetyEvent.to_record`."""
    return build(SafetyEvent, dict(record), where="safety event")


@dataclass(frozen=True)
class SafetyState:
    """Whether the fleet is in safe mode, and what is stopped."""

    safe_mode: bool = False
    since: float = 0.0
    limits: tuple[str, ...] = ()
    stopped: frozenset[Switch] = frozenset()

    def allows(self, switch: Switch) -> bool:
        """Whether something new of this kind may begin. Safe mode stops rollouts; training is its way out."""
        return switch not in self.stopped and not (self.safe_mode and switch is Switch.ROLLOUTS)


class IllegalSafetyEvent(FedretrainError):  # noqa: N818 - named as the rollout's
    """An event that may not follow."""


def tripped(rules: SafetyRules, readings: Sequence[Reading]) -> tuple[str, ...]:
    """Names of the limits that the readings break."""
    return tuple(
        limit.name for limit in rules.limits if any(limit.judge(r.value) for r in _of(limit, readings))
    )


def _of(limit: SafetyLimit, readings: Sequence[Reading]) -> list[Reading]:
    """The readings that say something about a limit."""
    return [
        r
        for r in readings
        if r.metric == limit.metric and math.isfinite(r.value) and r.num_devices >= limit.min_devices
    ]


def decide_safety(
    rules: SafetyRules,
    state: SafetyState,
    readings: Sequence[Reading],
    orders: Sequence[SafetyOrder],
    now: float,
) -> tuple[SafetyEvent, ...]:
    """What follows from the readings and from what people order."""
    events: list[SafetyEvent] = []
    broken = tripped(rules, readings)
    if broken and not state.safe_mode:
        reason = f"safety limits broken: {', '.join(broken)}"
        events.append(SafetyEvent(SafetyEventKind.ENTERED, now, reason, broken))
        state = apply_safety(state, events[-1])
    for order in orders:
        event = _ordered(rules, state, readings, order, now) if order.by else None
        if event is not None:
            events.append(event)
            state = apply_safety(state, event)
    return tuple(events)


def _ordered(
    rules: SafetyRules, state: SafetyState, readings: Sequence[Reading], order: SafetyOrder, now: float
) -> SafetyEvent | None:
    """What follows from one order; None where it changes nothing or may not be."""
    kind, by, reason = SafetyEventKind, order.by, order.reason
    match order.command:
        case SafetyCommand.ENTER if not state.safe_mode:
            return SafetyEvent(kind.ENTERED, now, reason, by=by)
        case SafetyCommand.LEAVE if state.safe_mode and _cleared(rules, state, readings):
            return SafetyEvent(kind.LEFT, now, reason, by=by)
        case SafetyCommand.STOP if order.switch is not None and order.switch not in state.stopped:
            return SafetyEvent(kind.STOPPED, now, reason, switch=order.switch, by=by)
        case SafetyCommand.START if order.switch is not None and order.switch in state.stopped:
            return SafetyEvent(kind.STARTED, now, reason, switch=order.switch, by=by)
    return None


def _cleared(rules: SafetyRules, state: SafetyState, readings: Sequence[Reading]) -> bool:
    """Whether each limit that entered safe mode has a reading again, and none is broken."""
    entered = [limit for limit in rules.limits if limit.name in state.limits]
    return not tripped(rules, readings) and all(_of(limit, readings) for limit in entered)


def apply_safety(state: SafetyState, event: SafetyEvent) -> SafetyState:
    """The state after `event`.

    Raises:
        IllegalSafetyEvent: If it changes nothing, or only a person could have done it.
    """
    kind, switch = SafetyEventKind, event.switch
    if event.kind is not kind.ENTERED and not event.by:
        raise IllegalSafetyEvent(f"{event.kind} needs the name of a person")
    if event.kind is kind.ENTERED and not state.safe_mode:
        return replace(state, safe_mode=True, since=event.at, limits=event.limits)
    if event.kind is kind.LEFT and state.safe_mode:
        return replace(state, safe_mode=False, since=event.at, limits=())
    if event.kind is kind.STOPPED and switch is not None and switch not in state.stopped:
        return replace(state, stopped=state.stopped | {switch})
    if event.kind is kind.STARTED and switch is not None and switch in state.stopped:
        return replace(state, stopped=state.stopped - {switch})
    raise IllegalSafetyEvent(f"{event.kind} of {switch or 'safe mode'} changes nothing")


def replay_safety(events: Iterable[SafetyEvent]) -> SafetyState:
    """The state that a log leads to."""
    state = SafetyState()
    for event in events:
        state = apply_safety(state, event)
    return state
