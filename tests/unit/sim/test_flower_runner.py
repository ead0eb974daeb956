"""The Flower runner over a grid in this process: what travels, and what becomes of replies that are none."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedretrain.aggregation.aggregator import ExampleWeightedMean, FixedDenominatorMean
from fedretrain.coordinator.ports import RoundSpec
from fedretrain.coordinator.round import fold_shards
from fedretrain.core.errors import FedretrainError
from fedretrain.core.types import FailureKind
from sim import flower_runner
from sim.flower_device import answer
from sim.flower_runner import FlowerRunner
from sim.local_runner import LocalRunner
from sim.personal_store import PersonalStore
from tests.contract.runner_contract import RunnerContract
from tests.run_cases import quick_arm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fedretrain.coordinator.ports import CohortRunner
    from fedretrain.coordinator.round import Fold

WORDS = ("runner.executor=each", "personalization=fedper")
the_arm = cache(lambda: quick_arm(*WORDS))
COHORT = np.array([2, 3, 5, 7, 11, 13, 17, 19], dtype=np.int64)


@pytest.fixture(autouse=True)
def _inside_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages want to know the run that they are of."""
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Reply:
    """As much of a Flower message as a runner reads."""

    def __init__(self, to: str, content: RecordDict | None, code: int = 0) -> None:
        self.metadata = type("Metadata", (), {"reply_to_message_id": to})()
        self.content: Any = content
        self.error = type("Error", (), {"code": code, "reason": "the reason"})()

    def has_error(self) -> bool:
        return self.content is None


class FakeGrid:
    """Three nodes that play the devices here; `broken` says what comes of a device's reply instead."""

    def __init__(self, broken: dict[int, Callable[[str, RecordDict], Reply | None]] | None = None) -> None:
        self.broken, self.sent, self.addressed = broken or {}, dict[str, RecordDict](), dict[int, int]()
        self.most = 0

    def get_node_ids(self) -> list[int]:
        return [102, 100, 101]

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        names = []
        for message in messages:
            device = int(message.content.config_records["fedretrain.order"]["client"])
            self.sent[str(device)] = message.content
            self.addressed[device] = message.metadata.dst_node_id
            names.append(str(device))
        self.most = max(self.most, len(self.sent))
        return names

    def pull_messages(self, names: Iterable[str]) -> list[Reply]:
        """The latest of those asked for first, one at a time."""
        for name in sorted(names, key=int, reverse=True):
            if name not in self.sent:
                continue
            content = answer(self.sent.pop(name))
            broken = self.broken.get(int(name))
            reply = Reply(name, content) if broken is None else broken(name, content)
            return [] if reply is None else [reply]
        return []


def spec(aggregator: Any = None) -> RoundSpec:
    arm = the_arm()
    return RoundSpec(0, arm.first_shared(), 0, 0, 0.0, aggregator or FixedDenominatorMean(8), 1.0)


def runner_on(grid: FakeGrid, store: PersonalStore | None = None) -> FlowerRunner:
    arm = the_arm()
    store = PersonalStore(arm.task.personal.size) if store is None else store
    return FlowerRunner(arm, store, grid)  # type: ignore[arg-type]


def fold(grid: FakeGrid, store: PersonalStore | None = None, asked: RoundSpec | None = None) -> Fold:
    asked = asked or spec()
    return fold_shards(asked, COHORT, runner_on(grid, store).run(asked, COHORT))


def local(cohort: np.ndarray, asked: RoundSpec | None = None) -> Fold:
    arm, asked = the_arm(), asked or spec()
    runner = LocalRunner(arm, PersonalStore(arm.task.personal.size))
    return fold_shards(asked, cohort, runner.run(asked, cohort))


def bits(one: Fold, asked: RoundSpec | None = None) -> bytes:
    return (asked or spec()).aggregator.release(one.partial.state).tobytes()


class TestFlowerRunnerContract(RunnerContract):
    def make(self) -> CohortRunner:
        return runner_on(FakeGrid())

    def reference(self) -> CohortRunner:
        arm = the_arm()
        return LocalRunner(arm, PersonalStore(arm.task.personal.size))

    def spec(self) -> RoundSpec:
        return spec()

    def cohort(self) -> np.ndarray:
        return COHORT


def test_a_device_has_its_node() -> None:
    grid = FakeGrid()
    fold(grid)
    assert grid.addressed == {d: 100 + d % 3 for d in COHORT.tolist()}


def test_messages_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_runner, "_WINDOW", 3)
    grid = FakeGrid()
    assert fold(grid).counted.all()
    assert grid.most == 3


