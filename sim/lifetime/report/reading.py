"""What a lifetime comes to, in a few sentences.

Rules of this file:
    * A difference between policies is claimed only where its paired interval excludes zero.
    * Every sentence is markup: whatever comes from outside is escaped here.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from sim.lifetime.report.headline import featured
from sim.report import words
from sim.report.words import Words
from sim.results import Metric

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.lifetime.records import LifetimeRun
    from sim.lifetime.report.headline import Headline

_SAY = Words(Metric.ACCURACY, "")


def reading(run: LifetimeRun, heads: Sequence[Headline]) -> list[str]:
    """Paragraphs, the most important first."""
    if not heads:
        return ["No policy has lived."]
    best = featured(list(heads))
    if not math.isfinite(best.accuracy.value):
        return ["No prediction of this run was scored."]
    said = [_best(best, heads), _differences(heads), _effort(heads)]
    return [text for text in (*said, _noticed(run)) if text]


def _best(best: Headline, heads: Sequence[Headline]) -> str:
    bad = ""
    if math.isfinite(best.bad_share.value):
        bad = f"; {_SAY.score(best.bad_share.value)} of all device-hours were served by a bad model"
    who = "Most accurate was" if len(heads) > 1 else "One policy lived,"
    return f"{who} <b>{escape(best.policy)}</b>: {_SAY.score(best.accuracy.value)} of its predictions were right{bad}."


def _differences(heads: Sequence[Headline]) -> str:
    """Every other policy against the first."""
    return " ".join(_difference(head, heads[0]) for head in heads[1:] if head.change is not None)


def _difference(head: Headline, first: Headline) -> str:
    change = head.change
    assert change is not None
    name, base = f"<b>{escape(head.policy)}</b>", escape(first.policy)
    if not math.isfinite(change.value):
        return f"{name} cannot be compared with {base}."
    if change.low is None or change.high is None:
        return f"{name} was {_SAY.change(change.value)} than {base} (one seed: no interval)."
    ends = f"95{words.NBSP}% interval {_SAY.change_interval(change)}"
    if change.low <= 0 <= change.high:
        return f"This run cannot tell {name} from {base} ({ends})."
    return f"{name} was {_SAY.change(change.value)} than {base} ({ends})."


def _effort(heads: Sequence[Headline]) -> str:
    parts = [_retrained(head) for head in heads if head.counts["retrains"].value > 0]
    return f"Retrains: {words.listing(parts)}." if parts else "No policy retrained."


def _retrained(head: Headline) -> str:
    counts = head.counts
    fates = f"{words.count(counts['promoted'].value)} promoted, {words.count(counts['rolled_back'].value)} rolled back"
    return f"{escape(head.policy)} {words.count(counts['retrains'].value)} ({fates})"


def _noticed(run: LifetimeRun) -> str:
    parts = []
    for policy in run.policies:
        own = [d for life in run.lives if life.summary.policy == policy for d in life.detections]
        if own:
            parts.append(
                f"{escape(policy)} {sum(math.isfinite(d.detected_after_s) for d in own)} of {len(own)}"
            )
    return f"Injected drifts after whose onset an alert came: {words.listing(parts)}." if parts else ""
