"""Fleets: streams, re-mounting, what may be trained on, the cache, generated devices."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from fedretrain.core.build import build, plain
from fedretrain.core.clock import DAY_S, HOUR_S
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Channel, Schema
from fedretrain.features.steps import Flatten, Impute
from sim.availability import AvailabilityConfig, AvailabilityKind, Diurnal
from sim.cache import StreamCache
from sim.datasets.synthetic import SyntheticFleet
from sim.fleet import (
    DeviceStream,
    FleetConfig,
    FleetKind,
    GeneratorConfig,
    MountConfig,
    scored,
    trainable,
    trainable_rows,
)
from sim.groups import StreamGroup
from sim.labels import DelayKind, LabelsConfig
from sim.mounting import Mounting, rotations, three_axis_groups
from sim.noise import gaussian
from sim.sensors.config import DriftConfig, DriftKind, DriftShape, DriftSpec
from sim.world import WorldConfig, build_world
from tests.world_cases import SCHEMA, STATS, assert_same_stream, raw_rows, raw_signal, small_dataset

DATA = small_dataset()
NO_MOUNT = MountConfig(0.0, 0.0, 0.0, 0.0)


def world(data=DATA, seed=1, **keys):
    return build_world(WorldConfig(**keys), seed=seed, dataset=data)


def virtual(num: int = 50, **keys) -> FleetConfig:
    return FleetConfig(kind=FleetKind.VIRTUAL, num_devices=num, **{"keep_natural": False, **keys})


def generated(num: int, **keys) -> FleetConfig:
    return FleetConfig(kind=FleetKind.GENERATED, num_devices=num, **keys)


def test_a_natural_stream_is_the_pipeline_of_its_rows():
    fleet = world().fleet
    (stream,) = fleet.streams([2])
    mine = DATA.stream == 2
    np.testing.assert_array_equal(stream.x, DATA.x[mine].reshape(-1, 20))
    np.testing.assert_array_equal(stream.y, DATA.y[mine])
    np.testing.assert_array_equal(stream.event_at, DATA.event_at[mine])
    np.testing.assert_array_equal(stream.label_at, DATA.event_at[mine])
    np.testing.assert_array_equal(stream.future, DATA.future[mine])
    assert fleet.num_virtual == 0
    assert fleet.input_shape == (20,)
    assert fleet.name(2) == "s2"
    np.testing.assert_array_equal(fleet.traits([2, 0]).site, DATA.site[[2, 0]])


def test_tables_have_fleets_too():
    data = small_dataset(table=True)
    drift = DriftConfig((DriftSpec(kind=DriftKind.GAIN, magnitude=1.0, onset_from_s=-1e9, onset_to_s=-1e9),))
    (stream,) = world(data, drift=drift).fleet.streams([1])
    np.testing.assert_allclose(stream.x, 2.0 * data.x[data.stream == 1], rtol=1e-6)


def test_trainable_is_past_and_taken_and_labelled():
    stream = DeviceStream(
        x=np.arange(5, dtype=np.float32)[:, None],
        y=np.arange(5),
        event_at=np.array([-2.0, -1.0, 5.0, 0.0, -9.0]),
        label_at=np.array([-1.0, 3.0, 5.0, np.inf, -9.0]),
        future=np.array([False, False, False, False, True]),
    )
    assert trainable(stream, 0.0).y.tolist() == [0]
    assert trainable(stream, 4.0).y.tolist() == [0, 1]
    assert trainable(stream, 1e9).y.tolist() == [0, 1, 2]
    assert scored(stream).y.tolist() == [4]


def test_labels_are_late_and_offline_devices_get_them_later():
    delay = LabelsConfig(delay=DelayKind.CONSTANT, delay_s=HOUR_S)
    (stream,) = world(labels=delay).fleet.streams([0])
    np.testing.assert_allclose(stream.label_at - stream.event_at, HOUR_S, rtol=1e-6)
    offline = AvailabilityConfig(
        (AvailabilityKind.DIURNAL,), diurnal=Diurnal(hourly=tuple([1.0] + [0.0] * 23), spread_h=0.0)
    )
    (stream,) = world(labels=delay, availability=offline).fleet.streams([0])
    assert ((stream.label_at % DAY_S) <= HOUR_S).all()  # only in the one hour when the device is online
    assert (stream.label_at >= stream.event_at + HOUR_S - 1e-6).all()


def test_a_skewed_clock_never_lets_a_row_be_trained_on_before_it_happened():
    slow = DriftSpec(kind=DriftKind.CLOCK_SKEW, magnitude=-5 * DAY_S, onset_from_s=-1e9, onset_to_s=-1e9)
    true = world().fleet.streams([0])[0]
    (stream,) = world(drift=DriftConfig((slow,))).fleet.streams([0])
    np.testing.assert_allclose(stream.event_at, true.event_at - 5 * DAY_S)
    for at in (0.0, DAY_S, 3 * DAY_S):
        assert (true.event_at[trainable_rows(stream, at)] <= at).all()


def test_virtual_devices_are_called_so_and_differ_by_their_mounting():
    fleet = world(fleet=virtual()).fleet
    assert fleet.num_virtual == fleet.num_devices
    assert "virtual" in fleet.name(3)
    first, second = fleet.streams([0, 4])  # one source
    np.testing.assert_array_equal(first.y, second.y)
    assert (first.x != second.x).mean() > 0.9
    (same,) = world(fleet=virtual(mount=NO_MOUNT)).fleet.streams([4])
    np.testing.assert_array_equal(same.x, world().fleet.streams([0])[0].x)


def test_natural_streams_come_first_and_stay_as_they_are():
    mixed = replace(virtual(), keep_natural=True)
    fleet, natural = world(fleet=mixed).fleet, world().fleet
    assert fleet.num_virtual == fleet.num_devices - natural.num_devices
    assert fleet.virtual([0, natural.num_devices]).tolist() == [False, True]
    for device in range(natural.num_devices):
        (kept,), (own,) = fleet.streams([device]), natural.streams([device])
        np.testing.assert_array_equal(kept.x, own.x)
        assert fleet.name(device) == natural.name(device)
    assert "virtual" in fleet.name(natural.num_devices)
    # Asked together with virtual devices, a natural one is still itself.
    together = fleet.streams([natural.num_devices, 0])[1]
    np.testing.assert_array_equal(together.x, natural.streams([0])[0].x)


def test_a_remounted_partition_is_virtual():
    config = FleetConfig(kind=FleetKind.PARTITION, num_devices=6)
    assert world(fleet=config).fleet.num_virtual == 0
    fleet = world(fleet=replace(config, remount=True)).fleet
    assert fleet.num_virtual == 6
    assert "virtual" in fleet.name(0)


def test_a_rotation_keeps_the_length_of_three_axis_samples_and_moves_nothing_else():
    mounting = Mounting(MountConfig(90.0, 0.0, 0.0, 0.0), 1, STATS, three_axis_groups(SCHEMA))
    x = raw_signal(30)
    out = mounting.apply(x, raw_rows(3, 10, 0.0, 1.0), np.arange(3))
    np.testing.assert_allclose(
        np.linalg.norm(out[..., :3], axis=-1), np.linalg.norm(x[..., :3], axis=-1), rtol=1e-5
    )
    np.testing.assert_array_equal(out[..., 3], x[..., 3])
    assert np.abs(out[..., :3] - x[..., :3]).max() > 0.1


def test_rotations_are_rotations_up_to_their_angle():
    turn = rotations(np.arange(1, 2_000, dtype=np.uint64), 30.0)
    np.testing.assert_allclose(
        turn @ np.swapaxes(turn, 1, 2), np.broadcast_to(np.eye(3), turn.shape), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(turn), 1.0)
    angle = np.rad2deg(np.arccos((np.trace(turn, axis1=1, axis2=2) - 1) / 2))
    assert angle.max() < 30.0
    assert angle.mean() == pytest.approx(15.0, abs=1.0)


def test_mount_gain_offset_and_noise_have_their_spreads():
    count = 800
    x, rows = np.zeros((count * 2, 5, 4), np.float32), raw_rows(count, 2, 0.0, 1.0)
    out = Mounting(MountConfig(0.0, 0.0, 0.5, 0.0), 1, STATS, ()).apply(x, rows, np.arange(count))
    np.testing.assert_allclose(out[:, 0].std(axis=0), 0.5 * STATS.std, rtol=0.1)
    out = Mounting(MountConfig(0.0, 0.2, 0.0, 0.0), 1, STATS, ()).apply(x + 1, rows, np.arange(count))
    np.testing.assert_allclose(np.log(out[:, 0]).std(axis=0), 0.2, rtol=0.1)
    out = Mounting(MountConfig(0.0, 0.0, 0.0, 0.3), 1, STATS, ()).apply(x, rows, np.arange(count))
    np.testing.assert_allclose(out.std(axis=(0, 1)), 0.3 * STATS.std, rtol=0.05)


def test_three_axis_groups_are_found_by_name_and_unit():
    names = [
        ("ax", "g"),
        ("ay", "g"),
        ("az", "g"),
        ("box", "C"),
        ("mag_X", "T"),
        ("mag_Y", "T"),
        ("mag_Z", "V"),
    ]
    schema = Schema(tuple(Channel(name, unit, -1.0, 1.0) for name, unit in names))
    assert three_axis_groups(schema) == ((0, 1, 2),)


def test_gaussian_noise_is_gaussian_and_stable():
    draws = gaussian(np.arange(2_000, dtype=np.uint64), 50)
    assert draws.mean() == pytest.approx(0.0, abs=0.01)
    assert draws.std() == pytest.approx(1.0, abs=0.01)
    assert (np.abs(draws) > 1.96).mean() == pytest.approx(0.05, abs=0.003)
    np.testing.assert_array_equal(gaussian(np.arange(5, 9, dtype=np.uint64), 7), draws[5:9, :7])


def test_missing_stretches_are_imputed_or_the_pipeline_is_named():
    lost = DriftSpec(kind=DriftKind.MISSING, magnitude=1.0, onset_from_s=-1e9, onset_to_s=-1e9)
    (stream,) = world(drift=DriftConfig((lost,))).fleet.streams([0])
    assert not stream.x.any()
    bare = replace(DATA, pipeline=Pipeline((Flatten(),)))
    with pytest.raises(DataError, match="not finite") as caught:
        world(bare, drift=DriftConfig((lost,))).fleet.streams([0])
    assert "Impute" in caught.value.fix


def test_a_local_scaler_is_fitted_on_each_devices_own_past():
    local = replace(DATA, pipeline=Pipeline((Impute("constant"), Scaler("local"), Flatten())))
    for stream in world(local).fleet.streams([0, 3]):
        past = stream.x[~stream.future].reshape(-1, 4)
        np.testing.assert_allclose(past.mean(axis=0), 0.0, atol=0.02)
        np.testing.assert_allclose(past.std(axis=0), 1.0, atol=0.02)


def test_a_device_without_rows_has_an_empty_stream():
    fleet = world(fleet=FleetConfig(kind=FleetKind.PARTITION, num_devices=300)).fleet
    streams = fleet.streams(np.arange(300))
    sizes = [len(stream) for stream in streams]
    assert min(sizes) == 0
    assert sum(sizes) == len(DATA)
    empty = sizes.index(0)
    assert fleet.streams([empty])[0].x.shape == (0, 20)
    assert len(trainable(streams[empty], 1e9)) == 0


def test_truth_is_of_the_devices_asked():
    drift = DriftConfig((DriftSpec(kind=DriftKind.GAIN, sites=(1,), channels=("ax",)),))
    events = world(drift=drift).fleet.truth([0, 1, 2, 3])
    assert [(event.device, event.channel) for event in events] == [(1, "ax"), (3, "ax")]


def test_a_device_outside_the_fleet_is_refused():
    for devices in ([4], [-1]):
        with pytest.raises(DataError, match="devices are 0 to 3"):
            world().fleet.streams(devices)


def test_generated_devices_are_the_recipes():
    config = GeneratorConfig(num_samples=40, num_features=5, label_skew=0.9)
    fleet = build_world(WorldConfig(fleet=generated(1_000_000, generator=config)), seed=3).fleet
    asked = np.array([999_999, 5])
    recipe = SyntheticFleet(1_000_000, 40, 5, seed=3, label_skew=0.9, scored_fraction=0.25)
    x, y = recipe.generate(asked)
    for k, stream in enumerate(fleet.streams(asked)):
        np.testing.assert_array_equal(stream.y, y[k])
        np.testing.assert_array_equal(stream.x, recipe.pipeline.fit(x[0], recipe.schema).apply(x[k]))
        assert stream.future.sum() == 10
        assert (stream.event_at[stream.future] >= 7 * DAY_S).all()
    assert fleet.name(5) == "generated 5"
    assert fleet.num_devices == 1_000_000


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_of_devices_that_are_not_kept_only_what_is_trained_on_is_made(bias):
    late = LabelsConfig(delay=DelayKind.EXPONENTIAL, delay_s=DAY_S, loss_fraction=0.4, bias=bias)
    config = WorldConfig(fleet=generated(1_000_000, quantity_sigma=0.5), labels=late)
    fleet = build_world(config, seed=3, cache_bytes=0).fleet
    asked = np.array([999_999, 5, 5, 400_000])
    for at in (-1e9, 3.0 * DAY_S, 1e9):
        for stream, found in zip(fleet.streams(asked), fleet.trainable(asked, at), strict=True):
            wanted = trainable(stream, at)
            np.testing.assert_array_equal(found.x, wanted.x)
            np.testing.assert_array_equal(found.y, wanted.y)
    assert sum(map(len, fleet.trainable(asked, 1e9))) > 0


def test_streams_of_a_fleet_far_larger_than_the_cache_are_not_kept():
    small, large = (
        build_world(WorldConfig(fleet=generated(num)), seed=3, cache_bytes=1 << 20).fleet
        for num in (1_000, 1_000_000)
    )
    for fleet in (small, large):
        fleet.trainable(np.arange(100), 0.0)
    assert small._cache.num_bytes > 0
    assert large._cache.num_bytes == 0


def test_generated_quantities_are_skewed():
    fleet = build_world(WorldConfig(fleet=generated(1_000, quantity_sigma=0.7)), seed=3).fleet
    streams = fleet.streams(np.arange(1_000))
    sizes = np.array([(~s.future).sum() for s in streams])
    assert sizes.min() >= 1
    assert sizes.max() == 24  # no more than the recipe makes
    assert 0.1 < (sizes < 12).mean() < 0.5
    assert all(s.future.sum() == 8 for s in streams)


def test_a_fleet_and_its_data_must_fit():
    with pytest.raises(ConfigError, match="made from its seed"):
        world(fleet=generated(10))
    with pytest.raises(ConfigError, match="needs a data set"):
        build_world(WorldConfig(), seed=0)


def test_a_world_is_built_from_plain_values():
    values = {
        "fleet": {"kind": "virtual", "num_devices": 9, "mount": {"rotation_deg": 5}},
        "drift": {"specs": [{"kind": "gain", "shape": "linear", "channels": ["ax"], "sites": [1]}]},
        "availability": {"models": ["diurnal", "markov"], "diurnal": {"site_offset_h": [0, 8]}},
        "labels": {"delay": "lognormal", "loss_fraction": 0.2},
    }
    config = build(WorldConfig, values)
    assert config.drift.specs == (DriftSpec(DriftKind.GAIN, DriftShape.LINEAR, channels=("ax",), sites=(1,)),)
    assert build(WorldConfig, plain(config)) == config
    assert hash(config.fleet) == hash(build(FleetConfig, plain(config.fleet)))
    assert len(world(**{f.name: getattr(config, f.name) for f in fields(config)}).fleet.streams([8])) == 1


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"drift": {"specs": [{}, {"kind": "clip", "magnitude": 3.0}]}}, "drift.specs[1].magnitude"),
        ({"labels": {"loss_fraction": 2.0}}, "labels.loss_fraction"),
        ({"availability": {"markov": {"slot_s": 0.0}}}, "availability.markov.slot_s"),
        ({"fleet": {"mount": {"rotation_deg": 200.0}}}, "fleet.mount.rotation_deg"),
        ({"fleet": {"generator": {"num_classes": 1}}}, "fleet.generator.num_classes"),
    ],
)
def test_an_impossible_value_names_its_whole_key(values, where):
    with pytest.raises(ConfigError) as caught:
        build(WorldConfig, values)
    assert caught.value.where == where


def test_the_digest_tells_worlds_apart():
    digests = {
        world().fleet.digest,
        world(seed=2).fleet.digest,
        world(fleet=virtual()).fleet.digest,
        world(labels=LabelsConfig(loss_fraction=0.1)).fleet.digest,
        world(replace(DATA, digest="1" * 64)).fleet.digest,
    }
    assert len(digests) == 5
    assert world().fleet.digest == world().fleet.digest


def test_the_cache_is_bounded_and_lets_the_oldest_group_go():
    calls: list[list[int]] = []

    def group_of(devices):
        zeros = np.zeros(10)
        streams = [
            DeviceStream(np.full((10, 1), d, np.float32), zeros, zeros, zeros, zeros == 1) for d in devices
        ]
        return StreamGroup.of(streams)

    def make(devices):
        calls.append(devices.tolist())
        return [group_of(devices)]

    two = group_of([0, 1]).num_bytes
    cache = StreamCache(2 * two, make)
    assert [int(s.x[0, 0]) for s in cache.get([6, 5, 6])] == [6, 5, 6]
    assert calls == [[5, 6]]
    cache.get([5, 8, 7])  # 7 and 8 are made and held together
    assert calls[1:] == [[7, 8]]
    cache.get([6])  # so 7 and 8 are now the oldest
    cache.get([9])
    assert cache.num_bytes == two + group_of([9]).num_bytes <= 2 * two
    assert [int(s.x[0, 0]) for s in cache.get([9, 6, 5])] == [9, 6, 5]
    assert len(calls) == 3
    cache.get([7, 8])
    assert calls[3:] == [[7, 8]]
    cache.get(np.arange(20, 26))  # too large to hold: made, and nothing else lost
    cache.get([9, 7])
    assert len(calls) == 5
    assert cache.get([]) == []


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_a_fleet_tells_for_many_devices_what_each_may_train_on(cache_bytes):
    delay = LabelsConfig(delay=DelayKind.EXPONENTIAL, delay_s=10.0, loss_fraction=0.2)
    config = WorldConfig(fleet=FleetConfig(kind=FleetKind.PARTITION, num_devices=40), labels=delay)
    fleet = build_world(config, seed=1, dataset=DATA, cache_bytes=cache_bytes).fleet
    fleet.streams([7, 3, 11])
    asked = np.array([11, 0, 3, 3, 39, 7])
    for at in (-1e9, 5.0, 1e9):
        for stream, found in zip(fleet.streams(asked), fleet.trainable(asked, at), strict=True):
            wanted = trainable(stream, at)
            np.testing.assert_array_equal(found.x, wanted.x)
            np.testing.assert_array_equal(found.y, wanted.y)
    assert sum(map(len, fleet.trainable(np.arange(40), 1e9))) > 0
    assert fleet.trainable([], 0.0) == []


def test_without_a_cache_streams_are_the_same():
    ids = np.array([3, 0, 3])
    bare = build_world(WorldConfig(), seed=1, dataset=DATA, cache_bytes=0).fleet
    for a, b in zip(world().fleet.streams(ids), bare.streams(ids), strict=True):
        assert_same_stream(a, b)
    assert bare._cache.num_bytes == 0


def test_generated_devices_are_never_called_real():
    fleet = world(None, fleet=generated(5)).fleet
    assert fleet.virtual(np.arange(5)).all()
