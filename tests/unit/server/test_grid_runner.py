"""Cohorts over Flower's grid: what travels, what ends the waiting, and what becomes of replies that are none."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fedretrain.aggregation.aggregator import FixedDenominatorMean
from fedretrain.coordinator.ports import RoundSpec
from fedretrain.coordinator.round import fold_shards
from fedretrain.coordinator.state import Outcome, RoundResult
from fedretrain.core.ids import ClientId
from fedretrain.core.types import FailureKind
from fedretrain.edge.client_app import Device
from fedretrain.edge.training_data import FolderData
from fedretrain.server import grid_runner
from fedretrain.server.grid_runner import CalledNodes, GridRunner, KeyedNodes, Pace
from tests.contract.runner_contract import RunnerContract
from tests.flower_cases import PLAN, examples
from tests.grid_cases import LoopbackGrid, crashing, lying, refusing, silent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fedretrain.coordinator.ports import CohortRunner
    from fedretrain.coordinator.round import Fold

NUM_DEVICES = 20
COHORT = np.array([2, 3, 5, 7, 11, 13, 17, 19], dtype=np.int64)
QUICK = Pace(poll_s=0.001)
SPEC = RoundSpec(0, PLAN.make().first_shared(), 0, 1, 0.0, FixedDenominatorMean(8), 1.0, deadline_s=0.3)


@pytest.fixture(autouse=True)
def _inside_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages want to know the run that they are of."""
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture(scope="session")
def devices(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Device]:
    """Three nodes with some clients each."""
    root, found = tmp_path_factory.mktemp("devices"), {}
    for node in range(3):
        data = FolderData(root / str(node))
        for client in range(node, NUM_DEVICES, 3):
            data.put_examples(ClientId(client), examples(client))
        found[100 + node] = Device(data)
    return found


def runner_on(grid: LoopbackGrid, pace: Pace = QUICK, *, private: bool = False) -> GridRunner:
    nodes = CalledNodes(grid, NUM_DEVICES)  # type: ignore[arg-type]
    return GridRunner(grid, nodes, PLAN.to_text(), private=private, pace=pace)  # type: ignore[arg-type]


def fold(grid: LoopbackGrid, spec: RoundSpec = SPEC, pace: Pace = QUICK) -> Fold:
    return fold_shards(spec, COHORT, runner_on(grid, pace).run(spec, COHORT))


def failures(found: Fold) -> dict[int, FailureKind]:
    return {int(failure.client): failure.kind for failure in found.failures()}


class TestGridRunnerContract(RunnerContract):
    @pytest.fixture(autouse=True)
    def _with_devices(self, devices: dict[int, Device]) -> None:
        self.devices = devices

    def make(self) -> CohortRunner:
        return runner_on(LoopbackGrid(self.devices))

    def spec(self) -> RoundSpec:
        return SPEC

    def cohort(self) -> np.ndarray:
        return COHORT


def test_messages_under_way_and_replies_at_once_are_bounded(devices: dict[int, Device]) -> None:
    grid = LoopbackGrid(devices)
    assert fold(grid, pace=replace(QUICK, window=3, pull=2)).counted.all()
    assert (grid.most_waiting, grid.most_asked) == (3, 3)  # three: the roll call
    grid = LoopbackGrid(devices)
    nodes = KeyedNodes(grid, dict)  # type: ignore[arg-type]
    assert nodes.online() == {}


def test_a_message_lives_no_longer_than_its_round(devices: dict[int, Device]) -> None:
    grid = LoopbackGrid(devices)
    fold(grid)
    assert grid.ttls[3:] == [SPEC.deadline_s] * len(COHORT)


def test_what_does_not_come_is_late_and_the_rest_counts(devices: dict[int, Device]) -> None:
    found = fold(LoopbackGrid(devices, {5: silent, 19: silent}))
    assert failures(found) == {5: FailureKind.TIMEOUT, 19: FailureKind.TIMEOUT}
    assert found.partial.num_clients == 6


