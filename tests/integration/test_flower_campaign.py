"""A campaign over real Flower processes: the simulator's weights and ledger, and what survives being killed."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from fedretrain.artifacts.weights import decode_params
from fedretrain.core import params
from fedretrain.core.ids import ClientId
from fedretrain.edge.training_data import FolderData
from fedretrain.server.campaign_rules import PrivacyRule, SamplingRule
from fedretrain.server.database_ledger import DatabaseLedger
from tests.run_cases import quick_arm
from tests.twin_cases import DP, NUM_DEVICES, WORDS, check_rounds, definition, simulated, twin_fleet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.flower_cases import Fleet

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    found = twin_fleet(tmp_path_factory.mktemp("fleet"))
    yield found
    found.stop()


def test_real_devices_give_the_simulators_weights_bit_for_bit(fleet: Fleet) -> None:
    reference = simulated()
    fleet.begin(definition(fleet, "plain", reference.arm))
    record = fleet.run()
    check_rounds(record, 2)
    for done in record.rounds:
        failed = {device for devices in done.summary["failed"].values() for device in devices}
        assert {int(device) for device in done.summary["reply_s"]} == set(done.summary["asked"]) - failed
    released = decode_params(fleet.store.get(record.weights))
    assert params.digest(released) == params.digest(reference.progress.state.tree)
    rows = reference.progress.store.get(list(range(NUM_DEVICES)))
    for device, row in rows.items():  # and personal states, which never left their agents
        mine = FolderData(fleet.root / f"agent-{device % 2}" / "data").personal(ClientId(device))
        assert mine is not None
        assert mine.tobytes() == row.tobytes()


def test_real_devices_give_the_simulators_ledger(fleet: Fleet) -> None:
    reference = simulated(*DP)
    dp = reference.rules.rounds.dp
    budget = reference.rules.budget
    assert dp is not None
    assert budget is not None
    privacy = PrivacyRule(dp.noise_multiplier, dp.clip_norm, epsilon=budget.epsilon, delta=budget.delta)
    fleet.begin(definition(fleet, dp.campaign, reference.arm, privacy=privacy))
    record = fleet.run()
    check_rounds(record, 2)
    ledger = DatabaseLedger(fleet.log, dp.population, clock=time.time)
    assert list(ledger.events()) == reference.progress.events
    assert record.rounds[-1].summary["epsilon"] == pytest.approx(reference.progress.records[-1].epsilon)


@pytest.mark.faults
@pytest.mark.one_fault
@pytest.mark.parametrize("killed", ["server app", "superlink"])
def test_a_campaign_goes_on_when_a_process_is_killed(fleet: Fleet, killed: str) -> None:
    arm = quick_arm(*WORDS)
    wanted = definition(fleet, f"kill {killed}", arm, privacy=PrivacyRule(1.0, 0.5))
    fleet.begin(replace(wanted, population=f"kill {killed}", num_rounds=3))
    record = fleet.run(lambda record: len(record.rounds) == 1)
    time.sleep(1.0)  # the next round has begun
    assert fleet.campaign is not None
    assert fleet.campaign.app is not None
    pid = fleet.campaign.app.pid if killed == "server app" else fleet.superlink.child.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    first = record.rounds
    record = fleet.run()
    check_rounds(record, 3)
    assert record.rounds[:1] == first
    events = DatabaseLedger(fleet.log, f"kill {killed}", clock=time.time).events()
    assert {event.round for event in events} == {0, 1, 2}  # each release was charged
    assert len(events) == len({(event.round, event.attempt) for event in events})


@pytest.mark.faults
@pytest.mark.parametrize("killed", ["app process", pytest.param("supernode", marks=pytest.mark.one_fault)])
def test_what_is_killed_on_a_device_costs_its_own_clients_alone(fleet: Fleet, killed: str) -> None:
    """And the device takes part again, with its personal state."""
    arm = quick_arm(*WORDS)
    sampling = SamplingRule(cohort_size=NUM_DEVICES)
    wanted = definition(fleet, f"kill {killed}", arm, sampling=sampling, quorum=3, deadline_s=20.0)
    fleet.begin(replace(wanted, num_rounds=5))
    fleet.run(lambda record: len(record.rounds) == 1)
    agent = fleet.agents["agent-1"]
    pid = (agent.app if killed == "app process" else agent.supernode).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    record = fleet.run()
    check_rounds(record, 5)
    counts = [done.summary["num_contributed"] for done in record.rounds]
    assert counts[0] == NUM_DEVICES
    assert min(counts) >= 3  # the other device's
    assert max(counts[2:]) > 3
    for done, count in zip(record.rounds, counts, strict=True):
        assert sum(done.summary["failures"].values()) == NUM_DEVICES - count
