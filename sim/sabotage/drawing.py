"""The figure of a run of sabotage: how far each candidate came.

Rules of this file:
    * One row for each case, one dot for each seed; a dot stands at the last place that the candidate reached before its fate was decided.
    * What ended as it should is told from what did not by shape as well as by colour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sim.report.figures import Figure
from sim.report.plots import new_figure
from sim.report.style import SERIES
from sim.sabotage.records import Ended

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.sabotage.records import CaseOutcome

PLACES = ("training", "validation", "shadow", "canary", "ramp", "promoted")
_PLACE_OF = {
    "": "training",
    "pending": "validation",
    "shadow": "shadow",
    "canary": "canary",
    "ramp": "ramp",
    "champion": "promoted",
}
_RIGHT, _WRONG = SERIES[3], SERIES[2]
_ROW_IN = 0.23  # inches


def place(one: CaseOutcome) -> str:
    """The last place that a candidate reached."""
    if one.ended == Ended.PROMOTED:
        return "promoted"
    return _PLACE_OF[one.phase]


def how_far(found: Sequence[CaseOutcome]) -> Figure:
    """How far each candidate came, by case."""
    cases = list(dict.fromkeys(one.case for one in found))
    rows = []
    for case in cases:
        mine = [place(one) for one in found if one.case == case]
        rows.append((case, *(str(mine.count(name) or "") for name in PLACES)))
    return Figure(
        name="places",
        title="How far each candidate came",
        says="A dot is one seed, at the last place that the candidate reached before it was promoted, taken back, or the horizon was over.",
        plot=lambda: _draw(found, cases),
        legend=(
            (_RIGHT, "box", "as wanted"),
            (_WRONG, "box", "not as wanted (cross)"),
        ),
        header=("Case", *(name.capitalize() for name in PLACES)),
        rows=tuple(rows),
        wide=True,
    )


def _draw(found: Sequence[CaseOutcome], cases: list[str]) -> Any:
    figure, axes = new_figure((10.6, 0.8 + _ROW_IN * len(cases)))
    axis = axes[0, 0]
    for row, case in enumerate(cases):
        mine = [one for one in found if one.case == case]
        for name in PLACES:
            here = [one for one in mine if place(one) == name]
            apart = (np.arange(len(here)) - (len(here) - 1) / 2) * 0.07
            for one, shift in zip(here, apart.tolist(), strict=True):
                colour = _RIGHT if one.as_wanted else _WRONG
                mark = "o" if one.as_wanted else "X"
                axis.plot(PLACES.index(name) + shift, row, mark, color=colour, markersize=5)
    axis.set_yticks(range(len(cases)), cases)
    axis.set_xticks(range(len(PLACES)), PLACES)
    axis.set_xlim(-0.5, len(PLACES) - 0.5)
    axis.set_ylim(len(cases) - 0.4, -0.6)
    axis.grid(visible=True, axis="y", linewidth=0.4)
    return figure
