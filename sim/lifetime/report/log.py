"""The event log on the page: what mattered most, in the order in which it happened.

Rules of this file:
    * Of a long life the most important events are kept, and of equally important ones the latest; the page says of how many.
    * An event's reason is shown as it was written; numbers that it does not mention stand small below it.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from fedretrain.core.clock import DAY_S
from sim.report import words
from sim.report.markup import markup_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.lifetime.records import Life, LifeEvent

MAX_EVENTS = 60
_MAX_NUMBERS = 6
_RANKS = (
    ("safe_mode", "champion", "rolled_back", "fallback_serves", "champion_serves"),
    ("retrain", "rollback_started", "de_escalation_started", "frozen", "kpi_breached", "device_quarantined"),
    ("drifted", "accuracy_fell", "confidence_decayed", "no_candidate", "personal_refresh"),
    (
        "candidate",
        "shadow_started",
        "canary_started",
        "ramp_started",
        "drift_cleared",
        "approval_asked",
        "warned",
    ),
    ("deferred", "held", "gate_passed"),
)
"""Kinds of event from the most important on; all others come after."""
_RANK = {kind: rank for rank, kinds in enumerate(_RANKS) for kind in kinds}


def kept(events: Sequence[LifeEvent], most: int = MAX_EVENTS) -> list[LifeEvent]:
    """The most important events, as they happened."""
    order = sorted(
        range(len(events)), key=lambda i: (_RANK.get(events[i].kind, len(_RANKS)), -events[i].at, -i)
    )
    chosen = sorted(order[:most], key=lambda i: (events[i].at, i))
    return [events[i] for i in chosen]


def event_log(life: Life, colour: str, *, is_open: bool) -> str:
    """A life's log as markup that folds.

    Args:
        life: Whose log.
        colour: Of its policy, a CSS value.
        is_open: Whether it is unfolded at first.
    """
    s, shown = life.summary, kept(life.events)
    total = len(life.events)
    of = f"{len(shown)} most important of {total:,} events" if total > len(shown) else f"{total} events"
    title = f'<span class="swatch" style="--s:{colour}"></span>{escape(s.policy)}, seed {s.seed}: {of}'
    head = "".join(
        f"<th scope=col{' class=left' if i else ''}>{h}</th>"
        for i, h in enumerate(("When", "What", "Version", "Why"))
    )
    body = "".join(_row(event) for event in shown)
    table = markup_table(head, body, f"Events of {s.policy}") if shown else "<p>Nothing happened.</p>"
    return f"<details{' open' if is_open else ''}><summary>{title}</summary>{table}</details>"


def _row(event: LifeEvent) -> str:
    version = f"v{event.version}" if event.version >= 0 else words.DASH
    numbers = [
        f"{name.replace('_', ' ')} {_short(value)}"
        for name, value in event.evidence.items()
        if name not in event.text and str(value) not in event.text and name != "step"
    ]
    more = f" and {len(numbers) - _MAX_NUMBERS} more" if len(numbers) > _MAX_NUMBERS else ""
    small = f"<small>{escape(', '.join(numbers[:_MAX_NUMBERS]) + more)}</small>" if numbers else ""
    return (
        f'<tr><th scope="row">{instant(event.at)}</th><td class="left">{escape(event.kind.replace("_", " "))}</td>'
        f'<td class="left">{version}</td><td class="left why">{escape(event.text)}{small}</td></tr>'
    )


def instant(at: float) -> str:
    """``30 d 06:00``: so long after the life began, as on the figures' axes."""
    days, minutes = divmod(round(at / 60.0), round(DAY_S / 60.0))
    return f"{days}{words.NBSP}d {minutes // 60:02d}:{minutes % 60:02d}"


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else words.significant(value)
