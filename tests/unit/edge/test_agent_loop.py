"""How patient the agent is, and how its devices are found."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedretrain.edge.agent import LONGEST_S, Patience


@given(st.integers(0, 100), st.floats(0.1, 3600.0), st.floats(0, 1))
def test_a_wait_is_never_longer_than_the_longest_nor_nothing(num_failed, next_s, draw):
    wait_s = Patience(num_failed).wait_s(next_s, draw)
    assert 0 < wait_s <= max(LONGEST_S, next_s * 1.05)


def test_patience_grows_with_each_failure_and_ends_with_an_answer():
    patience, waits = Patience(), []
    for _ in range(6):
        patience = patience.after(answered=False)
        waits.append(patience.wait_s(10.0, 1.0))
    assert waits == [10.0, 20.0, 40.0, 80.0, 160.0, 320.0]
    assert patience.after(answered=True).wait_s(10.0, 0.5) == 10.0


def test_half_of_a_wait_after_a_failure_is_left_to_chance():
    patience = Patience(3)
    assert patience.wait_s(10.0, 0.0) == patience.wait_s(10.0, 1.0) / 2
