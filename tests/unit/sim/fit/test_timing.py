"""How long the network and training take, and who drops out, against truth drawn here, independently of the simulator."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.core.build import build
from fedretrain.core.types import FailureKind
from fedretrain.wire.fleet_log import (
    AskedInRound,
    Failed,
    Offline,
    Online,
    Replied,
)
from sim.devices import Traits
from sim.fit.delay import fit_delay
from sim.fit.drift import fit_drift
from sim.fit.mix import fit_mix
from sim.fit.timing import fit_dropouts, fit_timing
from sim.fleetlog.log import FleetLog
from sim.network import Network, NetworkConfig
from tests.fit_cases import HOUR, header


def rounds(draws, num=200, count=30, before=0.03, mid=0.08):
    """Requests, replies and failures of a lognormal fleet of two types."""
    speed = np.where(np.arange(num) % 2, 0.5, 1.0) * np.exp(0.4 * draws.standard_normal(num))
    band = np.exp(0.6 * draws.standard_normal(num))
    trip = 0.2 * np.exp(0.3 * draws.standard_normal(num))
    events = []
    for round_ in range(count):
        at = round_ * HOUR
        for device in range(num):
            events.append(AskedInRound(device, at, round_))
            coin, jitter = draws.random(2), np.exp(0.1 * draws.standard_normal())
            steps = int(draws.integers(5, 200))
            if coin[0] < before or coin[1] < mid:
                reason = FailureKind.UNAVAILABLE if coin[0] < before else FailureKind.DROPPED
                events.append(Failed(device, at + 600.0, round_, reason))
                continue
            down, up = (8 * 4e5 / (rate * band[device]) * jitter for rate in (8e6, 1e6))
            train = (2.0 + 0.05 * steps) / speed[device] * jitter
            total = down + up + train + trip[device] * jitter
            events.append(
                Replied(device, at + total, round_, total, down, train, up, 400_000, 400_000, steps)
            )
    return events


def test_the_network_is_found_within_the_error_of_so_many_devices():
    num = 200
    head = header(num=num, types=2)
    events = [Online(d, 0.0) for d in range(num)] + rounds(np.random.default_rng(3), num)
    log = FleetLog.of(head, events)
    found = fit_timing(log)
    sure = 4 / np.sqrt(
        num / 2
    )  # four standard errors of a log mean of unit spread, of the devices of one type
    assert np.log(found.step_s / 0.05) == pytest.approx(0.0, abs=0.4 * sure + 0.02)
    assert np.log(found.start_s / 2.0) == pytest.approx(0.0, abs=0.4 * sure + 0.05)
    assert np.log(found.type_speed[1] / 0.5) == pytest.approx(0.0, abs=0.4 * sure * np.sqrt(2))
    assert np.log(found.down_bps / 8e6) == pytest.approx(0.0, abs=0.6 * sure)
    assert np.log(found.up_bps / 1e6) == pytest.approx(0.0, abs=0.6 * sure)
    assert np.log(found.latency_s / 0.2) == pytest.approx(0.0, abs=0.3 * sure)
    # A sample's standard deviation is off by its size over the root of twice the number.
    for value, truth in ((found.speed_sigma, 0.4), (found.bandwidth_sigma, 0.6), (found.latency_sigma, 0.3)):
        assert value == pytest.approx(truth, abs=4 * truth / np.sqrt(2 * num))
    assert found.jitter_sigma == pytest.approx(0.1, abs=0.004)
    dropouts = fit_dropouts(log)
    assert dropouts.before == pytest.approx(0.03, abs=4 * np.sqrt(0.03 / 6000))
    assert dropouts.mid == pytest.approx(0.08, abs=4 * np.sqrt(0.08 / 5800))


def test_of_whole_times_the_network_is_what_devices_of_each_type_take():
    num, draws = 200, np.random.default_rng(4)
    own = np.where(np.arange(num) % 2, 6.0, 3.0) * np.exp(0.4 * draws.standard_normal(num))
    events = [Online(d, 0.0) for d in range(num)]
    for round_, device in np.ndindex(30, num):
        at, whole = round_ * HOUR, float(own[device] * np.exp(0.1 * draws.standard_normal()))
        events += [
            AskedInRound(device, at, round_),
            Replied(device, at + whole, round_, whole, 0.0, 0.0, 0.0, 0, 0, 0),
        ]
    found = fit_timing(FleetLog.of(header(num=num, types=2), events))
    assert (found.num_replies, found.in_parts) == (6000, False)
    assert set(found.estimates()) == {"start_s", "speed_sigma", "jitter_sigma"}
    sure = 4 * 0.4 / np.sqrt(num / 2)  # four standard errors of a type's mean
    assert np.log(found.start_s / 3.0) == pytest.approx(0.0, abs=sure)
    assert np.log(found.type_speed[1] / 0.5) == pytest.approx(0.0, abs=sure * np.sqrt(2))
    assert found.speed_sigma == pytest.approx(0.4, abs=4 * 0.4 / np.sqrt(2 * num))
    assert found.jitter_sigma == pytest.approx(0.1, abs=0.004)
    network = Network(
        build(NetworkConfig, found.config(), where="network"), 5, lambda d: Traits(d, 0 * d, d % 2)
    )
    devices = np.arange(4000)
    asked = {"round_": 1, "down_bytes": 10**9, "up_bytes": 10**9, "num_steps": 500}
    simulated = np.log(network.reply_after_s(devices, **asked))
    for kind in (0, 1):
        seen = np.log(own[kind::2])
        assert simulated[kind::2].mean() == pytest.approx(seen.mean(), abs=4 * 0.4 / np.sqrt(2000))
        assert simulated[kind::2].std() == pytest.approx(np.hypot(0.4, 0.1), abs=0.06)


def test_a_device_that_disconnects_is_no_dropout():
    events = [Online(0, 0.0), Offline(0, 2 * HOUR), Online(1, 0.0)]
    events += [AskedInRound(d, HOUR + 0.5, 0) for d in (0, 1)]
    events += [Failed(d, HOUR + 600.0, 0, FailureKind.DROPPED) for d in (0, 1)]
    found = fit_dropouts(FleetLog.of(header(num=2), events))
    assert (found.num_begun, found.mid) == (1, 1.0)


def test_without_replies_there_is_no_network():
    log = FleetLog.of(header(num=3), [Online(0, 0.0)])
    assert fit_timing(log) is None
    assert fit_dropouts(log).num_asked == 0
    assert fit_delay(log) is None
    assert fit_mix(log) is None
    assert fit_drift(log) == ()
