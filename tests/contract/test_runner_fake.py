"""The fake runner of the tests is a proper cohort runner, however it shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.core.types import FailureKind
from tests.contract.runner_contract import RunnerContract
from tests.fakes import FakeRunner

if TYPE_CHECKING:
    from fedretrain.coordinator.ports import CohortRunner


class TestFake(RunnerContract):
    def make(self) -> CohortRunner:
        return FakeRunner()


class TestFakeOneByOneWithDropouts(RunnerContract):
    def make(self) -> CohortRunner:
        return FakeRunner(shard_size=1, block_size=1, fails={3: FailureKind.DROPPED, 11: FailureKind.TIMEOUT})

    def reference(self) -> CohortRunner:
        return FakeRunner(shard_size=8, block_size=8, fails={3: FailureKind.DROPPED, 11: FailureKind.TIMEOUT})
