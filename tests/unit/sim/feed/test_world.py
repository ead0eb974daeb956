from functools import cache

import numpy as np
import pytest
import safetensors.numpy

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.core.ids import ClientId
from fedretrain.core.rng import seed_for
from fedretrain.core.types import ClientData
from fedretrain.features.pipeline import Pipeline
from fedretrain.server.pool import read_pool
from fedretrain.training.config import LocalTraining, OptimizerConfig
from fedretrain.training.executor import ClientWork
from fedretrain.training.plan import ModelName, TrainingPlan
from sim.feed.calibration import offset_that_costs
from sim.feed.config import FeedConfig, made, played
from sim.feed.files import read, write
from sim.feed.world import World

SMALL = FeedConfig(stream_rows=600)


@cache
def world(seed=0):
    return World(FeedConfig(stream_rows=600, seed=seed))


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_configuration_writes_the_same_files(tmp_path):
    write(World(SMALL), tmp_path / "a")
    write(World(SMALL), tmp_path / "b")
    write(World(FeedConfig(stream_rows=600, seed=1)), tmp_path / "c")
    one, again, other = (files(tmp_path / name) for name in "abc")
    assert set(one) == {"feed.json", "features.json", "pool/lab.safetensors"}
    assert one == again
    assert one["pool/lab.safetensors"] != other["pool/lab.safetensors"]


def test_the_files_read_back(tmp_path):
    description = write(world(), tmp_path)
    assert read(tmp_path) == description
    features = Pipeline.from_json((tmp_path / "features.json").read_text())
    lab = safetensors.numpy.load_file(tmp_path / "pool" / "lab.safetensors")
    assert {name: (one.dtype.name, one.shape) for name, one in lab.items()} == {
        "x": ("float32", (2400, 8)),
        "y": ("int64", (2400,)),
        "at": ("float64", (2400,)),
        "device": ("int64", (2400,)),
        "group": ("int64", (2400,)),
    }
    assert features.apply(lab["x"]).shape == (2400, 8)
    assert lab["device"].min() >= SMALL.num_devices
    assert set(lab["y"]) == {0, 1, 2, 3}
    pool = read_pool(tmp_path / "pool")  # as the coordinator reads it
    assert np.array_equal(pool.x, lab["x"])
    assert np.array_equal(pool.labelled.label_N, lab["y"])
    assert set(pool.labelled.group_N) == {0, 1}  # device types


def test_every_device_has_one_agent_and_every_agent_devices(tmp_path):
    description = write(World(FeedConfig(num_devices=7, num_agents=3, stream_rows=8)), tmp_path)
    hosted = [name for agent in description.agents for name in agent.devices]
    assert hosted == [device.name for device in description.devices] == [f"device-{k:02d}" for k in range(7)]
    assert all(agent.devices for agent in description.agents)
    assert [agent.http for agent in description.agents] == [
        f"127.0.0.1:{port}" for port in (7480, 7481, 7482)
    ]


def test_no_world_no_run(tmp_path):
    with pytest.raises(DataError, match="no world was prepared"):
        read(tmp_path)


def test_run_changes_how_it_is_played_and_not_what_was_made():
    assert played(SMALL, ["interval_s=0.1", "drift_at_s=3"]).interval_s == 0.1
    with pytest.raises(ConfigError, match="num_devices was fixed"):
        played(SMALL, ["num_devices=3"])
    with pytest.raises(ConfigError, match="no key"):
        played(SMALL, ["intervals=3"])


@pytest.mark.parametrize(
    "word",
    [
        "num_devices=2",
        "interval_s=0",
        "label_fraction=2",
        "drift_channels=9",
        "first_port=65534",
        "nonsense",
        "seed=x",
    ],
)
def test_words_that_make_no_world(word):
    with pytest.raises(ConfigError):
        made([word])


