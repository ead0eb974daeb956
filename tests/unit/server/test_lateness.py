"""How late a gateway is, by what is left of its calls' deadlines, and how much more rarely devices come then."""

from __future__ import annotations

from collections import Counter, deque
from statistics import mean

import pytest

from fedretrain.server.lateness import LEAST_DEVICES, MOST_STRETCH, Lateness, stretch, waited_s
from fedretrain.server.witnesses import HEARTBEATS
from fedretrain.wire.control import CALL_S


class Clock:
    """Seconds that pass when they are told to."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def _late_s(clock, left_s, num_devices=LEAST_DEVICES):
    late = Lateness(clock)
    for number in range(num_devices):
        late.took_up("p", f"d{number}", left_s)
    clock.now_s += 1.0
    return late.late_s


@pytest.mark.parametrize(
    ("left_s", "expected"),
    [
        (CALL_S, 0.0),
        (CALL_S + 0.1, 0.0),  # a deadline is rounded up to a tenth of a second
        (CALL_S - 2.5, 2.5),
        (CALL_S / 2, CALL_S / 2),
        (3.0, None),  # an agent's start waits no longer
        (2 * CALL_S, None),
        (None, None),
    ],
)
def test_what_is_gone_of_a_deadline_is_how_long_a_call_waited(left_s, expected):
    assert waited_s(left_s) == expected


def test_a_second_counts_once_it_is_over_and_the_next_one_anew(clock):
    late = Lateness(clock)
    for number in range(LEAST_DEVICES):
        late.took_up("p", f"d{number}", CALL_S - 3.0)
    assert late.late_s == 0.0
    clock.now_s = 1.0
    assert late.late_s == pytest.approx(3.0)
    clock.now_s = 2.0
    assert late.late_s == 0.0


def test_a_few_devices_slow_nobody(clock):
    assert _late_s(clock, CALL_S - 5.0, LEAST_DEVICES - 1) == 0.0
    late = Lateness(clock)
    for number in range(LEAST_DEVICES):
        late.took_up("p", f"d{number}", CALL_S)
    for _ in range(10 * LEAST_DEVICES):  # however often
        late.took_up("p", "d0", CALL_S - 5.0)
    clock.now_s += 1.0
    assert late.late_s == 0.0


def test_devices_come_more_rarely_the_longer_calls_wait_and_never_so_that_they_seem_gone():
    assert stretch(0.0) == 1.0
    found = [stretch(late_s / 10) for late_s in range(100)]
    assert found == sorted(found)
    assert stretch(1.0) == pytest.approx(1.5)
    assert found[-1] == MOST_STRETCH
    assert 1.05 * MOST_STRETCH < HEARTBEATS  # an agent's jitter


@pytest.mark.parametrize("answered", [100, 95, 70])
def test_a_queue_that_has_formed_drains_or_stays_short(answered):
    """Ten thousand devices, all waiting, that come 10 s after they came last: 100 in a tenth of a second, as many as are answered or more."""
    waiting, come, waited = (
        deque([0] * 10_000),
        Counter(),
        [],
    )  # when those that wait came; how many come when
    for tenth in range(1, 4000):
        waiting.extend([tenth] * come[tenth])
        waited.append((tenth - waiting[0]) / 10 if waiting else 0.0)
        for _ in range(min(answered, len(waiting))):
            came = waiting.popleft()
            next_tenths = 100 * stretch((tenth - came) / 10)
            come[max(round(came + next_tenths), tenth + 1)] += 1
    assert max(waited[:200]) >= 10.0
    assert max(waited[2000:]) < 5.0
    assert mean(waited[2000:]) < 2.0
