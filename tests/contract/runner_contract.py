"""What every cohort runner must do: in this process, on Ray, over Flower.

Subclass `RunnerContract`, return a runner of your kind from `make`, and say what it runs by overriding `spec` and `cohort`
where the defaults (a model of 13 parameters, eight clients of a population of 40) do not suit. Set `reference` to compare
aggregates with another runner that trains the same clients.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from fedretrain.aggregation.aggregator import ExampleWeightedMean, FixedDenominatorMean
from fedretrain.coordinator.ports import CohortRunner, RoundSpec, ShardResult
from fedretrain.coordinator.round import Fold, fold_shards
from fedretrain.core.types import FailureKind

if TYPE_CHECKING:
    from collections.abc import Iterator


class RunnerContract:
    """Run with pytest: `class TestLocal(RunnerContract): ...`."""

    atol: ClassVar[float] = 0.0
    """How far the aggregate may be from `reference`'s; 0 demands the same bits."""

    def make(self) -> CohortRunner:
        """A fresh runner of the kind under test; each has the same fleet."""
        raise AssertionError("return a runner")

    def reference(self) -> CohortRunner | None:
        """A runner whose aggregate must be reached; None: there is none to compare with."""
        return None

    def spec(self) -> RoundSpec:
        """The round to run."""
        base = {"bias": np.zeros((), np.float32), "w": np.zeros((3, 4), np.float32)}
        return RoundSpec(0, base, 0, 1, 0.0, FixedDenominatorMean(8), 1.0)

    def cohort(self) -> np.ndarray:
        """The clients to ask, int64, sorted."""
        return np.array([2, 3, 5, 7, 11, 13, 17, 19], dtype=np.int64)

    @contextmanager
    def open(self, runner: CohortRunner | None = None) -> Iterator[CohortRunner]:
        runner = runner or self.make()
        try:
            yield runner
        finally:
            runner.close()

    def shards(self, spec: RoundSpec | None = None, cohort: np.ndarray | None = None) -> list[ShardResult]:
        with self.open() as runner:
            return list(runner.run(spec or self.spec(), self.cohort() if cohort is None else cohort))

    def fold(self, spec: RoundSpec | None = None, cohort: np.ndarray | None = None) -> Fold:
        spec, cohort = spec or self.spec(), self.cohort() if cohort is None else cohort
        return fold_shards(spec, cohort, self.shards(spec, cohort))

    def value(self, spec: RoundSpec, fold: Fold) -> np.ndarray:
        return spec.aggregator.release(fold.partial.state)

    def test_each_client_is_in_one_shard_once(self) -> None:
        shards = self.shards()
        named = [c for s in shards for c in [*s.clients.tolist(), *(int(f.client) for f in s.failures)]]
        assert sorted(named) == self.cohort().tolist()

    def test_a_shard_counts_what_it_names(self) -> None:
        for shard in self.shards():
            assert shard.partial.num_clients == len(shard.clients)
            assert 0 <= shard.partial.num_unclipped <= shard.partial.num_clients
            assert shard.clients.dtype == np.int64

    def test_somebody_contributes(self) -> None:
        fold = self.fold()
        assert fold.partial.num_clients > 0
        assert np.abs(self.value(self.spec(), fold)).max() > 0

    def test_the_oracle_names_those_who_contributed(self) -> None:
        for shard in self.shards():
            oracle = shard.oracle
            if len(oracle.clients):
                assert sorted(oracle.clients.tolist()) == sorted(shard.clients.tolist())
                assert len(oracle.num_examples) == len(oracle.loss) == len(oracle.norm) == len(oracle.clients)
                assert (oracle.num_examples >= 1).all()
                assert np.isfinite(oracle.norm).all()

    def test_bytes_and_time_are_accounted(self) -> None:
        shards = self.shards()
        assert sum(s.bytes_down for s in shards) >= 4 * self.spec().size
        assert sum(s.bytes_up for s in shards) >= 4 * self.spec().size
        assert all(s.busy_s >= 0 for s in shards)

    def test_the_sum_respects_the_clip_norm(self) -> None:
        spec = replace(self.spec(), clip_norm=1e-3, aggregator=FixedDenominatorMean(1))
        fold = self.fold(spec)
        assert np.linalg.norm(self.value(spec, fold)) <= 1e-3 * fold.partial.num_clients
        assert fold.partial.num_unclipped < fold.partial.num_clients

    def test_two_fresh_runners_agree_bit_for_bit(self) -> None:
        one, two = self.fold(), self.fold()
        assert self.value(self.spec(), one).tobytes() == self.value(self.spec(), two).tobytes()
        assert [f.client for f in one.failures()] == [f.client for f in two.failures()]

    def test_a_clients_update_does_not_depend_on_its_company(self) -> None:
        """Half the cohort and the other half, summed, is the whole cohort."""
        spec = replace(self.spec(), aggregator=FixedDenominatorMean(1))
        cohort = self.cohort()
        halves = [self.value(spec, self.fold(spec, half)) for half in (cohort[::2], cohort[1::2])]
        whole = self.value(spec, self.fold(spec))
        np.testing.assert_allclose(sum(halves), whole, atol=max(self.atol, 1e-5))

    def test_the_spec_decides_the_aggregator(self) -> None:
        spec = replace(self.spec(), aggregator=ExampleWeightedMean(), clip_norm=None)
        assert self.fold(spec).partial.state.weight >= self.fold(spec).partial.num_clients

    def test_an_empty_cohort_is_no_error(self) -> None:
        fold = self.fold(cohort=np.zeros(0, dtype=np.int64))
        assert fold.partial.num_clients == 0

    def test_a_runner_serves_many_rounds(self) -> None:
        with self.open() as runner:
            for round_ in range(3):
                spec = replace(self.spec(), round=round_, base_version=round_)
                fold = fold_shards(spec, self.cohort(), runner.run(spec, self.cohort()))
                assert FailureKind.STALE not in {failure.kind for failure in fold.failures()}

    def test_closing_twice_is_harmless(self) -> None:
        runner = self.make()
        runner.close()
        runner.close()

    def test_it_reaches_the_references_aggregate(self) -> None:
        """Skipped by nobody: a runner without a reference is its own, and is compared with a second one of its kind."""
        other: Any = self.reference() or self.make()
        with self.open(other) as runner:
            fold = fold_shards(self.spec(), self.cohort(), runner.run(self.spec(), self.cohort()))
        wanted = self.value(self.spec(), fold)
        got = self.value(self.spec(), self.fold())
        if self.atol == 0.0:
            assert got.tobytes() == wanted.tobytes()
        else:
            assert got == pytest.approx(wanted, abs=self.atol)