def test_only_drifting_devices_drift_and_only_in_half_of_the_channels():
    drifting = [k for k, device in enumerate(world().devices) if device.drifts]
    assert len(drifting) == 12
    for k in range(24):
        clean, labels = world().rows(k, 10, 50)
        later, same = world().rows(k, 10, 50, drift_age_s=2.0)
        assert np.array_equal(labels, same)
        assert np.array_equal(clean[:, 4:], later[:, 4:])
        assert np.array_equal(clean, later) == (k not in drifting)


def test_a_stream_begins_anew_and_batches_do_not_change_it():
    whole, labels = world().rows(3, 0, 600)
    x, y = world().rows(3, 598, 4)
    assert np.array_equal(x, np.concatenate([whole[598:], whole[:2]]))
    assert np.array_equal(y, np.concatenate([labels[598:], labels[:2]]))


def test_who_is_told_of_does_not_depend_on_batches():
    whole = world().labelled(3, 0, 400)
    assert np.array_equal(whole[40:44], world().labelled(3, 40, 4))
    assert 0.4 < whole.mean() < 0.6


def test_the_offset_is_the_least_that_costs_enough():
    labels = np.repeat([0, 1], 500)
    x = (
        np.linspace(-1.0, 1.0, 1000)[:, None] + np.where(labels, 3.0, -3.0)[:, None]
    )  # each class half a unit wide
    cheap, dear = (offset_that_costs(loss, x, labels, gain=0.0, channels=1) for loss in (0.1, 0.4))
    assert 0.0 < cheap < dear <= 3.0
    assert (
        offset_that_costs(1.0, x, labels, gain=0.0, channels=1) >= dear
    )  # half of the rows can be lost at most


def test_what_was_chosen_is_kept_and_what_was_given_is_used(tmp_path):
    given = World(FeedConfig(stream_rows=8, drift_offset=0.7))
    assert given.drift_offset == 0.7
    chosen = write(world(), tmp_path).config.drift_offset
    assert chosen == world().drift_offset > 0.0
    assert read(tmp_path).config.drift_offset == chosen


def train(trainer, clients, rounds, shared):
    layout = trainer.task.shared
    for round_ in range(rounds):
        work = [
            ClientWork(ClientId(k), one, None, seed_for(0, round_, k, "t")) for k, one in enumerate(clients)
        ]
        blocks = list(trainer.executor.train(shared, work))
        change = np.concatenate([block.delta_KP for block in blocks]).mean(axis=0)
        shared = layout.unpack(layout.pack(shared) + change)
    return shared


def accuracy(trainer, shared, data):
    (outputs,) = trainer.executor.predict(
        shared, [ClientWork(ClientId(0), data, None, 0)], personalized=False
    )
    return float((outputs.argmax(axis=1) == data.y).mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_drift_costs_accuracy_and_retraining_on_the_fleet_recovers_it(seed):
    local = LocalTraining(batch_size=32, epochs=1, optimizer=OptimizerConfig(lr=0.2))
    plan = TrainingPlan(ModelName.MLP, (8,), 4, options={"hidden": (32,)}, training=local, executor="batched")
    trainer, made_world = plan.make(), world(seed)

    def data(k, first, count, age):
        x, y = made_world.rows(k, first, count, drift_age_s=age)
        return ClientData(made_world.features.apply(x), y)

    def joined(devices, age):
        parts = [data(k, 200, 400, age) for k in devices]
        return ClientData(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))

    drifting = [k for k, device in enumerate(made_world.devices) if device.drifts]
    steady = [k for k in range(24) if k not in drifting]
    lab = ClientData(made_world.features.apply(made_world.lab.x), made_world.lab.y)
    model = train(trainer, [lab], 20, trainer.first_shared())
    before, after = (accuracy(trainer, model, joined(drifting, age)) for age in (-1.0, 0.0))
    assert before > 0.8
    assert 0.25 <= before - after <= 0.45
    retrained = train(trainer, [data(k, 0, 200, 0.0) for k in range(24)], 10, model)
    assert accuracy(trainer, retrained, joined(drifting, 0.0)) > before - 0.3 * (before - after)
    assert accuracy(trainer, retrained, joined(steady, 0.0)) > before - 0.05
