"""A fleet's event log in memory: one table of columns for each kind of event.

Rules of this file:
    * Columns are in the order of the file. `window` cuts by instants: what a coordinator would have known at its end.
    * Shape letters: D devices, E events, S slots, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fedretrain.wire.fleet_log import (
    AskedInRound,
    Failed,
    Labelled,
    Offline,
    Online,
    Predicted,
    Replied,
    Telemetered,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from fedretrain.wire.fleet_log import Event, Header, Refusal

    Ids = NDArray[np.int64]
    Floats = NDArray[np.float64]

_EDGE_S = 1e-6  # instants closer than this are one: file formats round


@dataclass(frozen=True)
class Columns:
    """What every table has.

    Attributes:
        device: ``[E]``.
        at: ``[E]``.
    """

    device: Ids
    at: Floats

    def __len__(self) -> int:
        return len(self.device)


@dataclass(frozen=True)
class Connections(Columns):
    """`Online` and `Offline`: ``[E]`` whether the device is connected from then on."""

    online: NDArray[np.bool_]


@dataclass(frozen=True)
class Requests(Columns):
    """`AskedInRound`."""

    round: Ids


@dataclass(frozen=True)
class Replies(Columns):
    """`Replied`."""

    round: Ids
    latency_s: Floats
    download_s: Floats
    train_s: Floats
    upload_s: Floats
    bytes_down: Ids
    bytes_up: Ids
    num_steps: Ids


@dataclass(frozen=True)
class Failures(Columns):
    """`Failed`."""

    round: Ids
    reason: NDArray[np.str_]


@dataclass(frozen=True)
class Predictions(Columns):
    """`Predicted`; `by_class` is ``[E, M]``, 0 where nobody counted."""

    from_at: Floats
    count: Ids
    by_class: Ids


@dataclass(frozen=True)
class Arrivals(Columns):
    """`Labelled`."""

    predicted_at: Floats
    label: Ids
    predicted: Ids


@dataclass(frozen=True)
class Telemetry(Columns):
    """`Telemetered`; the last four are ``[E, C]``, NaN where not known."""

    from_at: Floats
    rows: Ids
    baseline_rows: Ids
    level: Floats
    shift: Floats
    log_std: Floats
    missing: Floats


C = TypeVar("C", bound=Columns)


def take(columns: C, keep: NDArray[Any]) -> C:
    """The rows of a table that a mask or an index chooses."""
    return replace(columns, **{one.name: getattr(columns, one.name)[keep] for one in fields(columns)})


@dataclass(frozen=True)
class FleetLog:
    """A whole log, or a window of one.

    Attributes:
        header: Whose log it is; of a window, with the window's beginning and end.
        connections: All up to the window's end: the state at its beginning is known from those before it.
        asked: Requests of rounds.
        replies: Replies in time.
        failures: Contributions that did not come.
        predictions: Served ones.
        arrivals: Labels, of predictions made in the window.
        telemetry: Sensor summaries.
        refused: Lines without effect, by reason.
        digest: sha256 of the file; empty for a log that was not read from one.
    """

    header: Header
    connections: Connections
    asked: Requests
    replies: Replies
    failures: Failures
    predictions: Predictions
    arrivals: Arrivals
    telemetry: Telemetry
    refused: Mapping[Refusal, int] = field(default_factory=dict)
    digest: str = ""

    @classmethod
    def of(
        cls,
        header: Header,
        events: Sequence[Event],
        *,
        refused: Mapping[Refusal, int] | None = None,
        digest: str = "",
    ) -> FleetLog:
        """The tables of a list of events."""
        by: dict[type, list[Any]] = {}
        for event in events:
            by.setdefault(type(event), []).append(event)
        moves: list[Online | Offline] = sorted(
            by.get(Online, []) + by.get(Offline, []), key=lambda one: (one.at, one.device)
        )
        width = len(header.channels)
        return cls(
            header,
            Connections(
                **_columns(moves, ("device", "at")),
                online=np.array([isinstance(m, Online) for m in moves], bool),
            ),
            Requests(**_columns(by.get(AskedInRound, []), ("device", "at", "round"))),
            Replies(**_columns(by.get(Replied, []), _names(Replies))),
            Failures(
                **_columns(by.get(Failed, []), ("device", "at", "round")),
                reason=np.array([str(one.reason) for one in by.get(Failed, [])], dtype=np.str_),
            ),
            _predictions(by.get(Predicted, []), len(header.class_names)),
            Arrivals(**_columns(by.get(Labelled, []), _names(Arrivals))),
            _telemetry(by.get(Telemetered, []), width),
            refused or {},
            digest,
        )

    def window(self, from_at: float, to_at: float) -> FleetLog:
        """What happened in ``[from_at, to_at)``, known at its end; labels are those of predictions made in it."""

        def within(columns: C, at: Floats | None = None) -> C:
            instants = columns.at if at is None else at
            return take(columns, (instants >= from_at) & (columns.at < to_at))

        return replace(
            self,
            header=replace(self.header, begin_at=from_at, end_at=to_at),
            connections=take(self.connections, self.connections.at < to_at),
            asked=within(self.asked),
            replies=within(self.replies),
            failures=within(self.failures),
            predictions=take(
                self.predictions, (self.predictions.from_at >= from_at) & (self.predictions.at <= to_at)
            ),
            arrivals=within(self.arrivals, self.arrivals.predicted_at),
            telemetry=take(
                self.telemetry, (self.telemetry.from_at >= from_at) & (self.telemetry.at <= to_at)
            ),
        )

    def of_devices(self, keep_D: NDArray[np.bool_]) -> FleetLog:
        """The log of some of the devices, numbered anew in their order."""
        number = np.cumsum(keep_D) - 1

        def of(columns: C) -> C:
            kept = take(columns, keep_D[columns.device])
            return replace(kept, device=number[kept.device])

        header = self.header
        chosen = np.flatnonzero(keep_D).tolist()
        header = replace(
            header,
            num_devices=len(chosen),
            site=tuple(header.site[d] for d in chosen),
            device_type=tuple(header.device_type[d] for d in chosen),
        )
        tables = (
            "connections",
            "asked",
            "replies",
            "failures",
            "predictions",
            "arrivals",
            "telemetry",
        )
        return replace(self, header=header, **{name: of(getattr(self, name)) for name in tables})

    def slots(self) -> Floats:
        """``[S]`` the instants of the heartbeats in the window."""
        step, begin, end = self.header.heartbeat_s, self.header.begin_at, self.header.end_at
        first = np.ceil((begin - _EDGE_S) / step)
        instants: Floats = np.arange(first, np.ceil((end - _EDGE_S) / step)).astype(np.float64) * step
        return instants

    def online(self) -> NDArray[np.bool_]:
        """``[D, S]`` whether each device was connected at each heartbeat; a device never heard of was not."""
        return online_at(self.connections, self.header.num_devices, self.slots())


def online_at(connections: Connections, num_devices: int, slots: Floats) -> NDArray[np.bool_]:
    """``[D, S]`` the last known state of each device at each of the sorted instants ``[S]``."""
    # A change counts from the first slot at or after it; the last change before a slot is its state.
    place = np.searchsorted(slots, connections.at - _EDGE_S)
    kept = place < len(slots)
    state = np.full((num_devices, len(slots)), -1, dtype=np.int8)
    state[connections.device[kept], place[kept]] = connections.online[kept]
    known = np.where(state >= 0, np.arange(len(slots)), 0)
    last = np.maximum.accumulate(known, axis=1)
    answer: NDArray[np.bool_] = np.take_along_axis(state, last, axis=1) == 1
    return answer


def cluster_of(header: Header) -> tuple[Ids, list[tuple[int, int]]]:
    """``[D]`` the cluster of each device, and (site, device type) of each cluster."""
    pairs = np.stack([np.asarray(header.site), np.asarray(header.device_type)], axis=1)
    found, of = np.unique(pairs, axis=0, return_inverse=True)
    return of.astype(np.int64).ravel(), [(int(site), int(kind)) for site, kind in found]


def _names(cls: type[Columns]) -> tuple[str, ...]:
    return tuple(one.name for one in fields(cls))


_FLOATS = {"at", "from_at", "predicted_at", "latency_s", "download_s", "train_s", "upload_s"}


def _columns(events: Sequence[Any], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    return {
        name: np.array([getattr(one, name) for one in events], np.float64 if name in _FLOATS else np.int64)
        for name in names
    }


def _predictions(events: Sequence[Predicted], num_classes: int) -> Predictions:
    none = (0,) * num_classes
    by_class = np.array([one.by_class or none for one in events], dtype=np.int64)
    return Predictions(
        **_columns(events, ("device", "at", "from_at", "count")),
        by_class=by_class.reshape(len(events), num_classes),
    )


def _telemetry(events: Sequence[Telemetered], width: int) -> Telemetry:
    lists: dict[str, NDArray[Any]] = {
        name: np.array([getattr(one, name) for one in events], dtype=np.float64).reshape(len(events), width)
        for name in ("level", "shift", "log_std", "missing")
    }
    return Telemetry(**_columns(events, ("device", "at", "from_at", "rows", "baseline_rows")), **lists)
