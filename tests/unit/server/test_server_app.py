"""The campaign that a run carries out, over a grid in this process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedretrain.artifacts.store import ContentStore
from fedretrain.artifacts.weights import decode_params
from fedretrain.core.build import build
from fedretrain.core.ids import ClientId
from fedretrain.edge.client_app import Device
from fedretrain.edge.training_data import FolderData
from fedretrain.privacy.file_ledger import WitnessFile
from fedretrain.server.campaign import define_campaign, read_campaign
from fedretrain.server.campaign_rules import CampaignRules, PrivacyRule, SamplingRule
from fedretrain.server.database import open_database
from fedretrain.server.database_ledger import DatabaseLedger
from fedretrain.server.event_log import EventLog, FencedError
from fedretrain.server.server_app import ORDERS, AppOrders, run_campaign
from tests.flower_cases import NUM_DEVICES, definition, examples, plain_place
from tests.grid_cases import LoopbackGrid, crashing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RULES = CampaignRules(SamplingRule(cohort_size=NUM_DEVICES), quorum=2, deadline_s=30.0)


@pytest.fixture(autouse=True)
def _inside_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages want to know the run that they are of."""
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Server:
    """A database, a store and two nodes."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder}/log.db"
        self.log = EventLog(open_database(self.url))
        self.store = ContentStore(folder / "store")
        define_campaign(self.log, definition(self.store, **({"rules": RULES} | changes)), at=0.0, fence=None)
        fence = self.log.acquire("campaign/c1", "one", now=0.0, ttl_s=10.0)
        assert fence is not None
        self.orders = AppOrders(
            self.url,
            plain_place(folder / "store"),
            "c1",
            fence.name,
            fence.token,
            "nowhere",
            "",
            1,
            witness=str(folder / "witness"),
        )
        self.devices = {}
        for node in range(2):
            data = FolderData(folder / str(node))
            for client in range(node, NUM_DEVICES, 2):
                data.put_examples(ClientId(client), examples(client))
            self.devices[100 + node] = Device(data)
        self.now, self.waits = 1000.0, list[float]()

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def run(self, grid: LoopbackGrid | None = None, orders: AppOrders | None = None) -> str:
        grid = grid or LoopbackGrid(self.devices)
        return run_campaign(orders or self.orders, grid, clock=self.clock, wait=self.wait)  # type: ignore[arg-type]


def test_it_runs_the_campaign_to_its_end(tmp_path: Path) -> None:
    server = Server(tmp_path)
    assert server.run() == "complete"
    record = read_campaign(server.log, "c1")
    assert [done.summary["num_contributed"] for done in record.rounds] == [4, 4, 4]
    assert np.isfinite(decode_params(server.store.get(record.weights))["head.weight"]).all()
    assert server.run() == "complete"  # and again: nothing happens
    assert read_campaign(server.log, "c1") == record


def test_rounds_begin_an_interval_apart(tmp_path: Path) -> None:
    server = Server(tmp_path, interval_s=60.0)
    server.run()
    assert server.waits == [60.0, 60.0]


def test_with_privacy_every_release_is_charged_and_witnessed(tmp_path: Path) -> None:
    rules = CampaignRules(
        SamplingRule(cohort_size=4), quorum=2, deadline_s=30.0, privacy=PrivacyRule(1.0, 0.5)
    )
    server = Server(tmp_path, rules=rules)
    server.run()
    ledger = DatabaseLedger(server.log, "watches", clock=server.clock)
    assert [event.round for event in ledger.events()] == [0, 1, 2]
    assert WitnessFile(tmp_path / "witness").load() == ledger.head()


def test_a_round_waits_for_devices(tmp_path: Path) -> None:
    server = Server(tmp_path)
    grid = LoopbackGrid({100: server.devices[100]})

    def wait(seconds: float) -> None:
        server.wait(seconds)
        grid.devices[101] = server.devices[101]

    assert run_campaign(server.orders, grid, clock=server.clock, wait=wait) == "complete"  # type: ignore[arg-type]
    assert read_campaign(server.log, "c1").rounds[0].summary["num_asked"] == 4


def test_but_not_for_ever(tmp_path: Path) -> None:
    server = Server(tmp_path, patience_s=10.0)
    assert server.run(LoopbackGrid({100: server.devices[100]})) == "complete"
    rounds = read_campaign(server.log, "c1").rounds
    assert [done.summary["num_asked"] for done in rounds] == [2, 2, 2]


def test_a_process_that_was_replaced_ends(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.log.acquire("campaign/c1", "other", now=20.0, ttl_s=10.0)
    with pytest.raises(FencedError):
        server.run()
    assert read_campaign(server.log, "c1").rounds == ()


def test_keys_decide_who_is_asked(tmp_path: Path) -> None:
    server = Server(tmp_path, min_online=2)
    nodes = tmp_path / "nodes.json"
    nodes.write_text(json.dumps({"KEY": [1, 3]}))
    orders = build(AppOrders, {**json.loads(server.orders.to_env()[ORDERS]), "nodes": str(nodes)})
    server.run(LoopbackGrid(server.devices, keys={100: b"OTHER", 101: b"KEY"}), orders)
    assert [done.summary["num_asked"] for done in read_campaign(server.log, "c1").rounds] == [2, 2, 2]


def test_nodes_that_fail_cost_their_own_devices(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.run(LoopbackGrid(server.devices, {1: crashing}))
    rounds = read_campaign(server.log, "c1").rounds
    assert [done.summary["failures"] for done in rounds] == [{"dropped": 1}] * 3


class FakeSuperLink:
    """Starts no process; its runs have numbers."""

    def __init__(self) -> None:
        self.num_runs, self.ready, self.stopped = 0, True, list[int]()
        self.config = type("Config", (), {"address": "x:1", "insecure": True, "root_certificates": None})()
        self.child = type("Child", (), {"num_starts": 1})()
        self.secret = "secret"

    def ensure(self, _now: float) -> bool:
        return False

    def is_ready(self) -> bool:
        return self.ready

    def stop_run(self, run: int) -> None:
        self.stopped.append(run)

    def start_run(self, _bundle: object) -> int:
        self.num_runs += 1
        return self.num_runs


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The orders of each app that was started; none of them runs."""
    import fedretrain.server.campaign_process as module

    found: list[dict[str, str]] = []

    class App:
        def __init__(self, command: object) -> None:
            self.is_alive = True
            found.append(json.loads(command.env[ORDERS]) | {"app": self})  # type: ignore[attr-defined]

        def ensure(self, _now: float) -> bool:
            return True

        def stop(self) -> None:
            self.is_alive = False

    monkeypatch.setattr(module, "Child", App)
    return found


