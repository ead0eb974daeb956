"""When devices are there, found against truth drawn here, independently of the simulator."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.wire.fleet_log import (
    Offline,
    Online,
)
from sim.fit.presence import CLUSTERS, DIURNAL, MARKOV, fit_presence
from sim.fleetlog.log import FleetLog
from tests.fit_cases import HOUR, header


def connections(states):
    """Events of ``[D, S]`` hourly states."""
    events = []
    for device, row in enumerate(states):
        for slot, online in enumerate(row):
            if slot == 0 or online != row[slot - 1]:
                events.append((Online if online else Offline)(device, slot * HOUR))
    return events


def test_a_daily_curve_by_cluster_is_found():
    draws = np.random.default_rng(0)
    head = header(num=200, sites=2)
    hours = np.arange(14 * 24) % 24
    curve = np.array([0.5 + 0.4 * np.cos((np.arange(24) - peak) * np.pi / 12) for peak in (2, 14)])
    states = draws.random((200, len(hours))) < curve[np.array(head.site)][:, hours]
    found = fit_presence(FleetLog.of(head, connections(states)))
    assert found.kind == DIURNAL
    # 100 devices x 14 days in each cell: a standard error of at most 0.0134; the worst of 48 within four of them.
    np.testing.assert_allclose(found.hourly_QH, curve, atol=4 * 0.5 / np.sqrt(1400) + 0.01)


def markov(draws, num, slots, on, keep):
    states = np.empty((num, slots), bool)
    states[:, 0] = draws.random(num) < on
    for slot in range(1, slots):
        fresh = draws.random(num) < on
        states[:, slot] = np.where(draws.random(num) < keep, states[:, slot - 1], fresh)
    return states


def test_a_chain_is_found_with_its_rates():
    states = markov(np.random.default_rng(1), 200, 14 * 24, 0.75, np.exp(-1 / 6 - 1 / 2))
    found = fit_presence(FleetLog.of(header(num=200), connections(states)))
    assert found.kind == MARKOV
    assert found.mean_on_s == pytest.approx(6 * HOUR, rel=0.06)
    assert found.mean_off_s == pytest.approx(2 * HOUR, rel=0.06)


def test_a_curve_with_a_memory_is_neither():
    draws = np.random.default_rng(2)
    slots, keep = 14 * 24, 0.6
    curve = 0.5 + 0.45 * np.cos(np.arange(24) * np.pi / 12)
    states = np.empty((200, slots), bool)
    states[:, 0] = draws.random(200) < 0.5
    for slot in range(1, slots):
        fresh = draws.random(200) < curve[slot % 24]
        states[:, slot] = np.where(draws.random(200) < keep, states[:, slot - 1], fresh)
    found = fit_presence(FleetLog.of(header(num=200), connections(states)))
    assert found.kind == CLUSTERS
    assert found.keep == pytest.approx(keep, abs=0.03)
    # A share's error is 0.5 / sqrt(200 devices x 14 days); a drawn state's probability is a difference of two over 1 - keep.
    error = 0.5 / np.sqrt(2800) * np.sqrt(1 + keep**2) / (1 - keep)
    np.testing.assert_allclose(found.hourly_QH[0], curve, atol=4 * error)
