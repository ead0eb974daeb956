"""A fleet's event log as a file, and its writer: JSON lines, a header first, then one event per line.

The coordinator writes one of its fleet, the simulator one of a simulated fleet; `sim.fleetlog.reader` reads both.

Rules of this file:
    * The log holds what a coordinator sees: connections, rounds, arrivals of labels, telemetry. Never the truth of a simulation.
    * It is operational telemetry (DESIGN section 6): nothing fitted to it is covered by an epsilon.
    * Instants are seconds of one clock, the coordinator's; `predicted_at` alone is by the device's own.
    * Events are written in the order of their instants, those of one instant in the order given; a reader sees all of a log or none.
    * An event's fields are the fields of its dataclass; a line is ``{"kind": KIND, FIELD: VALUE, ...}`` with all of them and no others.

Every line::

    {"kind": "header", "format": "fedretrain.fleetlog", "version": 2, "num_devices": 2, ...}
    {"kind": "online", "device": 0, "at": 0.0}
    {"kind": "replied", "device": 0, "at": 3602.1, "round": 1, "latency_s": 2.1, ...}
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from fedretrain.core.checks import require
from fedretrain.core.types import FailureKind  # noqa: TC001 - the reader builds events by their types

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

FORMAT, VERSION = "fedretrain.fleetlog", 2


@dataclass(frozen=True)
class Header:
    """The first line: whose log this is.

    Attributes:
        num_devices: D; devices are 0 to D - 1.
        site: ``[D]`` where each device stands.
        device_type: ``[D]`` what it is.
        class_names: Of the predictions; empty for a regression.
        channels: Names of the sensor channels, in the order of `Telemetered`'s lists.
        begin_at: The log's first instant.
        end_at: Its last one: what is not in the log by then had not happened.
        heartbeat_s: Connections are known to so many seconds.
        deadline_s: How long a round waits for replies.
        clock: Unit of every instant and duration.
    """

    num_devices: int
    site: tuple[int, ...]
    device_type: tuple[int, ...]
    class_names: tuple[str, ...]
    channels: tuple[str, ...]
    begin_at: float
    end_at: float
    heartbeat_s: float
    deadline_s: float
    clock: str = "seconds"

    def __post_init__(self) -> None:
        require(self.num_devices >= 1, "a fleet has at least one device", key="num_devices")
        for name in ("site", "device_type"):
            values: tuple[int, ...] = getattr(self, name)
            require(len(values) == self.num_devices, "one number for each device is needed", key=name)
            require(min(values) >= 0, "numbers are 0 or more", key=name)
        require(self.begin_at < self.end_at, "the log ends before it begins", key="end_at")
        require(self.heartbeat_s > 0, "must be above 0", key="heartbeat_s")
        require(self.deadline_s > 0, "must be above 0", key="deadline_s")
        require(
            self.clock == "seconds", f"the clock's unit is {self.clock!r}", key="clock", fix="use seconds"
        )


@dataclass(frozen=True)
class Online:
    """A device is connected from here on."""

    device: int
    at: float


@dataclass(frozen=True)
class Offline:
    """A device is not connected from here on."""

    device: int
    at: float


@dataclass(frozen=True)
class AskedInRound:
    """A device was asked to take part in a round."""

    device: int
    at: float
    round: int


@dataclass(frozen=True)
class Replied:
    """Its reply came in time.

    Attributes:
        device: Who.
        at: When the reply was complete.
        round: Of which round.
        latency_s: From the request to the complete reply.
        download_s: Of that, receiving the model, as the device measured it; 0 where nobody did, and so are all that follow.
        train_s: Likewise training.
        upload_s: Likewise sending the reply.
        bytes_down: Sent to the device.
        bytes_up: Sent by it.
        num_steps: Training steps taken.
    """

    device: int
    at: float
    round: int
    latency_s: float
    download_s: float
    train_s: float
    upload_s: float
    bytes_down: int
    bytes_up: int
    num_steps: int


@dataclass(frozen=True)
class Failed:
    """It contributed nothing.

    Attributes:
        device: Who.
        at: When the coordinator knew.
        round: In which round.
        reason: Why, a `FailureKind`.
    """

    device: int
    at: float
    round: int
    reason: FailureKind


@dataclass(frozen=True)
class Predicted:
    """A device served predictions.

    Attributes:
        device: Who.
        at: End of the stretch, not included.
        from_at: Its beginning.
        count: How many predictions.
        by_class: ``[M]`` how many of each class; empty for a regression, or where nobody counted.
    """

    device: int
    at: float
    from_at: float
    count: int
    by_class: tuple[int, ...] = ()


@dataclass(frozen=True)
class Labelled:
    """A label arrived.

    Attributes:
        device: Whose.
        at: When it arrived.
        predicted_at: When the sample that it belongs to was taken and predicted.
        label: The class; -1 in a regression.
        predicted: The class that was predicted; -1 in a regression, or where it is not known.
    """

    device: int
    at: float
    predicted_at: float
    label: int
    predicted: int = -1


@dataclass(frozen=True)
class Telemetered:
    """A device's sensors over a stretch, beside its own baseline from before the log.

    Attributes:
        device: Who.
        at: End of the stretch, not included.
        from_at: Its beginning.
        rows: Samples in it.
        baseline_rows: Samples of the baseline.
        level: ``[C]`` the baseline's mean, in baseline standard deviations: what a gain of the sensor would move.
        shift: ``[C]`` the mean minus the baseline's, in baseline standard deviations; None where nothing was measured.
        log_std: ``[C]`` natural logarithm of the standard deviation over the baseline's; None where it is not known.
        missing: ``[C]`` share of the values that are missing.
    """

    device: int
    at: float
    from_at: float
    rows: int
    baseline_rows: int
    level: tuple[float, ...]
    shift: tuple[float | None, ...]
    log_std: tuple[float | None, ...]
    missing: tuple[float, ...]


Event = Online | Offline | AskedInRound | Replied | Failed | Predicted | Labelled | Telemetered

KINDS: Mapping[str, type[Event]] = {
    "online": Online,
    "offline": Offline,
    "asked": AskedInRound,
    "replied": Replied,
    "failed": Failed,
    "predicted": Predicted,
    "label": Labelled,
    "telemetry": Telemetered,
}
"""The word of each event's `kind`."""


