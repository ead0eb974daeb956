"""A coordinator whose federated candidate waits for its simulation, for tests: a database with a watched fleet, stores, a campaign that ended."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from fedretrain.artifacts.at_rest import AtRest
from fedretrain.artifacts.weights import encode_params
from fedretrain.core.build import build
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Channel, Schema
from fedretrain.privacy.event import Sampling
from fedretrain.rollout.simulation import SimulationRules
from fedretrain.server import fleet, presence
from fedretrain.server.campaign import CampaignDefinition, campaign_stream, define_campaign
from fedretrain.server.campaign_rules import CampaignRules, PrivacyRule, SamplingRule
from fedretrain.server.config import Population as PopulationConfig
from fedretrain.server.config import ServerConfig
from fedretrain.server.database import open_database
from fedretrain.server.event_log import EventLog
from fedretrain.server.importing import first_package
from fedretrain.server.keys import open_stores
from fedretrain.server.models import Models
from fedretrain.server.pool import read_pool, write_pool
from fedretrain.server.simulating import simulating_of
from fedretrain.server.training_file import TrainingFile
from fedretrain.training.config import LocalTraining, OptimizerConfig
from fedretrain.training.plan import ModelName, TrainingPlan
from tests.virtual_fleet import CLASSES, FEATURES, join, rows

SLOT_S, SLOTS, DEVICES = 10.0, 30, 12
REPLY_S = tuple(2.0 + 0.5 * number for number in range(8))
"""How long each device that is asked takes to answer, in every round."""
PLAN = TrainingPlan(
    ModelName.MLP,
    (FEATURES,),
    CLASSES,
    options={"hidden": (8,)},
    training=LocalTraining(batch_size=16, epochs=1, optimizer=OptimizerConfig(lr=0.1)),
    executor="batched",
)
GOOD = CampaignRules(
    SamplingRule(Sampling.FIXED_SIZE, 8),
    quorum=2,
    deadline_s=60.0,
    privacy=PrivacyRule(0.3, 1.0, epsilon=500.0),
)
DROWNED = replace(GOOD, privacy=PrivacyRule(60.0, 1.0, epsilon=500.0))
"""Noise in which every update drowns."""


class Waiting:
    """A coordinator whose version 2 was made by a campaign, and waits."""

    def __init__(self, folder, rules=GOOD, *, slots=SLOTS, **simulation):
        self.now = 0.0
        self.folder = folder
        population = PopulationConfig("-", pool=str(folder / "pool"))
        self.config = ServerConfig(str(folder), {"p": population}, at_rest=AtRest(development=False))
        self.engine = open_database(self.config.database_url)
        self.log = EventLog(self.engine)
        self.stores = open_stores(self.config)
        wanted = {"required": True, "accuracy_margin": 0.1, "worst_margin": 0.3, **simulation}
        self.rules = build(SimulationRules, wanted)
        self._lab()
        self.devices = join(self.engine, self.stores.packages, DEVICES)
        for device in self.devices:
            device.serves = self.models().versions.package_of(1)
        self._live(slots)
        self._campaign(rules)

    def models(self):
        policy = SimpleNamespace(
            rollout=SimpleNamespace(simulation=self.rules), digest="0" * 64, validation=None
        )
        training = TrainingFile(PLAN, num_rounds=3)
        pool = str(self.folder / "pool")
        return Models("p", policy, training, pool, self.log, self.stores, None, lambda: self.now)

    def simulating(self):
        """The jobs of a coordinator's process that has just begun."""
        models = self.models()
        population = SimpleNamespace(
            models=models,
            policy=models.policy,
            memory=SimpleNamespace(begun=SimpleNamespace(champion=1)),
        )
        return simulating_of(self.config, "p", population, lambda: self.now)

    def _lab(self):
        (self.folder / "pool").mkdir()
        x, y = rows(np.random.default_rng(5), 600)
        device = np.repeat(np.arange(6), 100)
        write_pool(self.folder / "pool" / "lab.safetensors", x, y, np.arange(600.0), device=device)
        schema = Schema(tuple(Channel(f"s{i}", "1", -8.0, 8.0) for i in range(FEATURES)))
        digest = first_package(
            self.stores.packages,
            TrainingFile(PLAN),
            Pipeline((Scaler("range"),), schema),
            read_pool(self.folder / "pool"),
            population="p",
            version=1,
            created_at=0.0,
            outputs=("a", "b", "c"),
            num_rounds=30,
        )
        self.models().add(1, digest, "trained on the pool")

    def _live(self, slots):
        """Every device lives through so many slots; the last one is away in every third."""
        for slot in range(slots):
            for device in self.devices:
                device.slot(slot, SLOT_S)
                if device.number != DEVICES - 1 or slot % 3:
                    device.heartbeat((slot + 0.5) * SLOT_S)
            with self.engine.connect() as connection:
                everybody = fleet.everybody(connection, "p")
            presence.note(self.engine, None, "p", everybody, SLOT_S, (slot + 1) * SLOT_S + 1.0)
        self.now = slots * SLOT_S + 1.0

    def _campaign(self, rules):
        weights = self.models().package(1).weights
        shared = {name: weights[name] for name in PLAN.make().task.shared.names}
        base = self.stores.campaigns.put(encode_params(shared))
        made = CampaignDefinition("p-2", "p", DEVICES, base, 3, PLAN, rules, seed=2)
        define_campaign(self.log, made, at=100.0, fence=None)
        for round_ in range(3):
            summary = {"at": 100.0 + 20 * round_, "asked": list(range(8)), "failed": {"dropped": [0]}}
            summary |= {"reply_s": {str(number): REPLY_S[number] for number in range(1, 8)}}
            done = {"round": round_, "outcome": "released", "state": base, "version": 1, "summary": summary}
            record = {"type": "round", **done}
            self.log.append(campaign_stream("p-2"), [record], at=110.0 + 20 * round_)
        ended = {"type": "ended", "reason": "complete", "weights": base}
        self.log.append(campaign_stream("p-2"), [ended], at=160.0)
