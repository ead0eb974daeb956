"""A population's memory is the fold of its stream: events, notes, and who shall run what."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from fedretrain.coordinator.cycle import Withdraw
from fedretrain.core.errors import DataError
from fedretrain.retraining.config import Strategy, StrategyRule
from fedretrain.retraining.decision import Decision
from fedretrain.rollout.assignment import assign, unassigned
from fedretrain.rollout.causes import Phase
from fedretrain.rollout.events import Order, RolloutEvent
from fedretrain.server import memory, refreshes
from fedretrain.server.event_log import Entry
from fedretrain.server.memory import BaselineNote, Memory, Ranks, describe, fold, recall
from fedretrain.training.keep import Verdict
from fedretrain.wire.control import Refreshed
from tests.cycle_cases import DRIFT, POLICY, Drive

RANKS = {"d1": np.linspace(0.005, 0.995, 100), "d2": np.linspace(0.995, 0.005, 100)}
NOTE = {"kind": memory.RANKS, "rollout": 1, "blob": "d1", "seed": 7}


def _fold(records, start=None):
    found = start or Memory()
    for record in records:
        found = fold(POLICY, found, json.loads(json.dumps(record)), RANKS.__getitem__)
    return found


def _records(drive):
    """A drive's events as a shell writes them: ranks are noted before a rollout's first order."""
    records, known = [], set()
    for event in drive.log:
        if isinstance(event.body, RolloutEvent) and event.body.rollout not in known:
            known.add(event.body.rollout)
            records.append({**NOTE, "rollout": len(known)})
        records.append(event.to_record())
    return records


def _same(one, other):
    for name in ("state", "num_records", "orders", "ranks", "look", "baseline", "decision"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.assignments.order == other.assignments.order
    for name in ("rank_D", "version_D", "ever_D", "target_D", "confirmed_D", "failed_D"):
        np.testing.assert_array_equal(getattr(one.assignments, name), getattr(other.assignments, name))


def test_an_empty_stream_is_a_loop_that_has_not_begun():
    found = recall(POLICY, [], RANKS.__getitem__)
    assert (found.state, found.num_records, found.orders, found.ranks, found.decision) == (
        None,
        0,
        0,
        None,
        None,
    )
    assert len(found.assignments.rank_D) == 0


def test_the_state_is_that_of_the_loops_own_events():
    drive = Drive()
    drive.promoted()
    records = _records(drive)
    found = _fold(records)
    assert found.state == drive.state
    assert found.num_records == len(records)


@pytest.mark.parametrize("cut", [1, 5, -3])
def test_a_fold_that_goes_on_is_the_fold_of_the_whole(cut):
    drive = Drive()
    drive.promoted()
    records = _records(drive)
    entries = [Entry(number, 0.0, record, "") for number, record in enumerate(records, 1)]
    whole = recall(POLICY, entries, RANKS.__getitem__)
    _same(_fold(records[cut:], _fold(records[:cut])), whole)


@pytest.mark.parametrize("record", [{}, {"kind": "dance"}, {"kind": "note_dance", "through": 1}])
def test_what_is_no_record_of_the_loop_is_named(record):
    start = _fold(_records(Drive()))
    with pytest.raises(DataError, match="no event"):
        fold(POLICY, start, record, RANKS.__getitem__)


def test_notes_change_what_they_are_about_and_nothing_else():
    start = _fold(_records(Drive()))
    told = _fold([{"kind": memory.ORDERS, "through": 4}], start)
    assert (told.orders, told.num_records) == (4, start.num_records + 1)
    looked = _fold([{"kind": memory.LOOK, "step": 1, "attempt": 2, "look": 3}], told)
    assert (looked.look, looked.orders) == ((1, 2, 3), 4)
    note = BaselineNote("b" * 64, 5.0, None, 96, "w" * 64)
    kept = _fold([note.to_record()], looked)
    assert (kept.baseline, kept.look, kept.orders) == (note, (1, 2, 3), 4)
    assert kept.state == start.state


def test_new_ranks_let_everybody_run_the_champion_and_forget_the_last_look():
    looked = [*_records(Drive()), {"kind": memory.LOOK, "step": 0, "attempt": 0, "look": 1}]
    found = _fold([*looked, {**NOTE, "blob": "d2", "rollout": 3, "seed": 9}])
    assert (found.ranks, found.look) == (Ranks(3, "d2", 9), None)
    np.testing.assert_array_equal(found.assignments.rank_D, RANKS["d2"])
    assert set(found.assignments.version_D.tolist()) == {1}
    assert found.assignments.order is None


def test_orders_of_a_rollout_expose_the_first_in_the_queue():
    drive = Drive()
    version = drive.retrained()
    drive.to(Phase.CANARY)
    found = _fold(_records(drive))
    share = drive.state.rollout.exposure_fraction
    num = round(100 * share)
    assert num > 0
    assert found.assignments.version_D.tolist() == [version] * num + [1] * (100 - num)
    assert found.assignments.order.counter == drive.state.rollout.counter


def test_a_promoted_candidate_is_run_by_everybody():
    drive = Drive()
    version = drive.promoted()
    found = _fold(_records(drive))
    assert set(found.assignments.version_D.tolist()) == {version}
    assert not found.is_exposed


@pytest.mark.parametrize(
    ("phase", "is_exposed"), [(Phase.SHADOW, False), (Phase.CANARY, True), (Phase.RAMP, True)]
)
def test_a_fleet_is_exposed_while_some_serve_what_is_not_champion_yet(phase, is_exposed):
    assert not Memory().is_exposed
    drive = Drive()
    drive.retrained()
    drive.to(phase)
    assert _fold(_records(drive)).is_exposed == is_exposed


def test_who_ran_a_champion_that_is_withdrawn_runs_what_serves_instead():
    drive = Drive()
    before = _fold([*_records(drive), NOTE])
    events = len(drive.log)
    drive.tick(orders=(Withdraw(1, "ada", "wrong units"),))
    after = _fold([event.to_record() for event in drive.log[events:]], before)
    assert set(before.assignments.version_D.tolist()) == {1}
    assert drive.state.champion == after.state.champion == 0
    assert set(after.assignments.version_D.tolist()) == {0}


def test_a_holdback_keeps_what_its_order_says():
    order = Order(1, 2, 0.5, 1, 0.2, 1, 1e9)
    old = assign(unassigned(RANKS["d1"], 1), order, 0.0)
    assert memory._crowned(old, 1, 2) is old
    moved = memory._crowned(old, 1, 3)
    assert (moved.version_D[old.version_D == 1] == 3).all()
    assert (moved.version_D[old.version_D == 2] == 2).all()


def test_the_decision_to_train_is_remembered():
    drive = Drive()
    drive.tick(2.0, signals=DRIFT)
    (decided,) = (event.body for event in drive.log if isinstance(event.body, Decision))
    assert _fold(_records(drive)).decision == decided
    assert drive.state.training is not None


def test_a_refresh_is_remembered_with_what_devices_said_of_it():
    rule = (StrategyRule("here", Strategy.PERSONAL_ONLY),)
    drive = Drive(replace(POLICY, retraining=replace(POLICY.retraining, rules=rule)))
    drive.tick(signals=DRIFT)
    found = _fold(_records(drive))
    assert (found.state.refresh, found.decision) == (1, None)
    (note,) = refreshes.notes(found.refreshes, [Refreshed(4, 1, "", Verdict.KEPT)], drive.now)
    after = _fold([note], found)
    assert (dict(after.refreshes[1].said), after.state) == ({4: Verdict.KEPT}, found.state)
    assert describe(note) == "refreshed refresh 1: 1 kept"
