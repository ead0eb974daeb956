"""Each kind of drift, against telemetry drawn here, independently of the simulator."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.wire.fleet_log import (
    Telemetered,
)
from sim.fit.drift import fit_drift
from sim.fleetlog.log import FleetLog
from sim.sensors.config import DriftKind
from tests.fit_cases import DAY, header


def telemetry(draws, change, num=80, days=20, rows=50, level=2.0):
    """Daily telemetry of independent normal rows, changed by ``change(device, day) -> (shift, std factor, missing)``."""
    events = []
    for device in range(num):
        base = draws.standard_normal(2) / np.sqrt(400)
        for day in range(days):
            moved, factor, missing = change(device, day)
            size = np.array([factor, 1.0])  # the second channel stays as it was
            mean = np.array([moved, 0.0]) + size * draws.standard_normal(2) / np.sqrt(rows) - base
            std = size * np.exp(draws.standard_normal(2) / np.sqrt(2 * rows))
            events.append(
                Telemetered(
                    device,
                    (day + 1) * DAY,
                    day * DAY,
                    rows,
                    400,
                    tuple((level + base).tolist()),  # the baseline is a sample too
                    tuple(mean.tolist()),
                    tuple(np.log(np.maximum(std, 1e-4)).tolist()),
                    (missing, 0.0),
                )
            )
    return FleetLog.of(header(num=num, days=days), events)


def hit(device, day):
    return device % 4 == 0 and day >= 8


@pytest.mark.parametrize(
    ("kind", "changed", "magnitude"),
    [
        (DriftKind.OFFSET, (0.8, 1.0, 0.0), 0.8),
        (DriftKind.GAIN, (0.5 * 2.0, 1.5, 0.0), 0.5),
        (DriftKind.GAIN, (-0.4 * 2.0, 0.6, 0.0), -0.4),
        (DriftKind.NOISE, (0.0, np.sqrt(2.0), 0.0), 1.0),
        (DriftKind.MISSING, (0.0, 1.0, 0.3), 0.3),
        (DriftKind.STUCK, (1.5, 0.0, 0.0), 1.5),
        (DriftKind.DEAD, (-2.0, 0.0, 0.0), 0.0),
    ],
)
def test_each_kind_of_drift_is_told_by_what_it_leaves(kind, changed, magnitude):
    log = telemetry(np.random.default_rng(10), lambda d, day: changed if hit(d, day) else (0.0, 1.0, 0.0))
    (found,) = fit_drift(log)
    assert found.kind is kind
    assert found.device_fraction == pytest.approx(0.25, abs=0.03), "two of twenty may be missed"
    assert found.num_channels == 1
    assert found.magnitude == pytest.approx(magnitude, abs=0.1)
    assert found.onset_from_s >= 6 * DAY
    assert found.onset_to_s <= 10 * DAY


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        (DriftKind.OFFSET, (0.8, 1.0, 0.0)),
        (DriftKind.GAIN, (0.5 * 2.0, 1.5, 0.0)),
        (DriftKind.NOISE, (0.0, np.sqrt(2.0), 0.0)),
        (DriftKind.MISSING, (0.0, 1.0, 0.3)),
        (DriftKind.STUCK, (1.5, 0.0, 0.0)),
        (DriftKind.DEAD, (-2.0, 0.0, 0.0)),
    ],
)
def test_a_drift_that_was_repaired_has_its_length(kind, changed):
    def course(device, day):
        return changed if hit(device, day) and day < 18 else (0.0, 1.0, 0.0)

    (found,) = fit_drift(telemetry(np.random.default_rng(14), course, num=60, days=30))
    assert found.kind is kind
    assert found.device_fraction == pytest.approx(0.25, abs=0.07), (
        "a wider spread may not be seen in ten days"
    )
    assert found.duration_s == pytest.approx(10 * DAY, abs=DAY)
    assert found.config()["duration_s"] == found.duration_s


def test_a_drift_that_lasts_has_no_length():
    log = telemetry(
        np.random.default_rng(15),
        lambda d, day: (0.8, 1.0, 0.0) if hit(d, day) else (0.0, 1.0, 0.0),
        num=40,
    )
    (found,) = fit_drift(log)
    assert found.duration_s == 0.0
    assert "duration_s" not in found.config()


def test_values_that_are_lost_now_and_then_are_not_over():
    """Every third day has losses: a healthy day or two is no end."""
    log = telemetry(
        np.random.default_rng(16),
        lambda d, day: (0.0, 1.0, 0.2 if hit(d, day) and day % 3 == 0 else 0.0),
        num=40,
    )
    (found,) = fit_drift(log)
    assert found.duration_s == 0.0


def test_a_fleet_without_drift_shows_none():
    log = telemetry(np.random.default_rng(11), lambda *_: (0.0, 1.0, 0.0), num=200)
    assert fit_drift(log) == ()


def test_a_creeping_offset_is_linear_and_takes_its_time():
    log = telemetry(
        np.random.default_rng(12),
        lambda d, day: (2.0 * np.clip((day - 4) / 13, 0, 1), 1.0, 0.0) if d % 2 else (0.0, 1.0, 0.0),
    )
    (found,) = fit_drift(log)
    assert str(found.shape) == "linear"
    assert found.magnitude == pytest.approx(2.0, abs=0.3)
    assert 7 * DAY < found.time_s < 22 * DAY
