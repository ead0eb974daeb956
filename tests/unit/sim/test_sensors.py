"""Drift on the raw signal: what each kind does, when, to whom, and that the truth says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedretrain.core.errors import ConfigError
from sim.devices import Traits
from sim.sensors.config import DriftConfig, DriftKind, DriftShape, DriftSpec, MagnitudeUnit
from sim.sensors.plan import DriftPlan
from tests.world_cases import STATS, raw_rows, raw_signal

K, EACH = 6, 40
ROWS = raw_rows(K, EACH, 0.0, 100.0)
X = raw_signal(K * EACH)
TRAITS = Traits(np.arange(K), np.arange(K) % 2, np.arange(K) % 3)


def drifted(*specs: DriftSpec, x=X, rows=ROWS, traits=TRAITS, seed=0):
    return DriftPlan(DriftConfig(specs), seed, STATS).apply(x, rows, traits)


def spec(kind: DriftKind, magnitude: float = 0.5, **more) -> DriftSpec:
    return DriftSpec(kind=kind, magnitude=magnitude, **{"onset_from_s": 50.0, "onset_to_s": 50.0, **more})


AFTER = ROWS.event_at >= 50.0


def test_gain_multiplies():
    np.testing.assert_allclose(drifted(spec(DriftKind.GAIN, 0.5))[AFTER], 1.5 * X[AFTER], rtol=1e-6)


@pytest.mark.parametrize(
    ("unit", "step"),
    [
        (MagnitudeUnit.STD, STATS.std),
        (MagnitudeUnit.RANGE, STATS.high - STATS.low),
        (MagnitudeUnit.RAW, np.ones(4)),
    ],
)
def test_offset_is_in_its_unit(unit, step):
    moved = drifted(spec(DriftKind.OFFSET, 0.5, unit=unit))[AFTER] - X[AFTER]
    np.testing.assert_allclose(moved, np.broadcast_to(0.5 * step, moved.shape), rtol=1e-5, atol=1e-5)


def test_linear_drift_grows_and_holds():
    age = ROWS.event_at - 50.0
    moved = drifted(spec(DriftKind.OFFSET, 2.0, shape=DriftShape.LINEAR, time_s=20.0))[:, 0, 0] - X[:, 0, 0]
    np.testing.assert_allclose(moved, 2.0 * np.clip(age / 20.0, 0.0, 1.0), atol=1e-5)


def test_seasonal_drift_is_a_sine_from_the_onset():
    age = ROWS.event_at - 50.0
    moved = drifted(spec(DriftKind.OFFSET, 1.0, shape=DriftShape.SEASONAL, time_s=30.0))[:, 0, 0] - X[:, 0, 0]
    np.testing.assert_allclose(moved, np.where(age >= 0, np.sin(2 * np.pi * age / 30.0), 0.0), atol=1e-5)


def test_random_walk_spreads_with_the_square_root_of_time():
    count, ages = 4_000, np.array([0.0, 25.0, 50.0, 100.0, 400.0])
    rows = raw_rows(count, 5, 0.0, 1.0)
    rows = replace(rows, event_at=np.tile(ages, count))
    traits = Traits(np.arange(count), np.zeros(count, int), np.zeros(count, int))
    walk = DriftSpec(kind=DriftKind.OFFSET, shape=DriftShape.RANDOM_WALK, time_s=100.0)
    x = np.zeros((5 * count, 1, 4), np.float32)
    paths = drifted(walk, x=x, rows=rows, traits=traits)[:, 0, 0].reshape(count, 5)
    # the series leaves out less than 1 % of the variance at full time; sampling error of a std here: 1.1 %
    np.testing.assert_allclose(paths.std(axis=0), [0.0, 0.5, np.sqrt(0.5), 1.0, 1.0], rtol=0.05, atol=1e-6)
    np.testing.assert_array_equal(paths[:, 3], paths[:, 4])
    assert abs(np.corrcoef(paths[:, 1], paths[:, 3] - paths[:, 1])[0, 1]) < 0.06  # increments are independent


def test_noise_has_its_size_and_is_new_in_every_row():
    added = drifted(spec(DriftKind.NOISE, 0.5))[AFTER] - X[AFTER]
    np.testing.assert_allclose(added.std(axis=(0, 1)), 0.5 * STATS.std, rtol=0.1)
    assert len(np.unique(added[:, 0, 0])) == AFTER.sum()


def test_stuck_and_dead_read_one_value():
    stuck = drifted(spec(DriftKind.STUCK, -1.0))[AFTER]
    expected = np.broadcast_to((STATS.mean - STATS.std).astype(np.float32), stuck.shape)
    np.testing.assert_allclose(stuck, expected, rtol=1e-6)
    assert not drifted(spec(DriftKind.DEAD))[AFTER].any()


def test_missing_loses_whole_stretches_at_its_rate():
    count = 300
    rows = raw_rows(count, 100, 0.0, 99.0)
    traits = Traits(np.arange(count), np.zeros(count, int), np.zeros(count, int))
    lost = np.isnan(
        drifted(
            spec(DriftKind.MISSING, 0.3, time_s=10.0, onset_from_s=0.0, onset_to_s=0.0, channels=("ax",)),
            x=raw_signal(count * 100),
            rows=rows,
            traits=traits,
        )
    )
    assert not lost[:, :, 1:].any()
    stretches = lost[:, :, 0].all(axis=1).reshape(count, 10, 10)
    np.testing.assert_array_equal(stretches.any(axis=2), stretches.all(axis=2))
    assert abs(stretches.mean() - 0.3) < 0.04


def test_clip_saturates_at_a_part_of_the_schemas_range():
    big = X * 100.0
    out = drifted(spec(DriftKind.CLIP, 1.0), x=big)[AFTER]
    np.testing.assert_array_equal(out, np.clip(big[AFTER], STATS.low, STATS.high).astype(np.float32))
    half = drifted(spec(DriftKind.CLIP, 0.5), x=big)[AFTER][..., 3]
    assert half.min() == pytest.approx(-15.0)
    assert half.max() == pytest.approx(35.0)


def test_clock_skew_shifts_the_reported_instant_alone():
    plan = DriftPlan(DriftConfig((spec(DriftKind.CLOCK_SKEW, -3600.0),)), 0, STATS)
    assert plan.apply(X, ROWS, TRAITS) is X
    moved = plan.reported_at(ROWS, TRAITS) - ROWS.event_at
    np.testing.assert_allclose(moved, np.where(AFTER, -3600.0, 0.0))


def test_effects_apply_in_the_order_listed():
    gain, offset = spec(DriftKind.GAIN, 1.0), spec(DriftKind.OFFSET, 1.0, unit=MagnitudeUnit.RAW)
    np.testing.assert_allclose(drifted(gain, offset)[AFTER], 2 * X[AFTER] + 1, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(drifted(offset, gain)[AFTER], 2 * (X[AFTER] + 1), rtol=1e-6, atol=1e-6)


def test_recalibration_restores_what_drifted_and_heals_no_broken_sensor():
    visit = DriftSpec(kind=DriftKind.RECALIBRATION, onset_from_s=70.0, onset_to_s=70.0)
    late = spec(DriftKind.OFFSET, 1.0, onset_from_s=90.0, onset_to_s=90.0)
    out = drifted(spec(DriftKind.GAIN), spec(DriftKind.DEAD, channels=("az",)), visit, late)
    between = (ROWS.event_at >= 70.0) & (ROWS.event_at < 90.0)
    np.testing.assert_array_equal(out[between][..., :2], X[between][..., :2])
    assert not out[between][..., 2].any()
    again = ROWS.event_at >= 90.0
    assert (out[again][..., 0] != X[again][..., 0]).all()


def test_truth_has_the_recalibrated_end():
    visit = DriftSpec(kind=DriftKind.RECALIBRATION, onset_from_s=70.0, onset_to_s=70.0, devices=(1,))
    plan = DriftPlan(DriftConfig((spec(DriftKind.GAIN, channels=("ax",)), visit)), 0, STATS)
    events = plan.truth(TRAITS.take(np.array([1, 0])))
    assert [(e.device, e.kind, e.channel, e.onset_at, e.end_at) for e in events] == [
        (1, DriftKind.GAIN, "ax", 50.0, 70.0),
        (1, DriftKind.RECALIBRATION, "", 70.0, 70.0),
        (0, DriftKind.GAIN, "ax", 50.0, np.inf),
    ]


@pytest.mark.parametrize(
    ("where", "hit"),
    [
        ({"sites": (1,)}, {1, 3, 5}),
        ({"device_types": (0, 2)}, {0, 2, 3, 5}),
        ({"devices": (4,)}, {4}),
        ({"devices": (4, 5), "sites": (1,)}, {5}),
        ({}, set(range(6))),
    ],
)
def test_targets(where, hit):
    plan = DriftPlan(DriftConfig((spec(DriftKind.GAIN, **where),)), 0, STATS)
    assert {event.device for event in plan.truth(TRAITS)} == hit


def test_device_fraction_sign_spread_and_onset_have_their_distributions():
    count = 5_000
    traits = Traits(np.arange(count), np.zeros(count, int), np.zeros(count, int))
    one = DriftSpec(
        kind=DriftKind.GAIN,
        magnitude=2.0,
        device_fraction=0.25,
        random_sign=True,
        spread=0.5,
        onset_from_s=100.0,
        onset_to_s=200.0,
        num_channels=1,
    )
    events = DriftPlan(DriftConfig((one,)), 3, STATS).truth(traits)
    assert abs(len(events) / count - 0.25) < 0.02
    size = np.array([event.magnitude for event in events])
    assert abs((size > 0).mean() - 0.5) < 0.05
    assert abs(np.log(np.abs(size) / 2.0).std() - 0.5) < 0.05
    onset = np.array([event.onset_at for event in events])
    assert abs(onset.mean() - 150.0) < 3.0
    assert onset.min() > 100.0
    assert onset.max() < 200.0
    _, counts = np.unique([event.channel for event in events], return_counts=True)
    assert counts.min() > len(events) * 0.2


@pytest.mark.parametrize(
    ("keys", "at_fault"),
    [
        ({"magnitude": np.nan}, "magnitude"),
        ({"device_fraction": 1.5}, "device_fraction"),
        ({"onset_from_s": 2.0, "onset_to_s": 1.0}, "onset_to_s"),
        ({"time_s": 0.0}, "time_s"),
        ({"kind": DriftKind.MISSING, "magnitude": 2.0}, "magnitude"),
        ({"kind": DriftKind.CLIP, "magnitude": 0.0}, "magnitude"),
        ({"kind": DriftKind.CLIP, "spread": 0.1}, "random_sign"),
        ({"kind": DriftKind.DEAD, "shape": DriftShape.LINEAR}, "shape"),
        ({"kind": DriftKind.CUSTOM}, "path"),
        ({"path": "a:b"}, "path"),
    ],
)
def test_an_impossible_value_names_its_key(keys, at_fault):
    with pytest.raises(ConfigError) as caught:
        DriftSpec(**keys)
    assert caught.value.where == at_fault


def test_an_unknown_channel_and_a_missing_range_are_refused():
    with pytest.raises(ConfigError, match="no channel 'az2'") as caught:
        drifted(spec(DriftKind.GAIN), spec(DriftKind.GAIN, channels=("az2",)))
    assert caught.value.where == "drift.specs[1].channels"
    open_range = replace(STATS, high=np.array([np.inf, 1.0, 1.0, 1.0]))
    with pytest.raises(ConfigError, match="no range"):
        DriftPlan(DriftConfig((spec(DriftKind.CLIP),)), 0, open_range)
    DriftPlan(DriftConfig((spec(DriftKind.CLIP, channels=("ay",)),)), 0, open_range)
