"""A signed invitation makes the agent train: over real Flower with TLS and the device's own key, on what it has buffered."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedretrain.artifacts.assignment import CampaignInvite
from fedretrain.artifacts.identity import create_key, load_key, request_certificate
from fedretrain.artifacts.manifest import Strategy, TrainingRecord
from fedretrain.edge.agent import Agent
from fedretrain.edge.config import DeviceConfig, TrainingConfig
from fedretrain.edge.example_ledger import LEDGER, ExampleLedger, shown
from fedretrain.edge.joining import KEY
from fedretrain.privacy.example import ExampleDp
from fedretrain.server.campaign_rules import CampaignRules, SamplingRule
from fedretrain.server.superlink import SuperLinkConfig, campaign_bundle
from fedretrain.training.config import ExampleDp as Settings
from fedretrain.training.config import LocalTraining
from fedretrain.training.plan import ModelName, TrainingPlan
from tests.agent_cases import POPULATION, fleet_of, rows
from tests.flower_cases import Fleet as FlowerFleet
from tests.flower_cases import definition, free_port
from tests.slot_cases import SIZE

pytestmark = pytest.mark.slow

PLAN = TrainingPlan(ModelName.MLP, (SIZE,), 3, options={"hidden": (8,)})


class Keys:
    """A SuperLink's certificate by the fleet's own authority."""

    def __init__(self, authority, folder):
        folder.mkdir()
        self.root, self.certificate, self.key = folder / "ca.pem", folder / "link.pem", folder / "link.key"
        create_key(self.key)
        request = request_certificate(load_key(self.key), POPULATION, "superlink")
        self.certificate.write_bytes(authority.issue_server(request, ["127.0.0.1"], now=time.time()))
        self.root.write_bytes(authority.certificate)

    def superlink(self):
        return SuperLinkConfig(
            port=free_port(),
            certificate=self.certificate,
            private_key=self.key,
            root_certificates=self.root,
        )


def public_key(folder):
    key = load_key(folder / KEY).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def hosting(fleet, folder, *names, **more):
    config = fleet.config(folder, **more)
    devices = [DeviceConfig(name, token=fleet.here.token(name, POPULATION), trains=True) for name in names]
    return Agent(replace(config, devices=tuple(devices)))


@contextmanager
def plant(tmp_path, **more):
    """A server's side, an agent with two devices, and a SuperLink."""
    (tmp_path / "server").mkdir()
    with fleet_of(tmp_path / "server") as fleet:
        agent = hosting(fleet, tmp_path, "a", "b", **more)
        (tmp_path / "flower").mkdir()
        flower = FlowerFleet(tmp_path / "flower", Keys(fleet.here.authority, tmp_path / "keys"))
        try:
            yield fleet, agent, flower
        finally:
            flower.stop()
            agent.close()


def test_an_invited_agent_trains_on_what_it_buffered_and_stops(tmp_path):
    with plant(tmp_path) as (fleet, agent, flower):
        check(fleet, agent, flower)


@pytest.mark.faults
def test_under_example_level_privacy_an_agents_devices_charge_their_own_ledgers_and_one_that_may_not_sends_nothing(
    tmp_path,
):
    local = LocalTraining(batch_size=8, epochs=0, max_steps=3, example_dp=Settings(1.0, 0.5))
    once = float(ExampleDp(1.0, 0.5, 8, 1e-5).epsilons(np.array([20]), np.array([3]))[0])
    enough = TrainingConfig(example_epsilon=1.001 * once, example_delta=1e-5)  # for one round
    with plant(tmp_path, training=enough) as (fleet, agent, flower):
        _, record = train(fleet, agent, flower, replace(PLAN, training=local), quorum=1)
        assert [done.summary["num_contributed"] for done in record.rounds] == [2, 0]
        assert record.rounds[1].summary["failed"] == {"refused": [0, 1]}
        for device in agent.devices.values():
            (row,) = ExampleLedger(device.folder / LEDGER).rows()
            assert (row.charge.campaign, row.charge.round, row.charge.num_examples) == ("c1", 0, 20)
            assert row.epsilon == pytest.approx(once)
            told = shown(device.folder / LEDGER, enough.example_budget)
            assert (told["num_updates"], told["epsilon"]) == (1, row.epsilon)


def train(fleet, agent, flower, plan, quorum):
    """A campaign of two rounds on what the devices buffered."""
    (first,) = fleet.make()
    flower.agents["agent"] = agent.campaigns
    flower.enrol({public_key(agent.device("a").folder): [0, 1]})
    for name, device in agent.devices.items():
        fleet.assign(name, first)
        device.sync()
        assert device.joined.number == ["a", "b"].index(name)
        for answer in device.predict(rows(20)):
            device.label(answer.id, int(np.random.default_rng(1).integers(3)))
    agent.campaigns.ensure(time.monotonic())
    assert agent.campaigns.running is None  # nobody is invited
    wanted = definition(
        flower.store,
        population=POPULATION,
        num_devices=2,
        plan=plan,
        num_rounds=2,
        min_online=2,
        rules=CampaignRules(SamplingRule(cohort_size=2), quorum=quorum, deadline_s=60.0),
        base=flower.store.put(base_of(plan)),
    )
    now = time.time()
    invite = CampaignInvite(
        "c1", campaign_bundle().digest, flower.superlink.config.address, now - 1, now + 600, 2, 30.0
    )
    for name, device in agent.devices.items():
        fleet.assign(name, first, invite=invite)
        device.sync()
    flower.begin(wanted)
    record = flower.run()
    assert record.end == "complete", flower.told()
    assert len(record.rounds) == 2
    return first, record


def check(fleet, agent, flower):
    first, record = train(fleet, agent, flower, PLAN, quorum=2)
    assert all(done.summary["num_contributed"] == 2 for done in record.rounds)
    running = agent.campaigns.running
    for name, device in agent.devices.items():
        told = device.store.lineage
        with device.store.database.mutex:
            (commitment,) = (
                row[0]
                for row in device.store.database.connection.execute(
                    "select commitment from lineage where device = ?", (name,)
                )
            )
        assert told.verify(commitment)
        assert len(running.given[name]) == 20
        fleet.assign(name, first)
        device.sync()
    (made,) = fleet.make(training=TrainingRecord(Strategy.FEDERATED, snapshot="campaign/c1"))
    device = agent.device("a")
    fleet.assign("a", made)
    device.sync()
    (use,) = device.lineage(made)
    assert (use.campaign, sorted(use.examples)) == ("c1", sorted(running.given["a"]))
    agent.campaigns.ensure(time.monotonic())
    assert agent.campaigns.running is None
    assert not running.processes.supernode.is_alive
    assert not running.processes.app.is_alive


def base_of(plan):
    from fedretrain.artifacts.weights import encode_params

    return encode_params(plan.make().first_shared())
