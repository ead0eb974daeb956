"""Draws the state machine from its table, for the documentation.

Rules of this file:
    * Nothing here knows a phase or an event by name: what is drawn is `TRANSITIONS`, so a picture cannot be older than the code.
    * Events that never lead from one phase to another are listed in the table below the picture, not drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.rollout.causes import Phase
from fedretrain.rollout.transitions import TRANSITIONS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fedretrain.rollout.transitions import Guard, Transition

_HEAD = """# The rollout's state machine

Written by `fedretrain.rollout.diagram.document()` from the table in `fedretrain/rollout/transitions.py`; a test compares.
The picture shows the moves, the table below it all events and what guards them.
"""


def mermaid(rows: Iterable[Transition] = TRANSITIONS) -> str:
    """A Mermaid state diagram: one arrow for each pair of phases, labelled with the events that take it."""
    rows = list(rows)
    moving = {row.kind for row in rows if row.source is not row.target}
    arrows: dict[tuple[Phase, Phase], list[str]] = {}
    for row in rows:
        if row.kind in moving:
            arrows.setdefault((row.source, row.target), []).append(row.kind.value)
    lines = [
        f"    {a.value} --> {b.value}: {', '.join(dict.fromkeys(kinds))}" for (a, b), kinds in arrows.items()
    ]
    left = {row.source for row in rows if row.source is not row.target}
    ends = [f"    {phase.value} --> [*]" for phase in Phase if phase not in left]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {next(iter(Phase)).value}", *lines, *ends])


def table(rows: Iterable[Transition] = TRANSITIONS) -> str:
    """A Markdown table: one line for each row."""
    lines = ["| in | event | leads to | only if |", "|---|---|---|---|"]
    for row in rows:
        guards = "; ".join(_says(guard) for guard in row.guards)
        to = row.target.value if row.target is not row.source else "the same"
        lines.append(f"| {row.source.value} | {row.kind.value} | {to} | {guards} |")
    return "\n".join(lines)


def document() -> str:
    """The whole page."""
    return f"{_HEAD}\n```mermaid\n{mermaid()}\n```\n\n{table()}\n"


def _says(guard: Guard) -> str:
    """A guard in its own words."""
    words = (guard.__doc__ or "").strip().splitlines()[0].rstrip(".")
    return words[0].lower() + words[1:]
