"""How the report looks: colours, style sheet, and matplotlib's SVG made to follow both.

Rules of this file:
    * Colours are CSS variables, so one drawing serves the light page, the dark page and paper. matplotlib draws with
      the light colours; `inline_svg` replaces each by its variable.
    * The series colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/), told apart by every kind of colour
      vision; the first, for a baseline, is a grey. Every series is also labelled where it is drawn.
    * Text stays text and takes the page's font: small, searchable, read aloud.
"""

from __future__ import annotations

import contextlib
import io
import re
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

INK, MUTED, LINE, PAPER = "#1b2430", "#5b6673", "#dfe4ea", "#fefeff"
SERIES = ("#6e7a87", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b")
SERIES_DARK = ("#a3afbb", "#56b4e9", "#ff8a3d", "#2fcf9f", "#e9a3c9", "#f0c242")
QUIET = "#cfe3f2"  # the unremarkable part of a stack
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", PAPER: "--paper", QUIET: "--quiet"} | {
    colour: f"--c{i}" for i, colour in enumerate(SERIES)
}


def arm_colours(num_arms: int) -> list[str]:
    """A colour for each arm, for matplotlib: the first of several is the baseline, in grey."""
    first = 0 if num_arms > 1 else 1
    return [SERIES[(first + i) % len(SERIES)] for i in range(num_arms)]


def variable(colour: str) -> str:
    """The CSS variable of one of matplotlib's colours.

    Raises:
        KeyError: If the colour is none of this file's, and so would not follow the page.
    """
    return f"var({_VARIABLES[colour]})"


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Set matplotlib up while a figure is drawn and saved."""
    import matplotlib as mpl

    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "fedretrain",
        "font.family": "sans-serif",
        "text.parse_math": False,  # an arm may be called $x$
        "font.size": 8.5,
        "axes.edgecolor": LINE,
        "axes.labelcolor": MUTED,
        "axes.titlecolor": INK,
        "axes.titlesize": 8.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.xmargin": 0.015,
        "grid.color": LINE,
        "grid.linewidth": 0.7,
        "text.color": INK,
        "xtick.color": LINE,
        "xtick.labelcolor": MUTED,
        "ytick.color": LINE,
        "ytick.labelcolor": MUTED,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "lines.linewidth": 1.7,
        "lines.solid_capstyle": "round",
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.transparent": True,
    }
    with mpl.rc_context(settings):
        yield


def inline_svg(figure: Any, name: str, title: str, description: str) -> str:
    """A figure as an SVG element that can stand in a page beside others.

    Args:
        figure: A matplotlib figure, saved within `drawing`.
        name: Prefix of every id, unique on the page.
        title: What it shows, for whoever cannot see it.
        description: What it says, likewise.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font: \1 var(--font)", svg)
    for colour, variable in _VARIABLES.items():
        svg = re.sub(re.escape(colour), f"var({variable})", svg, flags=re.IGNORECASE)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    labels = f'role="img" aria-labelledby="{name}-t {name}-d"'
    head = f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(description)}</desc>'
    return re.sub(r"<svg ([^>]*)>", rf"<svg {labels} \1>{head.replace(chr(92), '')}", svg, count=1).strip()


def _theme(colours: tuple[str, ...], **named: str) -> str:
    series = "".join(f"--c{i}:{colour};" for i, colour in enumerate(colours))
    return series + "".join(f"--{name}:{colour};" for name, colour in named.items())


_LIGHT = _theme(
    SERIES,
    ink=INK,
    muted=MUTED,
    line=LINE,
    paper="#ffffff",
    page="#f5f7f9",
    quiet=QUIET,
    note="#fff8e6",
    edge="#e9b949",
)
_DARK = _theme(
    SERIES_DARK,
    ink="#e8edf2",
    muted="#9aa7b4",
    line="#2c3641",
    paper="#171d24",
    page="#0f1419",
    quiet="#2f4a60",
    note="#2a2415",
    edge="#b98d2b",
)

_VARIABLE_SHEET = f"""
:root{{{_LIGHT}--font:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;color-scheme:light dark}}
@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}
@media print{{:root{{{_LIGHT}color-scheme:light}}}}
"""

