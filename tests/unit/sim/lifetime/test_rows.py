"""Rows of a whole life in the order of time, and what a device's buffer holds, against loops in plain Python."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sim.lifetime.rows import LifeFleet, LifeRows
from tests.lifetime_cases import DAY, HOUR, arm_and_rows, small


@pytest.fixture(scope="module")
def made():
    arm, rows = arm_and_rows(small(5, 3, "labels=late", "labels.loss_fraction=0.2", "availability=diurnal"))
    return arm.world.fleet, rows


def test_every_row_is_there_once_in_the_order_of_time(made):
    fleet, rows = made
    assert (np.diff(rows.event_at) >= 0).all()
    assert len(rows) == sum(len(one) for one in fleet.streams(range(5)))
    for device, stream in enumerate(fleet.streams(range(5))):
        mine = rows.of_device(device)
        np.testing.assert_array_equal(rows.device[mine], device)
        for name in ("x", "y", "event_at", "label_at"):
            np.testing.assert_array_equal(getattr(rows, name)[mine], getattr(stream, name))


def test_slots_share_no_row_and_leave_none_out(made):
    _, rows = made
    edges = np.arange(-16 * DAY, 3 * DAY + 1, HOUR)
    slots = [rows.between(a, b) for a, b in itertools.pairwise(edges)]
    assert [slot.start for slot in slots[1:]] == [slot.stop for slot in slots[:-1]]
    assert sum(slot.stop - slot.start for slot in slots) == len(rows)
    inside = rows.event_at[slots[30]]
    assert edges[30] <= inside.min() <= inside.max() < edges[31]


def test_a_label_arrives_once_and_a_lost_one_never(made):
    _, rows = made
    found = np.concatenate([rows.labelled_between(at, at + HOUR) for at in np.arange(-17, 400) * HOUR * 24])
    arriving = np.isfinite(rows.label_at)
    assert 0.7 < arriving.mean() < 0.9
    early = rows.labelled_between(-1e9, 6 * HOUR)
    assert sorted(early) == np.flatnonzero(rows.label_at <= 6 * HOUR).tolist()
    assert (np.diff(rows.label_at[early]) >= 0).all()
    assert len(set(found.tolist())) == len(found)
    at = float(rows.arrival_at[40])
    assert rows.by_label[40] in rows.labelled_between(at - 1.0, at)
    assert rows.by_label[40] not in rows.labelled_between(at, at + 1.0)


@pytest.mark.parametrize("holdout_every", [0, 1, 5])
@pytest.mark.parametrize("buffer_rows", [7, 10_000])
def test_a_buffer_holds_the_newest_labelled_rows_that_are_not_held_out(made, holdout_every, buffer_rows):
    fleet, rows = made
    life = LifeFleet(fleet, rows, buffer_s=4 * DAY, buffer_rows=buffer_rows, holdout_every=holdout_every)
    for at in (-15.9 * DAY, 0.0, 1.3 * DAY):
        for device, held in enumerate(life.trainable(range(5), at)):
            stream = fleet.streams([device])[0]
            wanted = [
                place
                for place in range(len(stream))
                if at - 4 * DAY < stream.event_at[place] <= at
                and stream.label_at[place] <= at
                and not (holdout_every and place % holdout_every == holdout_every - 1)
            ][-buffer_rows:]
            np.testing.assert_array_equal(held.x, stream.x[wanted])
            np.testing.assert_array_equal(held.y, stream.y[wanted])
    assert life.held_out.sum() == (
        sum(len(s) // holdout_every for s in fleet.streams(range(5))) if holdout_every else 0
    )


def test_a_device_whose_clock_runs_ahead_is_ordered_by_its_own_clock():
    skewed = "drift.specs=[{kind: clock_skew, magnitude: 5400, devices: [1], onset_from_s: 0, onset_to_s: 0}]"
    _arm, rows = arm_and_rows(small(3, 2, skewed))
    assert (np.diff(rows.event_at) >= 0).all()
    shift = rows.event_at[rows.of_device(1)] - arm_and_rows(small(3, 2))[1].event_at[rows.of_device(1)]
    assert shift.max() == 5400.0
    assert isinstance(rows, LifeRows)
