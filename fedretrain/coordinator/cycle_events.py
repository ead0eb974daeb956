"""What happens in the closed loop: one log of events, each in the words of its package, and its way to JSON and back.

Rules of this file:
    * An event is a frozen fact with its instant; the log of them is all that is needed to rebuild the state.
    * JSON round trip without loss: what is not a number is named by its place, what is infinite is a word, and a record
      that is no event is refused by name.
    * A kind's name in the log never changes, whatever becomes of the class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fedretrain.core.build import build, plain
from fedretrain.core.errors import DataError
from fedretrain.monitoring import alerts
from fedretrain.monitoring.alerts import MonitorEvent
from fedretrain.retraining.decision import Decision, Outcome
from fedretrain.rollout.causes import Cause
from fedretrain.rollout.events import RolloutEvent
from fedretrain.rollout.incident import Incident, write_incident
from fedretrain.rollout.power import ClusterPower  # noqa: TC001 - read by `build` at run time
from fedretrain.rollout.quarantine import QuarantineEvent
from fedretrain.rollout.reconcile import Admission  # noqa: TC001 - read by `build` at run time
from fedretrain.rollout.safety import SafetyEvent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True)
class Begun:
    """The first event: a fleet and the model that it serves.

    Attributes:
        champion: Version that serves; 0 is the rules baseline.
        num_labels: Labels that it was trained on.
        policy: Digest of the policy file; empty where nobody asked.
    """

    champion: int
    num_labels: int = 0
    policy: str = ""


@dataclass(frozen=True)
class Trained:
    """How a campaign ended.

    Attributes:
        version: What it was to make.
        made: Whether it did.
        reason: For people.
        detectable: The smallest relative regression that each step of a rollout could detect; empty if not known.
        clusters: Likewise in each site and device type.
    """

    version: int
    made: bool
    reason: str = ""
    detectable: tuple[float, ...] = ()
    clusters: tuple[ClusterPower, ...] = ()


@dataclass(frozen=True)
class Proposed:
    """A person brings a version that waits for its rollout.

    Attributes:
        version: Which; of a model that exists.
        by: Who.
        reason: For people.
        detectable: As in `Trained`.
        again: Whether it failed before.
    """

    version: int
    by: str
    reason: str = ""
    detectable: tuple[float, ...] = ()
    again: bool = False


@dataclass(frozen=True)
class Admitted:
    """What a waiting candidate was told; written once for each answer, and not where it begins.

    Attributes:
        version: Which.
        answer: QUEUE, SUPERSEDE or REFUSE.
        reason: For people.
    """

    version: int
    answer: Admission
    reason: str


@dataclass(frozen=True)
class Withdrawn:
    """The champion may no longer be served, and no rollout of its own is there to take it back.

    Attributes:
        version: The champion.
        fallback: What serves instead; 0 is the rules baseline.
        reason: For people.
    """

    version: int
    fallback: int
    reason: str = ""


@dataclass(frozen=True)
class ServedAgain:
    """A person ends the fallback: the champion serves although its confidence had decayed.

    Attributes:
        version: The champion.
        by: Who.
        reason: For people.
    """

    version: int
    by: str
    reason: str = ""


@dataclass(frozen=True)
class Discarded:
    """A person gives a version up: it never leaves quarantine.

    Attributes:
        version: Which.
        by: Who.
        reason: For people.
    """

    version: int
    by: str
    reason: str = ""


@dataclass(frozen=True)
class Refused:
    """A person's order that was not followed: whoever gave it may not, or not alone, or it is not their word.

    Attributes:
        order: What it was, in a word.
        by: Who, as it says.
        reason: Why not; for people.
        number: Of an order that is not their word, in the stream of orders; 0 for any other.
    """

    order: str
    by: str
    reason: str
    number: int = 0


Body: TypeAlias = (
    Begun
    | MonitorEvent
    | Decision
    | Outcome
    | Trained
    | Proposed
    | Admitted
    | Withdrawn
    | ServedAgain
    | Discarded
    | Refused
    | RolloutEvent
    | SafetyEvent
    | QuarantineEvent
)


@dataclass(frozen=True)
class CycleEvent:
    """Something that happened, with its instant.

    Attributes:
        at: Instant, seconds.
        body: What, in the words of its package.
    """

    at: float
    body: Body

    def to_record(self) -> dict[str, Any]:
        """JSON-ready: ``at``, ``kind``, ``body``, and under ``nan`` the places of what is not a number."""
        missing: list[list[str | int]] = []
        body = _finite(plain(self.body), [], missing)
        record = {"at": float(self.at), "kind": _NAMES[type(self.body)], "body": body}
        return {**record, "nan": missing} if missing else record


KINDS: Mapping[str, type] = {
    "begun": Begun,
    "window_judged": alerts.WindowJudged,
    "drifted": alerts.Drifted,
    "drift_cleared": alerts.DriftCleared,
    "published_rule_fired": alerts.PublishedRuleFired,
    "confidence_decayed": alerts.ConfidenceDecayed,
    "confidence_recovered": alerts.ConfidenceRecovered,
    "kpi_breached": alerts.KpiBreached,
    "kpi_recovered": alerts.KpiRecovered,
    "accuracy_fell": alerts.AccuracyFell,
    "accuracy_recovered": alerts.AccuracyRecovered,
    "label_pace_changed": alerts.LabelPaceChanged,
    "label_pace_restored": alerts.LabelPaceRestored,
    "device_quarantined": alerts.DeviceQuarantined,
    "device_released": alerts.DeviceReleased,
    "decision": Decision,
    "outcome": Outcome,
    "trained": Trained,
    "proposed": Proposed,
    "admitted": Admitted,
    "withdrawn": Withdrawn,
    "served_again": ServedAgain,
    "discarded": Discarded,
    "refused": Refused,
    "rollout": RolloutEvent,
    "safety": SafetyEvent,
    "quarantine": QuarantineEvent,
}
"""Each kind's name in the log."""

