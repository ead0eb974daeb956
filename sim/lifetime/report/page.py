"""The page of a lifetime: the headline first, then what it rests on.

Rules of this file:
    * One file, no script, nothing fetched, as in `sim.report.page`.
    * What only a simulator knows is called oracle or truth, what is estimated an estimate, what is virtual virtual.
    * A section without data is left out: real data has no injected truth, and shows none.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from sim.lifetime.report.headline import headlines
from sim.lifetime.report.tables import headline_table
from sim.report.style import STYLE_SHEET

if TYPE_CHECKING:
    from sim.lifetime.records import LifetimeRun


def render_lifetime(run: LifetimeRun) -> str:
    """`report.html` of a lifetime.

    Args:
        run: Finished.

    Returns:
        A complete HTML document.
    """
    heads = headlines(run)
    sections = [f'<h2>Policies</h2><section class="panel">{headline_table(heads)}</section>']
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(run.experiment)} \u2013 fedretrain</title><style>{STYLE_SHEET}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )
