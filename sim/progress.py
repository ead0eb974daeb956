"""What a person sees while a run goes on: round, score, epsilon and the time that is left.

Rules of this file:
    * A terminal gets one moving line; anything else (a log file, CI) gets plain lines, at most one every
      `_PLAIN_EVERY_S` and one at each arm's end.
    * Everything goes to standard error, so that standard output stays clean for results.
    * Only what a `RoundRecord` says is shown; nothing here is kept.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from sim.results import Metric, RoundRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PLAIN_EVERY_S = 10.0


class Progress(Protocol):
    """Where the round loop reports to."""

    def begin(self, title: str, num_rounds: int) -> None:
        """An arm of a seed begins."""
        ...

    def update(self, record: RoundRecord) -> None:
        """A round ended."""
        ...


@contextlib.contextmanager
def progress(
    total_rounds: int, metric: Metric, unit: str = "", stream: TextIO | None = None
) -> Iterator[Progress]:
    """Show progress over all rounds of all arms and seeds.

    Args:
        total_rounds: Rounds of all arms and seeds together.
        metric: The run's main metric.
        unit: Whom an epsilon protects: a unit finer than the person is said wherever an epsilon is printed.
        stream: Where to write; standard error if not given.
    """
    out = stream or sys.stderr
    if not out.isatty():
        yield PlainProgress(total_rounds, metric, out, unit)
        return
    with _bar(out) as bar:
        yield _RichProgress(bar, bar.add_task("", total=total_rounds, status=""), metric, unit)


def status_line(
    record: RoundRecord, num_rounds: int, score: float | None, metric: Metric, unit: str = ""
) -> str:
    """One round in a few words: ``round 12/60  accuracy 91.2 %  epsilon 3.20 per device``."""
    parts = [f"round {record.round + 1}/{num_rounds}"]
    if score is not None:
        shown = f"{100 * score:.1f} %" if metric is Metric.ACCURACY else f"{score:.4g}"
        parts.append(f"{metric.value} {shown}")
    if record.epsilon is not None:
        parts.append(f"epsilon {record.epsilon:.2f}" + (f" per {unit}" if unit else ""))
    return "  ".join(parts)


def served_mean(record: RoundRecord) -> float | None:
    """The mean score of what devices would serve: personalized where there is one; None where not evaluated."""
    spread = record.personalized_score or record.global_score
    return None if spread is None else spread.mean


class PlainProgress:
    """Plain lines, few enough for a log file."""

    def __init__(
        self,
        total_rounds: int,
        metric: Metric,
        out: TextIO,
        unit: str = "",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._metric, self._unit = total_rounds, metric, unit
        self._out, self._now = out, now
        self._title, self._num_rounds, self._done = "", 0, 0
        self._score: float | None = None
        self._began_at = self._spoke_at = now()

    def begin(self, title: str, num_rounds: int) -> None:
        """An arm of a seed begins."""
        self._title, self._num_rounds, self._score = title, num_rounds, None

    def update(self, record: RoundRecord) -> None:
        """A round ended: speak if it is time to, or the arm's last."""
        self._done += 1
        self._score = served_mean(record) if served_mean(record) is not None else self._score
        at = self._now()
        if at - self._spoke_at < _PLAIN_EVERY_S and record.round + 1 < self._num_rounds:
            return
        self._spoke_at = at
        left_s = (at - self._began_at) / self._done * max(0, self._total - self._done)
        line = status_line(record, self._num_rounds, self._score, self._metric, self._unit)
        print(f"{self._title}: {line}  left {duration(left_s)}", file=self._out, flush=True)


class _RichProgress:
    """One moving line on a terminal."""

    def __init__(self, bar: Any, task: Any, metric: Metric, unit: str) -> None:
        self._bar, self._task, self._metric, self._unit = bar, task, metric, unit
        self._num_rounds = 0
        self._score: float | None = None

    def begin(self, title: str, num_rounds: int) -> None:
        self._num_rounds, self._score = num_rounds, None
        self._bar.update(self._task, description=title, status="")

    def update(self, record: RoundRecord) -> None:
        self._score = served_mean(record) if served_mean(record) is not None else self._score
        status = status_line(record, self._num_rounds, self._score, self._metric, self._unit)
        self._bar.update(self._task, advance=1, status=status)


def _bar(out: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("[bold]{task.description}", markup=True),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[status]}"),
        TextColumn("[dim]left[/dim]"),
        TimeRemainingColumn(compact=True),
        console=Console(file=out),
    )


def duration(seconds: float) -> str:
    """A duration as a person reads it: ``42 s``, ``3 min 10 s``, ``2 h 05 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