class Refusal(StrEnum):
    """Why a well-formed line has no effect."""

    UNKNOWN_DEVICE = "unknown_device"
    OUTSIDE_LOG = "outside_log"  # before the log's beginning or after its end
    NEGATIVE = "negative"  # a count or a duration below 0
    NOT_FINITE = "not_finite"
    DUPLICATE = "duplicate"
    NEVER_ASKED = "never_asked"  # a reply or failure in a round that did not ask the device
    LABEL_BEFORE_PREDICTION = "label_before_prediction"
    LABEL_WITHOUT_PREDICTION = "label_without_prediction"
    UNKNOWN_CLASS = "unknown_class"
    WRONG_CLASSES = (
        "wrong_classes"  # counts by class that do not add up, or not of as many classes as there are
    )
    WRONG_CHANNELS = "wrong_channels"


_WORDS = {cls: word for word, cls in KINDS.items()}


def write_log(path: Path, header: Header, events: Iterable[Event]) -> str:
    """Write a log.

    Args:
        path: Where; its folder is made if absent.
        header: Whose log it is.
        events: In any order.

    Returns:
        The file's sha256.

    Raises:
        OSError: If the disk refuses it.
    """
    partial = path.with_name(f".{path.name}.partial")
    digest = hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("wb") as file:
        for line in _lines(header, events):
            digest.update(line)
            file.write(line)
    partial.replace(path)
    return digest.hexdigest()


def _lines(header: Header, events: Iterable[Event]) -> Iterable[bytes]:
    yield _line({"kind": "header", "format": FORMAT, "version": VERSION, **asdict(header)})
    for event in sorted(events, key=lambda one: one.at):
        yield _line({"kind": _WORDS[type(event)], **event.__dict__})


def _line(values: dict[str, object]) -> bytes:
    return (json.dumps(values, allow_nan=False, separators=(",", ":")) + "\n").encode()
