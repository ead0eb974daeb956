"""ADWIN against river and against a window kept as a plain list."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.monitoring.adwin import Adwin
from fedretrain.monitoring.detectors import Level
from tests.unit.monitoring.river_cases import STREAMS, drifts_as_river, needs_river


@needs_river
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"delta": 0.05, "check_every": 1},
        {"delta": 1e-4, "check_every": 7, "max_buckets": 2},
        {"min_width": 100, "min_side": 20, "max_buckets": 3},
    ],
)
def test_it_keeps_the_window_that_rivers_keeps(stream, options):
    from river import drift

    ours = Adwin(**{"warning_delta": 0.06, **options})
    theirs = drift.ADWIN(
        delta=ours.delta,
        clock=ours.check_every,
        max_buckets=ours.max_buckets,
        min_window_length=ours.min_side,
        grace_period=ours.min_width,
    )

    def same(state, river):
        assert state.width == river.width
        assert state.mean == pytest.approx(river.estimation, rel=1e-9, abs=1e-9)
        assert state.squares == pytest.approx(river.variance, rel=1e-6, abs=1e-6)  # river's is the sum

    assert drifts_as_river(ours, theirs, STREAMS[stream](), same) >= 1


def test_its_window_is_the_newest_values_and_its_memory_logarithmic():
    detector, values = Adwin(), STREAMS["normal"]()
    state = detector.init()
    for t, value in enumerate(values):
        state, _ = detector.update(state, float(value))
        kept = values[t + 1 - state.width : t + 1]
        assert state.mean == pytest.approx(kept.mean(), abs=1e-9)
        assert state.variance == pytest.approx(kept.var(), abs=1e-6)
        sizes = [2**r * len(row) for r, row in enumerate(state.rows)]
        assert sum(sizes) == state.width
        assert max(len(row) for row in state.rows) <= detector.max_buckets
    assert len(state.rows) <= np.log2(len(values))


def test_a_drift_drops_the_old_part_and_keeps_the_new():
    rng = np.random.default_rng(4)
    detector, state, levels = Adwin(), Adwin().init(), []
    for value in np.concatenate([rng.normal(0, 1, 1000), rng.normal(6, 1, 300)]):
        state, level = detector.update(state, float(value))
        levels.append(level)
    assert levels.count(Level.DRIFT) >= 1
    assert 200 <= state.width <= 300
    assert state.mean == pytest.approx(6.0, abs=0.3)


def test_a_warning_stands_until_the_next_test():
    """A ramp is warned of before it is a drift; between two tests the level does not change."""
    values = np.random.default_rng(5).normal(size=3000) + 0.002 * np.arange(3000)
    detector = Adwin(delta=1e-6, warning_delta=0.2)
    state, levels = detector.init(), []
    for value in values:
        state, level = detector.update(state, float(value))
        levels.append(level)
    first = levels.index(Level.DRIFT)
    assert Level.WARNING in levels[:first]
    changes = [t for t in range(1, first) if levels[t] != levels[t - 1]]
    assert all((t + 1) % detector.check_every == 0 for t in changes)


def test_false_alarms_are_rarer_than_its_delta_per_test():
    """Theorem 3.1 bounds a test's false alarms by delta; the bound is loose: of 1,000 tests there are fewer."""
    detector, alarms = Adwin(delta=0.02), 0
    for seed in range(100):
        state = detector.init()
        for value in np.random.default_rng(seed).random(320):
            state, level = detector.update(state, float(value))
            alarms += level is Level.DRIFT
    assert alarms <= 0.02 * 1000
