"""Campaigns over real Flower processes whose uploads are quantised, whose examples are protected, or whose unit is the person.

Each is compared with the simulator's twin of it: the same devices, data and cohorts. Noise of real campaigns is the system's
entropy, so released weights are compared with it by its exact scale.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedretrain.artifacts.weights import decode_params
from fedretrain.core import params
from fedretrain.core.ids import ClientId
from fedretrain.core.params import Layout
from fedretrain.edge.example_ledger import LEDGER, ExampleLedger
from fedretrain.edge.example_privacy import Account
from fedretrain.edge.training_data import FolderData
from fedretrain.privacy.accountant import gaussian_epsilon
from fedretrain.privacy.event import decode_units
from fedretrain.privacy.mechanism import Unit
from fedretrain.server.campaign import decode_state
from fedretrain.server.campaign_rules import PrivacyRule
from fedretrain.server.database_ledger import DatabaseLedger
from sim.example_privacy import DELTA, example_epsilons
from tests.proxy_cases import Proxy
from tests.twin_cases import NUM_DEVICES, check_rounds, definition, simulated, twin_fleet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from fedretrain.core.params import Params
    from fedretrain.server.campaign import CampaignRecord
    from sim.campaign import Campaign
    from tests.flower_cases import Fleet

pytestmark = pytest.mark.faults

LARGE = ("model.mlp.hidden=[256,256]", "personalization=fedavg")  # weights, not words, are what travels
CLIP = 0.05
LR, BATCH, STEPS = 0.05, 4, 3
EXAMPLES = (
    *LARGE,
    f"training.optimizer.lr={LR}",
    f"training.batch_size={BATCH}",
    "training.epochs=0",
    f"training.max_steps={STEPS}",
)


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, proxy: Proxy) -> Iterator[Fleet]:
    found = twin_fleet(tmp_path_factory.mktemp("fleet"), proxy=proxy)
    yield found
    found.stop()


def flat(tree: Params) -> NDArray[np.float64]:
    return Layout.of(tree).pack(tree).astype(np.float64)


def released(fleet: Fleet, record: CampaignRecord) -> Params:
    return decode_params(fleet.store.get(record.weights))


def states(fleet: Fleet, record: CampaignRecord, twin: Campaign) -> list[NDArray[np.float64]]:
    """The shared parameters before the first round and after each."""
    base = twin.arm.first_shared()
    layout = Layout.of(base)
    after = [decode_state(layout, fleet.store.get(done.state)).tree for done in record.rounds]
    return [flat(base), *map(flat, after)]


def agent_data(fleet: Fleet, device: int) -> FolderData:
    return FolderData(fleet.root / f"agent-{device % 2}" / "data")


def ledger_of(fleet: Fleet, device: int, where: str) -> Path:
    return fleet.root / f"agent-{device % 2}" / where / f"{device}-{LEDGER}"


def keep_accounts(fleet: Fleet, where: str, epsilons: dict[int, float] | None = None) -> None:
    """Each device's ledger, below a folder of its agent, with a budget of its own."""
    for device in range(NUM_DEVICES):
        path = ledger_of(fleet, device, where)
        path.parent.mkdir(exist_ok=True)
        account = Account(str(path), (epsilons or {}).get(device, 0.0), DELTA)
        agent_data(fleet, device).put_account(ClientId(device), account)


def rounds_of(record: CampaignRecord, device: int) -> list[int]:
    """In which a device contributed."""
    failed = [{d for ones in done.summary["failed"].values() for d in ones} for done in record.rounds]
    asked = [set(done.summary["asked"]) for done in record.rounds]
    return [number for number in range(len(asked)) if device in asked[number] - failed[number]]


def test_quantised_uploads_are_the_simulators_at_a_quarter_of_the_bytes(fleet: Fleet, proxy: Proxy) -> None:
    found = {}
    for upload in ("full", "int8"):
        twin = simulated(*LARGE, f"privacy.clip_norm={CLIP}", f"training.upload={upload}")
        before = proxy.sent_bytes
        fleet.begin(definition(fleet, f"upload {upload}", twin.arm, clip_norm=CLIP))
        record = fleet.run()
        check_rounds(record, 2)
        if upload == "int8":  # a whole update that is clipped on the device is rounded there once more
            assert params.digest(released(fleet, record)) == params.digest(twin.progress.state.tree)
        apart = np.linalg.norm(flat(released(fleet, record)) - flat(twin.progress.state.tree))
        assert apart < 1e-6 * CLIP
        trees = states(fleet, record, twin)
        steps = [np.linalg.norm(b - a) for a, b in pairwise(trees)]
        assert max(steps) <= CLIP * (1 + 1e-6)  # what was decoded is within the bound
        assert min(steps) > CLIP / 4  # and was worth bounding
        up = sum(done.summary["bytes_up"] for done in record.rounds)
        found[upload] = (up, proxy.sent_bytes - before, trees)
    (full_up, full_sent, full), (int8_up, int8_sent, int8) = found["full"], found["int8"]
    assert int8_up < 0.27 * full_up
    assert int8_sent < 0.4 * full_sent
    assert int8_sent > int8_up  # the proxy saw all of it
    apart, moved = np.linalg.norm(int8[-1] - full[-1]), np.linalg.norm(full[-1] - full[0])
    assert 0 < apart < 0.02 * moved
    asked = [set(done.summary["asked"]) for done in record.rounds]
    for device in asked[0] & asked[1]:  # the first round's error was fed into the second, which left its own
        left = agent_data(fleet, device).residual(ClientId(device), "any")
        assert left is not None
        assert 0 < np.linalg.norm(left) < 0.05 * CLIP