@pytest.mark.parametrize("aggregator", [FixedDenominatorMean(8), ExampleWeightedMean()])
def test_the_oracle_is_the_local_runners(aggregator: Any) -> None:
    """Though only an aggregator that weighs by them has numbers of examples asked for."""
    asked = spec(aggregator)
    (mine,) = runner_on(grid := FakeGrid()).run(asked, COHORT)
    arm = the_arm()
    (theirs,) = LocalRunner(arm, PersonalStore(arm.task.personal.size)).run(asked, COHORT)
    for name in ("clients", "num_examples", "loss", "norm"):
        assert getattr(mine.oracle, name).tobytes() == getattr(theirs.oracle, name).tobytes()
    assert (mine.bytes_down, mine.bytes_up) == (theirs.bytes_down, theirs.bytes_up)
    assert grid.addressed


def test_personal_state_travels_beside_and_never_inside() -> None:
    arm, grid = the_arm(), FakeGrid()
    seen: list[RecordDict] = []
    grid.broken = {d: lambda name, content: (seen.append(content), Reply(name, content))[1] for d in COHORT}
    store = PersonalStore(arm.task.personal.size)
    fold(grid, store)
    assert len(store) == 0  # nothing is kept before the round is over
    store.commit()
    rows = store.get(COHORT.tolist())
    assert len(rows) == len(COHORT)
    for content in seen:
        row = content.array_records["sim.personal"]["row"].numpy()
        assert row.shape == (arm.task.personal.size,)
        production = [name for name in content if name.startswith("fedretrain.")]
        arrays = [a.numpy() for n in production if n in content.array_records for a in content[n].values()]
        assert [a.size for a in arrays] == [arm.task.shared.size]
        assert "loss" not in content.config_records["fedretrain.reply"]
        assert "num_examples" not in content.config_records["fedretrain.reply"]


def test_a_dead_worker_costs_its_client() -> None:
    from flwr.common.constant import ErrorCode

    store = PersonalStore(the_arm().task.personal.size)
    grid = FakeGrid({7: lambda name, _: Reply(name, None, ErrorCode.UNKNOWN)})
    found = fold(grid, store)
    assert {int(f.client): f.kind for f in found.failures()} == {7: FailureKind.LOST}
    assert bits(found) == bits(local(COHORT[COHORT != 7]))
    store.commit()
    assert sorted(store.get(COHORT.tolist())) == COHORT[COHORT != 7].tolist()


def test_a_reply_that_never_comes_costs_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_runner, "_PATIENCE_S", 0.2)
    found = fold(FakeGrid({7: lambda *_: None}))
    assert {int(f.client): f.kind for f in found.failures()} == {7: FailureKind.LOST}
    assert bits(found) == bits(local(COHORT[COHORT != 7]))


def test_a_grid_that_is_gone_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_runner, "_PATIENCE_S", 0.2)
    with pytest.raises(FedretrainError, match="answered nothing"):
        fold(FakeGrid({d: lambda *_: None for d in COHORT.tolist()}))


def test_an_app_that_raises_ends_the_run() -> None:
    from flwr.common.constant import ErrorCode

    code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    with pytest.raises(FedretrainError, match="the reason"):
        fold(FakeGrid({7: lambda name, _: Reply(name, None, code)}))


def garbled(_name: str, content: RecordDict) -> Reply:
    content["fedretrain.update"] = ArrayRecord({"delta": Array(np.zeros(3, np.float32))})
    return Reply(_name, content)


def strange(_name: str, _content: RecordDict) -> Reply:
    return Reply(_name, RecordDict({"hello": ConfigRecord({"world": 1})}))


def poisoned(_name: str, content: RecordDict) -> Reply:
    delta = content.array_records["fedretrain.update"]["delta"].numpy() * np.nan
    content["fedretrain.update"] = ArrayRecord({"delta": Array(delta)})
    return Reply(_name, content)


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (garbled, FailureKind.MALFORMED),
        (strange, FailureKind.MALFORMED),
        (poisoned, FailureKind.NONFINITE),
    ],
)
def test_a_wrong_reply_costs_its_own_client(
    wrong: Callable[[str, RecordDict], Reply], kind: FailureKind
) -> None:
    found = fold(FakeGrid({11: wrong}))
    assert {int(f.client): f.kind for f in found.failures()} == {11: kind}
    assert bits(found) == bits(local(COHORT[COHORT != 11]))


def test_a_grid_without_nodes_is_refused() -> None:
    grid = FakeGrid()
    grid.get_node_ids = list  # type: ignore[method-assign]
    with pytest.raises(FedretrainError, match="no nodes"):
        runner_on(grid)
