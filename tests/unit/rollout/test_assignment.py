"""Assignments: devices count by their own word, under the present order."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.rollout.assignment import Assignments, Slip, assign, confirm, exposure, shadowing, unassigned
from fedretrain.rollout.events import Order
from fedretrain.rollout.evidence import Exposure
from fedretrain.rollout.exposure import ranks

DIGESTS = {0: "rules", 2: "two", 3: "three", 7: "seven"}


def order_of(
    counter: int, fraction: float, *, fallback: int = 3, held: float = 0.0, expires_at: float = 100.0
) -> Order:
    return Order(counter, 7, fraction, fallback, held, 2, expires_at)


def fleet_of(num: int = 200) -> Assignments:
    return unassigned(ranks(np.arange(num), np.zeros(num, int), 1), 3)


def all_say(fleet: Assignments, digest: str, now: float = 1.0, **changes: object) -> Assignments:
    assert fleet.order is not None
    devices = np.flatnonzero(fleet.target_D)
    return confirm(fleet, devices, fleet.order.counter, digest, DIGESTS, now, **changes)[0]


def test_an_order_says_who_runs_what() -> None:
    fleet = assign(fleet_of(), order_of(1, 0.1, held=0.05), 0.0)
    versions, counts = np.unique(fleet.version_D, return_counts=True)
    assert dict(zip(versions.tolist(), counts.tolist(), strict=True)) == {2: 10, 3: 170, 7: 20}
    assert exposure(fleet, 0.0) == Exposure(20, 0, 0, 20, counter=1)


def test_devices_that_run_the_candidate_stay_confirmed_in_the_next_step() -> None:
    fleet = all_say(assign(fleet_of(), order_of(1, 0.1), 0.0), "seven")
    fleet = assign(fleet, order_of(2, 0.5), 2.0)
    assert exposure(fleet, 2.0) == Exposure(100, 20, 0, 80, counter=2)


def test_what_does_not_count_is_named_and_changes_nothing() -> None:
    fleet = assign(fleet_of(), order_of(1, 0.1), 0.0)
    on, off = np.flatnonzero(fleet.target_D), np.flatnonzero(~fleet.target_D)
    cases = [
        (confirm(fleet, on, 0, "seven", DIGESTS, 1.0), Slip.WRONG_COUNTER, 20),
        (confirm(fleet, on, 1, "three", DIGESTS, 1.0), Slip.WRONG_DIGEST, 20),
        (confirm(fleet, on, 1, "unknown", DIGESTS, 1.0), Slip.WRONG_DIGEST, 20),
        (confirm(fleet, off[:5], 1, "three", DIGESTS, 1.0), Slip.NO_TARGET, 5),
        (confirm(fleet, on, 1, "seven", DIGESTS, 1.0, said_at=2.0), Slip.FUTURE_CLOCK, 20),
        (confirm(fleet_of(), on, 1, "seven", DIGESTS, 1.0), Slip.WRONG_COUNTER, 20),
    ]
    for (after, slips), slip, count in cases:
        assert slips == {slip: count}
        assert not after.confirmed_D.any()
    assert not fleet.confirmed_D.any()


def test_a_device_that_says_so_twice_counts_once_and_may_change_its_mind() -> None:
    fleet = assign(fleet_of(), order_of(1, 0.1), 0.0)
    one = np.flatnonzero(fleet.target_D)[:1]
    fleet, _ = confirm(fleet, np.repeat(one, 3), 1, "seven", DIGESTS, 1.0)
    fleet, _ = confirm(fleet, one, 1, "seven", DIGESTS, 2.0)
    assert exposure(fleet, 2.0).num_confirmed == 1
    fleet, _ = confirm(fleet, one, 1, "seven", DIGESTS, 3.0, healthy=False)
    assert exposure(fleet, 3.0) == Exposure(20, 0, 0, 19, 1, counter=1)


def test_an_order_back_targets_everybody_who_was_ever_to_run_the_candidate() -> None:
    fleet = all_say(assign(fleet_of(), order_of(1, 0.5), 0.0), "seven")
    fleet = assign(fleet, order_of(2, 0.1), 2.0)  # down the steps
    assert exposure(fleet, 2.0) == Exposure(100, 20, 0, 80, counter=2)
    fleet = assign(fleet, order_of(3, 0.0), 3.0)
    assert exposure(fleet, 3.0).num_pending == 100
    fleet = all_say(fleet, "three")
    assert exposure(fleet, 4.0) == Exposure(100, 100, counter=3)
    fleet = assign(fleet, order_of(4, 0.0, fallback=0), 5.0)  # the fallback is withdrawn too
    assert exposure(fleet, 5.0).num_pending == 100
    assert exposure(all_say(fleet, "rules"), 6.0).num_confirmed == 100


def test_silence_is_offline_then_expired_and_a_late_word_still_counts() -> None:
    fleet = assign(fleet_of(), order_of(1, 0.1), 10.0)
    on = np.flatnonzero(fleet.target_D)
    heard_D = np.full(200, -np.inf)
    heard_D[on[:8]] = 11.0
    assert exposure(fleet, 12.0, heard_D) == Exposure(20, 0, 0, 20, 0, 12, counter=1)
    fleet, _ = confirm(fleet, on[:8], 1, "seven", DIGESTS, 12.0)
    assert exposure(fleet, 100.0, heard_D) == Exposure(20, 8, 12, 0, counter=1)
    fleet, _ = confirm(fleet, on[8:9], 1, "seven", DIGESTS, 120.0)
    assert exposure(fleet, 120.0) == Exposure(20, 9, 11, 0, counter=1)


def test_nothing_is_known_before_the_first_order_and_old_orders_are_refused() -> None:
    assert exposure(fleet_of(), 0.0) == Exposure()
    fleet = assign(fleet_of(), order_of(2, 0.1), 0.0)
    with pytest.raises(ValueError, match="order 2 after order 2"):
        assign(fleet, order_of(2, 0.5), 1.0)


def test_figures_that_do_not_add_up_are_refused() -> None:
    for parts in ((3, 1, 1, 0), (1, -1, 1, 1), (1, 0, 0, 1, 0, 2)):
        with pytest.raises(ValueError, match="add up"):
            Exposure(*parts)
    assert Exposure().confirmed_fraction == Exposure().reachable_fraction == 0.0


def test_shadow_serves_nothing_and_asks_nobody() -> None:
    fleet = assign(fleet_of(), Order(1, 7, 0.0, 3, 0.0, 2, 100.0, shadow_fraction=0.25), 0.0)
    assert shadowing(fleet).sum() == 50
    assert not shadowing(fleet_of()).any()
    assert (fleet.version_D == 3).all()
    assert exposure(fleet, 0.0) == Exposure(counter=1)
