"""kill -9 of the coordinator and of the agent in the middle of a campaign over real Flower processes.

What is killed below them (SuperLink, ServerApp, SuperNode, app process) is in `tests/integration/test_flower_campaign.py`.
"""

from __future__ import annotations

import time

import pytest

from fedretrain.coordinator.state import Outcome
from fedretrain.server.database_ledger import DatabaseLedger
from tests.plant_cases import DEVICES, OPERATOR, POPULATION
from tests.server_cases import TRAINING, rows

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

NUM_LABELS, NUM_ROUNDS = 40, 5
OPTIONS = {
    "parts": {"retraining": {"mode": "metric", "triggers": [], "default_strategy": "federated"}},
    "device": "trains = true\n",
    "training": {
        **TRAINING,
        "num_rounds": NUM_ROUNDS,
        "patience_s": 120.0,
        "rules": {
            "sampling": {"cohort_size": len(DEVICES)},
            "quorum": 3,
            "deadline_s": 30.0,
            "privacy": {"noise_multiplier": 0.6, "clip_norm": 1.0, "epsilon": 100.0},
        },
    },
}


def label(plant):
    """Every device is told what some of its samples were."""
    x, y = rows(NUM_LABELS, seed=5)
    for device in DEVICES:
        status, found = plant.watcher.ask("/v1/predict", {"device": device, "rows": x.tolist()})
        assert status == 200
        told = [
            {"of": one["id"], "label": int(one_y)} for one, one_y in zip(found["predictions"], y, strict=True)
        ]
        status, _ = plant.watcher.ask("/v1/labels", {"device": device, "labels": told})
        assert status == 200


class Campaign:
    """What a campaign has come to, looked at again and again: nothing that was committed may change, or be ahead of the ledger."""

    def __init__(self, plant, version):
        self.plant, self.version, self.rounds = plant, version, ()

    def look(self):
        """The rounds that are committed."""
        record = self.plant.desk.models.campaign(self.version)
        if record is None:
            return ()
        charged = {event.round for event in self.charges()}  # read after the rounds
        assert record.rounds[: len(self.rounds)] == self.rounds
        released = {done.round for done in record.rounds if done.outcome is Outcome.RELEASED}
        assert released <= charged
        self.rounds = record.rounds
        return self.rounds

    def charges(self):
        name = self.plant.desk.models.campaign_of(self.version)
        ledger = DatabaseLedger(self.plant.desk.log, POPULATION, clock=time.time)
        return [event for event in ledger.events() if event.campaign == name]

    def reach(self, num_rounds):
        self.plant.until(lambda: len(self.look()) >= num_rounds, f"{num_rounds} rounds", 240.0)


def test_a_campaign_goes_on_when_the_coordinator_and_then_the_agent_are_killed(plant):
    plant.reach("idle")
    label(plant)
    plant.desk.retrain(OPERATOR, "labels have come")
    plant.until(lambda: plant.desk.memory().begun.training is not None, "a campaign is decided")
    campaign = Campaign(plant, plant.desk.memory().begun.training.version)
    campaign.reach(1)
    time.sleep(1.0)  # the next round is under way
    plant.revive(plant.kill("coordinator"))
    assert len(campaign.look()) < NUM_ROUNDS
    campaign.reach(len(campaign.rounds) + 1)
    time.sleep(1.0)
    plant.revive(plant.kill("agent"))
    assert plant.serving() == {1: len(DEVICES)}
    assert len(campaign.look()) < NUM_ROUNDS
    campaign.reach(NUM_ROUNDS)
    record = plant.desk.models.campaign(campaign.version)
    assert [done.round for done in record.rounds] == list(range(NUM_ROUNDS))
    released = [done for done in record.rounds if done.outcome is Outcome.RELEASED]
    assert [done.version for done in released] == list(range(1, len(released) + 1))
    assert len(released) >= NUM_ROUNDS - 1  # the round in which every device was gone is given up
    charges = campaign.charges()
    assert len(charges) == len({(event.round, event.attempt) for event in charges})
    plant.until(lambda: campaign.version in plant.desk.models.versions.by_number, "it made a version")
    package = plant.desk.models.package(campaign.version)
    assert package.manifest.training.rounds == len(released)
    assert package.manifest.training.epsilon is not None
    plant.calm()
    plant.check()
