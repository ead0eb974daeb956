"""A coordinator's campaign in the simulator's words: its own settings, the fitted fleet's conditions, the server's rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedretrain.artifacts.weights import encode_params
from fedretrain.coordinator.sampling import Participation
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Channel, Schema
from fedretrain.privacy.event import Sampling
from fedretrain.privacy.mechanism import Unit
from fedretrain.server.campaign_rules import (
    AggregatorName,
    CampaignRules,
    OptimizerName,
    PrivacyRule,
    SamplingRule,
    ServerStep,
)
from fedretrain.server.pool import write_pool
from fedretrain.server.replay_order import ReplayOrder
from fedretrain.training.plan import ModelName, TrainingPlan
from sim.arm import Arms
from sim.gating.config import read_words
from sim.gating.production import config_of, load_campaign
from sim.gating.replay import Replayer
from sim.schema import PrivacyKind

PLAN = TrainingPlan(ModelName.MLP, (4,), 3, options={"hidden": [8]})
RULES = CampaignRules(SamplingRule(Sampling.FIXED_SIZE, 6), quorum=3, deadline_s=90.0)


def _order(rules=RULES, **changes):
    base = ReplayOrder("p-2", PLAN, rules, 2, 30.0, 7, 10, 2, 2, ("a", "b", "c"))
    return replace(base, **changes)


@pytest.fixture
def folder(tmp_path):
    """A pool of five devices, a fitted pipeline, and a model that nobody has trained."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(200, 4)).astype(np.float32), rng.integers(0, 3, 200)
    write_pool(tmp_path / "pool.safetensors", x, y, np.arange(200.0), device=np.repeat(np.arange(5), 40))
    schema = Schema(tuple(Channel(f"s{i}", "1", -8.0, 8.0) for i in range(4)))
    pipeline = Pipeline((Scaler("standard"),), schema).fit(x, schema)
    (tmp_path / "features.json").write_text(pipeline.to_json())
    weights = PLAN.make().model.first_params()
    (tmp_path / "champion.safetensors").write_bytes(encode_params(weights))
    base = {name: leaf + 1.0 for name, leaf in weights.items()}
    (tmp_path / "base.safetensors").write_bytes(encode_params(base))
    return tmp_path


def test_the_campaigns_settings_are_the_replays(folder):
    rules = CampaignRules(
        SamplingRule(Sampling.MIN_SEPARATION, 6, 1.5, separation=3, max_participations=2),
        ServerStep(AggregatorName.MEAN, optimizer=OptimizerName.ADAM, lr=0.02),
        quorum=3,
        deadline_s=90.0,
        privacy=PrivacyRule(1.1, 0.5, epsilon=8.0, delta=1e-6),
    )
    config = config_of(_order(rules), folder)
    campaign, privacy = config.campaign, config.privacy
    assert (campaign.num_rounds, campaign.round_interval_s, campaign.deadline_s) == (2, 30.0, 90.0)
    assert (campaign.cohort_size, campaign.over_selection, campaign.quorum_fraction) == (6, 1.5, 0.5)
    assert (campaign.separation, campaign.max_participations) == (3, 2)
    assert (privacy.kind, privacy.clip_norm, privacy.noise_multiplier) == (PrivacyKind.CENTRAL, 0.5, 1.1)
    assert (privacy.target_epsilon, privacy.delta) == (8.0, 1e-6)
    assert (config.aggregation.server.kind, config.aggregation.server.lr) == ("adam", 0.02)
    assert config.training == PLAN.training
    arm = Arms().get(config, 7)
    # The rules that the simulator makes of it are those that the coordinator's definition makes.
    theirs = rules.make_rounds("p", "c", 10)
    ours = arm.rules.rounds
    assert (ours.quorum, ours.deadline_s) == (theirs.quorum, theirs.deadline_s)
    assert ours.server_optimizer == theirs.server_optimizer
    assert ours.aggregator == theirs.aggregator
    assert ours.dp.noise_multiplier == theirs.dp.noise_multiplier
    assert arm.task.shared.names == PLAN.make().task.shared.names


