"""Rows that must not count are refused by name, counted, and without effect; honest ones all count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedretrain.core.errors import DataError
from fedretrain.monitoring.intake import Intake
from fedretrain.monitoring.refusal import Refusal, refuse
from fedretrain.monitoring.reports import (
    DELAY_EDGES_S,
    DISTANCE_EDGES,
    LATENCY_EDGES_S,
    LOG_LOSS_MOST,
    NUM_DELAY_BINS,
    NUM_DISTANCE_BINS,
    NUM_LATENCY_BINS,
    Reports,
    delay_bin,
    distance_bin,
    join,
    latency_bin,
)
from tests.unit.monitoring.fleet_cases import SLOT_S, bins_of, labels_for, personal_of, store_of, telemetry

BINS, DEVICES = bins_of(), 4
NOW = 3 * SLOT_S


@pytest.fixture
def reports() -> Reports:
    return telemetry(BINS, 1, DEVICES, np.random.default_rng(1))


def said(rows: Reports) -> Reports:
    """The rows with something of personal models."""
    return personal_of(rows, np.full(len(rows), 0.1), np.full(len(rows), 0.2), np.zeros(len(rows)))


def changed(rows: Reports, name: str, row: int, value: object) -> Reports:
    """The rows with one entry of one array replaced."""
    array = getattr(rows, name).copy()
    array[row] = value
    return replace(rows, **{name: array})


def test_latency_and_delay_bins_cover_everything_once() -> None:
    for edges, binner, number in (
        (LATENCY_EDGES_S, latency_bin, NUM_LATENCY_BINS),
        (DELAY_EDGES_S, delay_bin, NUM_DELAY_BINS),
        (DISTANCE_EDGES, distance_bin, NUM_DISTANCE_BINS),
    ):
        assert binner(np.array([0.0, 1e12])).tolist() == [0, number - 1]
        assert binner(np.array(edges)).tolist() == list(range(1, number))
        assert np.all(np.diff(edges) > 0)


def test_join_is_the_inverse_of_take(reports: Reports) -> None:
    parts = [reports.take(np.array([i])) for i in range(DEVICES)]
    whole = join(parts)
    assert whole.features_KFC.tobytes() == reports.features_KFC.tobytes()
    assert whole.kpis["alarms"].tobytes() == reports.kpis["alarms"].tobytes()
    with pytest.raises(DataError, match="different kinds"):
        join([reports, replace(reports, bins="others")])
    with pytest.raises(DataError, match="different kinds"):
        join([said(reports), reports])
    with pytest.raises(DataError, match="no rows"):
        join([])


def test_a_batch_of_unequal_lengths_is_refused(reports: Reports) -> None:
    with pytest.raises(DataError, match="outputs_KM"):
        replace(reports, outputs_KM=reports.outputs_KM[:2])


BAD_TELEMETRY = {
    "another fleet's device": ("device_K", DEVICES, Refusal.UNKNOWN_DEVICE),
    "a negative device": ("device_K", -1, Refusal.UNKNOWN_DEVICE),
    "a version nobody released": ("version_K", 9, Refusal.UNKNOWN_VERSION),
    "sent in the future": ("sent_at_K", NOW + 301.0, Refusal.FUTURE_CLOCK),
    "about a slot to come": ("slot_K", 3, Refusal.FUTURE_CLOCK),
    "no clock": ("sent_at_K", np.nan, Refusal.MALFORMED),
    "a negative sequence": ("sequence_K", -1, Refusal.MALFORMED),
    "a sequence beyond its range": ("sequence_K", 2**32, Refusal.MALFORMED),
    "a negative slot": ("slot_K", -2, Refusal.MALFORMED),
    "more violations than values": ("violations_KF", 21, Refusal.MALFORMED),
    "more confidences than predictions": ("confidence_KB", 21, Refusal.MALFORMED),
    "a negative count of predictions": ("outputs_KM", (-1, 21), Refusal.NEGATIVE_COUNT),
    "a negative violation": ("violations_KF", -1, Refusal.NEGATIVE_COUNT),
}


@pytest.mark.parametrize("case", BAD_TELEMETRY)
def test_bad_telemetry_is_refused_by_name_and_the_rest_counts(case: str, reports: Reports) -> None:
    name, value, reason = BAD_TELEMETRY[case]
    store = store_of(BINS, DEVICES)
    bad = changed(reports, name, 2, value)
    accepted, refused = refuse(bad, store.known([1]), NOW)
    assert refused == {reason: 1}
    assert accepted.sequence_K.tolist() == np.delete(bad.sequence_K, 2).tolist()
    store.add(accepted)
    clean = store_of(BINS, DEVICES)
    clean.add(reports.take(np.array([0, 1, 3])))
    assert store.digest() == clean.digest()


def test_a_negative_cell_is_refused_even_if_the_totals_agree(reports: Reports) -> None:
    cells = reports.features_KFC.copy()
    cells[0, :, 0] -= 30
    cells[0, :, 1] += 30
    _, refused = refuse(replace(reports, features_KFC=cells), store_of(BINS, DEVICES).known([1]), NOW)
    assert refused == {Refusal.NEGATIVE_COUNT: 1}


def test_features_that_count_different_rows_are_malformed(reports: Reports) -> None:
    cells = reports.features_KFC.copy()
    cells[1, 0, 3] += 1
    _, refused = refuse(replace(reports, features_KFC=cells), store_of(BINS, DEVICES).known([1]), NOW)
    assert refused == {Refusal.MALFORMED: 1}


@pytest.mark.parametrize("pair", [(np.nan, 1.0), (np.inf, 1.0), (1.0, -1.0), (2.0**41, 1.0)])
def test_a_kpi_that_is_no_number_is_malformed(pair: tuple[float, float], reports: Reports) -> None:
    kpi = reports.kpis["alarms"].copy()
    kpi[0] = pair
    _, refused = refuse(replace(reports, kpis={"alarms": kpi}), store_of(BINS, DEVICES).known([1]), NOW)
    assert refused == {Refusal.MALFORMED: 1}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("bases_K2", (1, 2), Refusal.MALFORMED),  # refused more than it was asked
        ("bases_K2", (-1, -1), Refusal.NEGATIVE_COUNT),
        ("distance_KP", -1, Refusal.NEGATIVE_COUNT),
        ("gap_K2", (np.nan, 1.0), Refusal.MALFORMED),
        ("gap_K2", (1.5, 1.0), Refusal.MALFORMED),  # of two accuracies
        ("gap_K2", (0.5, 0.5), Refusal.MALFORMED),
        ("gap_K2", (0.5, 0.0), Refusal.MALFORMED),
        ("gap_K2", (-0.5, -1.0), Refusal.MALFORMED),
        ("gap_K2", (0.0, 2.0**41), Refusal.MALFORMED),
    ],
)
def test_what_is_said_of_a_personal_model_must_be_possible(
    name: str, value: object, reason: Refusal, reports: Reports
) -> None:
    rows, known = said(reports), store_of(BINS, DEVICES).known([1])
    assert refuse(rows, known, NOW)[1] == {}
    assert refuse(changed(rows, name, 2, value), known, NOW)[1] == {reason: 1}


def test_a_gap_of_errors_may_be_of_any_size(reports: Reports) -> None:
    known = store_of(BINS, DEVICES, classification=False).known([1])
    assert refuse(changed(said(reports), "gap_K2", 0, (-40.0, 2.0)), known, NOW)[1] == {}


def test_wrong_bins_and_wrong_shapes_refuse_the_batch(reports: Reports) -> None:
    known = store_of(BINS, DEVICES).known([1])
    accepted, refused = refuse(replace(reports, bins="another champion's"), known, NOW)
    assert refused == {Refusal.WRONG_BINS: DEVICES}
    assert len(accepted) == 0
    for wrong in (
        {"features_KFC": reports.features_KFC[:, :2]},
        {"outputs_KM": reports.outputs_KM[:, :1]},
        {"latency_KL": reports.latency_KL[:, :1]},
        {"kpis": {"nobody asked for": reports.kpis["alarms"]}},
        {"distance_KP": reports.latency_KL},
        {"gap_K2": reports.latency_KL.astype(float)},
        {"bases_K2": reports.latency_KL},
    ):
        assert refuse(replace(reports, **wrong), known, NOW)[1] == {Refusal.MALFORMED: DEVICES}


def test_duplicates_count_once_within_a_batch_and_across(reports: Reports) -> None:
    store = store_of(BINS, DEVICES)
    twice = join([reports, reports])
    accepted, refused = refuse(twice, store.known([1]), NOW)
    assert refused == {Refusal.DUPLICATE: DEVICES}
    store.add(accepted)
    before = store.digest()
    assert refuse(reports, store.known([1]), NOW)[1] == {Refusal.DUPLICATE: DEVICES}
    assert store.add(reports) == 0
    assert store.digest() == before


def test_rows_older_than_what_is_kept_are_too_late() -> None:
    store, rng = store_of(BINS, DEVICES, keep_slots=24), np.random.default_rng(0)
    store.add(telemetry(BINS, 100, DEVICES, rng))
    assert store.oldest_slot == 72
    old, kept = telemetry(BINS, 71, DEVICES, rng), telemetry(BINS, 72, DEVICES, rng)
    now = 101 * SLOT_S
    assert refuse(old, store.known([1]), now)[1] == {Refusal.TOO_LATE: DEVICES}
    assert refuse(kept, store.known([1]), now)[1] == {}
    assert store.add(old) == 0


def test_labels_may_not_outnumber_predictions(reports: Reports) -> None:
    store, rng = store_of(BINS, DEVICES), np.random.default_rng(0)
    store.add(reports.take(np.array([0, 1, 2])))
    labels = labels_for(reports, 0.8, rng, share=0.7)  # 14 of 20, and device 3 never predicted
    again = replace(labels, sequence_K=labels.sequence_K + 100)
    accepted, refused = refuse(join([labels, again]), store.known([1]), NOW)
    assert refused == {Refusal.LABEL_WITHOUT_PREDICTION: 5}
    assert accepted.sequence_K.tolist() == [1, 1, 1]
    store.add_labels(accepted)
    assert store.window(2, 2).served[1].labelled_D.tolist() == [*labels.num_labelled[:3].tolist(), 0]
    other_version = replace(
        labels, version_K=np.zeros_like(labels.version_K), sequence_K=labels.sequence_K + 200
    )
    assert refuse(other_version, store.known([0, 1]), NOW)[1] == {Refusal.LABEL_WITHOUT_PREDICTION: DEVICES}


def test_bad_labels_are_malformed(reports: Reports) -> None:
    store = store_of(BINS, DEVICES)
    store.add(reports)
    known, labels = store.known([1]), labels_for(reports, 0.8, np.random.default_rng(0))
    calibration = labels.calibration_KB2.copy()
    calibration[0, 9, 1] = calibration[0, 9, 0] + 1
    assert refuse(replace(labels, calibration_KB2=calibration), known, NOW)[1] == {Refusal.MALFORMED: 1}
    most = LOG_LOSS_MOST * labels.calibration_KB2[:, :, 0].sum(axis=1, dtype=np.int64)
    assert refuse(replace(labels, log_loss_K=most), known, NOW)[1] == {}
    beyond, negative = most.copy(), most.copy()
    beyond[0], negative[0] = most[0] + 1, -1
    assert refuse(replace(labels, log_loss_K=beyond), known, NOW)[1] == {Refusal.MALFORMED: 1}
    assert refuse(replace(labels, log_loss_K=negative), known, NOW)[1] == {Refusal.NEGATIVE_COUNT: 1}
    delay = labels.delay_KD.copy()
    delay[1, 0] = 21
    assert refuse(replace(labels, delay_KD=delay), known, NOW)[1] == {Refusal.MALFORMED: 1}
    delay[1] = 0
    delay[1, 0] = -1
    assert refuse(replace(labels, delay_KD=delay), known, NOW)[1] == {Refusal.NEGATIVE_COUNT: 1}
    squares = replace(labels, confusion_KMM=None, error_K2=np.ones((DEVICES, 2)))
    assert refuse(squares, known, NOW)[1] == {Refusal.MALFORMED: DEVICES}


def test_squared_errors_must_be_numbers_with_whole_counts(reports: Reports) -> None:
    store = store_of(BINS, DEVICES, classification=False)
    store.add(reports)
    labels = labels_for(reports, 0.8, np.random.default_rng(0))
    labels = replace(
        labels,
        confusion_KMM=None,
        error_K2=np.array([[1.5, 3.0], [np.nan, 1.0], [-1.0, 1.0], [1.0, 1.5]]),
        calibration_KB2=np.zeros_like(labels.calibration_KB2),
        delay_KD=np.zeros_like(labels.delay_KD),
    )
    accepted, refused = refuse(labels, store.known([1]), NOW)
    assert refused == {Refusal.MALFORMED: 3}
    assert accepted.device_K.tolist() == [0]
    store.add_labels(accepted)
    assert store.window(2, 2).served[1].error_D2[0].tolist() == [1.5, 3.0]


def test_labels_that_outran_their_telemetry_wait_for_it(reports: Reports) -> None:
    labels = labels_for(reports, 0.8, np.random.default_rng(0))
    ordered, swapped = (
        Intake(store_of(BINS, DEVICES), wait_s=60.0),
        Intake(store_of(BINS, DEVICES), wait_s=60.0),
    )
    ordered.receive(reports, [1], NOW)
    ordered.receive(labels, [1], NOW)
    assert swapped.receive(labels, [1], NOW) == {}
    assert swapped.num_held == DEVICES
    assert swapped.receive(reports, [1], NOW + 30) == {}
    assert swapped.num_held == 0
    assert swapped.store.digest() == ordered.store.digest()
    assert not ordered.refusals
    assert not swapped.refusals


def test_labels_that_waited_in_vain_are_refused_once(reports: Reports) -> None:
    intake = Intake(store_of(BINS, DEVICES), wait_s=60.0)
    before = intake.store.digest()
    intake.receive(labels_for(reports, 0.8, np.random.default_rng(0)), [1], NOW)
    intake.retry([1], NOW + 59)
    assert not intake.refusals
    intake.retry([1], NOW + 60)
    intake.retry([1], NOW + 61)
    assert intake.refusals == {Refusal.LABEL_WITHOUT_PREDICTION: DEVICES}
    assert intake.store.digest() == before


def test_refusals_add_up_over_batches(reports: Reports) -> None:
    intake = Intake(store_of(BINS, DEVICES))
    assert intake.receive(changed(reports, "version_K", 0, 5), [1], NOW) == {Refusal.UNKNOWN_VERSION: 1}
    assert intake.receive(reports, [1], NOW) == {Refusal.DUPLICATE: DEVICES - 1}
    assert intake.receive(replace(reports, bins="x"), [1], NOW) == {Refusal.WRONG_BINS: DEVICES}
    assert intake.refusals == {
        Refusal.UNKNOWN_VERSION: 1,
        Refusal.DUPLICATE: DEVICES - 1,
        Refusal.WRONG_BINS: DEVICES,
    }
    assert intake.store.window(2, 2).reported_D.all()
