"""A campaign of the simulator and its twin over real Flower processes: the same devices, data, seeds and rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from fedretrain.artifacts.weights import encode_params
from fedretrain.core.rng import seed_for
from fedretrain.server.campaign import CampaignDefinition
from fedretrain.server.campaign_rules import CampaignRules, SamplingRule
from fedretrain.server.superlink import campaign_bundle
from fedretrain.training.plan import ModelName, TrainingPlan
from sim.campaign import Campaign
from sim.local_runner import LocalPool
from tests.flower_cases import Fleet
from tests.run_cases import quick_arm

if TYPE_CHECKING:
    from pathlib import Path

    from fedretrain.server.campaign import CampaignRecord
    from sim.arm import Arm
    from tests.proxy_cases import Proxy

NUM_DEVICES = 6
WORDS = (
    "runner.executor=each",
    "personalization=fedper",
    f"fleet.num_devices={NUM_DEVICES}",
    "campaign.cohort_size=4",
    "campaign.num_rounds=2",
    "dataset.live_fraction=0",  # the data stand still during the campaign
)
DP = ("privacy=central", "privacy.clip_norm=0.5", "privacy.target_epsilon=40")


def simulated(*words: str) -> Campaign:
    """The simulator's campaign, in this process."""
    torch.set_num_threads(1)  # as on a device: more threads add in another order
    campaign = Campaign("arm", quick_arm(*WORDS, *words))
    campaign.run(LocalPool().runner(campaign.arm, campaign.progress.store), lambda _: None)
    return campaign


def twin_fleet(root: Path, *words: str, proxy: Proxy | None = None) -> Fleet:
    """A SuperLink and two agents, of three devices each, with the data of the simulated ones; `proxy` stands between them."""
    found = Fleet(root)
    if proxy is not None:
        proxy.target, found.link = found.superlink.config.port, f"127.0.0.1:{proxy.port}"
    world = quick_arm(*WORDS, *words).world.fleet
    data = {device: world.trainable(np.array([device]), 0.0)[0] for device in range(NUM_DEVICES)}
    for number in range(2):
        found.recruit(f"agent-{number}", {d: data[d] for d in data if d % 2 == number})
    return found


def plan_of(arm: Arm) -> TrainingPlan:
    config = arm.config
    return TrainingPlan(
        ModelName(config.model.kind),
        tuple(arm.world.fleet.input_shape),
        arm.world.fleet.num_outputs,
        model_seed=seed_for(arm.seed, -1, 0, "model"),
        options={"hidden": list(config.model.mlp.hidden)},
        method=config.personalization,
        training=config.training,
    )


def definition(fleet: Fleet, name: str, arm: Arm, **rules: object) -> CampaignDefinition:
    campaign = arm.config.campaign
    values: dict[str, object] = {
        "sampling": SamplingRule(campaign.sampling, campaign.cohort_size),
        "quorum": arm.rules.rounds.quorum,
        "deadline_s": 60.0,
    }
    return CampaignDefinition(
        name,
        arm.config.name,
        NUM_DEVICES,
        fleet.store.put(encode_params(arm.first_shared())),
        campaign.num_rounds,
        plan_of(arm),
        CampaignRules(**(values | rules)),  # type: ignore[arg-type]
        seed=arm.seed,
        min_online=NUM_DEVICES,
        bundle=fleet.store.put(campaign_bundle().content),
    )


def check_rounds(record: CampaignRecord, num_rounds: int) -> None:
    """Every round once, in order, and an end."""
    assert record.end == "complete"
    assert [done.round for done in record.rounds] == list(range(num_rounds))
    assert [done.version for done in record.rounds] == list(range(1, num_rounds + 1))
