"""What every drift detector must do, ours or a user's; subclass `DetectorContract` and return one from `make`."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest

from fedretrain.core.errors import DataError
from fedretrain.monitoring.detectors import DriftDetector, Level


def levels_of(detector: DriftDetector[Any], values: Any, state: Any = None) -> list[Level]:
    """What a detector says after each value."""
    state, levels = detector.init() if state is None else state, []
    for value in values:
        state, level = detector.update(state, float(value))
        levels.append(level)
    return levels


class DetectorContract:
    """Run with pytest: `class TestMine(DetectorContract): ...`."""

    # Values before the step, and how soon it must be found.
    BEFORE = 400
    WITHIN = 100

    def make(self) -> DriftDetector[Any]:
        """The detector under test, for values of spread 1 that step by 5."""
        raise AssertionError("return a detector")

    def noise(self, count: int, seed: int = 3) -> np.ndarray:
        """Independent normal values of spread 1, the same in every call."""
        return np.random.default_rng(seed).normal(size=count)

    @pytest.mark.parametrize("value", [0.0, -3.5, 1e9])
    def test_constant_input_never_drifts(self, value):
        assert set(levels_of(self.make(), [value] * 1000)) == {Level.STABLE}

    @pytest.mark.parametrize("step", [5.0, -5.0])
    def test_a_large_step_is_found_soon_and_no_earlier(self, step):
        values = np.concatenate([self.noise(self.BEFORE), step + self.noise(self.WITHIN, seed=4)])
        levels = levels_of(self.make(), values)
        assert Level.DRIFT not in levels[: self.BEFORE]
        assert Level.DRIFT in levels[self.BEFORE :]

    def test_it_finds_the_next_step_too(self):
        up = 5.0 + self.noise(self.BEFORE + self.WITHIN, seed=4)
        down = self.noise(self.WITHIN, seed=5)
        levels = levels_of(self.make(), np.concatenate([self.noise(self.BEFORE), up, down]))
        assert Level.DRIFT in levels[self.BEFORE : self.BEFORE + self.WITHIN]
        assert Level.DRIFT in levels[-self.WITHIN :]

    def test_the_same_values_give_the_same_levels(self):
        values = self.noise(900) + 2.0 * (np.arange(900) > 500)
        assert levels_of(self.make(), values) == levels_of(self.make(), values)

    def test_updating_a_state_leaves_it_as_it_was(self):
        detector = self.make()
        state = detector.init()
        for value in self.noise(300):
            before = pickle.dumps(state)
            after, _ = detector.update(state, float(value))
            detector.update(state, 1e6)
            assert pickle.dumps(state) == before
            state = after

    def test_a_stored_state_goes_on_where_it_was(self):
        detector, values = self.make(), self.noise(300)
        state = detector.init()
        for value in values:
            state, _ = detector.update(state, float(value))
        later = 5.0 + self.noise(100, seed=4)
        stored = pickle.loads(pickle.dumps(state))
        assert levels_of(detector, later, stored) == levels_of(detector, np.r_[values, later])[300:]

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_missing_value_is_refused_by_name(self, value):
        detector = self.make()
        with pytest.raises(DataError, match="drift detector was given NaN or an infinite value"):
            detector.update(detector.init(), value)


class FleetDetectorContract(DetectorContract):
    """Of a detector that serves many streams at once."""

    def test_each_stream_is_as_if_it_were_alone(self):
        detector = self.make()
        values_KT = np.stack([self.noise(600, seed) for seed in range(6)])
        values_KT += 5.0 * (np.arange(600) > 100 * np.arange(6)[:, None])
        state, levels = detector.init_many(6), []
        for value_K in values_KT.T:
            state, level_K = detector.update_many(state, value_K)
            levels.append([tuple(Level)[i] for i in level_K])
        assert [list(row) for row in zip(*levels, strict=True)] == [
            levels_of(detector, row) for row in values_KT
        ]

    def test_a_stream_without_a_value_waits(self):
        detector, rng = self.make(), np.random.default_rng(8)
        values_KT = np.stack([self.noise(600, seed) for seed in (1, 2)]) + 5.0 * (np.arange(600) > 450)
        seen_KT = rng.random(values_KT.shape) < 0.6
        state, levels = detector.init_many(2), [[], []]
        for value_K, seen_K in zip(np.where(seen_KT, values_KT, np.nan).T, seen_KT.T, strict=True):
            state, level_K = detector.update_many(state, value_K, seen_K)
            assert not level_K[~seen_K].any()
            for k in np.flatnonzero(seen_K):
                levels[k].append(tuple(Level)[level_K[k]])
        for k in range(2):
            assert levels[k] == levels_of(detector, values_KT[k, seen_KT[k]])
            assert Level.DRIFT in levels[k]

    def test_another_number_of_values_is_refused(self):
        detector = self.make()
        with pytest.raises(DataError, match="3 streams"):
            detector.update_many(detector.init_many(3), [1.0])
