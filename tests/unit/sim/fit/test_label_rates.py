"""Which classes are labelled less, against truth drawn here: found whatever was predicted, and not found where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.wire.fleet_log import Header, Labelled, Online, Predicted
from sim.fit.delay import fit_delay
from sim.fit.label_rates import fit_label_rates
from sim.fleetlog.log import FleetLog

HOUR, DAY = 3600.0, 86_400.0
CONFUSED = np.array([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.05, 0.25, 0.7]])  # true class -> predicted one
RARE = np.array([0.6, 0.3, 0.1])


def log_of(rates, *, confusion=CONFUSED, delay_s=6 * HOUR, num=100, days=10, per_hour=2, seed=0):
    """Samples of three classes, the last one rare; a label comes with the rate of its class after an exponential delay."""
    draws = np.random.default_rng(seed)
    head = Header(num, (0,) * num, (0,) * num, ("a", "b", "c"), (), 0.0, days * DAY, HOUR, 600.0)
    events = [Online(device, 0.0) for device in range(num)]
    for device in range(num):
        for hour in range(days * 24):
            true = draws.choice(3, per_hour, p=RARE)
            told = np.array([draws.choice(3, p=confusion[one]) for one in true])
            counts = tuple(np.bincount(told, minlength=3).tolist())
            events.append(Predicted(device, (hour + 1) * HOUR, hour * HOUR, per_hour, counts))
            taken_at = (hour + draws.random(per_hour)) * HOUR
            for at, label, predicted in zip(taken_at, true.tolist(), told.tolist(), strict=True):
                arrives = at + draws.exponential(delay_s)
                if draws.random() < rates[label] and arrives < days * DAY:
                    events.append(Labelled(device, arrives, at, label, predicted))
    return FleetLog.of(head, events)


def found_of(log):
    return fit_label_rates(log, fit_delay(log))


def test_classes_that_are_labelled_less_are_found():
    truth = np.array([0.3, 0.9, 0.6])
    found = found_of(log_of(truth))
    # 48,000 samples: a rate of the rarest class rests on about 3,000 labels, mixed up with the others' by the predictions.
    np.testing.assert_allclose(found.rate_M, truth, atol=0.05)
    assert found.differ
    assert ((found.low_M - 0.03 <= truth) & (truth <= found.high_M + 0.03)).all()
    assert found.loss_fraction == pytest.approx(0.1, abs=0.05)
    np.testing.assert_allclose(found.class_rate, truth / 0.9, atol=0.07)


def test_labels_that_have_not_come_yet_are_not_taken_for_lost():
    truth = np.array([0.5, 0.9, 0.9])
    found = found_of(log_of(truth, delay_s=3 * DAY, seed=1))
    np.testing.assert_allclose(found.rate_M, truth, atol=0.08)
    assert found.differ


def test_labels_that_are_lost_alike_have_no_bias():
    found = [found_of(log_of(np.full(3, 0.7), num=40, seed=seed)) for seed in range(2, 6)]
    assert not any(one.differ for one in found)
    for one in found:
        np.testing.assert_allclose(one.rate_M, 0.7, atol=0.15)


def test_predictions_that_tell_nothing_apart_leave_it_unknown():
    blind = np.tile(CONFUSED.mean(axis=0), (3, 1))
    assert found_of(log_of(np.array([0.3, 0.9, 0.6]), confusion=blind, num=20, days=4)) is None


def test_without_predicted_classes_it_is_unknown():
    log = log_of(np.full(3, 0.7), num=10, days=3)
    nothing = FleetLog.of(
        log.header,
        [Predicted(0, HOUR, 0.0, 1), Labelled(0, HOUR, 100.0, 1)],
    )
    assert fit_label_rates(nothing, fit_delay(log)) is None
    assert fit_label_rates(log, None) is None
