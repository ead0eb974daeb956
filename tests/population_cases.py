"""A population's whole loop on real database, packages and counts, in virtual time."""

from __future__ import annotations

import numpy as np

from fedretrain.artifacts.store import ContentStore
from fedretrain.artifacts.weights import encode_params
from fedretrain.coordinator.policy import read_policy
from fedretrain.coordinator.roles import Roles
from fedretrain.core.ids import ClientId
from fedretrain.core.rng import seed_for
from fedretrain.core.types import ClientData
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Channel, Schema
from fedretrain.server import fleet
from fedretrain.server.assigning import renewed, wanted
from fedretrain.server.campaign import campaign_stream
from fedretrain.server.config import Population as PopulationConfig
from fedretrain.server.config import Watching
from fedretrain.server.database import open_database
from fedretrain.server.event_log import EventLog
from fedretrain.server.importing import first_package
from fedretrain.server.models import Models, Stores
from fedretrain.server.people import OPEN
from fedretrain.server.pool import read_pool, write_pool
from fedretrain.server.population import Population
from fedretrain.server.training_file import TrainingFile
from fedretrain.training.config import LocalTraining, OptimizerConfig
from fedretrain.training.executor import ClientWork
from fedretrain.training.plan import ModelName, TrainingPlan
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

    notary = OPEN

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
            "p",
            config,
            self.policy,
            self.log,
            self.stores.campaigns,
            self.models(),
            self.fence,
            Roles(),
            self.notary,
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
