"""What operators order, through whole coordinators and their agents: a retrain on the server's pool, and one on the devices alone, a
campaign that nobody answers, and another policy file."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.artifacts.inference import Predictor
from fedretrain.artifacts.manifest import Strategy
from fedretrain.artifacts.weights import encode_params
from fedretrain.rollout.evidence import Answer
from fedretrain.server.policy_commands import answer
from fedretrain.server.pool import read_pool
from fedretrain.training.keep import Verdict
from tests.plant_cases import DEVICES, OPERATOR, ROLLOUT
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
        "rules": {"sampling": {"cohort_size": 4}},
        "max_s": 8.0,
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


def test_a_campaign_that_takes_too_long_is_given_up_and_its_processes_end(plant):
    """No device of this agent trains, so its rounds would wait for an hour."""
    plant.reach("idle")
    federated = {**OPTIONS["parts"]["retraining"], "rules": [], "default_strategy": "federated"}
    plant.reread(retraining=federated)  # no decision threshold: it counts at once
    assert plant.desk.status()["policy_waits"] is None
    plant.desk.retrain(OPERATOR, "let devices train")
    plant.until(lambda: plant.desk.memory().begun.training is not None, "a retrain has begun")
    version = plant.desk.memory().begun.training.version
    plant.until(lambda: plant.helpers() != [], "the campaign has processes")
    plant.until(lambda: plant.desk.memory().begun.training is None, "it is given up")
    begun_at = plant.desk.models.under_way(version).begun_at
    (ended,) = [
        one for one in plant.desk.events() if one["record"]["kind"] == "trained" and one["at"] > begun_at
    ]
    assert ended["record"]["body"]["reason"] == "it took longer than 8 s"
    assert 8.0 < ended["at"] - begun_at < 30.0
    last = [one["record"] for one in plant.desk.events() if one["record"]["kind"] == "outcome"][-1]
    assert (last["body"]["ending"], last["body"]["reason"]) == ("failed", "it took longer than 8 s")
    plant.until(lambda: plant.helpers() == [], "its processes have ended")
    assert version not in plant.desk.models.versions.by_number
    plant.until(lambda: plant.desk.models.campaign(version).end, "its stream has an end")
    record = plant.desk.models.campaign(version)
    assert (record.end, record.weights) == ("it took longer than 8 s", "")
    plant.check()


def test_other_decision_thresholds_wait_for_two_people_and_the_old_ones_decide_until_then(plant):
    plant.reach("idle")
    old = plant.desk.policy
    plant.reread(rollout={**ROLLOUT, **OPTIONS["policy"], "pending_limit_s": 90_000.0})
    waits = plant.desk.status()["policy_waits"]
    assert waits["changed"] == ["rollout.pending_limit_s: 604800.0 -> 90000.0"]
    weights = encode_params(plant.desk.models.package(1).weights)
    plant.desk.propose(weights, OPERATOR, "under the old policy")
    plant.until(lambda: plant.phase() == "shadow", "shadow")
    assert plant.desk.memory().begun.rollout.plan.policy == old.digest
    plant.calm()
    for by in ("ada", "bob"):
        assert plant.desk.policy == old
        answer(plant.desk, Answer.GRANTED, by, "as we agreed")
    plant.until(lambda: plant.desk.policy_book().waiting is None, "two people agreed")
    taken = plant.desk.policy_book().in_force
    assert (taken.digest, taken.rollout.pending_limit_s) == (waits["digest"], 90_000.0)
    plant.revive(plant.kill("coordinator"))  # and whoever leads next decides by it too
    plant.desk.propose(weights, OPERATOR, "under the new policy")
    plant.until(lambda: plant.candidate() > 2 and plant.phase() == "shadow", "shadow again")
    assert plant.desk.memory().begun.rollout.plan.policy == taken.digest
    plant.calm()
    plant.check()
