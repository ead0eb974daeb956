"""Detectors of a mean against river and against published run lengths; all detectors' error rates."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedretrain.core.errors import ConfigError
from fedretrain.monitoring.adwin import Adwin
from fedretrain.monitoring.detectors import Cusum, Direction, Level, PageHinkley
from fedretrain.monitoring.ks_window import KsWindow
from tests.unit.monitoring.river_cases import STREAMS, drifts_as_river, needs_river


def run_lengths(detector, num_streams, limit, *, shift=0.0, seed=0):
    """Values until each stream's first drift, `limit` where there was none."""
    rng = np.random.default_rng(seed)
    state, lengths = detector.init_many(num_streams), np.full(num_streams, limit)
    for t in range(limit):
        state, level_K = detector.update_many(state, rng.normal(shift, 1.0, num_streams))
        lengths = np.where((level_K == 2) & (lengths == limit), t + 1, lengths)
    return lengths


@needs_river
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"threshold": 5.0, "tolerance": 0.05},
        {"threshold": 20.0, "direction": Direction.UP, "forgetting": 0.99},
        {"threshold": 20.0, "direction": Direction.DOWN, "min_values": 100},
    ],
)
def test_page_hinkley_drifts_where_rivers_does(stream, options):
    from river import drift

    ours = PageHinkley(**options)
    theirs = drift.PageHinkley(
        min_instances=ours.min_values,
        delta=ours.tolerance,
        threshold=ours.threshold,
        alpha=ours.forgetting,
        mode=str(ours.direction),
    )
    values = STREAMS[stream]() * (-1.0 if ours.direction is Direction.DOWN else 1.0)  # the ramp only rises
    assert drifts_as_river(ours, theirs, values) >= 1


@pytest.mark.parametrize("direction", [Direction.UP, Direction.DOWN])
def test_page_hinkley_in_one_direction_is_blind_to_the_other(direction):
    detector = PageHinkley(tolerance=0.2, threshold=30.0, direction=direction)
    found = {}
    for sign in (1.0, -1.0):
        state = detector.init_many(1)
        found[sign] = False
        for t in range(600):
            state, level_K = detector.update_many(state, [sign * (t > 300)])
            found[sign] |= bool(level_K[0] == 2)
    assert found == {1.0: direction is Direction.UP, -1.0: direction is Direction.DOWN}


@pytest.mark.parametrize(
    ("threshold", "shift", "published"),
    [(4.0, 0.0, 168.0), (5.0, 0.0, 465.0), (4.0, 1.0, 8.38), (5.0, 1.0, 10.4), (5.0, 2.0, 4.01)],
)
def test_cusum_has_the_published_mean_run_lengths(threshold, shift, published):
    """Two-sided, slack 0.5: Montgomery's table 9.3. A run's length has about its mean as standard deviation."""
    detector = Cusum(slack=0.5, threshold=threshold, target=0.0, std=1.0)
    limit = math.ceil(8 * published)  # the share of longer runs is about exp(-8)
    lengths = run_lengths(detector, 1500, limit, shift=shift)
    error = lengths.std() / math.sqrt(len(lengths))
    assert abs(lengths.mean() - published) < 4 * error + 0.005 * published


def test_cusum_learns_mean_and_spread_in_its_warm_up():
    values = np.random.default_rng(2).normal(40.0, 7.0, 50)
    detector = Cusum(warm_up=50)
    state = detector.init()
    for value in values:
        state, level = detector.update(state, float(value))
        assert level is Level.STABLE
    assert state.mean_K[0] == pytest.approx(values.mean())
    state, _ = detector.update(state, float(values.mean() + 3 * values.std(ddof=1)))
    assert state.high_K[0] == pytest.approx(2.5)
    assert state.low_K[0] == 0.0


def test_a_known_target_survives_a_drift():
    detector = Cusum(target=10.0, std=2.0)
    state, level = detector.init(), Level.STABLE
    while level is not Level.DRIFT:
        state, level = detector.update(state, 13.0)
    assert state.mean_K[0] == 10.0
    assert state.high_K[0] == 0.0


@pytest.mark.parametrize("make", [PageHinkley, Cusum, KsWindow])
def test_a_warning_comes_before_the_drift(make):
    """A slow ramp is warned of first."""
    detector = PageHinkley(tolerance=0.2, threshold=30.0) if make is PageHinkley else make()
    values = np.random.default_rng(1).normal(size=1500) + 0.01 * np.maximum(0, np.arange(1500) - 300)
    state, levels = detector.init(), []
    for value in values:
        state, level = detector.update(state, float(value))
        levels.append(level)
    first = levels.index(Level.DRIFT)
    assert Level.WARNING in levels[:first]


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: PageHinkley(threshold=0.0), "page_hinkley.threshold"),
        (lambda: PageHinkley(forgetting=1.5), "page_hinkley.forgetting"),
        (lambda: PageHinkley(tolerance=-1.0), "page_hinkley.tolerance"),
        (lambda: Cusum(target=1.0), "cusum.std"),
        (lambda: Cusum(target=1.0, std=0.0), "cusum.std"),
        (lambda: Cusum(warm_up=1), "cusum.warm_up"),
        (lambda: KsWindow(window=30, recent=30), "ks_window.recent"),
        (lambda: KsWindow(alpha=0.1, warning_alpha=0.01), "ks_window.alpha"),
        (lambda: KsWindow(window=8, recent=4, alpha=1e-3), "ks_window.alpha"),
        (lambda: Adwin(delta=0.0), "adwin.delta"),
        (lambda: Adwin(max_buckets=0), "adwin.max_buckets"),
    ],
)
def test_an_impossible_setting_is_refused_by_its_key(make, key):
    with pytest.raises(ConfigError, match=key):
        make()
