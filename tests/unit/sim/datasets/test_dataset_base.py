"""Splits, timelines and the checks of a sensor data set."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.core.clock import DAY_S
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.core.types import Objective
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.schema import Channel, Schema
from sim.datasets.base import SensorDataset, Split, Timeline, choose_future, content_digest, rank_fraction

STREAM = np.repeat(np.arange(3, dtype=np.int32), 4)
FUTURE = np.tile([False, False, True, True], 3)


def dataset(**changes):
    good = {
        "name": "toy",
        "schema": Schema((Channel("a", "1", 0, 1), Channel("b", "1", 0, 1, missing=True))),
        "objective": Objective.CLASSIFICATION,
        "num_outputs": 2,
        "class_names": ("no", "yes"),
        "x": np.zeros((12, 2), dtype=np.float32),
        "y": np.tile(np.array([0, 1], dtype=np.int64), 6),
        "stream": STREAM,
        "stream_names": ("p", "q", "r"),
        "site": np.zeros(3, dtype=np.int32),
        "device_type": np.zeros(3, dtype=np.int32),
        "event_at": Timeline().place(STREAM, FUTURE),
        "future": FUTURE,
        "pipeline": Pipeline(()),
        "digest": "0",
    }
    return SensorDataset(**(good | changes))


def test_a_good_data_set_passes_and_finds_its_rows():
    data = dataset()
    assert len(data) == 12
    assert data.rows_of(1).tolist() == [4, 5, 6, 7]
    assert data.rows_of(1, future=True).tolist() == [6, 7]


def at(row, value, dtype=np.float64, base=None):
    column = np.array(base if base is not None else np.arange(12), dtype=dtype)
    column[row] = value
    return column


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"y": np.tile(np.array([0, 2], dtype=np.int64), 6)}, "label of row 1 is 2, outside 0 .. 1"),
        ({"y": np.zeros(12, dtype=np.int32)}, "type int32"),
        ({"y": np.zeros(11, dtype=np.int64)}, "has 12 rows and y has 11"),
        ({"class_names": ("no",)}, "2 classes and 1 class names"),
        ({"x": np.zeros((12, 3), dtype=np.float32)}, "[rows, 2]"),
        ({"x": np.full((12, 2), np.nan, dtype=np.float32)}, "NaN in channel 'a', row 0"),
        ({"x": np.full((12, 2), np.inf, dtype=np.float32)}, "infinity"),
        ({"x": np.zeros((12, 2))}, "type float64"),
        ({"stream_names": ("p", "q", "r", "s")}, "needs one number for each of 4"),
        ({"stream": np.repeat(np.array([0, 2], np.int32), 6)}, "device 'q' has no samples"),
        ({"stream": np.repeat(np.array([0, 1, 2, 3], np.int32), 3)}, "no name"),
        ({"event_at": np.arange(12)[::-1].astype(float)}, "row 1 of device 'p' is earlier"),
        ({"event_at": np.full(12, np.nan)}, "NaN or infinity"),
        ({"future": np.zeros(12, dtype=bool)}, "same side"),
        (
            {
                "objective": Objective.REGRESSION,
                "num_outputs": 1,
                "class_names": (),
                "y": at(5, np.nan, np.float32),
            },
            "target of row 5 is nan",
        ),
        ({"objective": Objective.REGRESSION}, "float32 targets"),
    ],
)
def test_bad_content_gives_one_precise_line(changes, says):
    with pytest.raises(DataError) as caught:
        dataset(**changes)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_rows_are_refused():
    none = {
        "x": np.zeros((0, 2), np.float32),
        "y": np.zeros(0, np.int64),
        "stream": STREAM[:0],
        "future": FUTURE[:0],
    }
    with pytest.raises(DataError, match="no rows"):
        dataset(**none, event_at=np.zeros(0))


def test_neutral_changes_are_allowed():
    assert dataclasses.replace(dataset(), caveats=("a",)).caveats == ("a",)


groups = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)


@given(groups)
def test_rank_fractions_count_inside_each_group(group):
    fraction = rank_fraction(group)
    for one in np.unique(group):
        size = int((group == one).sum())
        np.testing.assert_allclose(fraction[group == one], (np.arange(size) + 0.5) / size)


@given(groups, st.floats(0.05, 0.95))
def test_the_last_part_of_each_group_is_scored_and_none_is_scored_whole(group, share):
    future = choose_future(group, share)
    for one in np.unique(group):
        mine = future[group == one]
        assert not mine[0]
        assert np.all(np.diff(mine.astype(int)) >= 0)
        assert abs((~mine).sum() - max(1.0, share * len(mine))) <= 0.5


@given(groups, st.integers(0, 5))
def test_random_splits_have_the_same_sizes_and_depend_on_the_seed_alone(group, seed):
    temporal = choose_future(group, 0.5)
    shuffled = choose_future(group, 0.5, Split.RANDOM, seed)
    np.testing.assert_array_equal(shuffled, choose_future(group, 0.5, "random", seed))
    for one in np.unique(group):
        assert temporal[group == one].sum() == shuffled[group == one].sum()


def test_random_splits_are_not_temporal():
    group = np.zeros(200, dtype=int)
    assert (choose_future(group, 0.5, Split.RANDOM, 1) != choose_future(group, 0.5)).sum() > 50


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_impossible_shares_are_refused(share):
    with pytest.raises(ConfigError, match="past_fraction"):
        choose_future(np.zeros(3, dtype=int), share)


def test_placed_rows_lie_where_the_timeline_says():
    line = Timeline(history_s=10 * DAY_S, campaign_s=4 * DAY_S, future_s=2 * DAY_S, live_fraction=0.25)
    stream = np.repeat(np.arange(2), 100)
    future = np.tile(np.arange(100) >= 80, 2)
    when = line.place(stream, future)
    past = when[(stream == 1) & ~future]
    assert past.min() > -10 * DAY_S
    assert (past >= 0).mean() == pytest.approx(0.25)
    assert past.max() < 4 * DAY_S
    scored = when[future]
    assert scored.min() > 4 * DAY_S
    assert scored.max() < 6 * DAY_S
    for one in range(2):
        assert np.all(np.diff(when[stream == one]) > 0)


@pytest.mark.parametrize("live", [0.0, 1.0])
def test_all_or_no_training_rows_may_be_live(live):
    when = Timeline(live_fraction=live).place(STREAM, FUTURE)
    assert np.all((when[~FUTURE] >= 0.0) == bool(live))


def test_shifted_clocks_keep_their_spacing_and_gaps():
    line = Timeline(campaign_s=100.0)
    np.testing.assert_array_equal(line.shift(np.array([5.0, 6.0, 90.0]), 90.0), [15.0, 16.0, 100.0])


@pytest.mark.parametrize("bad", [{"history_s": 0.0}, {"campaign_s": -1.0}, {"live_fraction": 1.5}])
def test_impossible_timelines_are_refused(bad):
    with pytest.raises(ConfigError):
        Timeline(**bad)


def test_content_digests_see_values_types_and_shapes():
    a = np.arange(6.0)
    seen = {content_digest(v) for v in (a, a + 1, a.astype(np.float32), a.reshape(2, 3))}
    assert len(seen) == 4
    assert content_digest(a.reshape(2, 3)) == content_digest(np.asfortranarray(a.reshape(2, 3)))
