"""The tables of a lifetime's page.

Rules of this file:
    * Policies are columns, so that a row is one question with every policy's answer beside the others.
    * Intervals stand small under their figure; what was not measured is a dash, never a zero.
"""

from __future__ import annotations

import math
from collections import Counter
from html import escape
from typing import TYPE_CHECKING

from sim.lifetime.report.detection import alarms, found, shown_delay
from sim.report import words
from sim.report.markup import markup_table, swatch
from sim.report.words import Words
from sim.results import Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sim.lifetime.records import LifetimeRun
    from sim.lifetime.report.detection import Alarms, Found
    from sim.lifetime.report.devices import PartScore
    from sim.lifetime.report.headline import Headline
    from sim.results import Estimate

SAY = Words(Metric.ACCURACY, "")


def headline_table(heads: Sequence[Headline]) -> str:
    """Every headline figure of every policy."""
    head = '<th scope="col"></th>' + "".join(
        f'<th scope="col">{swatch(h.colour)}{escape(h.policy)}</th>' for h in heads
    )
    groups = (
        ("How good: oracle", _scores(heads)),
        ("Accuracy in parts of the life: oracle", _parts(heads)),
        ("What it did", _actions(heads)),
        ("What it cost", _costs(heads)),
    )
    body = "".join(
        f'<tr class="group"><th scope="rowgroup" colspan="{len(heads) + 1}">{name}</th></tr>{"".join(rows)}'
        for name, rows in groups
        if rows
    )
    return markup_table(head, body, "Headline figures of every policy")


def _row(name: str, what: str, cells: Sequence[str]) -> str:
    small = f" <span>{escape(what)}</span>" if what else ""
    return f'<tr><th scope="row">{escape(name)}{small}</th>{"".join(f"<td>{c}</td>" for c in cells)}</tr>'


def _scores(heads: Sequence[Headline]) -> list[str]:
    rows = [_row("Accuracy", "all scored rows", [f"<b>{_score(h.accuracy)}</b>" for h in heads])]
    if len(heads) > 1:
        first = heads[0].policy
        rows.append(_row(f"Above {first}", "paired by seed", [_change(h.change) for h in heads]))
    return [
        *rows,
        _row("Worst tenth of the devices", "accuracy over the life", [_score(h.worst_decile) for h in heads]),
        _row("Served by a bad model", "share of device-hours", [_score(h.bad_share) for h in heads]),
        _row("The same", "device-hours", [_number(h.bad_hours, _count) for h in heads]),
    ]


def _parts(heads: Sequence[Headline]) -> list[str]:
    names = dict.fromkeys(name for h in heads for name in h.segments)
    return [_row(name, "", [_score(h.segments.get(name)) for h in heads]) for name in names]


def _actions(heads: Sequence[Headline]) -> list[str]:
    named = (
        ("Retrains", "campaigns begun", "retrains"),
        ("Personal refreshes", "personal layers alone, on the devices", "personal_refreshes"),
        ("Deferred", "wanted, and put off", "deferred"),
        ("Promoted", "candidates that became champion", "promoted"),
        ("Rolled back", "candidates taken back", "rolled_back"),
    )
    return [_row(name, what, [_number(h.counts[key], _count) for h in heads]) for name, what, key in named]


def _costs(heads: Sequence[Headline]) -> list[str]:
    named: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
        ("Sent by devices", "updates and telemetry", "bytes_up", words.size),
        ("Sent to devices", "models", "bytes_down", words.size),
        ("Labels used", "that came back", "labels_used", _count),
        ("Simulated in", "wall time of one life", "wall_s", words.seconds),
    )
    rows = [
        _row(name, what, [_number(h.counts[key], show) for h in heads]) for name, what, key, show in named
    ]
    spent = ["no DP" if h.epsilon is None else _number(h.epsilon, words.significant) for h in heads]
    rows.insert(2, _row("Epsilon", "spent on released shared weights", spent))
    return rows


def _score(value: Estimate | None) -> str:
    if value is None:
        return words.DASH
    return SAY.score(value.value) + _small(SAY.interval(value))


