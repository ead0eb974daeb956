"""The page of a run of sabotage: how far each candidate came, drawn and told."""

from __future__ import annotations

import pytest

from sim.sabotage.drawing import PLACES, how_far, place
from sim.sabotage.page import render_sabotage, verdict
from sim.sabotage.records import CaseOutcome, Ended


def outcome(case, seed, ended, phase, *, as_wanted=True):
    return CaseOutcome(
        case=case,
        title=f"title of {case}",
        seed=seed,
        wanted="stopped",
        ended=ended,
        as_wanted=as_wanted,
        stopped_by="a gate" if ended == Ended.STOPPED else "",
        phase=phase,
        reason="the log's words",
        days=1.5,
        exposure=0.01,
        peak_exposure=0.02,
        effect=-0.05,
        worst_site_effect=-0.1,
        digest="0" * 64,
        wall_s=2.0,
    )


FOUND = (
    outcome("flips", 1, Ended.STOPPED, "shadow"),
    outcome("flips", 2, Ended.STOPPED, "canary"),
    outcome("nan", 1, Ended.STOPPED, ""),
    outcome("<slow>", 1, Ended.PROMOTED, "champion", as_wanted=False),
    outcome("site", 1, Ended.PROMOTED, "champion", as_wanted=False),
)


@pytest.mark.parametrize(
    ("ended", "phase", "expected"),
    [
        (Ended.STOPPED, "", "training"),
        (Ended.STOPPED, "pending", "validation"),
        (Ended.HELD, "shadow", "shadow"),
        (Ended.STOPPED, "ramp", "ramp"),
        (Ended.UNDECIDED, "canary", "canary"),
        (Ended.STOPPED, "champion", "promoted"),
        (Ended.PROMOTED, "ramp", "promoted"),
    ],
)
def test_a_candidate_stands_at_the_last_place_that_it_reached(ended, phase, expected):
    assert place(outcome("case", 1, ended, phase)) == expected


def test_the_table_behind_the_figure_counts_every_seed_once():
    figure = how_far(FOUND)
    assert figure.header == ("Case", *(name.capitalize() for name in PLACES))
    cells = {row[0]: dict(zip(PLACES, row[1:], strict=True)) for row in figure.rows}
    assert list(cells) == ["flips", "nan", "<slow>", "site"]
    assert cells["flips"] == dict.fromkeys(PLACES, "") | {"shadow": "1", "canary": "1"}
    assert cells["site"] == dict.fromkeys(PLACES, "") | {"promoted": "1"}
    assert sum(int(cell) for row in figure.rows for cell in row[1:] if cell) == len(FOUND)


def test_a_dot_is_drawn_for_every_seed_and_a_cross_where_it_ended_otherwise():
    axis = how_far(FOUND).plot().axes[0]
    assert sorted(line.get_marker() for line in axis.lines) == ["X", "X", "o", "o", "o"]
    places = sorted(float(line.get_xdata()[0]) for line in axis.lines)
    assert [PLACES[round(at)] for at in places] == ["training", "shadow", "canary", "promoted", "promoted"]


def test_the_page_holds_the_figure_and_escapes_what_cases_are_called():
    page = render_sabotage(FOUND)
    assert "How far each candidate came" in page
    assert "<slow>" not in page
    assert "&lt;slow&gt;" in page
    assert "3 of 5 ended as they should" in page


def test_what_did_not_end_as_it_should_is_named():
    assert verdict(FOUND) == "3 of 5 ended as they should; NOT AS WANTED: <slow>, site"
    assert verdict(FOUND[:3]) == "3 of 3 ended as they should"
