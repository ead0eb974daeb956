"""The page of a run of sabotage: what was done, what became of it, and how long harm was served.

Rules of this file:
    * One file, no script, nothing fetched, as in `sim.report.page`.
    * What only the oracle knows is called so.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from sim.report.markup import figure, table
from sim.report.style import STYLE_SHEET
from sim.sabotage.drawing import how_far

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.sabotage.records import CaseOutcome

_HEAD = (
    "Candidate",
    "Seed",
    "Wanted",
    "Became",
    "By",
    "Days",
    "Device-hours served",
    "Effect (oracle)",
    "Worst site (oracle)",
    "Reason",
)


# Words wrap, so that what stopped a candidate stands on the page without scrolling.
_SHEET = """
.cases th:nth-child(5),.cases th:last-child,.cases tbody th,.cases td:nth-child(5),.cases td:last-child{text-align:left}
.cases tbody th,.cases td:nth-child(4),.cases td:nth-child(5),.cases td:last-child{white-space:normal}
.cases tbody th{min-width:180px}.cases td:nth-child(5),.cases td:last-child{min-width:150px}
"""


def render_sabotage(found: Sequence[CaseOutcome]) -> str:
    """`report.html` of a run of sabotage: a complete HTML document."""
    caption = "Effect: accuracy of the candidate minus the champion's on the same rows, in points"
    body = table(_HEAD, [_row(one) for one in found], caption)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>sabotage</title>'
        f"<style>{STYLE_SHEET}{_SHEET}</style></head><body><main><h1>sabotage</h1>"
        f'<section class="panel"><p>{escape(verdict(found))}</p></section>'
        f'<h2>Places</h2><div class="grid">{figure(how_far(found))}</div>'
        f'<h2>Candidates</h2><section class="panel cases">{body}</section></main></body></html>'
    )


def verdict(found: Sequence[CaseOutcome]) -> str:
    """One line: how many ended as they should, and by name those that did not."""
    said = f"{sum(one.as_wanted for one in found)} of {len(found)} ended as they should"
    cases = sorted({one.case for one in found if not one.as_wanted})
    return f"{said}; NOT AS WANTED: {', '.join(cases)}" if cases else said


def _row(one: CaseOutcome) -> tuple[str, ...]:
    mark = "" if one.as_wanted else " (not as wanted)"
    return (
        one.title,
        str(one.seed),
        one.wanted,
        one.ended + mark,
        one.stopped_by or "-",
        f"{one.days:.1f}",
        f"{100 * one.exposure:.2f} %",
        f"{100 * one.effect:+.1f}",
        f"{100 * one.worst_site_effect:+.1f}",
        one.reason,
    )
