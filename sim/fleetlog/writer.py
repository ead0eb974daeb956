"""Writes a fleet's event log.

Rules of this file:
    * Events are written in the order of their instants, those of one instant in the order given.
    * A log is written beside its place and renamed: a reader sees all of it or none.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from sim.fleetlog.format import FORMAT, KINDS, VERSION
from sim.outputs import disk_errors

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sim.fleetlog.format import Event, Header

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
        UserError: If the disk refuses it.
    """
    partial = path.with_name(f".{path.name}.partial")
    digest = hashlib.sha256()
    with disk_errors(path):
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
