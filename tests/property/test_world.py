"""The world is a pure function of (seed, device, time); what must hold of any world."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedretrain.core.clock import DAY_S, HOUR_S
from sim.availability import Availability, AvailabilityConfig, AvailabilityKind, Diurnal, Markov
from sim.devices import Traits
from sim.fleet import FleetConfig, FleetKind, GeneratorConfig, trainable_rows
from sim.labels import DelayKind, LabelsConfig
from sim.sensors.config import SHAPED, DriftConfig, DriftKind, DriftShape, DriftSpec
from sim.sensors.plan import DriftPlan
from sim.world import WorldConfig, build_world
from tests.world_cases import NAMES, STATS, assert_same_stream, raw_rows, raw_signal, small_dataset

DATA = small_dataset()
FAST = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**40)


@st.composite
def drift_specs(draw) -> DriftSpec:
    kind = draw(st.sampled_from([k for k in DriftKind if k != DriftKind.CUSTOM]))
    shape = draw(st.sampled_from(DriftShape)) if kind in SHAPED else DriftShape.ABRUPT
    part = kind in (DriftKind.MISSING, DriftKind.CLIP)
    onset = draw(st.floats(-5 * DAY_S, 10 * DAY_S))
    return DriftSpec(
        kind=kind,
        shape=shape,
        magnitude=draw(st.floats(0.01, 1.0)),
        random_sign=False if part else draw(st.booleans()),
        spread=0.0 if part else draw(st.sampled_from([0.0, 0.5])),
        num_channels=draw(st.integers(0, 3)),
        device_fraction=draw(st.sampled_from([0.3, 1.0])),
        onset_from_s=onset,
        onset_to_s=onset + draw(st.floats(0, 5 * DAY_S)),
        duration_s=draw(st.sampled_from([0.0, DAY_S])),
        time_s=draw(st.floats(HOUR_S, 5 * DAY_S)),
    )


plans = st.lists(drift_specs(), max_size=4).map(lambda specs: DriftConfig(tuple(specs)))


@st.composite
def fleets(draw) -> FleetConfig:
    kind = draw(st.sampled_from(FleetKind))
    if kind == FleetKind.NATURAL:
        return FleetConfig()
    return FleetConfig(
        kind=kind,
        num_devices=draw(st.integers(3, 40)),
        label_alpha=0.0 if kind == FleetKind.GENERATED else draw(st.sampled_from([0.0, 0.3])),
        quantity_sigma=draw(st.sampled_from([0.0, 0.7])),
        rows_fraction=draw(st.sampled_from([0.5, 1.0])),
        num_sites=draw(st.integers(0, 3)),
        remount=kind == FleetKind.PARTITION and draw(st.booleans()),
        generator=GeneratorConfig(num_features=4, num_samples=16),
    )


@st.composite
def worlds(draw, with_drift: bool = True) -> WorldConfig:
    fleet = draw(fleets())
    loss = draw(st.sampled_from([0.0, 0.5]))
    return WorldConfig(
        fleet=fleet,
        drift=draw(plans) if with_drift else DriftConfig(),
        availability=AvailabilityConfig(
            tuple(draw(st.lists(st.sampled_from(["always", "diurnal", "markov"]), max_size=2)))
        ),
        labels=LabelsConfig(
            delay=draw(st.sampled_from(DelayKind)),
            delay_s=draw(st.floats(1.0, 3 * DAY_S)),
            loss_fraction=loss,
            bias=draw(st.sampled_from([0.0, 0.9, -0.9])) if loss else 0.0,
        ),
    )


def built(config: WorldConfig, seed: int):
    dataset = None if config.fleet.kind == FleetKind.GENERATED else DATA
    return build_world(config, seed=seed, dataset=dataset, cache_bytes=0)


@given(config=worlds(), seed=seeds, data=st.data())
@FAST
def test_a_stream_does_not_depend_on_the_group_or_order_asked(config, seed, data):
    world = built(config, seed)
    everyone = np.arange(world.fleet.num_devices)
    together = world.fleet.streams(everyone)
    some = data.draw(st.permutations(everyone.tolist()).map(lambda ids: ids[:3]))
    again = built(config, seed).fleet  # a fresh world, as on another worker
    for device, stream in zip(some, again.streams(some), strict=True):
        assert_same_stream(stream, together[device])
    assert_same_stream(again.streams([some[0]])[0], together[some[0]])


@given(config=worlds(), seed=seeds, at=st.floats(-10 * DAY_S, 30 * DAY_S))
@FAST
def test_no_future_row_and_no_unarrived_label_is_ever_trainable(config, seed, at):
    world = built(config, seed)
    true = build_world(
        WorldConfig(fleet=config.fleet), seed=seed, dataset=None if world.fleet.schema.window == 0 else DATA
    )
    ids = np.arange(world.fleet.num_devices)
    for stream, clean in zip(world.fleet.streams(ids), true.fleet.streams(ids), strict=True):
        rows = trainable_rows(stream, at)
        assert not stream.future[rows].any()
        assert (stream.label_at[rows] <= at).all()
        assert (clean.event_at[rows] <= at).all()  # by the true clock, whatever the device's own says
        assert (stream.label_at >= clean.event_at).all()
        assert np.isfinite(stream.x).all()


@given(config=worlds(with_drift=False), plan=plans, seed=seeds)
@FAST
def test_drift_before_its_onset_is_identity_and_labels_never_drift(config, plan, seed):
    clean = built(config, seed).fleet
    drifting = WorldConfig(config.fleet, plan, config.availability, config.network, config.labels)
    ids = np.arange(clean.num_devices)
    fleet = built(drifting, seed).fleet
    events = fleet.truth(ids)
    for device, (before, after) in enumerate(zip(clean.streams(ids), fleet.streams(ids), strict=True)):
        onset = min((event.onset_at for event in events if event.device == device), default=np.inf)
        untouched = before.event_at < onset
        np.testing.assert_array_equal(after.x[untouched], before.x[untouched])
        np.testing.assert_array_equal(after.event_at[untouched], before.event_at[untouched])
        np.testing.assert_array_equal(after.y, before.y)


@given(plan=plans, seed=seeds)
@FAST
def test_truth_lists_exactly_what_was_injected(plan, seed):
    """Nothing outside the listed (device, channel, time) changes; every change lies inside."""
    ids = np.arange(8)
    traits, rows = Traits(ids, ids % 2, ids % 3), raw_rows(8, 40, -6 * DAY_S, 20 * DAY_S)
    x = raw_signal(8 * 40) * np.float32(5.0)
    made = DriftPlan(plan, seed, STATS)
    out, moved = made.apply(x, rows, traits), made.reported_at(rows, traits) - rows.event_at
    signal = np.zeros((len(x), len(NAMES)), dtype=bool)
    clock = np.zeros(len(x), dtype=bool)
    for event in made.truth(traits):
        when = (
            (rows.owner == event.device) & (rows.event_at >= event.onset_at) & (rows.event_at < event.end_at)
        )
        if event.kind == DriftKind.CLOCK_SKEW:
            clock |= when
        elif event.kind != DriftKind.RECALIBRATION:
            signal[when, NAMES.index(event.channel)] = True
    changed = ~((out == x) | (np.isnan(out) & np.isnan(x)))
    assert not (changed.any(axis=1) & ~signal).any()
    assert not (moved[~clock] != 0).any()
    keys = [(e.device, e.spec, e.channel) for e in made.truth(traits)]
    assert len(keys) == len(set(keys))
    per_device = [made.truth(traits.take(np.array([d]))) for d in ids]
    assert [event for events in per_device for event in events] == made.truth(traits)


@given(kind=st.sampled_from(sorted(SHAPED)), shape=st.sampled_from(DriftShape), seed=seeds)
@FAST
def test_recalibration_restores(kind, shape, seed):
    drift = DriftSpec(kind=kind, shape=shape, onset_from_s=0.0, onset_to_s=10.0, time_s=30.0)
    visit = DriftSpec(kind=DriftKind.RECALIBRATION, onset_from_s=50.0, onset_to_s=60.0)
    ids = np.arange(5)
    traits, rows, x = Traits(ids, ids, ids), raw_rows(5, 30, 0.0, 100.0), raw_signal(150)
    made = DriftPlan(DriftConfig((drift, visit)), seed, STATS)
    out, at = made.apply(x, rows, traits), made.reported_at(rows, traits)
    after = rows.event_at >= 60.0
    np.testing.assert_array_equal(out[after], x[after])
    np.testing.assert_array_equal(at[after], rows.event_at[after])
    during = (rows.event_at > 11.0) & (rows.event_at < 50.0)
    assert ((out[during] != x[during]).any(axis=(1, 2)) | (at[during] != rows.event_at[during])).all()


@given(seed=seeds, low=st.floats(0.0, 0.5), high=st.floats(0.5, 1.0), hour=st.integers(0, 23))
@settings(max_examples=15, deadline=None)
def test_diurnal_frequencies_match(seed, low, high, hour):
    model = Diurnal(low, high, peak_hour=5.0, spread_h=0.0)
    world = Availability(AvailabilityConfig((AvailabilityKind.DIURNAL,), diurnal=model), seed)
    expected = float(model.probability(np.array([hour + 0.5]))[0])
    online = np.concatenate([world.online(np.arange(2_000), hour * HOUR_S + d * DAY_S) for d in range(5)])
    assert abs(online.mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / 10_000) + 1e-9


@given(seed=seeds, on_h=st.floats(0.5, 24), off_h=st.floats(0.5, 24), at=st.floats(-100, 100))
@settings(max_examples=15, deadline=None)
def test_markov_frequencies_match(seed, on_h, off_h, at):
    model = Markov(on_h * HOUR_S, off_h * HOUR_S)
    world = Availability(AvailabilityConfig((AvailabilityKind.MARKOV,), markov=model), seed)
    online = world.online(np.arange(10_000), at * HOUR_S)
    spread = np.sqrt(model.on_fraction * (1 - model.on_fraction) / 10_000)
    assert abs(online.mean() - model.on_fraction) < 5 * spread


@pytest.mark.parametrize("num_devices", [10_000, 1_000_000])
def test_ten_thousand_devices_out_of_any_number(num_devices, record_property):
    config = WorldConfig(
        fleet=FleetConfig(kind=FleetKind.GENERATED, num_devices=num_devices),
        drift=DriftConfig((DriftSpec(device_fraction=0.1),)),
        labels=LabelsConfig(delay=DelayKind.EXPONENTIAL, loss_fraction=0.1),
    )
    world = build_world(config, seed=1, cache_bytes=0)
    asked = np.random.default_rng(0).choice(num_devices, 10_000, replace=False)
    begun = time.perf_counter()
    streams = world.fleet.streams(asked)
    took_ms = 1e3 * (time.perf_counter() - begun)
    record_property("milliseconds", took_ms)  # reported, not judged: the machine is shared
    print(f"10,000 devices of {num_devices:,}: {took_ms:.0f} ms")
    assert len(streams) == 10_000
    assert_same_stream(streams[77], world.fleet.streams([asked[77]])[0])
