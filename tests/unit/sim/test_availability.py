"""Availability: marginal frequencies, persistence, the next time online, dropouts, traces."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.core.clock import DAY_S, HOUR_S
from fedretrain.core.errors import ConfigError, DataError
from sim.availability import Availability, AvailabilityConfig, AvailabilityKind, Diurnal, Markov
from sim.devices import Traits
from sim.trace import Trace, TraceConfig

IDS = np.arange(4_000)


def traits(devices) -> Traits:
    ids = np.asarray(devices, dtype=np.int64)
    return Traits(ids, ids % 2, np.zeros_like(ids))


def diurnal(**keys) -> Availability:
    config = AvailabilityConfig((AvailabilityKind.DIURNAL,), diurnal=Diurnal(**keys))
    return Availability(config, 1, traits)


def markov(**keys) -> Availability:
    return Availability(AvailabilityConfig((AvailabilityKind.MARKOV,), markov=Markov(**keys)), 1, traits)


def test_always_is_the_default():
    world = Availability(AvailabilityConfig(), 0)
    assert world.online(IDS, 3.0).all()
    np.testing.assert_array_equal(world.next_online(IDS, 3.0), np.full(len(IDS), 3.0))
    assert np.isinf(world.dropped_at(IDS, 1, 0.0, np.full(len(IDS), 1e6))).all()
    assert not world.dropped_before(IDS, 1).any()


def test_diurnal_frequency_follows_the_local_hour():
    world = diurnal(low=0.1, high=0.7, peak_hour=2.0, spread_h=0.0, site_offset_h=(0.0, 12.0))
    for hour in (2, 8, 14):
        online = world.online(IDS, hour * HOUR_S + 5 * DAY_S)
        wave = np.cos((hour + 0.5 - 2.0) * 2 * np.pi / 24)
        assert abs(online[IDS % 2 == 0].mean() - (0.4 + 0.3 * wave)) < 0.035  # 4 standard errors
        assert abs(online[IDS % 2 == 1].mean() - (0.4 - 0.3 * wave)) < 0.035  # half a day away


def test_diurnal_by_hour():
    world = diurnal(hourly=tuple([0.0] * 12 + [1.0] * 12), spread_h=0.0)
    assert not world.online(IDS, 11.9 * HOUR_S).any()
    assert world.online(IDS, 12.1 * HOUR_S).all()
    np.testing.assert_allclose(world.next_online(IDS, 3 * HOUR_S), 12 * HOUR_S)
    np.testing.assert_allclose(world.first_offline(IDS, 20 * HOUR_S, 2 * DAY_S), DAY_S)


def test_markov_is_stationary_and_stays_as_long_as_configured():
    world = markov(mean_on_s=4 * HOUR_S, mean_off_s=12 * HOUR_S, slot_s=600.0)
    slots = np.arange(0, 3 * 144)
    states = np.array([world.online(IDS, slot * 600.0) for slot in slots])
    assert abs(states.mean() - 0.25) < 0.01
    renewal = 1 - np.exp(-600.0 / (4 * HOUR_S) - 600.0 / (12 * HOUR_S))
    # leaving a state takes a renewal that draws the other one
    assert (~states[1:])[states[:-1]].mean() == pytest.approx(renewal * 0.75, rel=0.03)
    assert states[1:][~states[:-1]].mean() == pytest.approx(renewal * 0.25, rel=0.03)


def test_next_online_is_the_first_instant_online():
    world = Availability(
        AvailabilityConfig(
            (AvailabilityKind.MARKOV, AvailabilityKind.DIURNAL),
            markov=Markov(2 * HOUR_S, 2 * HOUR_S),
            diurnal=Diurnal(slot_s=1700.0),
        ),
        4,
        traits,
    )
    ids, at = IDS[:60], np.linspace(-DAY_S, DAY_S, 60)
    found = world.next_online(ids, at)
    assert (found >= at).all()
    assert world.online(ids, found).all()
    for k in range(0, 60, 6):  # brute force: nothing earlier
        if found[k] > at[k]:
            times = np.arange(at[k], found[k] - 1e-6, 50.0)
            assert not world.online(np.full(len(times), ids[k]), times).any()


def test_first_offline_is_the_first_instant_offline():
    world = markov(mean_on_s=2 * HOUR_S, mean_off_s=2 * HOUR_S)
    ids, until = IDS[:80], 6 * HOUR_S
    found = world.first_offline(ids, 100.0, until)
    times = np.arange(100.0, until, 100.0)
    for k in range(0, 80, 5):
        online = world.online(np.full(len(times), ids[k]), times)
        assert online[times < found[k]].all()
        assert np.isinf(found[k]) == online.all()


def test_never_back_within_the_horizon_is_inf():
    world = Availability(
        AvailabilityConfig((AvailabilityKind.DIURNAL,), diurnal=Diurnal(0.0, 0.0), horizon_s=3 * DAY_S), 0
    )
    assert np.isinf(world.next_online(IDS[:5], 0.0)).all()


def test_dropouts_before_and_in_mid_round():
    world = Availability(AvailabilityConfig(dropout_before=0.2, dropout_mid=0.3), 5)
    assert abs(world.dropped_before(IDS, 3).mean() - 0.2) < 0.026
    gone = world.dropped_at(IDS, 3, 100.0, np.full(len(IDS), 60.0))
    left = np.isfinite(gone)
    assert abs(left.mean() - 0.3) < 0.03
    assert ((gone[left] > 100.0) & (gone[left] < 160.0)).all()
    assert (world.dropped_before(IDS, 3) != world.dropped_before(IDS, 4)).any()


def test_availability_ending_before_the_reply_is_a_dropout():
    world = diurnal(hourly=tuple([1.0] * 12 + [0.0] * 12), spread_h=0.0)
    gone = world.dropped_at(IDS[:2], 0, 11 * HOUR_S, [HOUR_S / 2, 2 * HOUR_S])
    np.testing.assert_array_equal(gone, [np.inf, 12 * HOUR_S])


@pytest.fixture
def csv_trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("device,from,to\n7,100,200\n3,0,50\n3,50,60\n3,55,80\n3,300,400\n")
    return path


def trace_world(path, **keys) -> Availability:
    config = AvailabilityConfig((AvailabilityKind.TRACE,), trace=TraceConfig(str(path), **keys))
    return Availability(config, 0)


def test_trace(csv_trace):
    world = trace_world(csv_trace, cycle=False)
    np.testing.assert_array_equal(
        world.online([3, 3, 3, 7, 7, 5], [0, 79.9, 80, 100, 200, 150]),
        [True, True, False, True, False, False],
    )
    np.testing.assert_array_equal(
        world.next_online([3, 3, 3, 7, 5, 7], [-5, 60, 90, 0, 0, 250]), [0, 60, 300, 100, np.inf, np.inf]
    )
    np.testing.assert_array_equal(
        world.first_offline([3, 3, 7, 5], [10, 10, 150, 0], [1000, 70, 1000, 9]), [80, np.inf, 200, 0]
    )


def test_trace_cycles_over_devices_and_time(csv_trace):
    world = trace_world(csv_trace, period_s=1000.0)
    assert world.online([100], [20.0])[0]  # even ids follow device 3, odd ids device 7
    assert world.online([101], [150.0])[0]
    np.testing.assert_array_equal(world.online([3, 3, 3], [2_040.0, -990.0, 2_090.0]), [True, True, False])
    np.testing.assert_array_equal(world.next_online([3, 7], [500.0, -10.0]), [1000.0, 100.0])


def test_trace_over_the_end_of_its_period():
    trace = Trace([0, 0, 1], [0.0, 90.0, 0.0], [10.0, 100.0, 100.0], period_s=100.0)
    np.testing.assert_array_equal(
        trace.first_offline(traits([0, 0, 1]), np.array([95.0, 5.0, 3.0])), [110.0, 10.0, np.inf]
    )


def test_trace_from_npz(tmp_path):
    path = tmp_path / "trace.npz"
    np.savez(path, **{"device": [0], "from": [5.0], "to": [6.0]})
    np.testing.assert_array_equal(trace_world(path).online([0, 0], [5.5, 6.5]), [True, False])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("device,start,to\n1,2,3\n", "not a trace"),
        ("device,from,to\n1,two,3\n", "not a trace"),
        ("device,from,to\n", "no intervals"),
        ("device,from,to\n0,1,2\n1,3,3\n", r"interval 1 \(3.0 to 3.0\) is empty"),
        ("device,from,to\n0,1,nan\n", "not finite"),
    ],
)
def test_a_bad_trace_is_one_clear_line(tmp_path, content, message):
    path = tmp_path / "trace.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        trace_world(path)
    assert caught.value.where
    assert "\n" not in str(caught.value)


def test_a_damaged_npz_is_refused(tmp_path):
    path = tmp_path / "trace.npz"
    path.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(DataError, match="not a trace"):
        trace_world(path)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Diurnal(low=0.9, high=0.1), "availability.diurnal.low"),
        (lambda: Diurnal(hourly=(0.5,)), "availability.diurnal.hourly"),
        (lambda: Diurnal(hourly=(1.5,) * 24), "availability.diurnal.hourly"),
        (lambda: Markov(mean_on_s=0.0), "availability.markov.mean_on_s"),
        (lambda: Markov(slot_s=1e-3), "availability.markov.slot_s"),
        (lambda: AvailabilityConfig(dropout_mid=-0.1), "availability.dropout_mid"),
        (lambda: trace_world(""), "availability.trace.path"),
    ],
)
def test_an_impossible_value_names_its_key(make, key):
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.where == key
