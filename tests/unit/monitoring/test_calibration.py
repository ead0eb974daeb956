"""Accuracy estimated from confidence: right where only inputs change, and blind where labels do."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.core.errors import DataError
from fedretrain.monitoring.calibration import (
    accuracy_estimated_by_difference,
    calibration_error,
    fit_calibration,
    fit_threshold,
    log_loss_steps,
)
from fedretrain.monitoring.predictions import unit_bins
from fedretrain.monitoring.reports import LOG_LOSS_MOST, LOG_LOSS_STEP

MIDDLE = (np.arange(10) + 0.5) / 10


def window(rng, num, hard, overconfident=0.0):
    """Confidence counts and (labelled, correct) of predictions; `hard` shifts confidence down with the accuracy."""
    true = np.clip(rng.beta(6, 1.5 + hard, num), 0.01, 0.99)
    correct = rng.random(num) < true
    told = np.clip(true + overconfident * (1 - true), 0, 1)
    bins = unit_bins(told)
    labelled = np.bincount(bins, minlength=10)
    return labelled, np.stack([labelled, np.bincount(bins, correct, minlength=10)], axis=-1), correct.mean()


@pytest.mark.parametrize("overconfident", [0.0, 0.5])
def test_calibrated_confidence_finds_the_accuracy_of_harder_inputs(overconfident):
    rng = np.random.default_rng(0)
    _, calibration, before = window(rng, 40_000, 0.0, overconfident)
    fitted = fit_calibration(calibration)
    live, _, truth = window(rng, 40_000, 4.0, overconfident)
    estimate = float(fitted.estimated_accuracy(live))
    assert truth < before - 0.15
    assert abs(estimate - truth) < 0.05  # where confidence moves inside a bin: at most half a bin's width
    raw = float((live * MIDDLE).sum() / live.sum())
    if overconfident:
        assert raw > truth + 0.1  # what the calibration is for


def test_the_difference_of_confidences_follows_the_accuracy_of_a_calibrated_model():
    rng = np.random.default_rng(1)
    baseline, _, before = window(rng, 40_000, 0.0)
    live, _, truth = window(rng, 40_000, 2.0)
    assert truth < before - 0.1
    assert accuracy_estimated_by_difference(before, baseline, live) == pytest.approx(truth, abs=0.02)


def test_the_threshold_is_right_where_errors_are_what_is_unsure_and_exaggerates_elsewhere():
    """ATC takes confidence as an order: errors below, right answers above. A calibrated model is no such world."""
    rng = np.random.default_rng(1)

    def ordered(a, b):
        told = rng.beta(a, b, 40_000)
        correct = rng.random(len(told)) < 1 / (1 + np.exp(-(told - 0.55) / 0.02))
        counts = [np.bincount(unit_bins(told), w, minlength=10) for w in (None, correct)]
        return np.stack(counts, axis=-1), correct.mean()

    (baseline, before), (live, truth) = ordered(6, 1.5), ordered(4, 3)
    threshold = fit_threshold(baseline)
    assert threshold.estimated_accuracy(baseline[:, 0]) == pytest.approx(before, abs=1e-9)
    assert truth < before - 0.15
    assert threshold.estimated_accuracy(live[:, 0]) == pytest.approx(truth, abs=0.03)

    _, calibration, _ = window(rng, 40_000, 0.0)
    harder, _, truth = window(rng, 40_000, 2.0)
    assert fit_threshold(calibration).estimated_accuracy(harder) < truth - 0.1


def test_flipped_labels_are_invisible_to_an_estimate():
    """Why it is only an estimate: the same confidences with half the accuracy change nothing."""
    rng = np.random.default_rng(2)
    live, calibration, accuracy = window(rng, 20_000, 0.0)
    fitted = fit_calibration(calibration)
    flipped = calibration.copy()
    flipped[:, 1] //= 2
    assert float(fitted.estimated_accuracy(live)) == pytest.approx(accuracy, abs=0.01)
    assert float(fitted.estimated_accuracy(live, flipped)) == pytest.approx(accuracy / 2, abs=0.01)


def test_labels_replace_their_own_part_of_the_estimate():
    fitted = fit_calibration(np.tile([100, 60], (10, 1)), prior_labels=0.0)
    live = np.full(10, 10)
    counted = np.zeros((10, 2))
    counted[9] = [10, 10]
    assert fitted.estimated_accuracy(live) == pytest.approx(0.6)
    assert fitted.estimated_accuracy(live, counted) == pytest.approx((10 + 90 * 0.6) / 100)
    with pytest.raises(DataError, match="more labels than predictions"):
        fitted.estimated_accuracy(live - 1, counted)


def test_leading_axes_are_windows_of_their_own():
    fitted = fit_calibration(np.tile([10, 5], (10, 1)))
    live = np.stack([np.eye(10)[3], np.eye(10)[9] * 7, np.zeros(10)])
    estimates = fitted.estimated_accuracy(live)
    np.testing.assert_allclose(estimates[:2], fitted.accuracy_B[[3, 9]])
    assert np.isnan(estimates[2])


def test_a_bin_without_labels_believes_the_model_and_one_with_many_the_labels():
    counts = np.zeros((10, 2))
    counts[8] = [1000, 400]
    fitted = fit_calibration(counts)
    assert fitted.accuracy_B[3] == pytest.approx(0.35)
    assert fitted.accuracy_B[8] == pytest.approx(0.4, abs=0.002)
    with pytest.raises(DataError, match="a confidence bin has no label"):
        fit_calibration(counts, prior_labels=0.0)


@pytest.mark.parametrize("num_wrong", [0, 1, 250, 999, 1000])
def test_the_threshold_puts_as_many_under_it_as_were_wrong(num_wrong):
    labelled = np.array([0, 0, 100, 0, 0, 200, 0, 300, 0, 400])
    correct = labelled.copy()
    for b in np.flatnonzero(labelled):  # errors first where confidence is low
        correct[b] -= min(correct[b], max(0, num_wrong - (labelled - correct).sum()))
    threshold = fit_threshold(np.stack([labelled, correct], axis=-1))
    assert threshold.estimated_accuracy(labelled) == pytest.approx(1 - num_wrong / 1000)


def test_calibration_error_is_the_mean_gap():
    counts = np.zeros((10, 2))
    counts[9], counts[5] = [300, 240], [100, 55]
    assert calibration_error(counts) == pytest.approx((300 * 0.15 + 100 * 0.0) / 400)
    assert np.isnan(calibration_error(np.zeros((10, 2))))


@pytest.mark.parametrize("bad", [np.full((10, 2), -1), np.tile([1, 2], (10, 1)), np.ones((10, 3))])
def test_impossible_counts_are_refused(bad):
    with pytest.raises(DataError):
        fit_calibration(bad)


def test_a_threshold_needs_labels():
    with pytest.raises(DataError, match="cannot be fitted without labels"):
        fit_threshold(np.zeros((10, 2)))


@pytest.mark.parametrize("chance", [0.6, 0.8, 0.93])
def test_the_log_score_is_best_where_confidence_is_the_chance_of_being_right(chance):
    right = np.arange(10_000) < 10_000 * chance
    told = np.array([0.5, 0.7, 0.9, 0.97, 0.999, chance])
    loss = [log_loss_steps(np.full(10_000, one), right).mean() * LOG_LOSS_STEP for one in told]
    entropy = -chance * np.log(chance) - (1 - chance) * np.log(1 - chance)
    assert min(loss) == loss[-1] == pytest.approx(entropy, abs=LOG_LOSS_STEP)
    # A model that is sure of all is told by it, at the same accuracy.
    assert loss[4] > 1.3 * loss[-1]


def test_one_certain_error_costs_a_bounded_score():
    assert log_loss_steps([1.0, 0.0, 1.0], [False, True, True]).tolist() == [7074, 7074, 1]
    assert LOG_LOSS_MOST == 7074
