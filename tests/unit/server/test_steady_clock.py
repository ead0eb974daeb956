"""A server's clock that is set while it runs: a moment changes nothing, what stays is followed."""

from __future__ import annotations

import logging

import pytest

from fedretrain.core.clock import DAY_S
from fedretrain.server.steady_clock import SETTLE_S, Believed, SteadyClock, look, standing


class Machine:
    """Both clocks, moved by the test."""

    def __init__(self):
        self.monotonic_s, self.at = 100.0, 1e9
        self.clock = SteadyClock(lambda: self.monotonic_s, lambda: self.at)

    def go(self, by_s):
        self.monotonic_s += by_s
        self.at += by_s
        return self.clock()


def test_time_follows_the_wall_clock_while_that_agrees():
    machine = Machine()
    assert machine.clock() == 1e9
    assert machine.go(60.0) == 1e9 + 60.0
    machine.at += 0.4  # a time service that pulls
    assert machine.go(60.0) == machine.at


@pytest.mark.parametrize("by_s", [DAY_S, -DAY_S, -1e9])
def test_a_clock_that_is_wrong_for_a_moment_moves_nothing_and_is_told_once(by_s, caplog):
    machine = Machine()
    machine.at += by_s
    with caplog.at_level(logging.WARNING):
        for second in range(1, 200):
            assert machine.go(1.0) == 1e9 + second
        machine.at -= by_s
        assert machine.go(1.0) == 1e9 + 200.0
    told = [record.message for record in caplog.records]
    assert len(told) == 2
    assert f"set by {by_s:+.0f} s" in told[0]


@pytest.mark.parametrize("by_s", [DAY_S, -DAY_S])
def test_a_clock_that_stays_as_it_was_set_is_followed(by_s):
    machine = Machine()
    machine.at += by_s
    machine.go(1.0)
    assert machine.go(SETTLE_S - 1.0) == 1e9 + SETTLE_S
    assert machine.go(1.0) == 1e9 + SETTLE_S + 1.0 + by_s


def test_a_clock_that_is_set_again_and_again_is_not_followed():
    known = Believed(0.0, 1e9)
    for second in range(1, 2000):
        known = look(known, float(second), 1e9 + DAY_S * (second // 100 + 1))
    assert known.at == 1e9 + 1999.0


def test_a_machine_that_slept_has_not_been_set():
    known = look(Believed(0.0, 1e9), 8 * 3600.0, 1e9 + 8 * 3600.0)
    assert known == Believed(8 * 3600.0, 1e9 + 8 * 3600.0)
    assert look(known, 0.0, 1e9 + 8 * 3600.0) == known  # a clock that goes back is taken as standing


def test_a_loop_whose_last_event_lies_ahead_says_for_how_long_it_stands():
    assert standing("pumps", -5.0) is None
    assert standing("pumps", 30.0) is None
    assert "up to 3 days" in str(standing("pumps", 2.5 * DAY_S))