_NAMES: Mapping[type, str] = {cls: name for name, cls in KINDS.items()}


def from_record(record: Mapping[str, Any]) -> CycleEvent:
    """The event of `CycleEvent.to_record`.

    Raises:
        DataError: If the record is no event of a kind that is known.
        ConfigError: If a field of its body is missing, unknown or of the wrong type.
    """
    kind, at, body = record.get("kind"), record.get("at"), record.get("body")
    known = isinstance(kind, str) and kind in KINDS and set(record) <= {"at", "kind", "body", "nan"}
    if not known or not isinstance(at, (int, float)) or not math.isfinite(at) or not isinstance(body, dict):
        raise DataError(
            f"no event: kind {kind!r} at {at!r}", where="event log", fix="keep records as they were written"
        )
    places = record.get("nan", [])
    filled = body
    try:
        for place in places:
            filled = _put(filled, place, 0.0)
        event: Any = build(KINDS[str(kind)], filled, where=f"event {kind}")
        for place in places:
            event = _put(event, place, math.nan)
    except (LookupError, TypeError, AttributeError) as error:
        raise DataError(f"a place that is not there: {error}", where=f"event {kind}") from error
    return CycleEvent(float(at), event)


def _finite(value: Any, place: list[str | int], missing: list[list[str | int]]) -> Any:
    """`value` as JSON holds it; the places of what is not a number go into `missing`."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        return {key: _finite(item, [*place, key], missing) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item, [*place, index], missing) for index, item in enumerate(value)]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    if math.isnan(value):
        missing.append(place)
        return None
    return "inf" if value > 0 else "-inf"


def _put(value: Any, place: Sequence[str | int], new: float) -> Any:
    """`value` with `new` at a place in it; nothing is changed in place."""
    if not place:
        return new
    key: Any = place[0]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{key: _put(getattr(value, key), place[1:], new)})
    if isinstance(value, dict):
        return {**value, key: _put(value[key], place[1:], new)}
    return type(value)(_put(item, place[1:], new) if i == key else item for i, item in enumerate(value))


def incident_of(log: Iterable[CycleEvent], incident: str, devices: Sequence[int] = ()) -> Incident:
    """The record of a rollout's incident, from the log alone.

    Args:
        log: The loop's events, oldest first.
        incident: Its id, as the state and the effects name it: the rollout's, a slash, the cause.
        devices: Ids of the devices that were exposed.

    Raises:
        DataError: If the log has no such incident.
    """
    rollout, _, cause = incident.rpartition("/")
    events = [e.body for e in log if isinstance(e.body, RolloutEvent) and e.body.rollout == rollout]
    if not events or cause not in set(Cause):
        raise DataError(f"no incident {incident!r} of a rollout in this log", where="incident")
    return write_incident(events, Cause(cause), devices)
