"""The incident record: what happened, when, on what evidence, to which devices.

Rules of this file:
    * Written from the log alone, so it can be written again at any time and says the same.
    * It names the devices that were exposed and how much exposure there was, whoever was at fault.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedretrain.core.build import build, plain
from fedretrain.core.errors import DataError
from fedretrain.rollout.causes import Cause, EventKind, IncidentKind, incident_kind
from fedretrain.rollout.effects import incident_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fedretrain.rollout.events import RolloutEvent


@dataclass(frozen=True)
class Entry:
    """One line of the timeline."""

    at: float
    what: str
    reason: str
    exposure_fraction: float


@dataclass(frozen=True)
class Incident:
    """One trouble of one rollout.

    Attributes:
        incident: Its id, the one that the effects name.
        kind: Where the trouble lies.
        cause: Why.
        rollout: Whose.
        candidate: The version under trial.
        fallback: The version that serves instead.
        opened_at: When it began.
        closed_at: When the rollout had gone back, or the source was mended; None while it is open.
        reason: One line for people.
        evidence: What the event that opened it was decided on.
        devices: Ids of the devices that were exposed.
        exposure_s: Integral of the exposed share over time until closed, in seconds: times the devices it is device-seconds.
        timeline: Every event of the rollout.
    """

    incident: str
    kind: IncidentKind
    cause: Cause
    rollout: str
    candidate: int
    fallback: int
    opened_at: float
    closed_at: float | None
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)
    devices: tuple[int, ...] = ()
    exposure_s: float = 0.0
    timeline: tuple[Entry, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """JSON-ready."""
        record: dict[str, Any] = plain(self)
        return record

    @property
    def text(self) -> str:
        """For people: the headline, then the timeline in hours since the rollout began."""
        start = self.timeline[0].at
        state = "open" if self.closed_at is None else f"closed after {(self.closed_at - start) / 3600:.1f} h"
        head = (
            f"incident {self.incident} ({self.kind}), {state}: {self.reason}\n"
            f"version {self.candidate}, fallback {self.fallback}, {len(self.devices)} devices exposed"
        )
        lines = [
            f"  {(entry.at - start) / 3600:8.1f} h  {entry.what:<22} {entry.exposure_fraction:6.1%}  {entry.reason}"
            for entry in self.timeline
        ]
        return "\n".join([head, *lines])


def incident_from_record(record: Mapping[str, Any]) -> Incident:
    """The incident of `Incident.to_record`.

    Raises:
        ConfigError: If a field is missing, unknown or of the wrong type.
    """
    return build(Incident, dict(record), where="incident")


def write_incident(events: Sequence[RolloutEvent], cause: Cause, devices: Sequence[int] = ()) -> Incident:
    """The record of the first trouble of `cause` in a rollout's log.

    Args:
        events: The log, oldest first.
        cause: Why.
        devices: Ids of the devices that were exposed.

    Raises:
        DataError: If the log has no such trouble.
    """
    opening = {EventKind.SOURCE_OVERDUE, EventKind.DE_ESCALATION_STARTED, EventKind.FROZEN}
    opening.add(EventKind.ROLLBACK_STARTED)
    at = next((i for i, e in enumerate(events) if e.cause is cause and e.kind in opening), None)
    if at is None or events[0].plan is None:
        raise DataError(f"no trouble of cause {cause} in this log", where="incident")
    opened, plan = events[at], events[0].plan
    ends = {EventKind.ROLLED_BACK} | (
        {EventKind.SOURCE_MENDED} if opened.kind is EventKind.SOURCE_OVERDUE else set()
    )
    closed_at = next((e.at for e in events[at:] if e.kind in ends), None)
    timeline = _timeline(events)
    fallback = [e.order.fallback for e in events if e.order is not None]
    return Incident(
        incident_id(opened.rollout, cause),
        incident_kind(cause),
        cause,
        opened.rollout,
        plan.candidate,
        fallback[-1] if fallback else plan.champion,
        opened.at,
        closed_at,
        opened.reason,
        opened.evidence,
        tuple(int(device) for device in devices),
        _integral(timeline, events[-1].at if closed_at is None else closed_at),
        timeline,
    )


def _timeline(events: Sequence[RolloutEvent]) -> tuple[Entry, ...]:
    """Every event with the exposure that it left."""
    entries: list[Entry] = []
    fraction = 0.0
    for event in events:
        fraction = fraction if event.order is None else event.order.fraction
        entries.append(Entry(event.at, event.kind.value, event.reason, fraction))
    return tuple(entries)


def _integral(timeline: Sequence[Entry], end: float) -> float:
    """Exposed share times seconds until `end`."""
    ats = [min(entry.at, end) for entry in timeline] + [end]
    return sum(
        entry.exposure_fraction * (b - a) for entry, a, b in zip(timeline, ats[:-1], ats[1:], strict=True)
    )
