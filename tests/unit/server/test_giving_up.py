"""A training that is given up has an end where what it did is written, once."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.artifacts.store import ContentStore
from fedretrain.artifacts.weights import encode_params
from fedretrain.server.campaign import (
    CampaignDefinition,
    CampaignRun,
    campaign_stream,
    define_campaign,
    read_campaign,
)
from fedretrain.server.campaign_rules import CampaignRules, SamplingRule
from fedretrain.server.central import CentralDefinition, central_stream, define_central, read_central
from fedretrain.server.event_log import ConflictError, EventLog
from fedretrain.server.giving_up import end_given_up
from fedretrain.server.memory import describe
from fedretrain.server.training_file import PoolTraining
from fedretrain.training.plan import ModelName, TrainingPlan
from tests.fakes import FakeRunner

PLAN = TrainingPlan(ModelName.MLP, (3,), 2)
BASE = {"bias": np.zeros((), np.float32), "w": np.ones((3, 4), np.float32)}
WHY = "it took longer than 8 s"


@pytest.fixture
def log(engine):
    return EventLog(engine)


@pytest.fixture
def store(tmp_path):
    return ContentStore(tmp_path / "store")


def _define(log, store):
    base = store.put(encode_params(BASE))
    rules = CampaignRules(SamplingRule(cohort_size=4), quorum=2)
    define_campaign(log, CampaignDefinition("p-2", "p", 12, base, 4, PLAN, rules), at=1.0, fence=None)


def test_a_campaign_ends_with_the_reason_and_without_weights_once(log, store):
    _define(log, store)
    run = CampaignRun(log, store, "p-2", None, clock=lambda: 5.0)
    run.step(FakeRunner())
    for at in (9.0, 10.0):
        end_given_up(log, "p-2", WHY, at=at, fence=None)
    record = read_campaign(log, "p-2")
    assert (record.end, record.weights, len(record.rounds), record.number) == (WHY, "", 1, 3)
    assert [entry.at for entry in log.read(campaign_stream("p-2"))][-1] == 9.0
    assert CampaignRun(log, store, "p-2", None, clock=lambda: 11.0).step(FakeRunner()) is None
    with pytest.raises(ConflictError):  # a process that was left over commits no further round
        run.step(FakeRunner())


def test_what_has_ended_by_itself_or_never_began_stays_as_it_is(log, store):
    end_given_up(log, "p-2", WHY, at=9.0, fence=None)
    assert log.streams() == ()
    _define(log, store)
    run = CampaignRun(log, store, "p-2", None, clock=lambda: 5.0)
    while run.step(FakeRunner()) is not None:
        pass
    end_given_up(log, "p-2", WHY, at=9.0, fence=None)
    assert read_campaign(log, "p-2").end == "complete"


def test_a_central_retrain_that_is_stopped_has_an_end_too(log):
    definition = CentralDefinition("p-2", PLAN, PoolTraining(), pool="ab", pipeline="cd")
    define_central(log, definition, at=1.0, fence=None)
    for _ in range(2):
        end_given_up(log, "p-2", "training is stopped", at=9.0, fence=None)
    record = read_central(log, "p-2")
    assert (record.end, record.weights, record.seeds) == ("training is stopped", "", False)
    assert log.head(central_stream("p-2")).counter == 2


@pytest.mark.parametrize(("made", "text"), [(True, "trained 2 4 rounds"), (False, "not trained 2 4 rounds")])
def test_the_log_tells_a_training_that_made_a_version_from_one_that_did_not(made, text):
    body = {"version": 2, "made": made, "reason": "4 rounds"}
    assert describe({"kind": "trained", "body": body}) == text