def test_an_example_is_charged_for_on_its_device_and_the_noise_is_in_what_is_released(fleet: Fleet) -> None:
    z, clip = 2.0, 0.5
    words = (*EXAMPLES, f"training.example_dp={{noise_multiplier: {z}, clip_norm: {clip}}}")
    twin = simulated(*words)
    keep_accounts(fleet, "noisy")
    fleet.begin(definition(fleet, "examples", twin.arm))
    record = fleet.run()
    check_rounds(record, 2)
    assert [done.summary["num_contributed"] for done in record.rounds] == [4, 4]
    devices = np.arange(NUM_DEVICES)
    expected = example_epsilons(twin.arm, devices, twin.progress.sent)
    assert expected is not None
    for device in devices.tolist():
        rows = ExampleLedger(ledger_of(fleet, device, "noisy")).rows()
        assert [row.charge.round for row in rows] == rounds_of(record, device)
        spent = rows[-1].epsilon if rows else 0.0
        assert spent == pytest.approx(expected[device], rel=1e-9)
    assert max(expected) > 0
    # Devices' noise in the mean of four, over two rounds; the clipped gradients are a hundredth of it at most.
    base = flat(twin.arm.first_shared())
    stddev = LR * z * clip * np.sqrt(STEPS * 2) / BATCH / np.sqrt(4)
    moved = np.linalg.norm(flat(released(fleet, record)) - base)
    assert moved == pytest.approx(stddev * np.sqrt(len(base)), rel=0.03)


def test_without_noise_to_speak_of_an_example_campaign_releases_the_simulators_weights(fleet: Fleet) -> None:
    """Every batch holds every example, so nothing is left to chance but the noise."""
    words = (
        *EXAMPLES,
        "training.batch_size=64",
        "training.example_dp={noise_multiplier: 1e-4, clip_norm: 0.5}",
    )
    twin = simulated(*words)
    keep_accounts(fleet, "whole")
    fleet.begin(definition(fleet, "whole batches", twin.arm))
    record = fleet.run()
    check_rounds(record, 2)
    base, real, played = map(
        flat, (twin.arm.first_shared(), released(fleet, record), twin.progress.state.tree)
    )
    assert 0 < np.linalg.norm(real - played) < 0.02 * np.linalg.norm(played - base)


def test_no_update_leaves_a_device_whose_ledger_cannot_be_charged(fleet: Fleet) -> None:
    """Its budget is spent, or its disk does not take the charge: the server is told, and gets nothing."""
    words = (*EXAMPLES, "training.example_dp={noise_multiplier: 1.0, clip_norm: 0.5}")
    twin = simulated(*words)
    often = [device for device, _, times in twin.progress.sent.tolist() if times == 2]
    poor, broken = often[:2]
    one = example_epsilons(twin.arm, np.array([poor]), np.array([[poor, *_held(twin, poor), 1]]))
    assert one is not None
    keep_accounts(fleet, "strict", {poor: float(one[0]) * 1.001})
    ledger_of(fleet, broken, "strict").mkdir()
    fleet.begin(definition(fleet, "strict", twin.arm, quorum=1))
    record = fleet.run()
    check_rounds(record, 2)
    assert [done.summary["failed"] for done in record.rounds] == [
        {"refused": [broken]},
        {"refused": sorted((poor, broken))},
    ]
    assert [row.charge.round for row in ExampleLedger(ledger_of(fleet, poor, "strict")).rows()] == [0]


def _held(twin: Campaign, device: int) -> Sequence[int]:
    return [len(one) for one in twin.arm.world.fleet.trainable(np.array([device]), 0.0)]


def test_a_persons_devices_take_turns_and_the_person_is_charged(fleet: Fleet) -> None:
    z, clip = 1e-3, 0.5  # noise that can be measured and leaves the weights comparable
    twin = simulated(
        *LARGE,
        "privacy=central",
        "privacy.unit=person",
        "privacy.devices_per_person=2",
        f"privacy.noise_multiplier={z}",
        f"privacy.clip_norm={clip}",
        "privacy.target_epsilon=0",
        "campaign.cohort_size=2",
        "campaign.num_rounds=4",
    )
    dp = twin.rules.rounds.dp
    assert dp is not None
    assert dp.unit_of is not None
    units = tuple(dp.unit_of.tolist())
    assert len(set(units)) == NUM_DEVICES // 2
    privacy = PrivacyRule(z, clip, unit=Unit.PERSON, epsilon=1e7)
    wanted = definition(fleet, dp.campaign, twin.arm, privacy=privacy)
    fleet.begin(replace(wanted, units=units, population=dp.population))
    record = fleet.run()
    check_rounds(record, 4)
    events = DatabaseLedger(fleet.log, dp.population, clock=time.time).events()
    assert list(events) == twin.progress.events
    charged = [decode_units(event.units).tolist() for event in events]
    for done, persons in zip(record.rounds, charged, strict=True):
        assert sorted(units[device] for device in done.summary["asked"]) == persons
    times = np.bincount(np.concatenate(charged))
    devices = {device for done in record.rounds for device in done.summary["asked"]}
    assert len(devices) > np.count_nonzero(times)
    assert record.rounds[-1].summary["epsilon"] == pytest.approx(
        gaussian_epsilon(float(times.max()) / z**2, 1e-5), rel=1e-6
    )
    real, played = flat(released(fleet, record)), flat(twin.progress.state.tree)
    # Two noises apart, each of z C / 2 in four rounds.
    expected = z * clip / 2 * np.sqrt(2 * 4 * len(real))
    assert np.linalg.norm(real - played) == pytest.approx(expected, rel=0.05)
    assert np.linalg.norm(played - flat(twin.arm.first_shared())) > np.linalg.norm(real - played)
