"""So much a second, and so much at once."""

from __future__ import annotations

from fedretrain.core.rate import RateLimit


def test_a_limit_lets_a_burst_through_and_then_so_many_a_second():
    now = [0.0]
    limit = RateLimit(2.0, 3, lambda: now[0])
    assert [limit.allows() for _ in range(4)] == [True, True, True, False]
    now[0] = 0.5
    assert [limit.allows() for _ in range(2)] == [True, False]
    now[0] = 100.0
    assert [limit.allows() for _ in range(4)] == [True, True, True, False]


def test_what_is_refused_takes_nothing():
    limit = RateLimit(1.0, 100.0, lambda: 0.0)
    assert [limit.allows(amount) for amount in (60.0, 60.0, 40.0, 1.0)] == [True, False, True, False]