def test_an_error_of_flowers_costs_its_own_client(devices: dict[int, Device]) -> None:
    found = fold(LoopbackGrid(devices, {5: crashing, 7: refusing, 13: lying}))
    assert failures(found) == {
        5: FailureKind.DROPPED,
        7: FailureKind.REFUSED,
        13: FailureKind.MALFORMED,
    }
    assert found.partial.num_clients == 5


def test_who_has_no_node_is_unavailable(devices: dict[int, Device]) -> None:
    found = fold(LoopbackGrid({100: devices[100], 101: devices[101]}))
    assert failures(found) == {c: FailureKind.UNAVAILABLE for c in COHORT.tolist() if c % 3 == 2}


def test_enough_replies_end_the_round(devices: dict[int, Device]) -> None:
    found = fold(LoopbackGrid(devices, {2: silent}), replace(SPEC, stop_after=3, deadline_s=60.0))
    assert found.partial.num_clients == 3
    assert set(failures(found).values()) == {FailureKind.TIMEOUT}


class Ticking:
    """Time that passes only when somebody looks for replies."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, _seconds: float) -> None:
        raise AssertionError("every look found a reply")


class TickingGrid(LoopbackGrid):
    """Each look takes two seconds."""

    def __init__(self, devices: dict[int, Device], clock: Ticking, **more: Any) -> None:
        super().__init__(devices, **more)
        self.clock = clock

    def pull_messages(self, names: Iterable[str]) -> list[Any]:
        self.clock.now += 2.0
        return super().pull_messages(names)


def test_a_replys_time_is_from_its_own_order_and_only_of_those_who_count(
    devices: dict[int, Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Ticking()
    monkeypatch.setattr(grid_runner, "time", clock)
    grid = TickingGrid(devices, clock, broken={13: lying})
    pace = replace(QUICK, window=2)
    (shard,) = runner_on(grid, pace, private=True).run(replace(SPEC, deadline_s=60.0), COHORT)
    # Two orders are under way, of which the later is answered first; 2 waits until there is none after it.
    assert shard.reply_s == {2: 16.0, 3: 2.0, 5: 2.0, 7: 2.0, 11: 2.0, 17: 2.0, 19: 2.0}
    assert sorted(shard.reply_s) == shard.clients.tolist()
    result = fold_shards(SPEC, COHORT, [shard]).describe(RoundResult(0, Outcome.RELEASED))
    assert list(result.reply_s.items()) == sorted(shard.reply_s.items())


def test_nothing_of_single_clients_is_kept_with_privacy(devices: dict[int, Device]) -> None:
    (shard,) = runner_on(LoopbackGrid(devices), private=True).run(SPEC, COHORT)
    assert len(shard.clients) == len(COHORT)
    assert len(shard.oracle.clients) == 0


def test_a_key_decides_who_a_node_is_whatever_it_says(devices: dict[int, Device]) -> None:
    grid = LoopbackGrid(devices, keys={100: b"A", 101: b"stranger"})
    nodes = KeyedNodes(grid, lambda: {b"A": (3, 4), b"B": (5,)})  # type: ignore[arg-type]
    assert nodes.online() == {3: 100, 4: 100}


def test_a_roll_call_is_believed_within_the_population(devices: dict[int, Device]) -> None:
    grid = LoopbackGrid(devices)
    nodes = CalledNodes(grid, 5)  # type: ignore[arg-type]
    assert nodes.online() == {0: 100, 3: 100, 1: 101, 4: 101, 2: 102}
    sent = grid.num_sent
    assert nodes.online() == {0: 100, 3: 100, 1: 101, 4: 101, 2: 102}
    assert grid.num_sent == sent  # each is asked once


def test_a_node_that_left_serves_nobody(devices: dict[int, Device]) -> None:
    grid = LoopbackGrid(devices)
    nodes = CalledNodes(grid, 5)  # type: ignore[arg-type]
    nodes.online()
    del grid.devices[101]
    assert nodes.online() == {0: 100, 3: 100, 2: 102}


def test_the_mask_of_who_is_online(devices: dict[int, Device]) -> None:
    mask = runner_on(LoopbackGrid({101: devices[101]})).online(6)
    assert mask.tolist() == [False, True, False, False, True, False]
