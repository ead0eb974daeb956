"""The documentation's picture is the table's."""

from __future__ import annotations

from pathlib import Path

from fedretrain.rollout.causes import EventKind, Phase
from fedretrain.rollout.diagram import document, mermaid, table
from fedretrain.rollout.transitions import BY_SOURCE, TRANSITIONS, Transition

PAGE = Path(__file__).parents[3] / "docs" / "rollout.md"


def test_the_page_in_the_repository_is_current() -> None:
    assert PAGE.read_text() == document(), (
        "write docs/rollout.md anew: Path('docs/rollout.md').write_text(document())"
    )


def test_each_move_is_drawn_and_each_row_listed() -> None:
    drawn = mermaid()
    for row in TRANSITIONS:
        if row.source is not row.target:
            arrow = f"{row.source.value} --> {row.target.value}: "
            assert row.kind.value in drawn.split(arrow)[1].splitlines()[0]
    assert len(table().splitlines()) == len(TRANSITIONS) + 2
    assert "rolled_back --> [*]" in drawn
    assert "ramp --> ramp: ramp_started" in drawn


def test_a_changed_table_is_a_changed_picture() -> None:
    more = (*TRANSITIONS, Transition(Phase.CHAMPION, EventKind.FROZEN, Phase.FROZEN))
    assert mermaid(more) != mermaid()


def test_no_phase_and_event_have_two_rows_and_every_event_has_one() -> None:
    assert len(BY_SOURCE) == len(TRANSITIONS)
    assert {row.kind for row in TRANSITIONS} == set(EventKind) - {EventKind.CREATED}


def test_every_live_phase_can_be_taken_back_and_only_terminal_ones_stay() -> None:
    ways = {row.source for row in TRANSITIONS if row.target in (Phase.ROLLING_BACK, Phase.ROLLED_BACK)}
    assert ways == set(Phase) - {Phase.ROLLED_BACK}
    assert {row.source for row in TRANSITIONS} == set(Phase) - {Phase.ROLLED_BACK}
