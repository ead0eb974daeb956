"""Every aggregator keeps the aggregators' contract; so does a user's own, written from the protocol alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fedretrain.aggregation.aggregator import Aggregator, ExampleWeightedMean, FixedDenominatorMean, Updates
from fedretrain.aggregation.robust import CoordinateMedian, TrimmedMean
from fedretrain.core.errors import PrivacyError
from tests.contract.aggregator_contract import AggregatorContract
from tests.unit.coordinator.rounds import dp_of, play, rules_of


class TestFixedDenominatorMean(AggregatorContract):
    def make(self) -> Aggregator[Any]:
        return FixedDenominatorMean(10)


class TestExampleWeightedMean(AggregatorContract):
    def make(self) -> Aggregator[Any]:
        return ExampleWeightedMean()


class TestCoordinateMedian(AggregatorContract):
    def make(self) -> Aggregator[Any]:
        return CoordinateMedian()


class TestTrimmedMean(AggregatorContract):
    def make(self) -> Aggregator[Any]:
        return TrimmedMean(trim_fraction=0.2)


@dataclass(frozen=True)
class SignVote:
    """A user's aggregator: each coordinate steps by the majority's sign. Exact, since it counts."""

    step: float = 0.01
    max_cohort: None = None

    def init(self, size: int, clip_norm: float | None) -> np.ndarray:
        del clip_norm
        return np.zeros(size, dtype=np.int64)

    def accumulate(self, state: np.ndarray, updates: Updates) -> np.ndarray:
        return state + np.sign(updates.scaled()).sum(axis=0).astype(np.int64)

    def merge(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a + b

    def release(self, state: np.ndarray) -> np.ndarray:
        return self.step * np.sign(state).astype(np.float64)


class TestUsersOwn(AggregatorContract):
    def make(self) -> Aggregator[Any]:
        return SignVote()

    def test_equal_updates_aggregate_along_their_own_direction(self) -> None:
        """Of a vote only the signs are followed."""
        (block,) = self.blocks((1,))
        update = self.make().release(self.state_of([block]))
        np.testing.assert_array_equal(np.sign(update), np.sign(block.delta_KP[0]))

    def test_a_round_runs_with_it(self) -> None:
        state, result = play(rules_of(aggregator=SignVote()))
        assert result.num_contributed == 8
        start, _ = play(rules_of(quorum=9))
        assert set(np.round(np.abs(state.params - start.params), 4).tolist()) <= {
            0.0,
            np.float32(0.01).round(4),
        }

    def test_it_is_refused_with_dp(self) -> None:
        with pytest.raises(PrivacyError, match="SignVote cannot be used with differential privacy"):
            rules_of(dp_of(), aggregator=SignVote())
