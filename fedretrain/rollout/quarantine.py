"""Quarantine of versions and of devices, with a way back: a fold over events.

Rules of this file:
    * Keeping out is quick, letting in again is slow: one fault puts in; a person, or n clean windows in a row, lets out.
    * Whom a person keeps out a person lets in again: no number of clean windows does.
    * A window counts once, whenever and however often it is reported; a dirty one begins the count anew.
    * A version returns by a person unless the rules say otherwise: windows without harm prove nothing about a version that nobody runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from fedretrain.core.build import build, plain
from fedretrain.core.checks import require
from fedretrain.core.errors import FedretrainError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Subject(StrEnum):
    """What is kept out."""

    VERSION = "version"
    DEVICE = "device"


@dataclass(frozen=True)
class QuarantineRules:
    """The way back.

    Attributes:
        version_clean_windows: Clean windows in a row that release a version; 0 is by a person only.
        device_clean_windows: Likewise a device.
    """

    version_clean_windows: int = 0
    device_clean_windows: int = 3

    def __post_init__(self) -> None:
        for name in ("version_clean_windows", "device_clean_windows"):
            require(getattr(self, name) >= 0, "a negative number of windows", key=f"quarantine.{name}")

    def clean_windows(self, subject: Subject) -> int:
        """How many clean windows release; 0 is none."""
        return self.version_clean_windows if subject is Subject.VERSION else self.device_clean_windows


class QuarantineEventKind(StrEnum):
    """What happened."""

    ENTERED = "entered"
    CLEAN = "clean"  # a window without a fault
    DIRTY = "dirty"  # a window with one: the count begins anew
    RELEASED = "released"


@dataclass(frozen=True)
class QuarantineEvent:
    """One fact."""

    kind: QuarantineEventKind
    subject: Subject
    ident: int
    at: float
    reason: str = ""
    window: int = -1
    by: str = ""

    def to_record(self) -> dict[str, Any]:
        """JSON-ready."""
        record: dict[str, Any] = plain(self)
        return record


def quarantine_event(record: Mapping[str, Any]) -> QuarantineEvent:
    """The event of `QuarantineEvent.to_record`."""
    return build(QuarantineEvent, dict(record), where="quarantine event")


@dataclass(frozen=True)
class Kept:
    """One version or device that is kept out; `by` whom, where a person's word keeps it out."""

    subject: Subject
    ident: int
    since: float
    reason: str
    num_clean: int = 0
    window: int = -1
    by: str = ""


@dataclass(frozen=True)
class QuarantineState:
    """Who is kept out.

    Attributes:
        kept: In the order of entering.
    """

    kept: tuple[Kept, ...] = ()

    def find(self, subject: Subject, ident: int) -> Kept | None:
        """The entry, or None."""
        return next((k for k in self.kept if k.subject is subject and k.ident == ident), None)

    @property
    def versions(self) -> frozenset[int]:
        """Versions that may not be installed."""
        return frozenset(k.ident for k in self.kept if k.subject is Subject.VERSION)

    @property
    def devices(self) -> frozenset[int]:
        """Devices whose evidence and updates do not count."""
        return frozenset(k.ident for k in self.kept if k.subject is Subject.DEVICE)


@dataclass(frozen=True)
class Fault:
    """A reason to keep out; `by` whom, where a person gives it and only a person's word shall end it."""

    subject: Subject
    ident: int
    reason: str
    by: str = ""


@dataclass(frozen=True)
class Release:
    """A person's word."""

    subject: Subject
    ident: int
    by: str
    reason: str = ""


@dataclass(frozen=True)
class QuarantineEvidence:
    """What one window says.

    Attributes:
        window: Its index; windows come in order.
        faults: What is wrong in it.
        measured: ``(subject, ident)`` that the window has measured: without a fault it is clean. What was not measured is neither.
        releases: What people say.
    """

    window: int
    faults: tuple[Fault, ...] = ()
    measured: frozenset[tuple[Subject, int]] = field(default_factory=frozenset)
    releases: tuple[Release, ...] = ()


class IllegalQuarantine(FedretrainError):  # noqa: N818 - named as the rollout's
    """An event that may not follow."""


def decide_quarantine(
    rules: QuarantineRules, state: QuarantineState, evidence: QuarantineEvidence, now: float
) -> tuple[QuarantineEvent, ...]:
    """What follows from one window and from what people say."""
    kind, window = QuarantineEventKind, evidence.window
    events: list[QuarantineEvent] = []
    faulty = {(fault.subject, fault.ident): fault for fault in evidence.faults}
    for (subject, ident), fault in faulty.items():
        kept = state.find(subject, ident)
        if kept is None:
            events.append(QuarantineEvent(kind.ENTERED, subject, ident, now, fault.reason, window, fault.by))
        elif window > kept.window or (fault.by and not kept.by):
            seen = max(window, kept.window)
            events.append(QuarantineEvent(kind.DIRTY, subject, ident, now, fault.reason, seen, fault.by))
    freed = {(r.subject, r.ident): r for r in evidence.releases if r.by}
    for kept in state.kept:
        what = (kept.subject, kept.ident)
        if what in faulty:
            continue
        if what in freed:
            said = freed[what]
            events.append(QuarantineEvent(kind.RELEASED, *what, now, said.reason, by=said.by))
        elif what in evidence.measured and window > kept.window:
            events += _clean(rules, kept, window, now)
    return tuple(events)


def _clean(rules: QuarantineRules, kept: Kept, window: int, now: float) -> list[QuarantineEvent]:
    """A clean window, and the release where it was the last that was missing and no person keeps it out."""
    need, what = rules.clean_windows(kept.subject), (kept.subject, kept.ident)
    events = [QuarantineEvent(QuarantineEventKind.CLEAN, *what, now, window=window)]
    if need and kept.num_clean + 1 >= need and not kept.by:
        reason = f"{need} clean windows in a row"
        events.append(QuarantineEvent(QuarantineEventKind.RELEASED, *what, now, reason, window))
    return events


def apply_quarantine(state: QuarantineState, event: QuarantineEvent) -> QuarantineState:
    """The state after `event`.

    Raises:
        IllegalQuarantine: If it enters twice, or is about somebody who is not kept out.
    """
    kept = state.find(event.subject, event.ident)
    if (kept is None) != (event.kind is QuarantineEventKind.ENTERED):
        raise IllegalQuarantine(f"{event.kind} of {event.subject} {event.ident}")
    if kept is None:
        new = Kept(event.subject, event.ident, event.at, event.reason, window=event.window, by=event.by)
        return QuarantineState((*state.kept, new))
    others = tuple(k for k in state.kept if k is not kept)
    if event.kind is QuarantineEventKind.RELEASED:
        return QuarantineState(others)
    count = kept.num_clean + 1 if event.kind is QuarantineEventKind.CLEAN else 0
    changed = replace(kept, num_clean=count, window=event.window)
    if event.by and not kept.by:
        changed = replace(changed, reason=event.reason, by=event.by)
    return QuarantineState(tuple(changed if k is kept else k for k in state.kept))


def replay_quarantine(events: Iterable[QuarantineEvent]) -> QuarantineState:
    """The state that a log leads to."""
    state = QuarantineState()
    for event in events:
        state = apply_quarantine(state, event)
    return state
