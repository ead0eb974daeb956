"""When labels come, against truth drawn here, independently of the simulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedretrain.wire.fleet_log import (
    Labelled,
    Offline,
    Online,
    Predicted,
)
from sim.fit.delay import fit_delay, waits
from sim.fleetlog.log import FleetLog
from sim.labels import DelayKind
from tests.fit_cases import DAY, HOUR, header


def labels(delay_of, loss, draws, num=60, days=10, per_hour=2):
    """Predictions through every hour and the labels that came by the end."""
    head, events = header(num=num, days=days), [Online(d, 0.0) for d in range(num)]
    for device in range(num):
        for hour in range(int(days * 24)):
            events.append(Predicted(device, (hour + 1) * HOUR, hour * HOUR, per_hour))
            for at in (hour + draws.random(per_hour)) * HOUR:
                arrives = at + delay_of(at, draws)
                if draws.random() >= loss and arrives < days * DAY:
                    events.append(Labelled(device, arrives, at, int(draws.integers(0, 3))))
    return FleetLog.of(head, events)


def test_a_lognormal_delay_beyond_the_log_is_found_though_censored():
    log = labels(lambda _, draws: 3 * DAY * np.exp(draws.standard_normal()), 0.1, np.random.default_rng(4))
    found = fit_delay(log)
    assert found.kind is DelayKind.LOGNORMAL
    came = waits(log).high_s
    assert np.median(came) < 0.75 * 3 * DAY, "the plain median of what came is far off"
    assert found.delay_s == pytest.approx(3 * DAY, rel=0.05)
    assert found.sigma == pytest.approx(1.0, abs=0.04)
    assert found.loss_fraction == pytest.approx(0.1, abs=0.03)


def test_an_exponential_delay_is_found():
    found = fit_delay(labels(lambda _, draws: draws.exponential(6 * HOUR), 0.0, np.random.default_rng(5)))
    assert found.kind is DelayKind.EXPONENTIAL
    assert found.delay_s == pytest.approx(6 * HOUR, rel=4 / np.sqrt(25_000))
    assert found.loss_fraction == pytest.approx(0.0, abs=0.005)


def test_a_nightly_batch_is_found_with_its_hour_and_its_cutoff():
    def nightly(at, _):
        return np.ceil((at + 2 * HOUR - 4 * HOUR) / DAY) * DAY + 4 * HOUR - at

    found = fit_delay(labels(nightly, 0.05, np.random.default_rng(6)))
    assert found.kind is DelayKind.NIGHTLY
    assert found.batch_hour == pytest.approx(4.0, abs=1e-3)
    assert found.cutoff_s == pytest.approx(2 * HOUR, abs=120.0)
    assert found.loss_fraction == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("period_s", [6 * HOUR, DAY, 2.5 * DAY, 7 * HOUR + 120.0])
def test_labels_in_rounds_are_found_with_their_period(period_s):
    def periodic(at, _):
        return np.floor(at / period_s + 1.0) * period_s - at

    found = fit_delay(labels(periodic, 0.1, np.random.default_rng(14), days=15))
    assert found.kind is DelayKind.PERIODIC
    assert found.delay_s == pytest.approx(period_s, abs=1.0)
    assert found.loss_fraction == pytest.approx(0.1, abs=0.015)
    assert found.config()["delay"] == "periodic"


@pytest.mark.parametrize(("delay_s", "kind"), [(0.0, DelayKind.NONE), (500.0, DelayKind.CONSTANT)])
def test_fixed_delays_are_found(delay_s, kind):
    found = fit_delay(labels(lambda *_: delay_s, 0.02, np.random.default_rng(7), num=20))
    assert found.kind is kind
    assert found.delay_s == pytest.approx(delay_s, abs=1.0)


def test_a_label_that_came_with_a_reconnection_was_ready_at_some_time_before():
    events = [Online(0, 0.0), Offline(0, 2 * HOUR), Online(0, 9 * HOUR), Predicted(0, HOUR, 0.0, 2)]
    events += [Labelled(0, 9 * HOUR, 600.0, 1), Labelled(0, 1.5 * HOUR, 700.0, 1)]
    found = waits(FleetLog.of(header(num=1, days=1), events))
    assert sorted(zip(found.low_s, found.high_s, strict=True)) == [
        (1.5 * HOUR - 700.0, 1.5 * HOUR - 700.0),
        (2 * HOUR - 600.0, 9 * HOUR - 600.0),
    ]


def test_what_an_absent_device_waits_for_ends_when_it_left():
    events = [Online(0, 0.0), Offline(0, 5 * HOUR), Predicted(0, HOUR, 0.0, 3)]
    found = waits(FleetLog.of(header(num=1, days=2), events))
    assert found.waiting_s.tolist() == [4.5 * HOUR]
    assert found.num_waiting.tolist() == [3.0]


def test_a_window_fit_ignores_the_future():
    log = labels(lambda _, draws: draws.exponential(6 * HOUR), 0.0, np.random.default_rng(13), num=20)
    early = log.window(0.0, 5 * DAY)
    later = replace(log, arrivals=replace(log.arrivals, label=log.arrivals.label)).window(0.0, 5 * DAY)
    assert fit_delay(early) == fit_delay(later)
    assert len(waits(early).high_s) == int((log.arrivals.at < 5 * DAY).sum())
