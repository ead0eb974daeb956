"""Every runner of the simulator is a proper cohort runner, and reaches the local one's aggregate, bit for bit.

Bit for bit because devices train one by one (`executor=each`): the batched executor's rounding depends on who shares
a block, so with it runners agree to float32 rounding (tests/equivalence/test_runners.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest

from fedretrain.aggregation.aggregator import FixedDenominatorMean
from fedretrain.coordinator.ports import CohortRunner, RoundSpec
from sim.local_runner import LocalPool
from sim.personal_store import PersonalStore
from tests.contract.runner_contract import RunnerContract
from tests.run_cases import quick_arm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sim.local_runner import Pool

WORDS = ("runner.executor=each", "personalization=fedper", "runner.num_workers=2")


class SimulatedRunnerContract(RunnerContract):
    pool: ClassVar[Pool] = LocalPool()

    def make(self) -> CohortRunner:
        return self._runner(self.pool)

    def reference(self) -> CohortRunner:
        return self._runner(LocalPool())

    def spec(self) -> RoundSpec:
        return RoundSpec(0, quick_arm(*WORDS).first_shared(), 0, 0, 0.0, FixedDenominatorMean(8), 1.0)

    def _runner(self, pool: Pool) -> CohortRunner:
        arm = quick_arm(*WORDS)
        return pool.runner(arm, PersonalStore(arm.task.personal.size))

    def cohort(self) -> np.ndarray:
        return np.array([2, 3, 5, 7, 11, 13, 17, 19], dtype=np.int64)


class TestLocal(SimulatedRunnerContract):
    pass


@pytest.mark.slow
class TestRay(SimulatedRunnerContract):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _ray(cls) -> Iterator[None]:
        from sim.ray_runner import RayPool

        cls.pool = RayPool.start(quick_arm(*WORDS).config.runner)
        yield
        cls.pool.stop()


@pytest.mark.slow
class TestFlower(SimulatedRunnerContract):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _flower(cls) -> Iterator[None]:
        from sim.flower_runner import FlowerSimulation

        cls.pool = FlowerSimulation.start(quick_arm(*WORDS).config.runner, 4)
        yield
        cls.pool.stop()
