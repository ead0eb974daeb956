"""A population's whole loop on real database, packages and counts, in virtual time: drift, retrain, shadow, approval, canary, champion,
and a harmful candidate that is caught."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.artifacts.manifest import TrainingRecord
from fedretrain.coordinator.cycle import Propose, Retrain
from fedretrain.monitoring.histogram import count
from fedretrain.rollout.causes import Phase
from fedretrain.rollout.evidence import Answer, Approval
from fedretrain.rollout.safety import SafetyCommand, SafetyOrder
from fedretrain.server import fleet, orders
from fedretrain.server.campaign_rules import CampaignRules, PrivacyRule, SamplingRule
from fedretrain.server.fleet import Traits
from fedretrain.server.releasing import release_version
from fedretrain.server.sources import keeping, tallies
from fedretrain.server.sources.champion import binner_of
from fedretrain.server.sources.config import Kafka
from fedretrain.server.sources.keeping import Batch, Kind, Message, Position
from fedretrain.server.training_file import TrainingFile
from fedretrain.wire.samples import Samples, encode_samples
from tests.population_cases import PLAN, SLOT, World
from tests.virtual_fleet import rows

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the story is told on both


@pytest.fixture
def world(tmp_path, database_url):
    made = World(tmp_path, database_url)
    yield made
    made.engine.dispose()


def test_a_fleet_that_outgrows_its_memory_is_not_watched_and_told_why_until_there_is_more(world):
    world.until(lambda: world.population.telemetry is not None)
    population, most = world.population, world.population._most_bytes
    population._most_bytes = 1.0
    with world.engine.begin() as connection:
        for number in range(population.telemetry.capacity):
            fleet.watch(connection, "p", f"more-{number}", Traits("pump", "north"), world.now)
    world.step()
    assert population.trouble.where == "watching.memory_gib"
    assert population.telemetry is None
    population._most_bytes = most
    world.step()
    assert population.trouble is None
    assert population.telemetry.fits(population.devices)


@pytest.mark.slow
@on_sqlite
def test_monitors_go_on_where_another_process_stopped(world):
    world.until(lambda: world.population._watching is not None)
    settled_at = world.population._watching.kept.settled_at
    world.restart()
    world.step()
    assert world.population._watching.kept.settled_at == settled_at
    world.until(lambda: world.population._watching.judges)
    old = world.population._watching.kept
    world.restart()
    world.step()
    new = world.population._watching.kept
    assert (new.settled_at, new.recorded_at) == (None, old.recorded_at)
    assert np.array_equal(new.baseline.features_GFC, old.baseline.features_GFC)


@on_sqlite
def test_neither_a_damaged_package_nor_a_clock_that_was_set_back_keeps_an_order_from_counting(world):
    world.until(lambda: world.state is not None)
    for file in (world.folder / "packages").iterdir():
        file.write_bytes(b"damaged")
    world.restart()
    orders.give(world.log, "p", SafetyOrder(SafetyCommand.ENTER, "anna"), world.now)
    world.population.tick(world.now - 1000.0)  # and the clock was set back
    assert world.state.safety.safe_mode
    assert world.population.trouble is not None


@on_sqlite
def test_a_fleet_smaller_than_the_cohort_keeps_no_order_from_counting(world):
    world.until(lambda: world.population.telemetry is not None)
    rules = CampaignRules(sampling=SamplingRule(cohort_size=99), privacy=PrivacyRule(1.0, 1.0, delta=1e-5))
    world.population.models.training = TrainingFile(PLAN, rules, num_rounds=1)
    for order in (Retrain("anna"), SafetyOrder(SafetyCommand.ENTER, "anna")):
        orders.give(world.log, "p", order, world.now)
    world.step()
    assert world.population.trouble.where == "sampling.cohort_size"
    assert world.state.safety.safe_mode
    assert world.state.training is None


@on_sqlite
def test_raw_samples_of_a_device_without_an_agent_reach_the_monitors(world):
    world.until(lambda: world.population.telemetry is not None)
    with world.engine.begin() as connection:
        bare = fleet.watch(connection, "p", "bare", Traits("pump", "north"), world.now)
    how = binner_of(world.population, SLOT)
    assert binner_of(world.population, SLOT, how) is how
    x, _ = rows(np.random.default_rng(4), 30)
    at = np.full(30, world.now - SLOT / 2)
    told = Message(Kind.SAMPLES, "bare", encode_samples(Samples(at, x.astype(float))), Position("t", 0, 0))
    source = Kafka("lake", "p", samples="t", plain=True)
    with world.engine.begin() as connection:
        assert keeping.keep(connection, Batch(source, [told], how, world.now)) == {"counted": 1}
        assert tallies.flush(connection, "p", SLOT, world.now) == 1
    world.step()
    telemetry = world.population.telemetry
    store = telemetry.served.store
    counted = store.devices(store.newest_slot + 1, store.horizon.num_slots).features_DFC[bare.number]
    np.testing.assert_array_equal(counted, count(how.bins, how.pipeline.apply(x)))
    assert not telemetry.malformed
    assert not telemetry.served.refusals
    assert bare.number not in [one.number for one in world.population._active()]
    assert not world.population._counted()[bare.number]


@pytest.mark.slow
def test_the_whole_story_through_restarts(world):
    world.until(lambda: world.population._watching is not None and world.population._watching.judges)
    assert world.state.champion == 1
    assert all(device.serves == world.population.models.versions.package_of(1) for device in world.devices)
    world.restart()
    for device in world.devices:
        device.offset = 2.5
    world.until(lambda: world.state.training is not None)
    version = world.train(2.5)
    world.restart()
    world.until(lambda: world.state.rollout is not None and world.state.rollout.phase is Phase.SHADOW)
    candidate = world.population.models.versions.package_of(version)
    world.step()
    assert {device.shadows for device in world.devices} == {candidate}
    assert candidate not in {device.serves for device in world.devices}
    world.restart()
    world.until(lambda: world.state.rollout.phase is Phase.APPROVAL)
    for _ in range(5):
        world.step()
    assert world.state.rollout.phase is Phase.APPROVAL  # nobody has agreed yet
    orders.give(world.log, "p", Approval(Answer.GRANTED, "anna"), world.now)
    world.until(lambda: world.state.rollout.phase is Phase.CANARY)
    world.step()
    exposed = [device for device in world.devices if device.serves == candidate]
    assert 4 <= len(exposed) <= 8
    world.restart()
    world.until(lambda: world.state.champion == version)
    world.step()
    assert {device.serves for device in world.devices} == {candidate}
    assert not world.state.incidents
    harm(world, version)


def harm(world, champion):
    """The laboratory's model comes again: it is right there, and wrong on sensors that have drifted."""
    models = world.population.models
    number = max(models.versions.next_number, world.state.next_version)
    digest = release_version(
        world.stores.packages,
        models.package(champion),
        models.package(1).weights,
        version=number,
        created_at=world.now,
        training=TrainingRecord(),
    )
    models.add(number, digest, "proposed by anna")
    orders.give(world.log, "p", Propose(number, "anna", "once more"), world.now)
    world.until(lambda: number in world.state.quarantined)
    world.step()
    world.step()
    assert world.state.champion == champion
    serving = {device.serves for device in world.devices}
    assert serving == {models.versions.package_of(champion)}
    assert {world.told[device.number].withdrawn for device in world.devices} == {(digest,)}
    assert world.state.rollout.phase is Phase.ROLLED_BACK
    assert world.state.incidents == ()  # opened, and closed once every device had gone back
