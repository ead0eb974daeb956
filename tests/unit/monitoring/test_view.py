"""Views of a fleet whose truth is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedretrain.core.clock import DAY_S, HOUR_S
from fedretrain.core.errors import DataError
from fedretrain.monitoring.baseline import Baseline, make_baseline, slots_of
from fedretrain.monitoring.config import DriftRules, MonitoringPolicy, NullKind, PlaceRules, Window
from fedretrain.monitoring.discovery import benjamini_hochberg
from fedretrain.monitoring.divergence import psi
from fedretrain.monitoring.intervals import device_share
from fedretrain.monitoring.labels import accuracy, macro_f1
from fedretrain.monitoring.locate import Scope
from fedretrain.monitoring.null import p_value
from fedretrain.monitoring.ratios import ratio
from fedretrain.monitoring.refusal import Refusal
from fedretrain.monitoring.view import FleetView, ViewVerdict, view
from tests.unit.monitoring.fleet_cases import SLOT_S, bins_of, fill, labels_for, store_of, telemetry

if TYPE_CHECKING:
    from fedretrain.monitoring.store import FleetStore

DEVICES, DAYS = 12, 14
END = 24 * DAYS
BINS = bins_of()
POLICY = MonitoringPolicy()


@pytest.fixture(scope="module")
def healthy() -> FleetStore:
    store = store_of(BINS, DEVICES)
    fill(store, 0, END + 24, np.random.default_rng(0))
    return store


@pytest.fixture(scope="module")
def baseline(healthy: FleetStore) -> Baseline:
    return make_baseline(healthy, 0, END, POLICY, version=1, now=(END + 5) * SLOT_S)


def day_after(rng_seed: int = 1, accuracy: float = 0.9, **options: object) -> FleetStore:
    """A store with nothing but the day after the baseline."""
    store = store_of(BINS, DEVICES)
    fill(store, END, END + 24, np.random.default_rng(rng_seed), accuracy=accuracy, **options)
    return store


def test_a_baseline_is_what_the_slots_say(healthy: FleetStore, baseline: Baseline) -> None:
    window = healthy.window(END, END)
    served = window.served[1]
    assert np.array_equal(baseline.features_FC, window.features_FC)
    assert np.array_equal(baseline.outputs_M, served.outputs_GM.sum(axis=0))
    confusion = served.confusion_GMM.sum(axis=0)
    assert baseline.accuracy == pytest.approx(float(accuracy(confusion)))
    assert baseline.macro_f1 == pytest.approx(float(macro_f1(confusion)))
    assert math.isnan(baseline.rmse)
    assert set(baseline.nulls) == {24, 168}
    assert len(baseline.nulls[24].psi_WF) == END - 24 + 1
    assert baseline.record is not None
    assert baseline.arrival is not None
    assert baseline.arrival.within(np.array([2 * DAY_S]))[0] == pytest.approx(0.5, abs=0.01)
    assert baseline.kpis["alarms"].value == pytest.approx(2.0, abs=0.1)


def test_a_healthy_day_is_unchanged_with_the_p_values_of_its_null(
    healthy: FleetStore, baseline: Baseline
) -> None:
    found = view(healthy, baseline, END + 24, POLICY)
    live = healthy.window(END + 24, 24).features_FC
    assert found.verdict is ViewVerdict.UNCHANGED
    assert np.allclose(found.psi_F, psi(baseline.features_FC, live))
    assert np.allclose(found.p_F, p_value(baseline.nulls[24], found.psi_F))
    assert np.array_equal(found.significant_F, benjamini_hochberg(found.p_F, POLICY.drift.alpha))
    assert found.known_F.all()
    assert not found.shifted_F.any()
    assert found.where.scope is Scope.NONE
    assert (found.num_devices, found.num_rows) == (DEVICES, 24 * DEVICES * 20)
    assert (found.at, found.window_s, found.version) == ((END + 24) * SLOT_S, DAY_S, 1)
    serving = found.serving
    assert serving is not None
    assert (found.accuracy, found.completeness, found.kpis) == (
        serving.accuracy,
        serving.completeness,
        serving.kpis,
    )
    assert serving.accuracy_low < 0.9 < serving.accuracy_high
    assert serving.accuracy_low < serving.accuracy < serving.accuracy_high
    assert serving.completeness == pytest.approx(0.5, abs=0.03)
    assert serving.expected_completeness == pytest.approx(0.5, abs=0.03)
    assert serving.low_confidence_fraction == pytest.approx(0.1, abs=0.02)
    assert serving.output_psi < 0.01
    assert 0 < serving.output_p <= 1
    assert serving.latency_s[0] == serving.latency_s[2] > 0
    assert math.isnan(serving.rmse)


def test_intervals_take_the_device_as_the_unit(healthy: FleetStore, baseline: Baseline) -> None:
    found = view(healthy, baseline, END + 24, POLICY).serving
    assert found is not None
    served = healthy.window(END + 24, 24).served[1]
    expected = device_share(served.correct_D, served.labelled_D, POLICY.accuracy.confidence)
    assert (found.accuracy_low, found.accuracy_high) == (float(expected.low), float(expected.high))
    assert found.kpis["alarms"] == ratio(served.kpis_D2["alarms"], POLICY.kpi_rules.confidence)
    assert found.num_labelled_devices == DEVICES


def test_a_shift_of_one_feature_is_seen_in_that_feature_everywhere(baseline: Baseline) -> None:
    found = view(day_after(shift=lambda x, _: x + np.array([0.0, 1.0, 0.0])), baseline, END + 24, POLICY)
    assert found.verdict is ViewVerdict.SHIFTED
    assert found.shifted_F.tolist() == [False, True, False]
    assert found.where.scope is Scope.FLEET
    assert found.where.features == ("pressure",)
    assert np.all(found.psi_GF[:, 1] > 0.2)
    assert np.all(found.psi_GF[:, [0, 2]] < 0.2)


def test_a_stuck_device_is_located(baseline: Baseline) -> None:
    def stuck(x: np.ndarray, owner: np.ndarray) -> np.ndarray:
        return np.where((owner == 5)[:, None] & np.array([True, False, False]), 0.3, x)

    found = view(day_after(shift=stuck), baseline, END + 24, POLICY)
    assert found.where.scope is Scope.DEVICE
    assert found.where.devices == (5,)
    assert found.verdict is ViewVerdict.UNCHANGED  # of one device in twelve the fleet takes no notice


def test_missing_values_and_violations_are_shares_of_rows(baseline: Baseline) -> None:
    def gaps(x: np.ndarray, _: np.ndarray) -> np.ndarray:
        x[::4, 2] = np.nan
        return x

    found = view(day_after(shift=gaps), baseline, END + 24, POLICY)
    assert found.missing_F.tolist() == pytest.approx([0.0, 0.0, 0.25])
    assert found.shifted_F[2]
    assert found.violations_F.tolist() == [0.0, 0.0, 0.0]


def week_after(baseline: Baseline, days: int = 7, **options: object) -> FleetView:
    store = store_of(BINS, DEVICES)
    fill(store, END, END + 24 * days, np.random.default_rng(2), **options)
    return view(store, baseline, END + 24 * days, POLICY, window_s=7 * DAY_S)


def test_the_pace_of_labels_is_that_of_the_baseline_until_they_come_later_or_fewer(
    baseline: Baseline,
) -> None:
    same = week_after(baseline).pace
    assert same.num_devices == DEVICES
    assert same.p_value > 0.001
    assert abs(same.surplus) < 0.05
    for changed in ({"delay_at": 7}, {"share": 0.2}, {"delay_at": 7, "share": 0.2}):
        slower = week_after(baseline, **changed).pace
        assert slower.p_value < 1e-6, changed
        assert slower.surplus < -0.1, changed
    more = week_after(baseline, share=0.8).pace
    assert more.p_value < 1e-6
    assert more.surplus > 0.1


def test_where_the_pace_of_labels_cannot_be_told_it_is_no_number(
    healthy: FleetStore, baseline: Baseline
) -> None:
    by_the_day = view(healthy, baseline, END + 24, POLICY)
    young = week_after(baseline, days=1)  # no chunk is older than the shortest delay
    unaligned = view(healthy, baseline, END + 1, POLICY, window_s=7 * DAY_S)
    blind = view(healthy, replace(baseline, arrivals_D=None), END, POLICY, window_s=7 * DAY_S)
    for found in (by_the_day, young, unaligned, blind):
        assert math.isnan(found.pace.p_value)
        assert math.isnan(found.pace.surplus)
    assert week_after(baseline, days=2).pace.p_value > 0.001


def assert_says_nothing(found: FleetView) -> None:
    assert found.verdict is ViewVerdict.INCONCLUSIVE
    assert np.isnan(found.psi_F).all()
    assert np.isnan(found.p_F).all()
    assert not found.known_F.any()
    assert not found.shifted_F.any()


def test_silence_is_inconclusive(baseline: Baseline) -> None:
    found = view(store_of(BINS, DEVICES), baseline, END + 24, POLICY)
    assert_says_nothing(found)
    assert found.serving is None
    for name in (
        "output_psi",
        "low_confidence_fraction",
        "accuracy",
        "macro_f1",
        "completeness",
        "estimated_accuracy",
    ):
        assert math.isnan(getattr(found, name))
    assert found.kpis == {}
    assert found.where.scope is Scope.UNKNOWN
    assert np.isnan(found.missing_F).all()
    assert found.num_devices == 0


def test_too_few_rows_are_inconclusive(baseline: Baseline) -> None:
    store = store_of(BINS, DEVICES)
    store.add(telemetry(BINS, END, 1, np.random.default_rng(0), rows=POLICY.drift.min_rows - 1))
    assert_says_nothing(view(store, baseline, END + 24, POLICY))
    store.add(telemetry(BINS, END + 1, 1, np.random.default_rng(0), rows=1))
    assert view(store, baseline, END + 24, POLICY).verdict is not ViewVerdict.INCONCLUSIVE


def test_a_window_that_is_half_forgotten_is_inconclusive(baseline: Baseline) -> None:
    store = store_of(BINS, DEVICES, keep_slots=24)
    fill(store, END - 48, END + 24, np.random.default_rng(0))
    assert_says_nothing(view(store, baseline, END - 12, POLICY))


def test_a_window_without_a_null_is_inconclusive(healthy: FleetStore) -> None:
    short = make_baseline(healthy, 0, 96, POLICY, version=1, now=END * SLOT_S)
    found = view(healthy, short, END, POLICY, window_s=7 * DAY_S)
    assert found.verdict is ViewVerdict.INCONCLUSIVE
    assert np.isnan(found.p_F).all()
    assert np.isfinite(found.psi_F).all()


def test_a_null_too_small_to_reject_is_inconclusive_and_can_be_pooled(healthy: FleetStore) -> None:
    alone = MonitoringPolicy(drift=DriftRules(null=NullKind.PER_FEATURE))
    short = make_baseline(healthy, 0, 24 * 14, alone, version=1, now=END * SLOT_S)
    shifted = store_of(BINS, DEVICES)
    fill(shifted, END, END + 168, np.random.default_rng(3), shift=lambda x, _: x + np.array([1.0, 0.0, 0.0]))
    # 8 windows of a week: no p-value below 1/9, so one feature of three can never pass.
    per_feature = view(shifted, short, END + 168, alone, window_s=7 * DAY_S)
    assert per_feature.verdict is ViewVerdict.INCONCLUSIVE
    assert per_feature.known_F.tolist() == [False, True, True]
    pooled = view(shifted, short, END + 168, POLICY, window_s=7 * DAY_S)
    assert pooled.p_F[0] == pytest.approx(1 / 25)
    assert len(short.nulls[168].psi_WF) == 8


def test_labels_of_another_version_say_nothing_about_the_champion(baseline: Baseline) -> None:
    found = view(day_after(version=2), baseline, END + 24, POLICY)
    assert found.serving is None
    assert found.verdict is ViewVerdict.UNCHANGED  # the inputs are the fleet's, whoever served


def test_a_fallen_accuracy_shows_measured_and_confidence_only_estimated(baseline: Baseline) -> None:
    found = view(day_after(accuracy=0.6), baseline, END + 24, POLICY).serving
    assert found is not None
    assert found.accuracy_high < 0.7
    assert found.accuracy < found.estimated_accuracy < baseline.accuracy + 0.05


def test_a_regression_is_scored_by_its_errors() -> None:
    store, rng = store_of(BINS, DEVICES, classification=False), np.random.default_rng(0)
    for slot in range(96):
        reports = telemetry(BINS, slot, DEVICES, rng)
        labels = labels_for(reports, 0.9, rng)
        number = labels.num_labelled
        store.add(reports)
        squares = 4.0 * rng.chisquare(np.maximum(number, 1)) * (number > 0)
        store.add_labels(
            replace(labels, confusion_KMM=None, error_K2=np.stack([squares, number], axis=1).astype(float))
        )
    made = make_baseline(store, 0, 72, POLICY, version=1, now=100 * SLOT_S)
    assert made.rmse == pytest.approx(2.0, rel=0.03)
    assert math.isnan(made.accuracy)
    found = view(store, made, 96, POLICY).serving
    assert found is not None
    assert found.rmse_low < 2.0 < found.rmse_high
    assert math.isnan(found.accuracy)
    assert math.isnan(found.macro_f1)


def test_refusals_travel_with_the_view(healthy: FleetStore, baseline: Baseline) -> None:
    found = view(healthy, baseline, END, POLICY, refusals={Refusal.DUPLICATE: 3})
    assert found.refusals == {Refusal.DUPLICATE: 3}


def test_stores_of_other_bins_and_empty_baselines_are_refused(baseline: Baseline) -> None:
    with pytest.raises(DataError, match="different bins"):
        view(store_of(bins_of(2), DEVICES), baseline, 24, POLICY)
    with pytest.raises(DataError, match="no device reported"):
        make_baseline(store_of(BINS, DEVICES), 0, 48, POLICY, version=1, now=0.0)


def test_windows_are_configurable() -> None:
    policy = MonitoringPolicy(
        windows=(Window(6 * HOUR_S, 6 * HOUR_S),),
        drift=DriftRules(windows_s=(6 * HOUR_S,)),
        confidence_window_s=6 * HOUR_S,
        kpi_rules=replace(POLICY.kpi_rules, window_s=6 * HOUR_S),
        accuracy=replace(POLICY.accuracy, window_s=6 * HOUR_S),
        place=PlaceRules(window_s=6 * HOUR_S),
    )
    store = store_of(BINS, DEVICES, chunk_slots=6)
    fill(store, 0, 60, np.random.default_rng(0))
    made = make_baseline(store, 0, 48, policy, version=1, now=100 * SLOT_S)
    assert list(made.nulls) == [slots_of(6 * HOUR_S, SLOT_S)] == [6]
    assert len(made.nulls[6].psi_WF) == 8
    found = view(store, made, 54, policy)
    assert found.window_s == 6 * HOUR_S
    assert found.where.num_judged == DEVICES


def test_a_champion_may_have_the_inputs_of_the_one_before_it(healthy: FleetStore, baseline: Baseline) -> None:
    own = make_baseline(healthy, 0, 96, POLICY, version=2, now=END * SLOT_S)
    mixed = own.with_inputs_of(baseline)
    assert mixed.version == 2
    for name in ("features_GFC", "nulls", "record", "arrivals_D"):
        assert getattr(mixed, name) is getattr(baseline, name)
    for name in ("outputs_M", "output_nulls", "confidence_B", "calibration_B2", "arrival", "kpis", "bins"):
        assert getattr(mixed, name) is getattr(own, name)
    found = view(healthy, replace(mixed, version=1), END + 24, POLICY)
    assert np.array_equal(found.p_F, view(healthy, baseline, END + 24, POLICY).p_F)
    with pytest.raises(DataError, match="different bins"):
        own.with_inputs_of(replace(baseline, bins=bins_of(2)))


def test_ratios_over_devices_equal_the_textbook() -> None:
    rng = np.random.default_rng(0)
    pair = np.stack([rng.poisson(5.0, 30), np.ones(30)], axis=1).astype(float)
    found = ratio(pair, 0.95)
    assert found.value == pytest.approx(pair[:, 0].mean())
    half = (
        2.0452296 * pair[:, 0].std(ddof=1) / math.sqrt(30)
    )  # Student's 97.5 % point at 29 degrees of freedom
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half))
    assert ratio(pair[:1], 0.95).low == -math.inf
    assert math.isnan(ratio(np.zeros((3, 2)), 0.95).value)
