"""Progress: what a terminal and a log file get."""

from __future__ import annotations

import io

import pytest

from sim.progress import PlainProgress, duration, progress, status_line
from sim.results import Metric, Outcome, RoundRecord, Spread


class Terminal(io.StringIO):
    def isatty(self):
        return True


def record(round_, *, score=None, epsilon=None):
    spread = None if score is None else Spread(score, score, score)
    return RoundRecord("a", 0, round_, 0.0, Outcome.COMMITTED, 10, 9, global_score=spread, epsilon=epsilon)


def test_a_log_file_gets_few_lines_with_everything_in_them():
    out, times = io.StringIO(), iter([0.0, 1.0, 12.0, 13.0, 20.0])
    shown = PlainProgress(8, Metric.ACCURACY, out, "device", lambda: next(times))
    shown.begin("Personalized + DP", 4)
    for i in range(4):
        shown.update(record(i, score=0.9 if i < 2 else None, epsilon=1.0 + i))
    lines = out.getvalue().splitlines()
    assert lines == [
        "Personalized + DP: round 2/4  accuracy 90.0 %  epsilon 2.00 per device  left 36 s",
        "Personalized + DP: round 4/4  accuracy 90.0 %  epsilon 4.00 per device  left 20 s",
    ]


def test_a_pipe_is_not_a_terminal():
    out = io.StringIO()
    with progress(1, Metric.RMSE, stream=out) as shown:
        shown.begin("Global", 1)
        shown.update(record(0, score=21.5))
    assert out.getvalue() == "Global: round 1/1  rmse 21.5  left 0 s\n"


def test_a_terminal_gets_a_bar_with_round_score_and_epsilon(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    out = Terminal()
    with progress(2, Metric.ACCURACY, "recording", out) as shown:
        shown.begin("Personalized", 2)
        shown.update(record(0, score=0.5, epsilon=1.25))
        shown.update(record(1, score=0.75, epsilon=2.5))
    for part in ("Personalized", "round 2/2", "accuracy 75.0 %", "epsilon 2.50 per recording", "left"):
        assert part in out.getvalue()


def test_a_round_that_was_not_evaluated_shows_no_score():
    assert status_line(record(2), 9, None, Metric.ACCURACY) == "round 3/9"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (190, "3 min 10 s"), (7_500, "2 h 05 min"), (-3, "0 s")],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
