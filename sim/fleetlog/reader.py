"""Reads a fleet's event log, strictly.

Rules of this file:
    * A line that is not of the format stops the reading: one line of error names the file, the line and how to mend it.
    * A line of the format that cannot be true (a device nobody has, a reply nobody asked for, a label of a prediction
      that never was, an instant outside the log, a repetition) is refused by name, counted, and without effect.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_type_hints

from fedretrain.core.build import build
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.wire.fleet_log import (
    FORMAT,
    KINDS,
    VERSION,
    AskedInRound,
    Failed,
    Header,
    Labelled,
    Predicted,
    Refusal,
    Replied,
    Telemetered,
)
from sim.fleetlog.log import FleetLog

if TYPE_CHECKING:
    from pathlib import Path

    from fedretrain.wire.fleet_log import Event

_SLACK_S = 1.0  # the clock of a device may round


def read_log(path: Path) -> FleetLog:
    """Read a log.

    Args:
        path: A file of `fedretrain.wire.fleet_log`.

    Raises:
        DataError: If the file cannot be read or a line is not of the format.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"the log cannot be read: {error.strerror}",
            where=str(path),
            fix="name a file that `python -m sim log` or a coordinator wrote",
        ) from error
    lines = data.splitlines()
    if not lines:
        raise DataError("the log is empty", where=str(path), fix="its first line is a header")
    header = _header(lines[0], path)
    events = [_event(line, path, number) for number, line in enumerate(lines[1:], 2) if line.strip()]
    sieve = _Sieve(header)
    kept = [event for event in events if sieve.passes(event)]
    kept = [event for event in kept if sieve.was_predicted(event)]
    return FleetLog.of(header, kept, refused=dict(sieve.refused), digest=hashlib.sha256(data).hexdigest())


def _header(line: bytes, path: Path) -> Header:
    values = _object(line, path, 1)
    if values.pop("kind", None) != "header" or values.pop("format", None) != FORMAT:
        raise DataError(
            "the first line is not the header of a fleet's log",
            where=f"{path}:1",
            fix=f'it begins {{"kind": "header", "format": "{FORMAT}", "version": {VERSION}, ...',
        )
    version = values.pop("version", None)
    if version != VERSION:
        raise DataError(
            f"the log has version {version}, this code reads {VERSION}",
            where=f"{path}:1",
            fix="write it again, or read it with the version of fedretrain that wrote it",
        )
    return _built(Header, values, path, 1)


def _event(line: bytes, path: Path, number: int) -> Event:
    values = _object(line, path, number)
    kind = values.pop("kind", None)
    if kind not in KINDS:
        raise DataError(
            f"there is no event {kind!r}", where=f"{path}:{number}", fix=f"known kinds: {', '.join(KINDS)}"
        )
    return _built(KINDS[kind], values, path, number)


def _object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    where = f"{path}:{number}"
    try:
        values = json.loads(line)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        fix = "remove the line, or the half that a crash left of it"
        raise DataError(f"not a JSON object: {error}", where=where, fix=fix) from error
    if not isinstance(values, dict):
        raise DataError("not a JSON object", where=where, fix='a line is {"kind": ..., ...}')
    return values


def _built(cls: type[Any], values: dict[str, Any], path: Path, number: int) -> Any:
    """A header or event with exactly its fields, each of its type."""
    where = f"{path}:{number}"
    known = _TYPES[cls]
    if values.keys() == known.keys() and all(type(values[name]) in wanted for name, wanted in known.items()):
        return cls(**values)  # plain numbers of the right types: nothing to convert, and logs have many lines
    absent = set(known) - {"clock"} - set(values)
    if absent:
        raise DataError(
            f"the field {min(absent)!r} is missing", where=where, fix=f"a {cls.__name__} has all its fields"
        )
    try:
        return build(cls, values)
    except ConfigError as error:
        raise DataError(
            f"{error.what} ({error.where})", where=where, fix=error.fix or "see fedretrain/wire/fleet_log.py"
        ) from error


_PLAIN: dict[Any, tuple[type, ...]] = {int: (int,), float: (float,)}
_TYPES: dict[Any, dict[str, tuple[type, ...]]] = {
    cls: {name: _PLAIN.get(hint, ()) for name, hint in get_type_hints(cls).items()}
    for cls in (Header, *KINDS.values())
}
"""The JSON types that each field takes as they are; none where a value has to be converted."""


