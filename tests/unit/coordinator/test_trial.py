"""What two arms of a trial measured: means by hand, arms as they were ordered, slots of the stage alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedretrain.coordinator.trial import Arms, Span, measure
from fedretrain.monitoring.counting import Predictions, group, late_labels
from fedretrain.monitoring.counting import telemetry as counted
from fedretrain.monitoring.reports import LATENCY_KPI, NUM_CONFIDENCE_BINS, NUM_DELAY_BINS, LabelReports
from tests.unit.monitoring.fleet_cases import SLOT_S, bins_of, store_of, telemetry

DEVICES, CHAMPION, CANDIDATE, ROWS = 6, 1, 2, 20
BINS = bins_of()
EVERYBODY = np.ones(DEVICES, np.bool_)
TREATED = np.array([True, True, False, False, False, False])
METRICS = ("accuracy", "confidence", "alarms", "rmse", "log_loss", "latency", "nothing")
STAGE, BEFORE = Span(10, 12), Span(0, 10)


def _add(store, slot, version, right, *, devices=range(DEVICES), labelled=10, alarms=None):
    """A slot of some devices: `right` of their `labelled` labels, and alarms as they are given."""
    rows = telemetry(BINS, slot, DEVICES, np.random.default_rng(slot), rows=ROWS, version=version, unsure=0.5)
    if alarms is not None:
        rows.kpis["alarms"][:, 0] = alarms
    rows = rows.take(np.array(devices))
    rows = replace(rows, sequence_K=rows.sequence_K + 100 * version)  # a device's rows of a slot are apart
    store.add(rows)
    num, right = len(rows), np.broadcast_to(np.asarray(right), (DEVICES,))[list(devices)]
    confusion = np.zeros((num, 2, 2), np.int32)
    confusion[:, 0, 0], confusion[:, 0, 1] = right, labelled - right
    labels = LabelReports(
        rows.device_K,
        rows.slot_K,
        rows.version_K,
        rows.sequence_K,
        rows.sent_at_K + SLOT_S,
        confusion,
        None,
        np.zeros((num, NUM_CONFIDENCE_BINS, 2), np.int32),
        np.zeros((num, NUM_DELAY_BINS), np.int32),
    )
    assert store.add_labels(labels) == num
    return rows


def _stores():
    return store_of(BINS, DEVICES), store_of(BINS, DEVICES)


def _measured(arms, served, shadowed, stage=STAGE, before=BEFORE, metrics=METRICS):
    found = measure(metrics, arms, served, shadowed, stage, before, CANDIDATE)
    assert [one.metric for one in found] == list(metrics)
    return {one.metric: one for one in found}


def test_arms_of_a_canary_are_those_of_the_order_whatever_they_served():
    served, shadowed = _stores()
    _add(served, 4, CHAMPION, 5)
    _add(served, 10, CANDIDATE, [9, 0, 0, 0, 0, 0], devices=[0])
    _add(served, 10, CHAMPION, [0, 7, 6, 5, 4, 3], devices=[1, 2, 3, 4, 5])  # device 1 refused it
    _add(served, 11, CANDIDATE, [7, 0, 0, 0, 0, 0], devices=[0], labelled=20)
    counted = np.array([True, True, True, True, True, False])
    found = _measured(Arms(TREATED, counted, shadow=False), served, shadowed)["accuracy"]
    assert not found.paired
    assert found.treated.device_K.tolist() == [0, 1]
    assert found.treated.value_K.tolist() == pytest.approx([16 / 30, 7 / 10])
    assert found.treated.weight_K.tolist() == [30, 10]
    assert found.treated.before_K.tolist() == pytest.approx([0.5, 0.5])
    assert found.control.device_K.tolist() == [2, 3, 4]
    assert found.control.value_K.tolist() == pytest.approx([0.6, 0.5, 0.4])
    assert found.control.weight_K.tolist() == [10, 10, 10]


def test_slots_outside_of_the_stage_and_of_the_time_before_prove_nothing():
    served, shadowed = _stores()
    for slot, right in ((9, 1), (10, 8), (11, 6), (12, 1)):
        _add(served, slot, CHAMPION, right)
    arms = Arms(TREATED, EVERYBODY, shadow=False)
    found = _measured(arms, served, shadowed, before=Span(0, 9))["accuracy"]
    assert found.control.value_K.tolist() == pytest.approx([0.7] * 4)
    assert np.isnan(found.control.before_K).all()


def test_in_shadow_the_same_devices_are_scored_with_both():
    served, shadowed = _stores()
    _add(served, 10, CHAMPION, [5, 6, 7, 8, 9, 10])
    _add(shadowed, 10, CANDIDATE, [9, 8, 0, 0, 0, 0], devices=[0, 1])
    _add(shadowed, 10, 9, [1, 1, 0, 0, 0, 0], devices=[0, 1])  # another version's scores
    arms = Arms(np.array([True, True, True, False, False, False]), EVERYBODY, shadow=True)
    found = _measured(arms, served, shadowed)["accuracy"]
    assert found.paired
    assert found.treated.device_K.tolist() == found.control.device_K.tolist() == [0, 1, 2]
    assert found.treated.value_K[:2].tolist() == pytest.approx([0.9, 0.8])
    assert np.isnan(found.treated.value_K[2])
    assert found.treated.weight_K.tolist() == [10, 10, 0]
    assert found.control.value_K.tolist() == pytest.approx([0.5, 0.6, 0.7])


def test_confidence_is_the_mean_of_its_bins_and_a_kpi_is_total_over_weight():
    served, shadowed = _stores()
    rows = _add(served, 10, CHAMPION, 5, alarms=[0, 1, 2, 3, 4, 5])
    _add(served, 11, CHAMPION, 5, alarms=[2, 2, 2, 2, 2, 2])
    second = telemetry(BINS, 11, DEVICES, np.random.default_rng(11), rows=ROWS, unsure=0.5)
    found = _measured(Arms(TREATED, EVERYBODY, shadow=False), served, shadowed)
    unsure = rows.confidence_KB[:, 2] + second.confidence_KB[:, 2]
    confidence = (0.25 * unsure + 0.95 * (2 * ROWS - unsure)) / (2 * ROWS)
    assert found["confidence"].treated.value_K.tolist() == pytest.approx(confidence[:2].tolist())
    assert found["confidence"].control.weight_K.tolist() == [2 * ROWS] * 4
    assert found["alarms"].treated.value_K.tolist() == pytest.approx([1.0, 1.5])
    assert found["alarms"].control.value_K.tolist() == pytest.approx([2.0, 2.5, 3.0, 3.5])


def test_a_metric_that_nobody_measured_is_not_a_number_of_no_weight():
    served, shadowed = _stores()
    _add(served, 10, CHAMPION, 5)
    found = _measured(Arms(TREATED, EVERYBODY, shadow=False), served, shadowed)
    for name in ("rmse", "log_loss", "latency", "nothing"):
        assert np.isnan(found[name].treated.value_K).all()
        assert found[name].treated.weight_K.tolist() == [0, 0]


def test_a_stage_without_a_whole_slot_has_measured_nothing():
    served, shadowed = _stores()
    _add(served, 10, CHAMPION, 5)
    for stage in (Span(10, 10), Span(11, 10)):
        found = _measured(Arms(TREATED, EVERYBODY, shadow=False), served, shadowed, stage=stage)
        assert found["accuracy"].control.weight_K.tolist() == [0] * 4


def test_log_loss_is_the_mean_of_what_was_counted_and_latency_the_kpi_that_devices_report():
    served = store_of(BINS, 2, kpis=(LATENCY_KPI,))
    senders, owner = group(np.array([0, 0, 1]), np.full(3, 10), np.ones(3, np.int64))
    said = Predictions(
        np.zeros(3, np.int64), np.array([0.9, 0.8, 0.9]), np.zeros(3), np.array([0.1, 0.3, 0.5])
    )
    served.add(counted(senders, owner, np.zeros((3, BINS.num_features)), said, BINS, 2, 11 * SLOT_S))
    truth = np.array([0, 1, 0])
    served.add_labels(
        late_labels(senders, owner, truth, said.label_N, said.confidence_N, np.full(3, 60.0), 2, 11 * SLOT_S)
    )
    arms = Arms(np.array([True, False]), np.ones(2, np.bool_), shadow=False)
    loss, latency = measure(("log_loss", "latency"), arms, served, served, STAGE, BEFORE, CANDIDATE)
    assert loss.treated.value_K.tolist() == pytest.approx([-(np.log(0.9) + np.log(0.2)) / 2], abs=1e-3)
    assert loss.control.value_K.tolist() == pytest.approx([-np.log(0.9)], abs=1e-3)
    assert loss.treated.weight_K.tolist() == [2]
    assert latency.treated.value_K.tolist() == pytest.approx([0.2])
    assert latency.control.value_K.tolist() == pytest.approx([0.5])
