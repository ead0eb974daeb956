"""From decisions to assignments: who runs what, and who is told anew."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fedretrain.artifacts.assignment import MAX_WITHDRAWN, Assignment
from fedretrain.artifacts.notice import Notice
from fedretrain.coordinator import cycle
from fedretrain.coordinator.cycle import Begun, CycleEvent, Withdraw
from fedretrain.coordinator.policy import Policy
from fedretrain.rollout.assignment import assign, unassigned
from fedretrain.rollout.causes import Phase
from fedretrain.rollout.events import Order
from fedretrain.rollout.safety import SafetyCommand, SafetyOrder, Switch
from fedretrain.server.assigning import TOLD_AT_ONCE, Wanted, grown, in_parts, renewed, urgent, wanted
from fedretrain.server.fleet import Device, Standing, Traits
from fedretrain.server.versions import Version, Versions

A, B, W = "a" * 64, "b" * 64, "c" * 64
VERSIONS = Versions({1: Version(1, A, W, "", 0.0), 2: Version(2, B, W, "", 0.0)})
POLICY = Policy()


def _state(*orders, champion=2):
    state = cycle.begin(CycleEvent(0.0, Begun(champion)))
    events = cycle.tick(POLICY, state, cycle.Evidence(orders=orders), 1.0)
    for event in events:
        state = cycle.apply(POLICY, state, event)
    return state


def _everybody(champion, count=4):
    return unassigned(np.linspace(0.0, 0.9, count), champion)


def _device(number, counter=0):
    return Device("p", f"d{number}", number, "", Standing.ACTIVE, Traits(), counter=counter)


def test_everybody_serves_the_champion():
    assert wanted(POLICY, _state(), _everybody(2), VERSIONS, {}) == [Wanted(B)] * 4


def test_in_safe_mode_everybody_serves_the_rules():
    state = _state(SafetyOrder(SafetyCommand.ENTER, "anna"))
    assert wanted(POLICY, state, _everybody(2), VERSIONS, {}) == [Wanted("", safe_mode=True)] * 4


def test_a_withdrawn_version_is_named_and_served_by_nobody():
    found = wanted(POLICY, _state(Withdraw(1, "anna")), _everybody(1), VERSIONS, {})
    assert {one.withdrawn for one in found} == {(A,)}
    assert {one.serve for one in found} == {""}


def _urgent(state, *told):
    last = [
        Assignment("p", f"d{number}", serve, shadow, 1, 0.0, 9.0, safe_mode=safe)
        for number, (serve, shadow, safe) in enumerate(told)
    ]
    return urgent(POLICY, state, VERSIONS, last, population="p", now=5.0, valid_s=100.0)


def test_it_is_urgent_as_long_as_a_device_was_told_to_run_what_is_withdrawn():
    state = _state(Withdraw(1, "anna"))
    notice = Notice("p", (A,), B, safe_mode=False, issued_at=5.0, ends_at=105.0)
    assert _urgent(state, (B, "", False), (A, "", False)) == notice
    assert _urgent(state, (B, A, False)) == notice
    assert _urgent(state, (B, "", False)) is None
    assert _urgent(state) is None
    assert _urgent(_state(), (A, "", False)) is None


def test_who_serves_a_withdrawn_champion_is_told_to_serve_the_rules():
    notice = _urgent(_state(Withdraw(2, "anna")), (B, "", False))
    assert (notice.withdrawn, notice.serve) == ((B,), "")


@pytest.mark.parametrize(
    ("phase", "is_urgent"),
    [(Phase.ROLLING_BACK, True), (Phase.FROZEN, True), (Phase.RAMP, False), (Phase.ROLLED_BACK, False)],
)
def test_a_candidate_that_is_taken_back_is_urgent_only_for_who_serves_it(phase, is_urgent):
    rollout = SimpleNamespace(phase=phase, plan=SimpleNamespace(candidate=1))
    state = replace(_state(), rollout=rollout)
    notice = Notice("p", (A,), B, safe_mode=False, issued_at=5.0, ends_at=105.0)
    assert _urgent(state, (A, "", False), (B, "", False)) == (notice if is_urgent else None)
    assert _urgent(state, (B, A, False)) is None


@pytest.mark.parametrize("phase", [Phase.ROLLING_BACK, Phase.FROZEN])
def test_a_candidate_that_everybody_serves_for_another_reason_is_not_taken_back(phase):
    rollout = SimpleNamespace(phase=phase, plan=SimpleNamespace(candidate=2))
    assert _urgent(replace(_state(), rollout=rollout), (B, "", False)) is None


def test_it_is_urgent_to_enter_safe_mode_and_never_to_leave_it():
    state = _state(SafetyOrder(SafetyCommand.ENTER, "anna"))
    assert _urgent(state, (B, "", True), (B, "", False)) == Notice("p", (), "", True, 5.0, 105.0)
    assert _urgent(state, (B, "", True)) is None
    assert _urgent(_state(), (B, "", True)) is None


def test_a_version_without_a_package_is_never_assigned():
    assert wanted(POLICY, _state(champion=7), _everybody(7), VERSIONS, {}) == [Wanted("")] * 4


def test_devices_that_join_wait_for_a_promotion():
    more = grown(_everybody(2), 6, 2)
    assert len(more.rank_D) == 6
    assert (more.rank_D[4:] == 1.0).all()
    assert more.version_D.tolist() == [2] * 6
    assert grown(more, 3, 2) is more


def test_only_who_must_hear_something_new_is_told():
    devices = [_device(0), _device(1, counter=5)]
    first = dict(enumerate(a for _, a in renewed(devices, {}, [Wanted(A)] * 2, now=10.0, valid_s=100.0)))
    assert [one.counter for one in first.values()] == [1, 6]
    assert renewed(devices, first, [Wanted(A)] * 2, now=20.0, valid_s=100.0) == []
    changed = renewed(devices, first, [Wanted(A), Wanted(B)], now=20.0, valid_s=100.0)
    assert [(device.number, one.serve, one.counter) for device, one in changed] == [(1, B, 7)]


def test_an_assignment_is_renewed_before_it_runs_out():
    first = {0: renewed([_device(0)], {}, [Wanted(A)], now=0.0, valid_s=100.0)[0][1]}
    assert renewed([_device(0)], first, [Wanted(A)], now=49.0, valid_s=100.0) == []
    ((_, again),) = renewed([_device(0)], first, [Wanted(A)], now=50.0, valid_s=100.0)
    assert (again.counter, again.expires_at) == (2, 150.0)


@pytest.mark.parametrize("counter", [0, 9])
def test_a_counter_never_falls(counter):
    told = {0: replace(renewed([_device(0)], {}, [Wanted(A)], now=0.0, valid_s=1.0)[0][1], counter=4)}
    ((_, again),) = renewed([_device(0, counter)], told, [Wanted(B)], now=0.0, valid_s=1.0)
    assert again.counter == max(counter, 4) + 1


@pytest.mark.parametrize("holdback", [0.0, 0.1])
def test_devices_that_join_run_the_old_champion_until_the_promotion_and_the_new_one_then(holdback):
    def order(counter, fraction):
        return Order(counter, 2, fraction, 1, holdback, 1 if holdback else 0, 1e9)

    canary = assign(_everybody(1, 10), order(1, 0.25), 0.0)
    ramp = assign(grown(canary, 12, 1), order(2, 0.5), 1.0)
    assert ramp.version_D[10:].tolist() == [1, 1]
    assert not ramp.target_D[10:].any()
    everybody = assign(ramp, order(3, 1.0), 2.0)
    assert everybody.version_D[10:].tolist() == [2, 2]
    assert everybody.target_D[10:].all()
    back = assign(ramp, order(3, 0.0), 2.0)
    assert back.version_D[10:].tolist() == [1, 1]


def test_of_more_withdrawn_versions_than_can_be_named_the_latest_are():
    count = MAX_WITHDRAWN + 5
    # The newest have the largest digests: an order by digest would leave them out.
    known = Versions({n: Version(n, f"{n:064x}", W, "", 0.0) for n in range(1, count + 2)})
    state = _state(*(Withdraw(n, "anna") for n in range(1, count + 1)), champion=count + 1)
    (one, *_) = wanted(POLICY, state, _everybody(count + 1), known, {})
    assert len(one.withdrawn) == MAX_WITHDRAWN
    assert one.withdrawn == tuple(sorted(f"{n:064x}" for n in range(6, count + 1)))


def test_a_refresh_is_told_to_everybody_and_no_more_while_training_is_stopped():
    state = replace(_state(), refresh=3)
    assert {one.refresh for one in wanted(POLICY, state, _everybody(2), VERSIONS, {})} == {3}
    order = SafetyOrder(SafetyCommand.STOP, "anna", Switch.TRAINING)
    stopped = replace(_state(order), refresh=3)
    assert {one.refresh for one in wanted(POLICY, stopped, _everybody(2), VERSIONS, {})} == {0}


def test_an_assignment_that_orders_a_refresh_is_a_new_one_and_is_not_given_twice():
    told = {0: renewed([_device(0)], {}, [Wanted(A)], now=0.0, valid_s=100.0)[0][1]}
    ((_, ordered),) = renewed([_device(0)], told, [Wanted(A, refresh=1)], now=1.0, valid_s=100.0)
    assert (ordered.refresh, ordered.counter) == (1, 2)
    assert renewed([_device(0)], {0: ordered}, [Wanted(A, refresh=1)], now=2.0, valid_s=100.0) == []


def test_a_device_that_has_seen_more_than_a_restored_database_knows_gets_a_counter_above():
    told = {0: renewed([_device(0)], {}, [Wanted(A)], now=0.0, valid_s=100.0)[0][1]}
    ahead = replace(_device(0, 1), heartbeat={"counter": 41})
    ((_, again),) = renewed([ahead], told, [Wanted(A)], now=1.0, valid_s=100.0)
    assert again.counter == 42
    liar = replace(_device(0, 1), heartbeat={"counter": 2**63 - 1})
    assert renewed([liar], told, [Wanted(A)], now=1.0, valid_s=100.0) == []


def test_who_was_heard_longest_ago_comes_next_and_is_told_first():
    heard_at = np.random.default_rng(0).permutation(2 * TOLD_AT_ONCE + 1)
    devices = [replace(_device(number), seen_at=float(at)) for number, at in enumerate(heard_at)]
    parts = in_parts(renewed(devices, {}, [Wanted(A)] * len(devices), now=10.0, valid_s=100.0))
    assert [len(part) for part in parts] == [TOLD_AT_ONCE, TOLD_AT_ONCE, 1]
    told = [device.seen_at for part in parts for device, _ in part]
    assert told == sorted(heard_at.tolist())
