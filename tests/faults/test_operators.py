"""What operators order, through whole coordinators and their agents: a retrain on the server's pool, and one on the devices alone."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.artifacts.inference import Predictor
from fedretrain.artifacts.manifest import Strategy
from fedretrain.server.pool import read_pool
from fedretrain.training.keep import Verdict
from tests.plant_cases import DEVICES, OPERATOR
from tests.server_cases import CLASSES, TRAINING, rows

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

NUM_LABELS = 60  # of each device
OPTIONS = {
    "policy": {"approvals": {"before": ["canary"]}},
    "parts": {
        "retraining": {
            "mode": "metric",
            "triggers": [],
            "min_pool_rows": 100,
            "rules": [
                # Before anything is labelled only the pool has labels; afterwards the devices do.
                {
                    "name": "pool",
                    "strategy": "full",
                    "when": [{"signal": "num_labels", "op": "below", "value": 1}],
                },
            ],
            "default_strategy": "personal_only",
        }
    },
    "first_rounds": 20,
    "edge": "[refit]\nepochs = 50\nlr = 0.5\n",
    "training": {
        **TRAINING,
        "plan": {**TRAINING["plan"], "method": {"kind": "fedper", "personal_patterns": ["head.*"]}},
        "pool": {"num_rounds": 40},
    },
}


def test_a_retrain_on_the_pool_is_a_candidate_that_passes_the_gates_up_to_the_approval(plant):
    plant.desk.retrain(OPERATOR, "more rounds than the first model had")
    plant.until(lambda: plant.phase() == "shadow", "its candidate passed validation", 180.0)
    plant.until(lambda: plant.phase() == "approval", "it passed the gate of shadow, and a person is asked")
    version = plant.candidate()
    package = plant.desk.models.package(version)
    about = package.manifest.training
    assert (about.strategy, about.recipe, about.rounds) == (Strategy.CENTRAL, "full", 40)
    assert about.snapshot == read_pool(plant.folder / "pool").digest
    assert about.epsilon is None
    x, y = rows(400, seed=8)
    assert (Predictor.of(package)(x).label == y).mean() > 0.9
    assert plant.serving() == {1: len(DEVICES)}
    assert plant.desk.status()["asks"]
    assert {one["version"]: one["validation"] for one in plant.desk.models_listed()}[version] == "PASS"
    plant.check()
    plant.desk.answer("granted", OPERATOR)
    plant.until(lambda: plant.phase() == "canary", "what was approved goes on")
    plant.until(lambda: plant.serving().get(version, 0) == len(DEVICES) // 2, "half of the devices serve it")
    plant.calm()
    plant.check()


def test_devices_refresh_their_personal_state_when_told_and_each_confirms_it(plant):
    """Here a device's classes are another's: with labels of its own it does better by a head of its own."""
    plant.reach("idle")
    x, y = rows(NUM_LABELS, seed=5)
    before = {}
    for number, device in enumerate(DEVICES):
        mine = (y + 1 + number % 2) % CLASSES  # no global model can know
        body = {"device": device, "rows": x.tolist()}
        status, found = plant.watcher.ask("/v1/predict", body)
        assert status == 200
        told = [
            {"of": one["id"], "label": int(label)}
            for one, label in zip(found["predictions"], mine, strict=True)
        ]
        status, _ = plant.watcher.ask("/v1/labels", {"device": device, "labels": told})
        assert status == 200
        before[device] = np.mean(
            [one["label"] == label for one, label in zip(found["predictions"], mine, strict=True)]
        )
    assert max(before.values()) < 0.2
    plant.until(lambda: plant.labelled() == NUM_LABELS * len(DEVICES), "the coordinator knows of every label")
    rollouts = plant.desk.memory().begun.num_rollouts
    plant.desk.retrain(OPERATOR, "labels have come")
    plant.until(
        lambda: (plant.desk.status()["refresh"] or {}).get("kept") == len(DEVICES), "every device confirms"
    )
    ((number, refresh),) = plant.desk.memory().refreshes.items()
    assert number == plant.desk.memory().begun.refresh
    assert refresh.said == dict.fromkeys(range(len(DEVICES)), Verdict.KEPT)
    x, y = rows(200, seed=6)
    for number, device in enumerate(DEVICES):
        mine = (y + 1 + number % 2) % CLASSES
        _, found = plant.watcher.ask("/v1/predict", {"device": device, "rows": x.tolist()})
        labels = np.array([one["label"] for one in found["predictions"]])
        assert (labels == mine).mean() > 0.8
    assert plant.desk.memory().begun.num_rollouts == rollouts  # nothing was released
    assert plant.serving() == {1: len(DEVICES)}
    for role in ("agent", "coordinator"):
        plant.revive(plant.kill(role))
    assert plant.desk.status()["refresh"]["kept"] == len(DEVICES)
    plant.check()
