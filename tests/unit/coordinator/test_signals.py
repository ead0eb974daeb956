"""From views to signals and readings: what a window cannot say stays unknown, and devices are counted where they measured."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedretrain.coordinator.signals import FIGURES, Facts, readings_of, signals_of
from fedretrain.monitoring.kpi import DecayState
from fedretrain.monitoring.locate import DriftPlace, Scope
from fedretrain.monitoring.state import MonitorState, WindowStreaks
from fedretrain.retraining.signals import DriftScope, Signals
from tests.cycle_cases import baseline_of, view_of

if TYPE_CHECKING:
    from fedretrain.monitoring.fleet_view import FleetView

FACTS = Facts(num_labels=321, num_devices=100)


def signals(shown: FleetView, labels: FleetView | None = None, **monitor: object) -> Signals:
    state = replace(MonitorState(1), **monitor)
    return signals_of(shown, shown if labels is None else labels, baseline_of(1), state, FACTS)


def unknown(view: FleetView) -> FleetView:
    return replace(
        view, known_F=np.zeros(2, dtype=bool), psi_F=np.full(2, np.nan), serving=None, personal=None
    )


def test_a_window_that_moved() -> None:
    found = signals(view_of(1, 1, psi=0.7), inputs={86400.0: WindowStreaks(drifted=True)})
    assert (found.psi_max, found.drifted_feature_fraction, found.drift_confirmed) == (0.7, 0.5, True)
    assert found.telemetry_fraction == 0.5
    assert found.num_labels == 321


def test_what_is_not_beyond_its_null_is_no_psi() -> None:
    calm = view_of(1, 1, psi=0.15)
    assert signals(calm).psi_max == 0.0


def test_what_a_window_cannot_say_is_unknown() -> None:
    found = signals(unknown(view_of(1, 1)))
    for name in (
        "psi_max",
        "drifted_feature_fraction",
        "output_psi",
        "low_confidence_fraction",
        "score_drop",
        "score_drop_low",
        "score_drop_high",
        "estimated_score_drop",
        "label_completeness",
        "personal_gain",
        "refused_base_fraction",
    ):
        assert found.value(name) is None, name
    assert not found.drift_confirmed


@pytest.mark.parametrize(
    ("scope", "said"),
    [
        (Scope.DEVICE, DriftScope.DEVICE),
        (Scope.CLUSTER, DriftScope.CLUSTER),
        (Scope.FLEET, DriftScope.FLEET),
        (Scope.NONE, DriftScope.NONE),
        (Scope.UNKNOWN, DriftScope.NONE),
    ],
)
def test_where_drift_lives(scope: Scope, said: DriftScope) -> None:
    assert signals(replace(view_of(1, 1), where=DriftPlace(scope))).drift_scope is said


def test_alerts_that_stand_are_signals() -> None:
    found = signals(view_of(1, 1), decay=DecayState(decayed=True), breached=frozenset({"hits"}))
    assert found.confidence_decayed
    assert found.kpi_breached


def test_the_fall_of_accuracy_has_the_bounds_of_the_labels_window() -> None:
    inputs, labels = view_of(1, 1), view_of(1, 1)
    assert labels.serving is not None
    worse = replace(labels.serving, accuracy=0.8, accuracy_low=0.75, accuracy_high=0.85)
    found = signals(inputs, replace(labels, serving=worse))
    fall = (found.score_drop, found.score_drop_low, found.score_drop_high)
    assert fall == pytest.approx((0.1, 0.05, 0.15))
    assert found.estimated_score_drop == pytest.approx(0.0)


def test_the_fall_of_a_regression_is_a_share_of_its_error() -> None:
    labels = view_of(1, 1)
    assert labels.serving is not None
    worse = replace(labels.serving, rmse=3.0, rmse_low=2.5, rmse_high=4.0)
    regression = replace(baseline_of(1), accuracy=math.nan, rmse=2.0)
    found = signals_of(labels, replace(labels, serving=worse), regression, MonitorState(1), FACTS)
    assert (found.score_drop, found.score_drop_low, found.score_drop_high) == pytest.approx((0.5, 0.25, 1.0))
    blind = replace(regression, rmse=math.nan)
    assert signals_of(labels, labels, blind, MonitorState(1), FACTS).score_drop is None


def test_readings_name_every_figure_and_kpi_with_the_devices_behind_it() -> None:
    view = view_of(1, 1, psi=0.7, hits=0.4, missing=0.3)
    found = {reading.metric: (reading.value, reading.num_devices) for reading in readings_of(view)}
    assert set(found) == {*FIGURES, "hits"}
    assert found["psi_max"] == (0.7, 50)
    assert found["missing_fraction"] == (0.3, 50)
    assert found["accuracy"] == (0.9, 40)  # labelled devices
    assert found["hits"] == (0.4, 50)
    assert found["latency_p99_s"] == (0.003, 50)
    assert found["personal_gap"] == (0.04, 30)
    assert found["personal_distance"] == (0.3, 30)
    assert found["refused_fraction"] == (0.25, 20)  # of the devices that were asked


def test_what_personal_models_gain_is_of_the_labels_window_where_anybody_said_it() -> None:
    short, long = view_of(1, 1), view_of(1, 1)
    assert short.personal is not None
    long = replace(long, personal=replace(short.personal, gap=0.2, refused_fraction=math.nan))
    found = signals(short, long)
    assert (found.personal_gain, found.refused_base_fraction) == (0.2, None)
    found = signals(short, replace(long, personal=None))
    assert (found.personal_gain, found.refused_base_fraction) == (0.04, 0.25)
    silent = replace(short, personal=None)
    assert signals(silent).personal_gain is None


def test_readings_of_a_silent_window_are_no_numbers() -> None:
    silent = replace(unknown(view_of(1, 1)), missing_F=np.full(2, np.nan), violations_F=np.full(2, np.nan))
    found = readings_of(silent)
    assert {reading.metric for reading in found} == {"psi_max", "missing_fraction", "violation_fraction"}
    assert all(math.isnan(reading.value) for reading in found)
