"""What a device sends is what it counted; what no rows lead to is refused by the name of the field."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.core.errors import DataError
from fedretrain.validation.answers import MAX_CELLS, from_numbers, num_cells, to_numbers
from fedretrain.validation.config import CriticalSegment
from fedretrain.validation.count import count_rows
from fedretrain.validation.rows import Labelled, Layout, Rows
from fedretrain.validation.statistics import SUMS

SEGMENTS = (CriticalSegment("early", until_at=3.0),)
CLASSES = Layout(3, (2.0, 5.0), 4.0, 4, SEGMENTS)
VALUES = Layout(0, (2.0, 5.0), 4.0, 4, SEGMENTS)


def _counted(layout, size=40, broken=True):
    rng = np.random.default_rng(3)
    classes = layout.num_classes
    label = rng.integers(0, 3, size) if classes else rng.normal(size=size)
    out = rng.dirichlet(np.ones(3), (2, size)) if classes else rng.normal(size=(2, size))
    out = out.astype(np.float32)
    if broken:
        out[0, :3] = np.nan
        out[1, 2:4] = np.nan
    of = np.full(size, 7), np.full(size, 1), rng.random(size) * 5.5, rng.exponential(4, size)
    return count_rows(layout, Rows(Labelled(*of, label), *out))


def _read(layout, numbers, **more):
    asked = {"device": 7, "group": 1, "from_at": 0.0, "until_at": 9.0, **more}
    return from_numbers(layout, numbers, **asked)


@pytest.mark.parametrize("layout", [CLASSES, VALUES])
@pytest.mark.parametrize("broken", [True, False])
def test_what_a_device_counted_is_read_again_and_its_instants_are_those_of_the_slices(layout, broken):
    stats = _counted(layout, broken=broken)
    found = _read(layout, to_numbers(stats))
    for name in ("device_D", "group_D", *SUMS):
        assert np.array_equal(getattr(found, name), getattr(stats, name)), name
    assert found.period_D2.tolist() == [[0.0, 9.0]]  # no row's own instant was told
    assert sum(len(values) for values in to_numbers(stats).values()) == num_cells(layout)


def test_the_period_is_that_of_the_slices_with_rows():
    rng = np.random.default_rng(0)
    out = rng.dirichlet(np.ones(3), (2, 4)).astype(np.float32)
    rows = Labelled(np.zeros(4, int), np.zeros(4, int), np.full(4, 3.0), np.zeros(4), np.array([0, 1, 2, 0]))
    found = _read(CLASSES, to_numbers(count_rows(CLASSES, Rows(rows, *out))))
    assert found.period_D2.tolist() == [[2.0, 5.0]]


def _change(name, place, by):
    def change(numbers):
        numbers[name][place] += by

    return change


def _longer(numbers):
    numbers["paired_DSTM4"].append(0)


def _empty(numbers):
    for values in numbers.values():
        values[:] = [0] * len(values)


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("paired_DSTM4", _longer),
        ("paired_DSTM4", _empty),
        ("paired_DSTM4", _change("paired_DSTM4", 0, -1_000_000)),
        ("paired_DSTM4", _change("paired_DSTM4", 0, 1_000_000)),
        ("paired_DSTM4", _change("paired_DSTM4", 0, 2**63)),
        ("confusion_D2MM", _change("confusion_D2MM", 0, 1)),
        ("confusion_D2MM", _change("confusion_D2MM", 1, 1)),
        ("calibration_D2B3", _change("calibration_D2B3", 1, 100)),
        ("calibration_D2B3", _change("calibration_D2B3", 2, 2**40)),
        ("sound_DST", _change("sound_DST", 0, 30)),
        ("broken_D2", _change("broken_D2", 0, 30)),
        ("loss_DST2", _change("loss_DST2", 0, 2**40)),
        ("segment_DQ4", _change("segment_DQ4", 0, 41)),
        ("segment_loss_DQ2", _change("segment_loss_DQ2", 0, 2**62)),
    ],
)
def test_counts_that_no_rows_lead_to_are_refused_by_field(where, change):
    numbers = to_numbers(_counted(CLASSES))
    change(numbers)
    with pytest.raises(DataError) as caught:
        _read(CLASSES, numbers)
    assert caught.value.where == where


def test_a_regression_has_no_classes_and_no_right_value():
    numbers = to_numbers(_counted(VALUES))
    numbers["calibration_D2B3"][0] = 1
    with pytest.raises(DataError, match="classes of a regression"):
        _read(VALUES, numbers)
    numbers = to_numbers(_counted(VALUES))
    numbers["paired_DSTM4"][0], numbers["paired_DSTM4"][3] = 1, numbers["paired_DSTM4"][3] - 1
    with pytest.raises(DataError, match="right or wrong"):
        _read(VALUES, numbers)


def test_more_rows_than_were_asked_for_are_refused():
    numbers = to_numbers(_counted(CLASSES))
    assert _read(CLASSES, numbers, max_rows=40).num_rows == 40
    with pytest.raises(DataError, match="rows"):
        _read(CLASSES, numbers, max_rows=39)


def test_the_limit_of_cells_lets_a_hundred_classes_through():
    cuts = (1.0, 2.0, 3.0, 4.0)
    assert num_cells(Layout(100, cuts)) <= MAX_CELLS < num_cells(Layout(200, cuts))
