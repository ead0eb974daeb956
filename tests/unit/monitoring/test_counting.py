"""Counting predictions and labels, against counting them one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedretrain.monitoring.bins import fit_bins
from fedretrain.monitoring.counting import Predictions, group, late_labels, telemetry
from fedretrain.monitoring.reports import LOG_LOSS_STEP, delay_bin, latency_bin

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3)).astype(np.float32)
BINS = fit_bins(RNG.normal(size=(500, 3)), ["a", "b", "c"])
CELL = st.tuples(st.integers(0, 4), st.integers(10**6, 10**6 + 3), st.integers(0, 90))


@settings(deadline=None)
@given(st.lists(CELL, min_size=1, max_size=60))
def test_rows_are_those_of_slot_version_and_device(cells):
    device, slot, version = (np.array(column, dtype=np.int64) for column in zip(*cells, strict=True))
    senders, owner = group(device, slot, version)
    rows = list(
        zip(senders.slot_K.tolist(), senders.version_K.tolist(), senders.device_K.tolist(), strict=True)
    )
    assert rows == sorted({(s, v, d) for d, s, v in cells})
    assert [rows[k] for k in owner.tolist()] == [(s, v, d) for d, s, v in cells]


def world():
    device, version = RNG.integers(0, 3, 60), RNG.integers(0, 2, 60)
    senders, owner = group(device, np.full(60, 7), version)
    predictions = Predictions(
        RNG.integers(-1, 4, 60), RNG.random(60), RNG.random(60), 10.0 ** RNG.uniform(-6, 2, 60)
    )
    return senders, owner, predictions


def test_telemetry_counts_each_prediction_once_in_its_row():
    senders, owner, predictions = world()
    made = telemetry(senders, owner, X, predictions, BINS, 4, 99.0)
    for k in range(len(made)):
        mine = (owner == k) & (predictions.label_N >= 0)
        assert made.features_KFC[k].sum(axis=1).tolist() == [(owner == k).sum()] * 3
        for m in range(4):
            assert made.outputs_KM[k, m] == (mine & (predictions.label_N == m)).sum()
        for part, value in (
            (made.confidence_KB, predictions.confidence_N),
            (made.entropy_KB, predictions.entropy_N),
        ):
            assert part[k].tolist() == np.histogram(value[mine], np.linspace(0, 1, 11))[0].tolist()
        assert (
            made.latency_KL[k].tolist()
            == np.bincount(latency_bin(predictions.latency_s_N[mine]), minlength=26).tolist()
        )
    assert (made.sent_at_K == 99.0).all()


def test_the_most_confident_prediction_is_in_the_last_bin():
    senders, owner = group(np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64))
    one = Predictions(np.array([0]), np.array([1.0]), np.array([1.0]), np.array([1.0]))
    made = telemetry(senders, owner, X[:1], one, BINS, 2, 0.0)
    assert made.confidence_KB[0, 9] == made.entropy_KB[0, 9] == 1


def test_labels_count_confusion_calibration_and_delay():
    senders, owner, predictions = world()
    truth, label, delay = RNG.integers(0, 4, 60), np.abs(predictions.label_N), 10.0 ** RNG.uniform(0, 7, 60)
    made = late_labels(senders, owner, truth, label, predictions.confidence_N, delay, 4, 1.0)
    assert made.num_labelled.tolist() == np.bincount(owner).tolist()
    assert made.num_correct.tolist() == np.bincount(owner, weights=truth == label).tolist()
    for n in range(60):
        assert made.confusion_KMM[owner[n], truth[n], label[n]] > 0
    assert made.calibration_KB2.sum(axis=1)[:, 1].tolist() == made.num_correct.tolist()
    assert made.delay_KD.sum(axis=0).tolist() == np.bincount(delay_bin(delay), minlength=13).tolist()
    assert made.error_K2 is None
    share = np.clip(predictions.confidence_N, 0.001, 0.999).astype(np.float64)
    nats = np.bincount(owner, weights=-np.log(np.where(truth == label, share, 1 - share)))
    np.testing.assert_allclose(made.log_loss_K * LOG_LOSS_STEP, nats, atol=60 * LOG_LOSS_STEP / 2)


@pytest.mark.parametrize("split", [1, 20, 59])
def test_counts_of_parts_add_up(split):
    senders, owner, predictions = world()
    num = len(senders.device_K)
    whole = telemetry(senders, owner, X, predictions, BINS, 4, 0.0)
    halves = [slice(None, split), slice(split, None)]
    parts = [
        telemetry(
            senders, owner[h], X[h], Predictions(*(a[h] for a in vars(predictions).values())), BINS, 4, 0.0
        )
        for h in halves
    ]
    assert all(len(part) == num for part in parts)
    assert (sum(part.features_KFC for part in parts) == whole.features_KFC).all()
    assert (sum(part.outputs_KM for part in parts) == whole.outputs_KM).all()