def _change(value: Estimate | None) -> str:
    if value is None:
        return words.DASH
    sign = "+" if value.value >= 0 else words.MINUS
    return sign + SAY.difference(value.value) + _small(SAY.interval(value))


def _number(value: Estimate, show: Callable[[float], str]) -> str:
    if value.low is None or value.high is None or value.low == value.high:
        return show(value.value)
    return show(value.value) + _small(f"[{show(value.low)}, {show(value.high)}]")


def _count(value: float) -> str:
    """A mean of counts: a decimal only where it says something."""
    return words.count(round(value) if value >= 100 else value)


def _small(text: str) -> str:
    return f" <small>{text}</small>" if text else ""


def device_table(scores: Sequence[PartScore], heads: Sequence[Headline]) -> str:
    """Parts of the life over devices: every policy's accuracy, then the change since the first part."""
    head = '<th scope="col"></th>' + "".join(
        f'<th scope="col">{swatch(h.colour)}{escape(h.policy)}</th>' for h in heads
    )
    by_part = {(s.segment, s.policy): s for s in scores}
    names = list(dict.fromkeys(s.segment for s in scores))
    first, body = names[0], []
    for name in names:
        own = [by_part.get((name, h.policy)) for h in heads]
        body.append(_row(name, "", [_score(s.accuracy if s else None) for s in own]))
        if name != first:
            body.append(
                _row(f"since {first}", "paired by device", [_change(s.change if s else None) for s in own])
            )
    return markup_table(head, "".join(body), "Accuracy in parts of the life over devices")


def detection_table(run: LifetimeRun, heads: Sequence[Headline]) -> str:
    """Every kind of drift under every policy."""
    colours = {head.policy: head.colour for head in heads}
    names = ["Drift", "Policy", "Drifts", "Cost", "Noticed", "half within", "9 in 10 within"]
    names += ["Did harm", "Restored", "not restored", "half within", "9 in 10 within"]
    head = "".join(
        f'<th scope="col"{" class=left" if i == 1 else ""}>{name}</th>' for i, name in enumerate(names)
    )
    body, last = [], ""
    groups = Counter(item.kind for item in found(run))
    for item in found(run):
        first = f'<th scope="rowgroup" rowspan="{groups[item.kind]}">{escape(item.kind)}</th>'
        body.append(
            f'<tr>{first if item.kind != last else ""}<td class="left">{swatch(colours[item.policy])}{escape(item.policy)}</td>'
            f"<td>{item.num}</td><td>{_points(item.cost)}</td>{_detected(item)}</tr>"
        )
        last = item.kind
    return markup_table(head, "".join(body), "How drifts were noticed and mended")


def _detected(item: Found) -> str:
    cells = [_share(item.noticed), shown_delay(item.median_s), shown_delay(item.late_s), str(item.harmed)]
    if item.harmed:
        cells += [str(item.restored), str(item.censored), item.half.shown, item.late.shown]
    else:
        cells += [words.DASH] * 4
    return "".join(f"<td>{cell}</td>" for cell in cells)


def _points(cost: float) -> str:
    return SAY.difference(-cost) if math.isfinite(cost) else words.DASH


def _share(value: float) -> str:
    return f"{100 * value:.0f}{words.NBSP}%"


def alarm_table(run: LifetimeRun, heads: Sequence[Headline]) -> str:
    """False alarms of every policy."""
    colours = {head.policy: head.colour for head in heads}
    names = ("Policy", "False alarms", "Feature-years without drift", "Per feature and year")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{swatch(colours[item.policy])}{escape(item.policy)}</th><td>{item.num}</td>'
        f"<td>{words.significant(item.feature_years)}</td><td>{_rate(item)}</td></tr>"
        for item in alarms(run)
    )
    return markup_table(head, body, "False alarms of every policy")


def _rate(item: Alarms) -> str:
    if not item.feature_years:
        return "not measurable: a drift was always active"
    ends = f"[{words.significant(item.least)}, {words.significant(item.most)}]"
    return f"{words.significant(item.rate)}{_small(ends)}"
