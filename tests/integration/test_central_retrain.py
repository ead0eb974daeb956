"""Central retrains: decided by the policy, run as a child, repeated after a kill, registered with their rows, a seed for campaigns."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fedretrain.artifacts.manifest import Strategy
from fedretrain.artifacts.weights import decode_params, encode_params
from fedretrain.coordinator.cycle import UnderWay
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.core.types import ClientData
from fedretrain.retraining.config import RetrainingPolicy, StrategyRule, Where
from fedretrain.retraining.config import Strategy as How
from fedretrain.retraining.decision import Action, Decision
from fedretrain.retraining.signals import Signals
from fedretrain.retraining.strategy import plan
from fedretrain.server import fleet
from fedretrain.server.campaign import campaign_stream, read_campaign
from fedretrain.server.central import CentralProcess, central_stream, read_central
from fedretrain.server.importing import train_on_pool
from fedretrain.server.keys import store_places
from fedretrain.server.pool import read_pool, write_pool
from fedretrain.server.training_file import PoolTraining
from tests.simulation_cases import PLAN, Waiting
from tests.virtual_fleet import rows

LIMIT_S = 280.0


class Central(Waiting):
    """A coordinator whose version 2 is to be made on the pool."""

    def __init__(self, folder, how=How.FULL, **rules):
        super().__init__(folder, slots=1)
        self.rules_of_pool = PoolTraining(**{"num_rounds": 3, **rules})
        self.decision = Decision(
            Action.RETRAIN, "asked", strategy=how, where=Where.POOL, then_federated=how is How.INCREMENTAL
        )
        self.state = SimpleNamespace(training=SimpleNamespace(version=2), champion=1)

    def _campaign(self, rules):
        """None yet: the central retrain comes first."""

    def models(self):
        made = super().models()
        rules = getattr(self, "rules_of_pool", PoolTraining())
        made.training = replace(made.training, pool=rules)
        return made

    def everybody(self):
        with self.engine.connect() as connection:
            return fleet.everybody(connection, "p")

    def define(self):
        return self.models().central(self.decision, self.state)

    def process(self):
        store = store_places(self.config)[1]
        logs = self.folder / "logs"
        return CentralProcess("p-2", self.log, None, store, str(self.folder / "pool"), logs, lambda: self.now)

    def until(self, process, happened):
        until = time.monotonic() + LIMIT_S
        while not happened():
            assert time.monotonic() < until, "it never happened"
            process.ensure(time.monotonic())
            time.sleep(0.1)

    def end(self, process):
        self.until(process, lambda: read_central(self.log, "p-2").end)
        return read_central(self.log, "p-2")

    def expected(self, start):
        """What the one path of central training makes of these rows."""
        pool, package = read_pool(self.folder / "pool"), self.models().package(1)
        data = ClientData(package.pipeline.apply(pool.x), pool.labelled.label_N)
        return train_on_pool(PLAN.make(start), data, 3)


def _same(one, other):
    assert one.keys() == other.keys()
    for name, leaf in one.items():
        np.testing.assert_allclose(leaf, other[name], atol=1e-6)


def test_the_rules_of_strategy_decide_whether_and_how_the_pool_is_trained_on():
    wanted = RetrainingPolicy(
        rules=(StrategyRule("again", How.INCREMENTAL, then_federated=True),), min_pool_rows=100
    )
    pooled = plan(wanted, Signals(num_pool_rows=100), "person")
    assert (pooled.where, pooled.then_federated) == (Where.POOL, True)
    assert plan(wanted, Signals(num_pool_rows=99), "person").where is Where.FEDERATED


def test_a_full_retrain_begins_anew_and_is_registered_with_the_rows_that_it_saw(tmp_path):
    world = Central(tmp_path)
    first = world.define()
    assert (first.definition.base, first.definition.recipe) == ("", "full")
    assert world.define() == first  # defined once
    assert world.models().trained(2, 1) is None
    process = world.process()
    record = world.end(process)
    assert (record.end, process.pid) == ("complete", None)
    _same(decode_params(world.stores.campaigns.get(record.weights)), world.expected(None))
    models = world.models()
    assert models.trained(2, 1).made
    assert models.trained(2, 1).made  # a result counts once: the version is there
    about = models.package(2).manifest.training
    assert (about.strategy, about.recipe, about.rounds) == (Strategy.CENTRAL, "full", 3)
    assert about.snapshot == read_pool(tmp_path / "pool").digest
    assert about.epsilon is None
    assert models.package(2).manifest.base == models.package(1).manifest.weights.digest


def test_an_incremental_retrain_begins_with_the_champion_and_seeds_the_campaign_that_follows(tmp_path):
    world = Central(tmp_path, How.INCREMENTAL)
    champion = world.models().package(1).weights
    assert world.define().definition.base == world.stores.campaigns.put(encode_params(champion))
    record = world.end(world.process())
    assert record.seeds
    made = decode_params(world.stores.campaigns.get(record.weights))
    _same(made, world.expected(champion))
    models = world.models()
    assert models.trained(2, 1) is None  # the campaign has not begun
    assert models.under_way(2) is None
    models.start_campaign(world.decision, world.state, world.everybody(), b"bundle")
    (begun,) = world.log.read(campaign_stream("p-2"))
    assert models.under_way(2) == UnderWay(2, begun.at, models.training.max_s)
    definition = read_campaign(world.log, "p-2").definition
    shared = PLAN.make().task.shared.names
    _same(decode_params(world.stores.campaigns.get(definition.base)), {name: made[name] for name in shared})
    done = {"round": 0, "outcome": "released", "state": definition.base, "version": 1, "summary": {}}
    ended = {"type": "ended", "reason": "complete", "weights": definition.base}
    world.log.append(campaign_stream("p-2"), [{"type": "round", **done}, ended], at=1.0)
    assert models.trained(2, 1).made
    about = models.package(2).manifest.training
    assert about.strategy is Strategy.FEDERATED
    assert dict(about.hyperparameters)["seed.pool"] == record.definition.pool
    assert dict(about.hyperparameters)["seed.weights"] == record.weights


def test_rows_that_changed_meanwhile_are_not_trained_on_and_attempts_are_limited(tmp_path):
    world = Central(tmp_path, attempts=1)
    world.define()
    x, y = rows(np.random.default_rng(6), 60)
    write_pool(tmp_path / "pool" / "more.safetensors", x, y, np.arange(60.0))
    record = world.end(world.process())
    assert record.weights == ""
    assert "the pool is" in record.end
    made = world.models().trained(2, 1)
    assert not made.made
    assert "1 attempts failed" in made.reason
    assert 2 not in world.models().versions.by_number


def test_an_attempt_that_takes_too_long_is_ended_and_counted(tmp_path):
    world = Central(tmp_path, max_s=1.0, attempts=2)
    world.define()
    process = world.process()
    process.ensure(0.0)
    pid = process.pid
    process.ensure(1.1)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    record = read_central(world.log, "p-2")
    assert (record.num_failed, record.end) == (1, "")
    process.stop()


def test_a_retrain_without_training_file_or_pool_is_refused(tmp_path):
    world = Central(tmp_path)
    models = world.models()
    models.training = None
    with pytest.raises(ConfigError, match="training file"):
        models.central(world.decision, world.state)
    models.pool = None
    with pytest.raises(DataError, match="pool"):
        models.central(world.decision, world.state)
    assert models.central(replace(world.decision, where=Where.FEDERATED), world.state) is None


@pytest.mark.faults
def test_a_child_that_is_killed_is_repeated_and_its_result_counts_once(tmp_path):
    world = Central(tmp_path)
    world.define()
    process = world.process()
    process.ensure(time.monotonic())
    os.kill(process.pid, signal.SIGKILL)
    record = world.end(process)
    assert (record.num_failed, record.end) == (1, "complete")
    _same(decode_params(world.stores.campaigns.get(record.weights)), world.expected(None))
    kinds = [entry.record["type"] for entry in world.log.read(central_stream("p-2"))]
    assert kinds == ["defined", "failed", "ended"]


@pytest.mark.faults
def test_a_coordinator_that_ends_leaves_nothing_and_the_next_repeats_it(tmp_path):
    world = Central(tmp_path)
    world.define()
    first = world.process()
    first.ensure(time.monotonic())
    first.stop()  # as at the end of a leader; a killed one takes its child along by the leash
    assert read_central(world.log, "p-2").number == 1
    record = world.end(world.process())
    assert (record.num_failed, record.end) == (0, "complete")