def test_with_adaptive_clipping_the_update_is_noised_as_in_the_campaign(folder):
    rules = replace(RULES, privacy=PrivacyRule(1.1, 0.5, epsilon=50.0, adaptive_quantile=0.7))
    ours = Arms().get(config_of(_order(rules), folder), 7).rules.rounds
    theirs = rules.make_rounds("p", "c", 10)
    assert ours.dp.noise_multiplier == pytest.approx(theirs.dp.noise_multiplier)
    assert ours.dp.adaptive == theirs.dp.adaptive


def test_where_persons_are_the_unit_the_replay_draws_persons(folder):
    rules = replace(RULES, privacy=PrivacyRule(1.1, 0.5, unit=Unit.PERSON, epsilon=50.0))
    rules = replace(rules, sampling=SamplingRule(Sampling.FIXED_SIZE, 4))
    ours = Arms().get(config_of(_order(rules, devices_per_person=2), folder), 7).rules
    theirs = rules.make_rounds("p", "c", 10, tuple(range(5)) * 2)
    assert ours.rounds.aggregator == theirs.aggregator
    assert ours.rounds.dp.unit is theirs.dp.unit
    cohort = ours.sampler.cohort(7, 0, Participation.none(10), None)
    assert len(set((cohort.clients // 2).tolist())) == len(cohort) == 4


def test_the_candidate_begins_where_its_campaign_began_and_the_champion_serves_as_it_is(folder):
    (folder / "campaign.json").write_text(_order(epsilon=3.0).to_text())
    candidate, champion = load_campaign(folder / "campaign.json")
    assert (candidate.held, champion.held, candidate.epsilon) == (False, True, 3.0)
    name = next(iter(champion.start))
    np.testing.assert_allclose(candidate.start[name], champion.start[name] + 1.0)
    replayer = Replayer()
    served = replayer.serve(champion.config, 7, champion.start)
    arm = replace(Arms().get(champion.config, 7), start=champion.start)
    direct = replayer.score(champion.config, 7, arm.first_shared())
    np.testing.assert_array_equal(served.scores, direct)
    assert served.epsilon is None
    moved = replayer.replay(candidate.config, 7, candidate.start)
    from_champion = replayer.replay(candidate.config, 7, champion.start)
    assert not np.array_equal(moved.scores, from_champion.scores)
    assert moved.fleet_digest == from_champion.fleet_digest == served.fleet_digest


def test_numbers_from_the_servers_own_rows_may_ride_in_a_private_package(folder):
    rules = replace(RULES, privacy=PrivacyRule(1.0, 1.0, epsilon=100.0))
    arm = Arms().get(config_of(_order(rules), folder), 7)
    assert arm.world.fleet.pipeline.pooled_steps  # a standard scaler: refused where devices' rows made it
    assert arm.rules.rounds.dp is not None


def test_weights_of_another_model_and_missing_files_are_refused(folder):
    (folder / "campaign.json").write_text(_order().to_text())
    (folder / "base.safetensors").write_bytes(encode_params({"strange": np.zeros(3, np.float32)}))
    candidate, _ = load_campaign(folder / "campaign.json")
    with pytest.raises(ConfigError, match="strange"):
        Replayer().replay(candidate.config, 7, candidate.start)
    (folder / "base.safetensors").unlink()
    with pytest.raises(DataError, match="weights"):
        load_campaign(folder / "campaign.json")
    with pytest.raises(DataError, match="campaign to replay"):
        load_campaign(folder / "other.json")


def test_files_are_named_beside_the_order_and_never_by_a_path():
    with pytest.raises(ConfigError, match="file name"):
        _order(pool="../pool.safetensors")


def test_a_gate_has_a_fleet_or_a_log_and_not_both():
    assert read_words(["candidate=c.json", "log=l.jsonl"]).log == "l.jsonl"
    for words in (["candidate=c.json"], ["candidate=c.json", "log=l", "fleet=f"]):
        with pytest.raises(ConfigError, match="fleet"):
            read_words(words)
