"""Counting against plain loops, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.core.errors import DataError
from fedretrain.validation.config import CriticalSegment
from fedretrain.validation.count import LOSS_CAP, count_rows
from fedretrain.validation.rows import Labelled, Layout, Rows
from fedretrain.validation.statistics import STEP, empty, merge
from tests.unit.validation.fleets import DAY_S, labelled

CUTS = (3 * DAY_S, 6 * DAY_S)
SEGMENT = CriticalSegment("night", from_at=2 * DAY_S, until_at=4 * DAY_S, labels=(1, 2), groups=(0, 3))
LAYOUT = Layout(4, CUTS, DAY_S, 5, (SEGMENT,))


def rows_of(seed=0, size=400, devices=6):
    rng = np.random.default_rng(seed)
    given = labelled(rng.integers(0, devices, size) * 7, seed=seed)
    candidate, champion = rng.dirichlet(np.ones(4), (2, size))
    candidate[3], champion[5, 2], candidate[9] = np.nan, np.inf, [0.9, 0.9, 0.1, 0.1]
    return Rows(given, candidate, champion)


def test_every_sum_is_what_a_loop_over_rows_gives():
    rows = rows_of()
    stats = count_rows(LAYOUT, rows)
    given = rows.labelled
    paired = np.zeros_like(stats.paired_DSTM4)
    loss, sound = np.zeros(stats.loss_DST2.shape), np.zeros_like(stats.sound_DST)
    confusion, calibration = np.zeros_like(stats.confusion_D2MM), np.zeros(stats.calibration_D2B3.shape)
    segment, broken = np.zeros_like(stats.segment_DQ4), np.zeros_like(stats.broken_D2)
    for i in range(len(rows)):
        d = list(stats.device_D).index(given.device_N[i])
        s = sum(given.at_N[i] >= cut for cut in CUTS)
        t, m = int(given.delay_s_N[i] > DAY_S), given.label_N[i]
        right, scored = [], []
        for model, out in enumerate((rows.candidate[i], rows.champion[i])):
            usable = bool(np.isfinite(out).all() and abs(out.sum() - 1) < 1e-3)
            scored.append(usable)
            right.append(usable and out.argmax() == m)
            broken[d, model] += not usable
            if usable:
                confusion[d, model, m, out.argmax()] += 1
                calibration[d, model, int(out.max() * 5)] += (1, right[-1], out.max())
        outcome = 2 * (not right[0]) + (not right[1])
        paired[d, s, t, m, outcome] += 1
        if all(scored):
            sound[d, s, t] += 1
            truth = np.arange(4) == m
            loss[d, s, t] += [((out - truth) ** 2).sum() for out in (rows.candidate[i], rows.champion[i])]
        if 2 * DAY_S <= given.at_N[i] < 4 * DAY_S and m in (1, 2) and given.group_N[i] in (0, 3):
            segment[d, 0, outcome] += 1
    np.testing.assert_array_equal(stats.paired_DSTM4, paired)
    np.testing.assert_array_equal(stats.sound_DST, sound)
    np.testing.assert_array_equal(stats.broken_D2, broken)
    np.testing.assert_array_equal(stats.confusion_D2MM, confusion)
    np.testing.assert_array_equal(stats.segment_DQ4, segment)
    np.testing.assert_allclose(stats.loss_DST2 * STEP, loss, atol=400 * STEP)
    np.testing.assert_array_equal(stats.calibration_D2B3[..., :2], calibration[..., :2])
    np.testing.assert_allclose(stats.calibration_D2B3[..., 2] * STEP, calibration[..., 2], atol=400 * STEP)
    assert segment.sum() > 10
    assert broken.tolist() != np.zeros_like(broken).tolist()
    assert stats.num_rows == 400
    for d, device in enumerate(stats.device_D):
        mine = given.at_N[given.device_N == device]
        assert tuple(stats.period_D2[d]) == (mine.min(), mine.max())


def test_a_regression_sums_squared_errors():
    given = labelled(np.repeat([2, 5], 20), regression=True)
    candidate, champion = given.label_N + 0.5, given.label_N - 0.25
    candidate[0], champion[30] = 1e9, np.nan
    layout = Layout(0, CUTS, DAY_S)
    stats = count_rows(layout, Rows(given, candidate, champion[:, None]))
    assert stats.broken_D2.tolist() == [[1, 0], [0, 1]]
    assert LOSS_CAP < (1e9) ** 2
    assert stats.sound_DST.sum() == 38
    assert stats.paired_DSTM4[..., 3].sum() == 40
    np.testing.assert_allclose(
        stats.loss_DST2.sum(axis=(0, 1, 2)) * STEP, [38 * 0.25, 38 * 0.0625], atol=40 * STEP
    )


def test_no_rows_are_no_devices():
    none = np.zeros(0)
    given = Labelled(none.astype(int), none.astype(int), none, none, none.astype(int))
    stats = count_rows(LAYOUT, Rows(given, np.zeros((0, 4)), np.zeros((0, 4))))
    assert stats.digest == empty(LAYOUT).digest
    assert stats.num_devices == 0


def changed(rows, **fields):
    given = rows.labelled
    values = {name: getattr(given, name).copy() for name in given.__dataclass_fields__}
    return Rows(Labelled(**(values | fields)), rows.candidate, rows.champion)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda r: changed(r, label_N=np.full(400, 4)), "none of the 4 classes"),
        (lambda r: changed(r, label_N=np.full(400, -1)), "none of the 4 classes"),
        (lambda r: changed(r, label_N=np.full(400, 1.5)), "none of the 4 classes"),
        (lambda r: changed(r, at_N=np.full(400, np.nan)), "without an instant"),
        (lambda r: changed(r, group_N=np.zeros(3, int)), "group_N has the shape"),
        (lambda r: changed(r, group_N=np.arange(400)), "is in the groups"),
        (lambda r: Rows(r.labelled, r.candidate[:, :3], r.champion), "predictions of the shape"),
        (lambda r: Rows(r.labelled, r.candidate, r.champion[:10]), "predictions of the shape"),
    ],
)
def test_rows_that_cannot_be_counted_are_refused_by_name(make, says):
    with pytest.raises(DataError, match=says):
        count_rows(LAYOUT, make(rows_of()))


def test_other_cells_and_a_device_of_two_groups_are_not_merged():
    stats = count_rows(LAYOUT, rows_of())
    with pytest.raises(DataError, match="different cells"):
        merge(stats, empty(Layout(4, CUTS, 2 * DAY_S, 5, (SEGMENT,))))
    moved = count_rows(LAYOUT, changed(rows_of(), group_N=np.full(400, 9)))
    with pytest.raises(DataError, match="device 0 is in the groups 0 and 9"):
        merge(stats, moved)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Layout(1), "1 classes"),
        (lambda: Layout(2, (3.0, 3.0)), "do not rise"),
        (lambda: Layout(0, segments=(SEGMENT,)), "a regression has none"),
    ],
)
def test_impossible_cells_are_refused(make, says):
    with pytest.raises(DataError, match=says):
        make()
