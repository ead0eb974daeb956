"""The page of a lifetime: the headline first, then what it rests on, then how to repeat it.

Rules of this file:
    * One file, no script, nothing fetched, as in `sim.report.page`.
    * What only a simulator knows is called oracle or truth, what is estimated an estimate, what is virtual virtual.
    * A section without data is left out: real data has no injected truth, and shows none.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from sim.lifetime.report import figures, watching
from sim.lifetime.report.devices import part_scores
from sim.lifetime.report.headline import privacy_scopes
from sim.lifetime.report.log import event_log
from sim.lifetime.report.reading import reading
from sim.lifetime.report.tables import SAY, alarm_table, detection_table, device_table, headline_table
from sim.lifetime.report.told import Told
from sim.report import words
from sim.report.markup import facts, figure
from sim.report.style import STYLE_SHEET, variable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sim.lifetime.records import LifetimeRun
    from sim.lifetime.report.headline import Headline
    from sim.report.figures import Figure

_SHEET = """
.headline td,.headline th{padding:5px 11px}
.headline tbody th span:not(.swatch){font-weight:400;color:var(--muted);font-size:12.5px;margin-left:6px}
tr.group th{padding-top:16px!important;color:var(--muted);font-weight:560;font-size:12.5px;border-top:0}
td.why{white-space:normal;min-width:300px}
.headline small{display:inline;margin-left:6px}.panel>p.foot{font-size:14px;color:var(--muted);max-width:110ch;margin-top:10px}
.panel details{margin:0 0 10px}.panel summary{font-size:14px}
.grid+.panel,.panel+.panel{margin-top:18px}
"""


def render_lifetime(run: LifetimeRun) -> str:
    """`report.html` of a lifetime.

    Args:
        run: Finished.

    Returns:
        A complete HTML document.
    """
    told = Told.of(run)
    sections = [
        f'<section class="cards" aria-label="Headline">{"".join(_cards(told))}</section>',
        _reading(told),
        f'<h2>Policies</h2><section class="panel headline">{headline_table(told.heads)}{_scopes(run)}</section>',
        _figures(
            "Accuracy over time", told, (figures.accuracy, figures.worst, figures.badly, figures.epsilon)
        ),
        _devices(told),
        _figures("Decisions", told, (watching.decisions,)),
        _figures("What monitors saw", told, (watching.shift, watching.beliefs)),
        _detection(told),
        _log(told),
        _caveats(run),
        _provenance(run),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(run.experiment)} \u2013 fedretrain</title><style>{STYLE_SHEET}{_SHEET}</style></head>"
        f"<body>{_header(run)}<main>{''.join(sections)}</main>{_footer(run)}</body></html>\n"
    )


def _scopes(run: LifetimeRun) -> str:
    """Beside each epsilon: whom it protects and what it covers."""
    return "".join(f'<p class="foot">{escape(text)}</p>' for text in privacy_scopes(run))


def _header(run: LifetimeRun) -> str:
    real = run.num_devices - run.num_virtual
    fleet = [f"<b>{real:,}</b> real"] if real else []
    fleet += [f"<b>{run.num_virtual:,}</b> virtual"] if run.num_virtual else []
    unit_s, unit = words.time_unit(run.duration_s)
    plural = [f"<b>{len(run.policies)}</b> polic{'y' if len(run.policies) == 1 else 'ies'}"]
    plural += [f"<b>{len(run.seeds)}</b> seed{'' if len(run.seeds) == 1 else 's'}"]
    return (
        f'<header><h1>{escape(run.experiment)}</h1><p class="sub">A fleet of {" and ".join(fleet)} devices that lived '
        f"<b>{words.count(run.duration_s / unit_s)}</b> {unit} of virtual time under {' with '.join(plural)} · "
        f"simulated in {words.seconds(run.seconds)}</p></header>"
    )


def _cards(told: Told) -> Iterator[str]:
    for head in told.heads:
        counts = head.counts
        shown = {
            "worst tenth of the devices": SAY.score(head.worst_decile.value),
            "served by a bad model": SAY.score(head.bad_share.value),
            "retrains": words.count(counts["retrains"].value),
            "promoted, rolled back": f"{words.count(counts['promoted'].value)}, {words.count(counts['rolled_back'].value)}",
        }
        rows = "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in shown.items())
        interval = SAY.interval(head.accuracy)
        mean = f"95{words.NBSP}% interval {interval}" if interval else "one seed, no interval"
        yield (
            f'<article class="card" style="--arm:{variable(head.colour)}"><div class="name">{escape(head.policy)}</div>'
            f'<div class="what">{escape(told.run.metric)}, oracle</div>'
            f'<div class="big">{SAY.score(head.accuracy.value)}</div><div class="int">{mean}</div><dl>{rows}</dl></article>'
        )


def _reading(told: Told) -> str:
    paragraphs = "".join(f"<p>{text}</p>" for text in reading(told.run, told.heads))
    num = len(told.run.seeds)
    over = (
        f"Intervals are 95{words.NBSP}%: Student\u2019s t over {num} seeds, differences paired by seed; every policy lived on the same fleets."
        if num > 1
        else "One seed: no intervals, and nothing is said about another run\u2019s luck."
    )
    made = " Virtual devices are made from real signals or generated." if told.run.num_virtual else ""
    small = (
        f"{over} Accuracy is the oracle\u2019s: true labels of every row, which no server would have.{made}"
    )
    return f'<section class="panel reading" aria-label="Reading">{paragraphs}<p class="small">{small}</p></section>'


def _figures(title: str, told: Told, makers: tuple[Callable[[Told], Figure | None], ...]) -> str:
    made = [item for maker in makers if told.heads and (item := maker(told)) is not None]
    grid = "".join(figure(item) for item in made)
    return f'<h2>{title}</h2><div class="grid">{grid}</div>' if made else ""


def _devices(told: Told) -> str:
    """Parts of the life with the device as the unit; a fleet too small for intervals has none."""
    scores = part_scores(told.run)
    if not any(score.accuracy.low is not None for score in scores):
        return ""
    num = max(score.accuracy.num for score in scores)
    over = "each device\u2019s mean over the seeds, then " if len(told.run.seeds) > 1 else ""
    note = (
        f'<p class="foot">The unit is the device: {over}the mean over {words.count(num)} devices with a 95{words.NBSP}% bootstrap interval over '
        "them. It says how much another draw of devices would move a figure, and nothing about another run\u2019s luck.</p>"
    )
    return f'<h2>Parts of the life, over devices</h2><section class="panel headline">{device_table(scores, told.heads)}{note}</section>'


def _detection(told: Told) -> str:
    """Only where something was injected: real data has no truth."""
    run = told.run
    if not any(life.detections for life in run.lives):
        return ""
    note = (
        '<p class="foot">The first alert after an onset counts, whatever raised it: alerts are not attributed to drifts. A drift that was never '
        "noticed counts as infinitely late. Cost: accuracy of the hit devices from the onset on, for as long as it was watched, less that of the week before. Restored: of the drifts that did harm, those after which few of the hit devices were badly served "
        "before the drift ended by itself or the next one began. The others are censored there and count as later than all that were "
        "restored: \u201cover\u201d stands before a time that is only known to be longer. Every drift of every seed counts. False alarms are drift alerts in the time in which no injected drift was active; their "
        f"intervals are 95{words.NBSP}% for a Poisson count.</p>"
    )
    tables = f'<section class="panel">{detection_table(run, told.heads)}</section><section class="panel">{alarm_table(run, told.heads)}{note}</section>'
    return _figures("Drifts, noticed and mended", told, (watching.delays,)) + tables


def _log(told: Told) -> str:
    if not any(life.events for life in told.run.lives):
        return ""
    first = [(head, told.lives[head.policy][0]) for head in told.heads]
    logs = "".join(
        event_log(life, variable(head.colour), is_open=_is_featured(head, told)) for head, life in first
    )
    return f'<h2>What happened, and why</h2><section class="panel">{logs}</section>'


def _is_featured(head: Headline, told: Told) -> bool:
    return head.policy == told.featured.policy


def _caveats(run: LifetimeRun) -> str:
    if not run.caveats:
        return ""
    items = "".join(f"<li>{escape(caveat)}</li>" for caveat in run.caveats)
    return f'<h2>Before you quote a figure</h2><section class="note"><ul>{items}</ul></section>'


def _provenance(run: LifetimeRun) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    policies = [f"{name}: {digest}" for name, digest in run.policy_digest.items()]
    lives = [f"{s.policy}, seed {s.seed}: {s.digest}" for s in (life.summary for life in run.lives)]
    items = {
        "Software": escape(versions),
        "Seeds": escape(", ".join(map(str, run.seeds))),
        "Step of the clock": words.seconds(run.slot_s),
        "Policies": "<br>".join(f"<code>{escape(text)}</code>" for text in policies),
        "Event logs": "<br>".join(f"<code>{escape(text)}</code>" for text in lives),
    }
    return f'<h2>To repeat it</h2><section class="panel">{facts(items)}</section>'


def _footer(run: LifetimeRun) -> str:
    version = escape(run.versions.get("fedretrain", ""))
    return f"<footer>Written by fedretrain {version}. Nothing here was fetched from a network.</footer>"
