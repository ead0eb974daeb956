"""A population's whole loop on real database, packages and counts, in virtual time: drift, retrain, shadow, approval, canary, champion,
and a harmful candidate that is caught."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.artifacts.manifest import TrainingRecord
from fedretrain.artifacts.store import ContentStore
from fedretrain.artifacts.weights import encode_params
from fedretrain.coordinator.cycle import Propose, Retrain
from fedretrain.coordinator.policy import read_policy
from fedretrain.coordinator.roles import Roles
from fedretrain.core.ids import ClientId
from fedretrain.core.rng import seed_for
from fedretrain.core.types import ClientData
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Channel, Schema
from fedretrain.monitoring.histogram import count
from fedretrain.rollout.causes import Phase
from fedretrain.rollout.evidence import Answer, Approval
from fedretrain.rollout.safety import SafetyCommand, SafetyOrder
from fedretrain.server import fleet, orders
from fedretrain.server.assigning import renewed, wanted
from fedretrain.server.campaign import campaign_stream
from fedretrain.server.campaign_rules import CampaignRules, PrivacyRule, SamplingRule
from fedretrain.server.config import Population as PopulationConfig
from fedretrain.server.config import Watching
from fedretrain.server.database import open_database
from fedretrain.server.event_log import EventLog
from fedretrain.server.fleet import Traits
from fedretrain.server.importing import first_package
from fedretrain.server.models import Models, Stores
from fedretrain.server.pool import read_pool, write_pool
from fedretrain.server.population import Population
from fedretrain.server.releasing import release_version
from fedretrain.server.sources import keeping, tallies
from fedretrain.server.sources.champion import binner_of
from fedretrain.server.sources.config import Kafka
from fedretrain.server.sources.keeping import Batch, Kind, Message, Position
from fedretrain.server.training_file import TrainingFile
from fedretrain.training.config import LocalTraining, OptimizerConfig
from fedretrain.training.executor import ClientWork
from fedretrain.training.plan import ModelName, TrainingPlan
from fedretrain.wire.samples import Samples, encode_samples
from tests.virtual_fleet import CLASSES, FEATURES, join, rows

SLOT = 10.0
POLICY = {
    "name": "virtual",
    "monitoring": {
        "windows": [{"length_s": 60, "stride_s": 10}, {"length_s": 120, "stride_s": 60}],
        "drift": {"windows_s": [60]},
        "confidence_window_s": 60,
        "kpi_rules": {"window_s": 60},
        "accuracy": {"window_s": 60, "margin": 0.03, "min_completeness": 0.3},
        "place": {"window_s": 120},
        "label_wait_s": 60,
    },
    "retraining": {"mode": "hybrid", "interval_s": 1e6, "cool_down_s": 1e5},
    "validation": {"required": ["sanity"]},
    "rollout": {
        "shadow": {"min_s": 60, "max_s": 600, "every_hour": False},
        "steps": [
            {"exposure_fraction": 0.25, "min_s": 60, "max_s": 600},
            {"exposure_fraction": 0.5, "min_s": 60, "max_s": 900},
        ],
        "metrics": [
            {"metric": "accuracy", "role": "guardrail", "margin": 0.05, "min_devices": 4, "min_events": 50}
        ],
        "approvals": {"before": ["canary"]},
    },
}
PLAN = TrainingPlan(
    ModelName.MLP,
    (FEATURES,),
    CLASSES,
    options={"hidden": (16,)},
    training=LocalTraining(batch_size=32, epochs=2, optimizer=OptimizerConfig(lr=0.2)),
)


class World:
    """A coordinator's database, and devices in virtual time."""

    def __init__(self, folder, url, num_devices=24):
        rng = np.random.default_rng(5)
        self.folder = folder
        self.engine = open_database(url)
        self.log = EventLog(self.engine)
        self.stores = Stores(ContentStore(folder / "packages"), ContentStore(folder / "campaigns"))
        self.policy = read_policy(POLICY)
        self.training = TrainingFile(PLAN, num_rounds=1)
        (folder / "pool").mkdir()
        x, y = rows(rng, 600)
        write_pool(folder / "pool" / "lab.safetensors", x, y, np.arange(600.0))
        self.pool = str(folder / "pool")
        self.now = 0.0
        schema = Schema(tuple(Channel(f"s{i}", "1", -8.0, 8.0) for i in range(FEATURES)))
        digest = first_package(
            self.stores.packages,
            self.training,
            Pipeline((Scaler("range"),), schema),
            read_pool(folder / "pool"),
            population="p",
            version=1,
            created_at=0.0,
            outputs=("a", "b", "c"),
        )
        self.models().add(1, digest, "trained on the pool")
        self.devices = join(self.engine, self.stores.packages, num_devices)
        self.told = {}
        self.start()

    def models(self):
        fence = getattr(self, "fence", None)
        return Models(
            "p",
            read_policy(POLICY),
            TrainingFile(PLAN, num_rounds=1),
            self.pool,
            self.log,
            self.stores,
            fence,
            lambda: self.now,
        )

    def start(self):
        """A coordinator's process begins, or begins anew."""
        self.fence = self.log.acquire("coordinator", f"at {self.now}", now=self.now, ttl_s=0.5)
        watching = Watching(SLOT, SLOT, settle_s=240.0, record_s=480.0, inputs_s=240.0)
        config = PopulationConfig("policy", watching=watching)
        self.population = Population(
            "p", config, self.policy, self.log, self.stores.campaigns, self.models(), self.fence, Roles()
        )

    def restart(self):
        """The coordinator is killed; a new process goes on from the log, and stands where the old one stood."""
        old = self.population.memory
        self.start()
        new = self.population.memory
        assert new.state == old.state
        assert (new.orders, new.ranks, new.look, new.baseline, new.num_records) == (
            old.orders,
            old.ranks,
            old.look,
            old.baseline,
            old.num_records,
        )
        assert new.assignments.order == old.assignments.order
        size = len(new.assignments.rank_D)  # devices that joined later are put in at the next turn
        np.testing.assert_array_equal(new.assignments.rank_D, old.assignments.rank_D[:size])
        np.testing.assert_array_equal(new.assignments.version_D, old.assignments.version_D[:size])

    @property
    def state(self):
        return self.population.memory.state

    def step(self):
        """A slot of every device, then a turn of the coordinator."""
        slot = round(self.now / SLOT)
        for device in self.devices:
            device.slot(slot, SLOT)
        self.now += SLOT
        for device in self.devices:
            if device.online:
                device.heartbeat(self.now)
        events = self.population.tick(self.now + 0.6 * SLOT)
        self.assign()
        return [(self.now, event.body) for event in events]

    def assign(self):
        population = self.population
        if population.memory.state is None or not population.devices:
            return
        wishes = wanted(
            self.policy, self.state, population.memory.assignments, population.models.versions, {}
        )
        for device, assignment in renewed(population.devices, self.told, wishes, now=self.now, valid_s=1e6):
            with self.engine.begin() as connection:
                fleet.assign(connection, "p", [(device.device, b"-", assignment.counter)], self.now)
            self.told[device.number] = assignment
        for device in self.devices:
            assignment = self.told[device.number]
            device.follow(assignment, assignment.counter)

    def until(self, happened, limit=200):
        """Go on until something holds; everything that happened."""
        seen = []
        for _ in range(limit):
            seen += self.step()
            if happened():
                return seen
        raise AssertionError(f"it never happened; at {self.now}: {self.state}; {seen[-8:]}")

    def train(self, offset):
        """What the campaign's processes would do: one round on rows as the fleet has them now."""
        version = self.state.training.version
        name = self.population.models.start_campaign(None, self.state, self.population.devices, b"bundle")
        x, y = rows(np.random.default_rng(9), 2000, offset=offset)
        package = self.population.models.package(self.state.champion)
        trainer = PLAN.make()
        shared = {n: package.weights[n] for n in trainer.task.shared.names}
        for round_ in range(3):
            work = ClientWork(
                ClientId(0), ClientData(package.pipeline.apply(x), y), None, seed_for(1, round_, 0, "t")
            )
            (block,) = trainer.executor.train(shared, [work])
            layout = trainer.task.shared
            shared = layout.unpack(layout.pack(shared) + block.delta_KP[0])
        weights = self.stores.campaigns.put(encode_params(shared))
        done = {"round": 0, "outcome": "released", "state": weights, "version": 1, "summary": {}}
        self.log.append(
            campaign_stream(name),
            [{"type": "round", **done}, {"type": "ended", "reason": "complete", "weights": weights}],
            at=self.now,
        )
        return version


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
