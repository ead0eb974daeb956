"""Small pieces of HTML: everything from outside is escaped here, or was in `reading`."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from sim.report.style import drawing, inline_svg, variable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sim.report.figures import Figure


def swatch(colour: str) -> str:
    """A small square in an arm's colour."""
    return f'<span class="swatch" style="--s:{variable(colour)}"></span>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table of plain text; the first column names the row."""
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(c)}</td>" for c in row[1:])}</tr>'
        for row in rows
    )
    return markup_table(head, body, caption)


def markup_table(head: str, body: str, caption: str) -> str:
    """A table of ready markup, which scrolls by itself on a narrow screen."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def figure(item: Figure) -> str:
    """A figure with its sentence, legend, plot and table."""
    kinds = {"line": "", "dash": "dash", "box": "box"}
    legend = "".join(
        f'<li><i class="{kinds[kind]}" style="--s:{variable(colour)}"></i>{escape(name)}</li>'
        for colour, kind, name in item.legend
    )
    with drawing():
        plot = inline_svg(item.plot(), item.name, item.title, item.says)
    numbers = f"<details><summary>Numbers</summary>{table(item.header, item.rows, item.title)}</details>"
    return (
        f'<figure id="{item.name}"{" class=wide" if item.wide else ""}><figcaption><h3>{escape(item.title)}</h3>'
        f"<p>{escape(item.says)}</p></figcaption>{f'<ul class=legend>{legend}</ul>' if legend else ''}"
        f'<div class="plot">{plot}</div>{numbers if item.rows else ""}</figure>'
    )


def facts(items: Mapping[str, str]) -> str:
    """Names and values; values are ready markup."""
    pairs = "".join(f"<dt>{escape(k)}</dt><dd>{v}</dd>" for k, v in items.items())
    return f'<dl class="facts">{pairs}</dl>'
