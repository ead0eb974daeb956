"""A notice to the whole population, against a real gateway: heeded before the device's own assignment comes, and only where it makes safer."""

from __future__ import annotations

import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.agent_cases import HOUR, fleet_of, rows


@pytest.fixture
def fleet(tmp_path):
    (tmp_path / "server").mkdir()
    with fleet_of(tmp_path / "server") as running:
        yield running


@pytest.fixture
def device(fleet, tmp_path):
    """A device that serves the second of two versions and holds the first."""
    first, second = fleet.make(2)
    with fleet.device(tmp_path) as running:
        for version in (first, second):
            fleet.assign("a", version)
            running.sync()
        yield running


def _serves(device):
    return device.predict(rows())[0].package


def test_a_withdrawn_version_is_left_by_a_notice_alone_and_the_assignment_that_follows_changes_nothing(
    fleet, device
):
    first, second = fleet.versions
    fleet.notify(second, serve=first)
    device.sync()
    assert _serves(device) == first
    assert fleet.heard("a")["serves"] == second  # not twice: so do all the others
    device.sync()
    assert _serves(device) == first
    heard = fleet.heard("a")
    assert (heard["serves"], heard["counter"]) == (first, 2)  # it still answers its own assignment
    fleet.assign("a", first, withdrawn=(second,))
    device.sync()
    device.sync()
    assert (_serves(device), fleet.heard("a")["counter"]) == (first, 3)


def test_what_a_notice_said_is_kept_through_a_restart_without_the_coordinator(fleet, device, tmp_path):
    first, second = fleet.versions
    fleet.notify(second, serve=first)
    device.sync()
    device.close()
    with fleet.device(tmp_path, token="") as again:
        assert _serves(again) == first


def test_a_notice_brings_safe_mode_and_the_next_assignment_ends_it(fleet, device):
    _, second = fleet.versions
    fleet.notify(safe_mode=True)
    device.sync()
    assert _serves(device) == ""
    device.sync()
    assert fleet.heard("a")["serves"] == ""
    fleet.assign("a", second)
    device.sync()
    assert _serves(device) == second


def test_a_device_that_was_told_since_is_not_held_by_a_notice_that_is_sent_again(fleet, device):
    first, second = fleet.versions
    before = time.time() - HOUR
    for _ in range(2):
        fleet.notify(second, serve=first, issued_at=before, ends_at=before + 2 * HOUR)
        device.sync()
        assert _serves(device) == second


@pytest.mark.parametrize("wrong", ["key", "population", "ends_at"])
def test_a_notice_that_is_forged_or_for_others_or_over_changes_nothing(fleet, device, wrong):
    first, second = fleet.versions
    now = time.time()
    more = {
        "key": {"key": Ed25519PrivateKey.generate()},
        "population": {"population": "another"},
        "ends_at": {"issued_at": now - 1.0, "ends_at": now - 0.5},
    }[wrong]
    assert _serves(device) == second
    told = device.remembered.value
    fleet.notify(second, serve=first, **more)
    device.sync()
    assert (_serves(device), device.remembered.value) == (second, told)
    assert {"key": "bad_signature", "population": "other_population", "ends_at": "expired"}[wrong] in (
        device.visit.problem
    )


def test_a_notice_that_cannot_be_heeded_keeps_no_device_from_its_own_assignment(fleet, device):
    first, second = fleet.versions
    fleet.notify(second, serve=first, key=Ed25519PrivateKey.generate())
    fleet.assign("a", first)
    device.sync()
    assert _serves(device) == first


def test_what_a_device_found_against_a_version_is_not_forgiven_because_it_was_withdrawn(fleet, tmp_path):
    (only,) = fleet.make()
    with fleet.device(tmp_path) as device:
        fleet.assign("a", only)
        device.sync()
        device.follower.rolled_back(only, "too slow here")  # there is nothing to go back to: it stays held
        fleet.notify(only)
        device.sync()
        fleet.assign("a", only)
        device.sync()
        assert device.slots.state.why_bad(only) == "too slow here"