@dataclass
class _Sieve:
    """Refuses what cannot be true."""

    header: Header
    refused: Counter[Refusal] = field(default_factory=Counter)
    _seen: set[tuple[Any, ...]] = field(default_factory=set)
    _asked: set[tuple[int, int]] = field(default_factory=set)
    _served: dict[int, list[Predicted]] = field(default_factory=dict)

    def passes(self, event: Event) -> bool:
        """Whether an event may be true, as far as the lines up to it tell."""
        reason = self._wrong(event)
        if reason is not None:
            self.refused[reason] += 1
            return False
        self._seen.add(_key(event))
        if isinstance(event, AskedInRound):
            self._asked.add((event.device, event.round))
        elif isinstance(event, Predicted):
            self._served.setdefault(event.device, []).append(event)
        return True

    def was_predicted(self, event: Event) -> bool:
        """False for a label of a stretch in which the device served nothing."""
        if not isinstance(event, Labelled):
            return True
        if any(
            one.from_at - _SLACK_S <= event.predicted_at <= one.at + _SLACK_S
            for one in self._near(event.device, event.predicted_at)
        ):
            return True
        self.refused[Refusal.LABEL_WITHOUT_PREDICTION] += 1
        return False

    def _near(self, device: int, at: float) -> list[Predicted]:
        """The device's stretches around an instant; stretches are in the order of the file, so of time."""
        served = self._served.get(device, [])
        place = bisect_right(served, at, key=lambda one: one.from_at)
        return served[max(place - 1, 0) : place + 1]

    def _wrong(self, event: Event) -> Refusal | None:
        if not 0 <= event.device < self.header.num_devices:
            return Refusal.UNKNOWN_DEVICE
        reason = _number(event)
        if reason is not None:
            return reason
        if not self.header.begin_at - _SLACK_S <= event.at <= self.header.end_at + _SLACK_S:
            return Refusal.OUTSIDE_LOG
        if _key(event) in self._seen:
            return Refusal.DUPLICATE
        if isinstance(event, (Replied, Failed)) and (event.device, event.round) not in self._asked:
            return Refusal.NEVER_ASKED
        return self._content(event)

    def _content(self, event: Event) -> Refusal | None:
        """What only some kinds of events can have wrong."""
        if isinstance(event, Labelled):
            return self._label(event)
        if isinstance(event, Predicted):
            return self._classes(event)
        if isinstance(event, Telemetered):
            lists = (event.level, event.shift, event.log_std, event.missing)
            width = len(self.header.channels)
            return None if all(len(one) == width for one in lists) else Refusal.WRONG_CHANNELS
        return None

    def _label(self, event: Labelled) -> Refusal | None:
        if event.at < event.predicted_at - _SLACK_S:
            return Refusal.LABEL_BEFORE_PREDICTION
        low, high = (0, len(self.header.class_names)) if self.header.class_names else (-1, 0)
        known = low <= event.label < high and -1 <= event.predicted < high
        return None if known else Refusal.UNKNOWN_CLASS

    def _classes(self, event: Predicted) -> Refusal | None:
        counts = event.by_class
        fit = len(counts) == len(self.header.class_names) and min(counts) >= 0 and sum(counts) == event.count
        return None if not counts or fit else Refusal.WRONG_CLASSES


def _number(event: Event) -> Refusal | None:
    """The first number that is not finite, or below 0 where none can be."""
    for name, value in vars(event).items():
        if isinstance(value, float) and not math.isfinite(value):
            return Refusal.NOT_FINITE
        counted = name not in {"at", "from_at", "predicted_at", "label", "predicted"}
        if counted and isinstance(value, (int, float)) and value < 0:
            return Refusal.NEGATIVE
    return None


def _key(event: Event) -> tuple[Any, ...]:
    """What makes two lines one and the same event."""
    if isinstance(event, (AskedInRound, Replied, Failed)):
        # A round asks a device once, and hears of it once.
        return isinstance(event, AskedInRound), event.device, event.round
    return (*vars(event).values(), type(event))
