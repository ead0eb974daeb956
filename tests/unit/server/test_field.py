"""The fleet as a field trial sees it: whole slots of a stage, arms without whoever is kept out, means by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedretrain.coordinator.trial import PRE_PERIOD_S
from fedretrain.coordinator.watching import Clockwork
from fedretrain.core.clock import DAY_S
from fedretrain.monitoring.config import MonitoringPolicy
from fedretrain.rollout.assignment import assign, unassigned
from fedretrain.rollout.causes import Phase
from fedretrain.rollout.events import Order
from fedretrain.server.field import Field
from fedretrain.server.fleet import Device, Standing, Traits
from fedretrain.server.telemetry import Telemetry
from fedretrain.wire.control import ReportShape
from tests import rollout_cases
from tests.unit.monitoring.fleet_cases import SLOT_S, bins_of, telemetry

BINS, DEVICES, CHAMPION, CANDIDATE, ROWS = bins_of(), 5, 3, 7, 20
CLOCKWORK = Clockwork(SLOT_S)
RANKS = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
TYPES = ("pump", "fan", "pump", "fan", "valve")
BEGUN_AT = 20 * DAY_S
"""When the rollout began, slot 480."""


def _field(engine, counted=(True,) * DEVICES):
    devices = [
        Device("p", f"d{i}", i, "", Standing.ACTIVE, Traits(TYPES[i], "north")) for i in range(DEVICES)
    ]
    shape = ReportShape(BINS.num_features, BINS.num_cells, 2)
    counts = Telemetry(engine, "p", MonitoringPolicy(), CLOCKWORK, BINS, shape, devices)
    return Field(counts, CLOCKWORK, devices, np.array(counted))


def _add(store, slot, version, unsure, devices=range(DEVICES)):
    """A slot of some devices; `unsure` of a device's 20 predictions have the confidence 0.25, the others 0.95."""
    rows = telemetry(BINS, slot, DEVICES, np.random.default_rng(slot), rows=ROWS, version=version)
    rows.confidence_KB[:] = 0
    rows.confidence_KB[:, 2] = unsure
    rows.confidence_KB[:, 9] = ROWS - rows.confidence_KB[:, 2]
    rows = replace(rows, sequence_K=rows.sequence_K + 10_000 * version, kpis={})
    store.add(rows.take(np.array(devices)))


def _mean(unsure):
    return (0.25 * unsure + 0.95 * (ROWS - unsure)) / ROWS


def _rollout(phase):
    drive = rollout_cases.Drive(champion=CHAMPION, candidate=CANDIDATE)
    drive.to(phase)
    return replace(drive.state, created_at=BEGUN_AT)


def _assigned(fraction, shadow=0.0):
    order = Order(1, CANDIDATE, fraction, CHAMPION, 0.0, CHAMPION, 1e12, shadow)
    return assign(unassigned(RANKS, CHAMPION), order, BEGUN_AT)


def test_a_slot_that_two_stages_share_is_nobodys(engine):
    field = _field(engine)
    span = field.trial.span(2.0 * SLOT_S, 5.5 * SLOT_S)
    assert (span.first, span.end) == (2, 5)
    span = field.trial.span(2.0 * SLOT_S + 1.0, 5.0 * SLOT_S)
    assert (span.first, span.end) == (3, 5)


def test_in_a_canary_the_exposed_are_held_against_the_others(engine):
    field = _field(engine)
    store = field.telemetry.served.store
    _add(store, 100, CHAMPION, 20)  # before the time before
    _add(store, 470, CHAMPION, [2, 4, 6, 8, 10])
    _add(store, 479, CHAMPION, [4, 4, 6, 8, 10])
    _add(store, 485, CHAMPION, 20)  # the rollout has begun, its canary has not
    _add(store, 490, CANDIDATE, [1, 3, 0, 0, 0], devices=[0, 1])
    _add(store, 490, CHAMPION, [0, 0, 5, 7, 9], devices=[2, 3, 4])
    _add(store, 495, CHAMPION, 20)  # not over
    start_at, now = 489.5 * SLOT_S, 495.5 * SLOT_S
    (found,) = field.measure(["confidence"], _rollout(Phase.CANARY), _assigned(0.4), start_at, now)
    assert not found.paired
    assert found.treated.device_K.tolist() == [0, 1]
    assert found.treated.value_K.tolist() == pytest.approx([_mean(1), _mean(3)])
    assert found.treated.before_K.tolist() == pytest.approx([_mean(3), _mean(4)])
    assert found.control.device_K.tolist() == [2, 3, 4]
    assert found.control.value_K.tolist() == pytest.approx([_mean(5), _mean(7), _mean(9)])
    assert found.control.weight_K.tolist() == [ROWS] * 3
    assert found.control.before_K.tolist() == pytest.approx([_mean(6), _mean(8), _mean(10)])


