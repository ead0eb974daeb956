"""Each part of a fit against truth drawn here, independently of the simulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedretrain.core.build import build
from fedretrain.core.types import FailureKind
from fedretrain.wire.fleet_log import (
    AskedInRound,
    Failed,
    Header,
    Labelled,
    Offline,
    Online,
    Predicted,
    Replied,
    Telemetered,
)
from sim.devices import Traits
from sim.fit.delay import fit_delay, waits
from sim.fit.drift import fit_drift
from sim.fit.fidelity import Compared
from sim.fit.fitted import share_interval
from sim.fit.mix import concentration, favourites, fit_mix
from sim.fit.presence import CLUSTERS, DIURNAL, MARKOV, fit_presence
from sim.fit.timing import fit_dropouts, fit_timing
from sim.fleetlog.log import FleetLog
from sim.labels import DelayKind
from sim.network import Network, NetworkConfig
from sim.sensors.config import DriftKind

HOUR, DAY = 3600.0, 86_400.0


def header(num=100, days=14.0, classes=3, channels=("x", "y"), sites=1, types=1):
    return Header(
        num,
        tuple(d % sites for d in range(num)),
        tuple(d // sites % types for d in range(num)),
        tuple(f"c{k}" for k in range(classes)),
        channels,
        0.0,
        days * DAY,
        HOUR,
        600.0,
    )


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


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_the_concentration_of_a_dirichlet_multinomial_is_found(alpha):
    draws = np.random.default_rng(8)
    counts = np.array([draws.multinomial(80, draws.dirichlet(np.full(5, alpha))) for _ in range(600)])
    assert concentration(counts.astype(float)) == pytest.approx(alpha, rel=0.1)


def test_the_share_of_favourite_classes_is_found():
    draws = np.random.default_rng(9)
    counts = np.zeros((800, 6))
    for row in counts:
        two = draws.integers(0, 6, 2)
        for _ in range(40):
            row[draws.choice(two) if draws.random() < 0.4 else draws.integers(0, 6)] += 1
    assert favourites(counts) == pytest.approx(0.4, abs=0.04)


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


@pytest.mark.parametrize(("hits", "num"), [(0, 20), (3, 40), (40, 40)])
def test_the_interval_of_a_share_is_scipys(hits, num):
    from scipy.stats import binomtest

    exact = binomtest(hits, num).proportion_ci(0.95, "exact")
    assert share_interval(hits, num) == pytest.approx((exact.low, exact.high))


def test_a_window_fit_ignores_the_future():
    log = labels(lambda _, draws: draws.exponential(6 * HOUR), 0.0, np.random.default_rng(13), num=20)
    early = log.window(0.0, 5 * DAY)
    later = replace(log, arrivals=replace(log.arrivals, label=log.arrivals.label)).window(0.0, 5 * DAY)
    assert fit_delay(early) == fit_delay(later)
    assert len(waits(early).high_s) == int((log.arrivals.at < 5 * DAY).sum())


@pytest.mark.parametrize(("observed", "low", "inside"), [(np.inf, 3.0, True), (2.0, 1.0, False)])
def test_most_labels_that_never_come_are_predicted_by_most_that_never_come(observed, low, inside):
    one = Compared("label delay", np.inf, observed, low, observed, "h").widened(2.0)
    assert one.inside is inside
    assert not np.isnan([one.low, one.high]).any()
