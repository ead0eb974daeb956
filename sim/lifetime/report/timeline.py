"""A life's decisions as rows of a timeline: stretches and instants, read from its events.

Rules of this file:
    * A stretch ends where the next begins, and with the life; nothing is inferred that no event says.
    * Rows keep their order in every life, so that timelines of several policies can be read across.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.lifetime.chronicle import ALERTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sim.lifetime.records import Life, LifeEvent

_PHASES = {
    "created": "validation",
    "shadow_started": "shadow",
    "unfrozen": "shadow",
    "approval_asked": "approval",
    "canary_started": "canary",
    "ramp_started": "ramp",
    "frozen": "frozen",
    "de_escalation_started": "taking back",
    "rollback_started": "taking back",
}
_ENDS = ("champion", "rolled_back")
_MARKS = (
    ("alerts", ALERTS),
    ("put off", ("deferred",)),
    ("refreshes", ("personal_refresh",)),
    ("rolled back", ("rolled_back",)),
    ("safe mode", ("safe_mode",)),
)
ROWS = (
    "champion",
    "alerts",
    "put off",
    "refreshes",
    "training",
    "validation",
    "shadow",
    "approval",
    "canary",
    "ramp",
    "frozen",
    "taking back",
    "rolled back",
    "safe mode",
)
"""Rows of a timeline, from the top."""


@dataclass(frozen=True)
class Stretch:
    """Something that lasted.

    Attributes:
        start_at: Seconds.
        end_at: Seconds.
        label: Written on it; may be empty.
    """

    start_at: float
    end_at: float
    label: str = ""


@dataclass(frozen=True)
class Timeline:
    """One life's rows.

    Attributes:
        stretches: By row.
        marks: Instants by row, seconds.
    """

    stretches: dict[str, list[Stretch]]
    marks: dict[str, list[float]]

    @property
    def rows(self) -> list[str]:
        """Rows that hold something, from the top."""
        return [name for name in ROWS if self.stretches.get(name) or self.marks.get(name)]

    def count(self, row: str) -> int:
        """How much a row holds."""
        return len(self.stretches.get(row, ())) + len(self.marks.get(row, ()))


def timeline(life: Life, duration_s: float) -> Timeline:
    """The rows of one life."""
    events = sorted(life.events, key=lambda event: event.at)
    first = life.steps[0].champion if life.steps else -1
    changes = [(e.at, f"v{e.version}") for e in events if e.kind == "champion"]
    if changes and life.steps and life.steps[0].at >= changes[0][0]:
        first = -1  # the step's end already knows the first change
    begun = [(0.0, f"v{first}" if first >= 0 else ""), *changes]
    stretches = {
        "champion": _stretches([(at, "champion", label) for at, label in begun], duration_s),
        "training": _stretches(_training(events), duration_s),
    }
    phases = _stretches_by_row([*_phases(events)], duration_s)
    marks = {name: [e.at for e in events if e.kind in kinds] for name, kinds in _MARKS}
    return Timeline(stretches | phases, marks)


def _training(events: Sequence[LifeEvent]) -> list[tuple[float, str, str]]:
    """(instant, row or empty for an end, label)."""
    row = {"retrain": "training", "candidate": "", "no_candidate": ""}
    return [(e.at, row[e.kind], "") for e in events if e.kind in row]


def _phases(events: Sequence[LifeEvent]) -> Iterable[tuple[float, str, str]]:
    for e in events:
        if e.kind in _PHASES or e.kind in _ENDS:
            yield e.at, _PHASES.get(e.kind, ""), ""


def _stretches(changes: Sequence[tuple[float, str, str]], end_at: float) -> list[Stretch]:
    """One after the other, whatever their row."""
    return [found for row in _stretches_by_row(changes, end_at).values() for found in row]


def _stretches_by_row(changes: Sequence[tuple[float, str, str]], end_at: float) -> dict[str, list[Stretch]]:
    found: dict[str, list[Stretch]] = {}
    ends = [*(at for at, _, _ in changes[1:]), end_at][: len(changes)]
    for (at, row, label), end in zip(changes, ends, strict=True):
        if row:
            found.setdefault(row, []).append(Stretch(at, max(at, end), label))
    return found
