"""What a finished lifetime says on the terminal."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

from sim.lifetime.console import announce
from sim.outputs import RunFolder
from sim.report.words import NBSP
from tests.unit.sim.lifetime.life_factory import make_lifetime


def said(run):
    out = io.StringIO()
    announce(run, RunFolder(Path("runs"), Path("runs/lifetime/now")), out)
    return out.getvalue().replace(NBSP, " ").splitlines()


def test_the_table_has_a_row_for_each_policy_and_ends_in_the_files():
    lines = said(make_lifetime())
    assert lines[1].startswith("policy")
    assert [line.split()[0] for line in lines[2:5]] == ["never", "scheduled", "hybrid"]
    assert len({line.find("%") for line in lines[2:5]}) == 1, "columns stand below each other"
    assert lines[-2] == "report   runs/lifetime/now/report.html"
    assert lines[-1] == "summary  runs/lifetime/now/summary.json"


def test_intervals_need_seeds():
    several, one = said(make_lifetime()), said(make_lifetime(num_seeds=1))
    assert "[" in several[2]
    assert "[" not in one[2]
    assert any("one seed, so no intervals" in line for line in one)
    assert any("mean of 3 seeds with 95 % intervals" in line for line in several)


def test_virtual_devices_are_named():
    assert any("60 devices, 40 of them virtual" in line for line in said(make_lifetime()))
    assert not any("virtual" in line for line in said(make_lifetime(num_virtual=0)))


def test_detection_is_told_only_where_drift_was_injected():
    text = "\n".join(said(make_lifetime()))
    assert "hybrid: noticed 8 of 9 injected drifts, 1 false alarms in 0.900 feature-years" in text
    assert "injected" not in "\n".join(said(make_lifetime(truth=False)))


def test_times_from_onset_to_restored_are_told_for_each_kind_with_those_that_were_not():
    lines = said(make_lifetime())
    (head,) = (i for i, line in enumerate(lines) if line.startswith("drift "))
    rows = [re.split(" {2,}", line) for line in lines[head + 1 : head + 10]]
    assert [row[:2] for row in rows[:2]] == [["gain linear", "never"], ["gain linear", "scheduled"]]
    assert rows[0][2:] == ["3", "3, 3 days", "3", "0", "3", "over 19 days", "over 20 days"]
    assert rows[2][2:] == ["3", "3, 3 days", "3", "3", "0", "10 days", "11 days"]
    assert rows[-1] == ["missing", "hybrid", "3", "2, 4 days", "0", "0", "0", "\u2014", "\u2014"]
    assert not any(line.startswith("drift ") for line in said(make_lifetime(truth=False)))


def test_what_rollouts_were_warned_of_is_said_once_for_each_policy():
    run = make_lifetime(("hybrid",), num_seeds=2)
    lives = []
    for life in run.lives:
        created = [e for e in life.events if e.kind == "created"]
        told = [replace(e, kind="warned", text="canary can never pass") for e in created[:2]]
        lives.append(replace(life, events=(*life.events, *told)))
    lines = said(replace(run, lives=tuple(lives)))
    assert [line for line in lines if "never pass" in line] == [
        f"hybrid: canary can never pass (4 of {2 * len(created)} rollouts)"
    ]
    assert not any("rollouts)" in line for line in said(run))


def test_warnings_that_differ_in_their_figure_alone_are_one_line():
    run = make_lifetime(("hybrid",), num_seeds=1)
    (life,) = run.lives
    created = [e for e in life.events if e.kind == "created"]
    texts = [
        f"canary cannot detect a regression below {figure}%, the limit is 2.00%"
        for figure in ("10.50", "6.74")
    ]
    told = [replace(e, kind="warned", text=text) for e, text in zip(created, texts, strict=False)]
    lines = said(replace(run, lives=(replace(life, events=(*life.events, *told)),)))
    assert [line for line in lines if "cannot detect" in line] == [
        (
            "hybrid: canary cannot detect a regression below 6.74% to 10.50%, the limit is 2.00% "
            f"(2 of {len(created)} rollouts)"
        )
    ]


def test_warnings_of_several_places_are_one_line():
    run = make_lifetime(("hybrid",), num_seeds=1)
    (life,) = run.lives
    created = [e for e in life.events if e.kind == "created"]
    texts = [
        f"no step can detect a regression of accuracy below {figure} at {place}, the limit there is {limit}"
        for figure, place, limit in (
            ("0.15", "site 0", "0.104"),
            ("0.0694", "device type 1", "0.052"),
            ("0.099", "site 10", "0.0984"),
        )
    ]
    told = [replace(created[0], kind="warned", text=text) for text in texts]
    lines = said(replace(run, lives=(replace(life, events=(*life.events, *told)),)))
    assert [line for line in lines if "no step" in line] == [
        (
            "hybrid: no step can detect a regression of accuracy below 0.099 to 0.15 at 2 sites, the limit there is 0.0984 to 0.104 "
            f"(1 of {len(created)} rollouts)"
        ),
        (
            "hybrid: no step can detect a regression of accuracy below 0.0694 at device type 1, the limit there is 0.052 "
            f"(1 of {len(created)} rollouts)"
        ),
    ]


def test_epsilon_has_a_column_only_with_dp():
    private = said(make_lifetime(private=True))
    assert private[1].endswith("epsilon")
    assert private[4].endswith("4.50")
    assert (
        "scheduled, hybrid (most charged seed): epsilon 4.5 at delta 1e-05 for a device <zero-out>" in private
    )
    assert "epsilon" not in "\n".join(said(make_lifetime()))


def test_parts_of_the_life_have_intervals_over_devices_where_there_are_enough():
    lines = [line for line in said(make_lifetime()) if "over 60 devices" in line]
    assert [line.split(",")[0] for line in lines] == ["never", "scheduled", "hybrid"]
    assert all(line.count("[") == 4 for line in lines)