def test_in_shadow_those_who_score_are_held_against_themselves(engine):
    field = _field(engine)
    _add(field.telemetry.served.store, 490, CHAMPION, [5, 6, 7, 8, 9])
    _add(field.telemetry.shadowed.store, 490, CANDIDATE, [1, 2, 3, 0, 0], devices=[0, 1, 2])
    start_at, now = 489.5 * SLOT_S, 495.5 * SLOT_S
    assigned = _assigned(0.0, shadow=0.6)
    (found,) = field.measure(["confidence"], _rollout(Phase.SHADOW), assigned, start_at, now)
    assert found.paired
    assert found.treated.device_K.tolist() == found.control.device_K.tolist() == [0, 1, 2]
    assert found.treated.value_K.tolist() == pytest.approx([_mean(1), _mean(2), _mean(3)])
    assert found.control.value_K.tolist() == pytest.approx([_mean(5), _mean(6), _mean(7)])


@pytest.mark.parametrize("phase", [Phase.SHADOW, Phase.CANARY])
def test_devices_that_are_kept_out_are_in_no_arm(engine, phase):
    field = _field(engine, counted=(False, True, True, False, True))
    for slot in (490, 491):
        _add(field.telemetry.served.store, slot, CHAMPION, 5)
        _add(field.telemetry.shadowed.store, slot, CANDIDATE, 5)
    assigned = _assigned(0.4, shadow=1.0)
    (found,) = field.measure(["confidence"], _rollout(phase), assigned, 489.5 * SLOT_S, 495.5 * SLOT_S)
    arms = found.treated.device_K.tolist(), found.control.device_K.tolist()
    assert arms == (([1, 2, 4], [1, 2, 4]) if phase is Phase.SHADOW else ([1], [2, 4]))


def test_the_time_before_is_two_weeks(engine):
    field = _field(engine)
    first = round((BEGUN_AT - PRE_PERIOD_S) / SLOT_S)
    _add(field.telemetry.served.store, first - 1, CHAMPION, 20)
    _add(field.telemetry.served.store, first, CHAMPION, 4)
    now = 495.5 * SLOT_S
    (found,) = field.measure(["confidence"], _rollout(Phase.CANARY), _assigned(0.4), BEGUN_AT, now)
    assert found.control.before_K.tolist() == pytest.approx([_mean(4)] * 3)


def test_hours_and_types_are_covered_where_the_candidate_was_scored_since_the_stage_began(engine):
    field = _field(engine, counted=(True, True, True, True, False))
    served, shadowed = field.telemetry.served.store, field.telemetry.shadowed.store
    _add(shadowed, 489, CANDIDATE, 5, devices=[1])  # before the stage
    _add(shadowed, 480 + 26, CANDIDATE, 5, devices=[0, 2, 4])  # two o'clock on the next day
    _add(served, 480 + 27, CHAMPION, 5)  # served, not scored
    _add(shadowed, 480 + 28, 5, 5)  # another candidate
    _add(shadowed, 480 + 29, CANDIDATE, 5, devices=[4])  # who does not count
    _add(shadowed, 480 + 31, CANDIDATE, 5, devices=[0])
    _add(shadowed, 480 + 40, CANDIDATE, 5, devices=[1])  # not over
    found = field.coverage(CANDIDATE, 489.5 * SLOT_S, (480 + 40.5) * SLOT_S)
    fan, pump = 0, 1  # by name; the only valve does not count, and nobody waits for it
    assert found.hours_of_day == {2, 7}
    assert (found.device_types, found.all_types) == ({pump}, {fan, pump})
    assert found.missing_types == (fan,)
