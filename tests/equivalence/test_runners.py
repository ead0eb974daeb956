"""Every runner computes the same campaign: local == sharded over Ray == one Flower message per client.

Bit for bit (weights, personal states, ledger, who failed and why) where devices train one by one; to float32 rounding
with the batched executor, whose rounding depends on who shares a block.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest

from fedretrain.coordinator.ports import RoundSpec
from fedretrain.coordinator.round import fold_shards
from fedretrain.core import params
from fedretrain.core.types import FailureKind
from sim.campaign import Campaign
from sim.local_runner import LocalPool
from sim.personal_store import PersonalStore
from sim.ray_runner import RayPool
from tests.run_cases import quick_arm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedretrain.coordinator.ports import CohortRunner
    from fedretrain.coordinator.round import Fold
    from sim.arm import Arm
    from sim.local_runner import Pool
    from sim.results import RoundRecord

pytestmark = pytest.mark.slow

EACH = ("runner.executor=each", "runner.num_workers=2")
FLEET = ("personalization=apfl", "availability=diurnal", "labels=late", "campaign.quorum_fraction=0.1")
DP = ("privacy=central", "privacy.clip_norm=0.5", "privacy.target_epsilon=40")
OVER = ("campaign.cohort_size=4", "campaign.over_selection=2.0", "network=typical", "personalization=fedper")
WEIGHTED = ("aggregation=example_weighted", "personalization=fedper")

CASES = {
    "noise off": (*EACH, *FLEET),
    "noise on": (*EACH, *FLEET, *DP),
    "over-selection": (*EACH, *OVER),
    "example weights": (*EACH, *WEIGHTED),
}


def play(pool: Pool, words: tuple[str, ...]) -> Campaign:
    campaign = Campaign("arm", quick_arm(*words))
    runner = pool.runner(campaign.arm, campaign.progress.store)
    campaign.run(runner, lambda _: None)
    runner.close()
    return campaign


@cache
def locally(words: tuple[str, ...]) -> Campaign:
    return play(LocalPool(), words)


def timeless(records: list[RoundRecord]) -> list[RoundRecord]:
    return [replace(record, seconds=0.0) for record in records]


def assert_same_bits(one: Campaign, other: Campaign) -> None:
    a, b = one.progress, other.progress
    assert params.digest(a.state.tree) == params.digest(b.state.tree)
    assert a.events == b.events
    assert timeless(a.records) == timeless(b.records)
    assert a.contributed.tolist() == b.contributed.tolist()
    assert a.sent.tolist() == b.sent.tolist()
    for name, array in a.store.to_arrays().items():
        assert array.tobytes() == b.store.to_arrays()[name].tobytes()


def assert_close(one: Campaign, other: Campaign) -> None:
    """To float32 rounding; a campaign of three rounds, so that rounding does not grow into anything else."""
    a, b = one.progress.state.tree, other.progress.state.tree
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=1e-5)
    assert one.progress.contributed.tolist() == other.progress.contributed.tolist()
    stores = [campaign.progress.store.to_arrays() for campaign in (one, other)]
    np.testing.assert_array_equal(stores[0]["devices"], stores[1]["devices"])
    np.testing.assert_allclose(stores[0]["rows"], stores[1]["rows"], atol=1e-5)


class SameCampaign:
    """Against the local runner."""

    pool: Pool

    @pytest.mark.parametrize("case", CASES)
    def test_devices_one_by_one_give_the_same_bits(self, case: str) -> None:
        reference = locally(CASES[case])
        assert reference.progress.contributed.sum() > 0
        late = sum(record.failures.get("timeout", 0) for record in reference.progress.records)
        assert (late > 0) == (case == "over-selection")
        assert (len(reference.progress.events) > 0) == (case == "noise on")
        assert_same_bits(play(self.pool, CASES[case]), reference)

    def test_batched_devices_agree_to_rounding(self) -> None:
        words = ("runner.num_workers=2", *FLEET)
        assert_close(play(self.pool, words), locally(words))


class TestRay(SameCampaign):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _ray(cls) -> Iterator[None]:
        cls.pool = RayPool.start(quick_arm(*EACH).config.runner)
        assert len(cls.pool.actors) == 2
        yield
        cls.pool.stop()

    def test_a_worker_killed_while_it_trains_is_replaced_and_nothing_is_lost(self) -> None:
        import ray

        words = (*EACH, "personalization=fedper", "training.epochs=400")
        arm, store = quick_arm(*words), PersonalStore(quick_arm(*words).task.personal.size)
        runner = self.pool.runner(arm, store)
        list(runner.run(spec_of(arm, round_=1), COHORT))  # warm: its CPU time from here on is training
        store.discard()
        victim = ray.get(self.pool.actors[0].pid.remote())
        killer = threading.Thread(target=kill_at_work, args=(victim,))
        killer.start()
        fold = run_round_of(arm, runner)
        killer.join()
        assert not psutil.pid_exists(victim)
        assert ray.get(self.pool.actors[0].pid.remote()) != victim

        own = PersonalStore(store.size)
        reference = run_round_of(arm, LocalPool().runner(arm, own))
        assert_same_round(arm, fold, reference)
        assert fold.counted.all()
        store.commit()
        own.commit()
        assert store.to_arrays()["rows"].tobytes() == own.to_arrays()["rows"].tobytes()


class TestRayLoss:
    def test_a_worker_that_cannot_be_replaced_costs_its_share_and_nothing_else(self) -> None:
        import ray

        arm = quick_arm(*EACH, "personalization=fedper")
        pool = RayPool.start(arm.config.runner)
        store = PersonalStore(arm.task.personal.size)
        first = np.full((len(COHORT), store.size), 0.5, np.float32)
        store.stage(COHORT, first)
        store.commit()
        runner = pool.runner(arm, store)
        ray.kill(pool.actors[0], no_restart=True)
        fold = run_round_of(arm, runner)
        pool.stop()
        lost, kept = COHORT[COHORT % 2 == 0], COHORT[COHORT % 2 == 1]
        assert {int(f.client): f.kind for f in fold.failures()} == dict.fromkeys(
            lost.tolist(), FailureKind.LOST
        )

        own = PersonalStore(store.size)
        own.stage(COHORT, first)
        own.commit()
        reference = fold_shards(spec_of(arm), kept, LocalPool().runner(arm, own).run(spec_of(arm), kept))
        assert_same_round(arm, fold, reference)
        store.commit()
        rows = store.get(COHORT.tolist())
        assert sorted(rows) == COHORT.tolist()
        assert all((rows[d] == 0.5).all() for d in lost.tolist())
        assert all((rows[d] != 0.5).any() for d in kept.tolist())


class TestFlower(SameCampaign):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _flower(cls) -> Iterator[None]:
        from sim.flower_runner import FlowerSimulation

        cls.pool = FlowerSimulation.start(quick_arm(*EACH).config.runner, 6)
        yield
        cls.pool.stop()


COHORT = np.array([0, 1, 4, 7, 10, 13], dtype=np.int64)


def spec_of(arm: Arm, round_: int = 0) -> RoundSpec:
    return RoundSpec(round_, arm.first_shared(), 0, arm.seed, 0.0, arm.rules.rounds.aggregator)


def run_round_of(arm: Arm, runner: CohortRunner) -> Fold:
    return fold_shards(spec_of(arm), COHORT, runner.run(spec_of(arm), COHORT))


def assert_same_round(arm: Arm, one: Fold, other: Fold) -> None:
    release = spec_of(arm).aggregator.release
    assert one.partial.num_clients == other.partial.num_clients > 0
    assert release(one.partial.state).tobytes() == release(other.partial.state).tobytes()


def kill_at_work(pid: int) -> None:
    """SIGKILL a process once it has worked for a while from now on."""
    process = psutil.Process(pid)

    def worked() -> float:
        times = process.cpu_times()
        return times.user + times.system

    begun, until = worked(), time.monotonic() + 60
    while worked() - begun < 0.2 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