def process_of(server: Server, link: FakeSuperLink, clock: Callable[[], float]):
    from fedretrain.server.campaign_process import CampaignFiles, CampaignProcess

    files = CampaignFiles(server.url, plain_place(server.folder / "store"), server.folder / "apps")
    return CampaignProcess("c1", server.log, link, files, clock=clock)  # type: ignore[arg-type]


def test_each_app_acts_under_a_lease_of_its_own(tmp_path: Path, started: list[dict[str, str]]) -> None:
    server, link = Server(tmp_path), FakeSuperLink()
    process = process_of(server, link, server.clock)
    assert process.ensure(0.0)
    assert process.ensure(1.0)  # it runs: nothing happens
    assert len(started) == 1
    started[0]["app"].is_alive = False  # type: ignore[attr-defined]
    for now in (2.0, 2.5, 3.0):  # a moment's patience
        process.ensure(now)
    link.child.num_starts = 2  # the SuperLink was started anew: nobody's fault
    process.ensure(4.0)
    assert [orders["run"] for orders in started] == [1, 2, 3]
    tokens = [orders["token"] for orders in started]
    assert tokens == sorted(set(tokens))
    assert not started[1]["app"].is_alive  # type: ignore[attr-defined]
    assert link.stopped == [1, 2]  # or their nodes would train for nobody


def test_an_app_that_fails_again_and_again_is_started_ever_more_rarely(
    tmp_path: Path, started: list[dict[str, str]]
) -> None:
    process = process_of(server := Server(tmp_path), FakeSuperLink(), server.clock)
    for now in range(60):
        process.ensure(float(now))
        if process.app is not None:
            process.app.is_alive = False  # type: ignore[misc]
    assert len(started) == 6


def test_who_lost_the_lease_ends_its_app(tmp_path: Path, started: list[dict[str, str]]) -> None:
    server, link = Server(tmp_path), FakeSuperLink()
    process = process_of(server, link, server.clock)
    process.ensure(0.0)
    server.now += 1000.0
    assert server.log.acquire("campaign/c1", "another coordinator", now=server.now, ttl_s=60.0)
    process.ensure(1.0)
    assert len(started) == 1
    assert not started[0]["app"].is_alive  # type: ignore[attr-defined]


def test_without_a_superlink_it_is_tried_again(tmp_path: Path, started: list[dict[str, str]]) -> None:
    server, link = Server(tmp_path), FakeSuperLink()
    process = process_of(server, link, server.clock)
    link.ready = False
    assert process.ensure(0.0)
    assert started == []
    link.ready = True
    assert process.ensure(1.0)
    assert len(started) == 1


def test_an_ended_campaign_starts_nothing(tmp_path: Path, started: list[dict[str, str]]) -> None:
    server, link = Server(tmp_path), FakeSuperLink()
    server.run()
    process = process_of(server, link, server.clock)
    assert not process.ensure(0.0)
    assert started == []
