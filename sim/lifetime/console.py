"""What a finished lifetime says on the terminal: a table of policies, what people were warned of, and where to look."""

from __future__ import annotations

import math
import re
import sys
from typing import TYPE_CHECKING, TextIO

from sim.lifetime.report.detection import found, shown_delay
from sim.lifetime.report.devices import part_scores
from sim.lifetime.report.headline import headlines, privacy_scopes
from sim.report.words import DASH, Words, count, significant, size
from sim.results import Metric

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.lifetime.records import LifeEvent, LifetimeRun
    from sim.lifetime.report.detection import Found
    from sim.lifetime.report.headline import Headline
    from sim.outputs import RunFolder
    from sim.results import Estimate

_SAY = Words(Metric.ACCURACY, "")
_HEADER = (
    "policy",
    "accuracy",
    "worst tenth",
    "badly served",
    "retrains",
    "refreshes",
    "promoted",
    "rolled back",
    "up",
    "down",
    "labels",
    "epsilon",
)
_MENDED = (
    "drift",
    "policy",
    "onsets",
    "noticed, half in",
    "harmful",
    "restored",
    "not restored",
    "onset to restored, half",
    "9 in 10",
)
"""Not restored: not before the drift ended by itself or the next one began; later than all that were."""


def announce(run: LifetimeRun, folder: RunFolder, out: TextIO | None = None) -> None:
    """Print the run's table.

    Args:
        run: Finished.
        folder: Where it was written.
        out: Standard output if not given.
    """
    to = out or sys.stdout
    heads = headlines(run)
    private = any(head.epsilon for head in heads)
    rows = [_HEADER, *(_row(head) for head in heads)]
    to.write(f"\n{_aligned([row if private else row[:-1] for row in rows])}\n")
    for line in _notes(run):
        to.write(f"{line}\n")
    if mended := [_mended(item) for item in found(run)]:
        to.write(f"\n{_aligned([_MENDED, *mended])}\n")
    to.write(f"report   {folder.path / 'report.html'}\nsummary  {folder.path / 'summary.json'}\n")


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of cells, columns below each other."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"
        for row in rows
    )


def _mended(item: Found) -> tuple[str, ...]:
    """How one kind of drift was noticed and mended under one policy."""
    times = (item.half.shown, item.late.shown) if item.harmed else (DASH, DASH)
    seen = str(round(item.noticed * item.num))
    if math.isfinite(item.median_s):
        seen += f", {shown_delay(item.median_s)}"
    counts = (str(item.num), seen, str(item.harmed), str(item.restored), str(item.censored))
    return (item.kind, item.policy, *counts, *times)


def _row(head: Headline) -> tuple[str, ...]:
    counts = head.counts
    numbers = [
        count(counts[name].value) for name in ("retrains", "personal_refreshes", "promoted", "rolled_back")
    ]
    return (
        head.policy,
        _score(head.accuracy),
        _score(head.worst_decile),
        _score(head.bad_share),
        *numbers,
        size(counts["bytes_up"].value),
        size(counts["bytes_down"].value),
        count(counts["labels_used"].value),
        "no DP" if head.epsilon is None else significant(head.epsilon.value),
    )


def _score(value: Estimate) -> str:
    return f"{_SAY.score(value.value)} {_SAY.interval(value)}".rstrip()


def _notes(run: LifetimeRun) -> list[str]:
    """What the table rests on, and how drifts were noticed where any was injected."""
    seeds = len(run.seeds)
    days = run.duration_s / 86_400
    over = f"mean of {seeds} seeds with 95 % intervals" if seeds > 1 else "one seed, so no intervals"
    virtual = f", {count(run.num_virtual)} of them virtual" if run.num_virtual else ""
    notes = [
        f"{count(run.num_devices)} devices{virtual}, {count(days)} days; {over}. Accuracy is the simulator's oracle."
    ]
    notes += privacy_scopes(run)
    notes += [line for policy in run.policies for line in _warned(run, policy)]
    if run.truth:
        notes += [_noticed(run, policy) for policy in run.policies]
    return notes + _parts(run)


def _parts(run: LifetimeRun) -> list[str]:
    """Each policy in each part of the life, where there are devices enough for an interval over them."""
    scores = [score for score in part_scores(run) if score.accuracy.low is not None]
    by_policy = {policy: [s for s in scores if s.policy == policy] for policy in run.policies}
    return [
        f"{policy}, over {count(own[0].accuracy.num)} devices: "
        + "; ".join(f"{score.segment} {_score(score.accuracy)}" for score in own)
        for policy, own in by_policy.items()
        if own
    ]


_FIGURE = re.compile(r"\d+\.\d+(?:e-?\d+)?%?")
_PLACE = re.compile(r"at (site|device type) \d+")


def _warned(run: LifetimeRun, policy: str) -> list[str]:
    """What a policy's rollouts could not do, as was said before each of them started.

    Warnings that differ in their figures or their place alone are one line, with each figure from its least to its greatest.
    """
    told = [
        (life.summary.seed, e) for life in run.lives if life.summary.policy == policy for e in life.events
    ]
    rollouts = sum(event.kind == "created" for _, event in told)
    alike: dict[str, list[tuple[int, LifeEvent]]] = {}
    for seed, event in told:
        if event.kind == "warned":
            shape = _PLACE.sub(r"at \1", _FIGURE.sub("#", event.text))
            alike.setdefault(shape, []).append((seed, event))
    return [
        f"{policy}: {_together([event.text for _, event in found])} "
        f"({len({(seed, event.at) for seed, event in found})} of {rollouts} rollouts)"
        for found in alike.values()
    ]


def _together(texts: list[str]) -> str:
    """The first of texts that are alike, with the range of each figure, and how many places where there are several."""
    columns = zip(*(_FIGURE.findall(text) for text in texts), strict=True)
    ranges = iter([_range(list(column)) for column in columns])
    text = _FIGURE.sub(lambda _: next(ranges), texts[0])
    places = {match[0] for each in texts if (match := _PLACE.search(each))}
    return text if len(places) < 2 else _PLACE.sub(lambda match: f"at {len(places)} {match[1]}s", text)


def _range(figures: list[str]) -> str:
    ordered = sorted(figures, key=lambda figure: float(figure.rstrip("%")))
    return ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0]} to {ordered[-1]}"


def _noticed(run: LifetimeRun, policy: str) -> str:
    lives = [life for life in run.lives if life.summary.policy == policy]
    drifts = [d for life in lives for d in life.detections]
    seen = sum(math.isfinite(d.detected_after_s) for d in drifts)
    alarms = sum(life.summary.false_alarms for life in lives)
    years = sum(life.summary.feature_years for life in lives)
    rate = (
        f"{alarms} false alarms in {significant(years)} feature-years" if years else "no time without drift"
    )
    return f"{policy}: noticed {seen} of {len(drifts)} injected drifts, {rate}"