_LAYOUT_SHEET = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 var(--font);-webkit-font-smoothing:antialiased}
main,header,footer{max-width:1140px;margin:0 auto;padding:0 24px}
header{padding-top:40px}
h1{font-size:30px;line-height:1.2;margin:0 0 6px;letter-spacing:-.015em}
h2{font-size:20px;margin:44px 0 14px;letter-spacing:-.01em}
h3{font-size:15.5px;line-height:1.35;margin:0}
p{margin:0 0 12px}
.sub{color:var(--muted);font-size:14.5px;margin:0}
.sub b{color:var(--ink);font-weight:600}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(230px,1fr));gap:16px;margin:28px 0 18px}
.card,figure,.panel{background:var(--paper);border:1px solid var(--line);border-radius:12px}
.card{padding:18px 20px 16px;border-top:4px solid var(--arm)}
.card .name{font-weight:650;font-size:15px}
.card .what{color:var(--muted);font-size:13px}
.card .big{font-size:40px;line-height:1.1;font-weight:680;letter-spacing:-.03em;margin:12px 0 2px;font-variant-numeric:tabular-nums}
.card .int{color:var(--muted);font-size:13px;min-height:1.55em}
.card dl{display:grid;grid-template-columns:1fr auto;gap:2px 12px;margin:12px 0 0;padding-top:10px;border-top:1px solid var(--line);font-size:13.5px}
.card dt{color:var(--muted)}
.card dd{margin:0;text-align:right;font-variant-numeric:tabular-nums;font-weight:560}
.panel{padding:20px 24px 10px}
.reading p{font-size:17px;line-height:1.6;max-width:86ch}
.reading p.small{font-size:14px;color:var(--muted)}
.grid{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:18px}
figure{margin:0;padding:18px 20px 12px;min-width:0;display:flex;flex-direction:column}
figure.wide{grid-column:1/-1}
figcaption{margin-bottom:6px}
figcaption p{color:var(--muted);font-size:13.5px;line-height:1.45;margin:3px 0 0}
.legend{display:flex;flex-wrap:wrap;gap:3px 16px;margin:8px 0 4px;padding:0;list-style:none;font-size:12.5px;color:var(--muted)}
.legend i{display:inline-block;width:18px;height:0;border-top:3px solid var(--s);vertical-align:middle;margin-right:6px;border-radius:2px}
.legend i.box{height:11px;width:11px;border:0;background:var(--s);border-radius:2px;vertical-align:-1px}
.legend i.dash{border-top-style:dotted}
.plot{margin-top:auto;overflow-x:auto}
.plot svg{display:block;width:100%;height:auto}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{padding:7px 11px;text-align:right;border-top:1px solid var(--line);white-space:nowrap;vertical-align:top}
th:first-child,td:first-child,.left{text-align:left}
thead th{border-top:0;white-space:normal;color:var(--muted);font-weight:560;font-size:12.5px;vertical-align:bottom}
tbody th{font-weight:600}
td small,th small{color:var(--muted);font-size:12px;display:block;font-weight:400}
.swatch{display:inline-block;width:10px;height:10px;border-radius:3px;background:var(--s);margin-right:8px}
tr.soft td:not([rowspan]){color:var(--muted)}
details{margin-top:10px;font-size:13.5px}
summary{cursor:pointer;color:var(--muted);font-size:12.5px;padding:2px 0}
summary:hover,summary:focus-visible{color:var(--ink)}
.note{background:var(--note);border:1px solid var(--edge);border-radius:12px;padding:14px 20px 6px;margin:16px 0}
.note ul,.panel ul{margin:0 0 8px;padding-left:20px}
.note li{margin-bottom:4px}
pre{overflow:auto;max-height:480px;background:var(--page);border:1px solid var(--line);border-radius:8px;padding:14px;font:12.5px/1.5 ui-monospace,"SF Mono",Menlo,Consolas,monospace}
code{font:.88em ui-monospace,"SF Mono",Menlo,Consolas,monospace;overflow-wrap:anywhere}
dl.facts{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:5px 22px;margin:4px 0 12px;font-size:14px}
dl.facts dt{color:var(--muted)}dl.facts dd{margin:0}
footer{color:var(--muted);font-size:12.5px;padding-top:26px;padding-bottom:48px}
@media (max-width:780px){figure.wide .plot svg{min-width:660px}.grid{grid-template-columns:minmax(0,1fr)}.panel{padding:16px 16px 6px}dl.facts{grid-template-columns:1fr}dl.facts dd{margin-bottom:6px}}
@media print{body{background:#fff;font-size:12px}figure,.card,.panel,tr{break-inside:avoid}h2{break-after:avoid}pre{max-height:none}main,header,footer{max-width:none}}
"""

STYLE_SHEET = _VARIABLE_SHEET + _LAYOUT_SHEET
"""The whole style sheet."""
