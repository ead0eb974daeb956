from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from fedretrain.core.clock import Anchor, Instant, resolve
from fedretrain.core.since_boot import since_boot
from fedretrain.edge.clock import ClockState, DeviceClock, Jump, look, trust

TRUE_AT = 1_800_000_000.0
STEP = st.tuples(
    st.sampled_from(["wait", "set wall", "sign", "old signature", "replay"]),
    st.floats(0.0, 1e6),
    st.floats(-2e9, 2e9),
)


class Clocks:
    """A device's two clocks, and the truth."""

    def __init__(self, wall_at=0.0):
        self.monotonic_s, self.wall_at, self.true_at = 12.0, wall_at, TRUE_AT

    def wait(self, seconds):
        self.monotonic_s += seconds
        self.wall_at += seconds
        self.true_at += seconds

    def device(self, floor_at=0.0, boot=3):
        return DeviceClock(boot, floor_at, lambda: self.monotonic_s, lambda: self.wall_at)


def test_before_a_signed_time_events_carry_monotonic_seconds_only():
    clocks = Clocks()
    device = clocks.device(floor_at=TRUE_AT - 1000)
    event = device.instant()
    assert event == Instant(3, 12.0, None)
    assert device.look().guess_at == TRUE_AT - 1000
    assert device.look().is_behind
    assert device.look().anchor is None
    clocks.wait(100)
    assert device.trust(TRUE_AT + 100)
    assert not device.look().is_behind
    assert resolve(event, device.look().anchor) == TRUE_AT
    clocks.wait(5)
    assert device.instant() == Instant(3, 117.0, TRUE_AT + 105)


def test_a_wall_clock_that_may_be_right_is_an_untrusted_anchor():
    state = Clocks(TRUE_AT).device(floor_at=TRUE_AT - 1000).look()
    assert state.at is None
    assert state.anchor == Anchor(3, TRUE_AT - 12.0, is_trusted=False)
    assert not state.is_behind


def test_an_instant_keeps_its_own_time_and_needs_an_anchor_of_its_start():
    assert resolve(Instant(1, 5.0, 77.0), Anchor(1, 100.0)) == 77.0
    assert resolve(Instant(1, 5.0), Anchor(2, 100.0)) is None
    assert resolve(Instant(1, 5.0), None) is None
    assert resolve(Instant(1, 5.0), Anchor.seen(Instant(1, 9.0), 1000.0)) == 996.0


def test_jumps_of_the_wall_clock_are_counted_and_move_no_trusted_time():
    clocks = Clocks()
    device = clocks.device()
    device.trust(TRUE_AT)
    clocks.wall_at += 1e9
    clocks.wait(10)
    assert device.instant().at == TRUE_AT + 10
    assert (device.num_jumps, device.last_jump) == (1, Jump(22.0, 1e9))
    clocks.wait(10)
    device.look()
    assert device.num_jumps == 1
    clocks.wall_at -= 3600
    assert device.instant().at == TRUE_AT + 20
    assert (device.num_jumps, device.last_jump) == (2, Jump(32.0, -3600.0))


def test_a_clock_that_is_slewed_does_not_jump():
    clocks = Clocks(TRUE_AT)
    device = clocks.device()
    for _ in range(100):
        clocks.wait(3600)
        clocks.wall_at += 3600 * 5e-4
        device.look()
    assert device.num_jumps == 0


def test_a_replayed_time_is_not_taken_and_an_old_signature_is_a_floor():
    clocks = Clocks()
    device = clocks.device(floor_at=TRUE_AT)
    assert not device.trust(TRUE_AT - 1)
    assert not device.trust(math.nan)
    assert device.instant().at is None
    device.raise_floor(TRUE_AT + 50)
    device.raise_floor(TRUE_AT + 20)
    device.raise_floor(math.inf)
    assert device.look().floor_at == TRUE_AT + 50
    assert device.instant().at is None, "a floor is no time"
    assert device.trust(TRUE_AT + 60)
    device.raise_floor(TRUE_AT + 500)
    clocks.wait(1)
    assert device.instant().at == TRUE_AT + 501


def test_the_systems_clock_runs():
    first = since_boot()
    assert 0 < first <= since_boot()
    assert DeviceClock(1).instant().boot == 1


@given(st.lists(STEP, max_size=40))
def test_no_time_is_below_the_floor_and_monotonic_seconds_never_go_back(steps):
    clocks = Clocks()
    device = clocks.device(floor_at=TRUE_AT - 1e6)
    state = device.look()
    for what, seconds, by_s in steps:
        before, jumps = state, device.num_jumps
        clocks.wait(seconds)
        if what == "set wall":
            clocks.wall_at += by_s
        elif what == "sign":
            assert device.trust(clocks.true_at)
        elif what == "old signature":
            device.raise_floor(clocks.true_at - seconds)
        elif what == "replay":
            assert device.trust(before.floor_at - 1 - seconds) is False
        state = device.look()
        assert state.floor_at >= before.floor_at
        assert state.guess_at >= state.floor_at
        assert state.monotonic_s >= before.monotonic_s
        was_set = what == "set wall" and abs(by_s) > 2.0 + 1e-3 * seconds + 1e-3
        if was_set:
            assert device.num_jumps == jumps + 1
        elif what != "set wall":
            assert device.num_jumps == jumps
        if state.at is not None:
            assert abs(state.at - clocks.true_at) < 1e-3
            assert before.at is None or state.at >= before.at - 1e-3


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e12, 1e12)), max_size=20), st.floats(0, 1e10))
def test_even_broken_clocks_give_no_time_below_the_floor(readings, signed_at):
    state, _ = look(ClockState(1, floor_at=signed_at), 0.0, 0.0)
    state, _ = trust(state, signed_at)
    for monotonic_s, wall_at in readings:
        new, _ = look(state, monotonic_s, wall_at)
        assert new.monotonic_s >= state.monotonic_s
        assert new.at is not None
        assert new.at >= state.at >= signed_at
        state = new
